"""Which runs write into an output that several machines can reach: a file with a heartbeat for each."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import Any

from dr2pipe.core.errors import ConfigError, Dr2pipeError, FolderInUseError, describe_error
from dr2pipe.core.storage import Storage

logger = logging.getLogger(__name__)

LEASE = ".lease-"  # then the run, then .json
BEAT_S = 10.0
_SILENT_BEATS = 6  # after which a run is taken for dead
_SETTLE_S = 0.5  # of runs that begin at once, each can see the others' files by then


class Lease:
    """Keeps other runs out of an output, or lets those in that do the same.

    It lasts from ``__enter__`` to ``__exit__``. The clocks of the machines have to agree within
    half a minute.

    Args:
        storage: the output.
        about: what the run does.
        joins: may work beside others that are about the same.
        beat_s: seconds between signs of life.

    Attributes:
        is_first: no other run was at work when this one began.
        is_lost: another run took this one for dead, and has begun.
    """

    def __init__(
        self,
        storage: Storage,
        about: dict[str, Any],
        *,
        joins: bool = False,
        beat_s: float = BEAT_S,
    ):
        self.storage, self.about, self.joins, self.beat_s = storage, about, joins, beat_s
        self.is_first, self.is_lost = True, False
        self._owner = uuid.uuid4().hex
        self._name = f"{LEASE}{self._owner}.json"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lease")

    def __enter__(self) -> Lease:
        """Take the lease.

        Raises:
            FolderInUseError: another run is at work.
            ConfigError: a run to join does something else, or the output cannot be written.
        """
        for other in self.others():
            self._check(other)
        try:
            self._say(is_at_work=False)
            time.sleep(min(_SETTLE_S, self.beat_s))
            # Of those that have just begun, the one with the lowest name is the first.
            before = [o for o in self.others() if o["is_at_work"] or o["owner"] < self._owner]
            for other in before:
                self._check(other)
            self.is_first = not before
            self._say(is_at_work=True)
            self._remove_dead()
        except Dr2pipeError:
            self.storage.remove(self._name)
            raise
        except Exception as error:
            raise ConfigError(
                f"{self.storage.url} cannot be written: {describe_error(error)}"
            ) from error
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the lease back."""
        self._ended.set()
        self._thread.join()
        self.storage.remove(self._name)
        self.storage.remove_partial()

    def others(self) -> list[dict[str, Any]]:
        """What the other runs that are at work say of themselves.

        Raises:
            ConfigError: the output cannot be read.
        """
        return [said for _, said in self._files() if self._is_alive(said)]

    def _check(self, other: dict[str, Any]) -> None:
        """Raise FolderInUseError or ConfigError unless this run may work beside the other one."""
        if not self.joins:
            silent_s = time.time() - other["beat"]
            raise FolderInUseError(
                f"another run ({other.get('host', '?')}) is writing into {self.storage.url}: its "
                f"last sign of life was {max(silent_s, 0):.0f} s ago. Help it with --join; if it "
                f"was killed, start again in {max(self._dead_s - silent_s, 0) + 1:.0f} s"
            )
        theirs = other.get("about") or {}
        different = [name for name in self.about if theirs.get(name) != self.about[name]]
        if different:
            raise ConfigError(
                f"the run to join in {self.storage.url} has other values here: "
                f"{', '.join(different)}"
            )

    def _files(self) -> list[tuple[str, dict[str, Any]]]:
        """Names and contents of the other runs' files; nonsense is left out."""
        found = []
        try:
            for name in self.storage.names():
                if name.startswith(LEASE) and name != self._name:
                    try:
                        said = json.loads(self.storage.read(name))
                    except (FileNotFoundError, ValueError):  # it has just ended
                        continue
                    if isinstance(said, dict) and isinstance(said.get("beat"), int | float):
                        found.append((name, {"is_at_work": True, "owner": ""} | said))
        except Dr2pipeError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{self.storage.url} cannot be read: {describe_error(error)}"
            ) from error
        return found

    def _remove_dead(self) -> None:
        """Remove the files of dead runs, so that one that was only asleep knows it when it wakes."""
        for name, said in self._files():
            if not self._is_alive(said):
                self.storage.remove(name)

    def _is_alive(self, said: dict[str, Any]) -> bool:
        return bool(time.time() - said["beat"] < self._dead_s)

    @property
    def _dead_s(self) -> float:
        return self.beat_s * _SILENT_BEATS

    def _say(self, *, is_at_work: bool) -> None:
        said = {
            "owner": self._owner,
            "host": f"{socket.gethostname()}, process {os.getpid()}",
            "about": self.about,
            "is_at_work": is_at_work,
            "beat": time.time(),
        }
        self.storage.write(self._name, json.dumps(said).encode())

    def _beat(self) -> None:
        while not self._ended.wait(self.beat_s):
            try:
                self.storage.read(self._name)
                self._say(is_at_work=True)
            except FileNotFoundError:
                self.is_lost = True
                return
            except Exception as error:  # a store in trouble: the next beat may come through
                logger.warning("the lease could not be renewed: %s", describe_error(error))
