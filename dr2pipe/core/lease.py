"""One run at a time in an output that several machines can reach: a file with a heartbeat."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

from dr2pipe.core.errors import ConfigError, FolderInUseError, describe_error
from dr2pipe.core.storage import Storage

logger = logging.getLogger(__name__)

LEASE = ".lease.json"
BEAT_S = 10.0
_SILENT_BEATS = 6  # after which a run is taken for dead
_SETTLE_S = 0.5  # two that found a dead one at once: the last to write has it


class Lease:
    """Keeps other runs out of an output, from ``__enter__`` to ``__exit__``.

    The clocks of the machines have to agree within half a minute.

    Args:
        storage: the output.
        beat_s: seconds between signs of life.

    Attributes:
        about: what the run does, for those that would join it; to be set before ``__enter__``.
    """

    def __init__(self, storage: Storage, *, beat_s: float = BEAT_S):
        self.storage, self.beat_s = storage, beat_s
        self.about: dict[str, Any] = {}
        self.owner = uuid.uuid4().hex
        self.is_lost = False  # another run has taken it over
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lease")

    def __enter__(self) -> Lease:
        """Take the lease.

        Raises:
            FolderInUseError: another run has it, and has given a sign of life lately.
            ConfigError: the output cannot be written.
        """
        self.check_free()
        try:
            if self.storage.create(LEASE, self._content()):
                pass
            elif self.living() is None:
                self.storage.write(LEASE, self._content())
            else:
                raise FolderInUseError(f"another run has just begun in {self.storage.url}")
            time.sleep(min(_SETTLE_S, self.beat_s))
            if not self._is_own():
                raise FolderInUseError(f"another run has just begun in {self.storage.url}")
        except FolderInUseError:
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
        if not self.is_lost and self._is_own():
            self.storage.remove(LEASE)

    def check_free(self) -> None:
        """See that no other run has the lease.

        Raises:
            FolderInUseError: another run has it, and has given a sign of life lately.
            ConfigError: the output cannot be read.
        """
        found = self.living()
        if found is not None:
            silent_s = time.time() - found["beat"]
            raise FolderInUseError(
                f"another run ({found.get('host', '?')}) is writing into {self.storage.url}: its "
                f"last sign of life was {max(silent_s, 0):.0f} s ago. Help it with --join; if it "
                f"was killed, start again in {self._dead_s - silent_s:.0f} s"
            )

    def living(self) -> dict[str, Any] | None:
        """What the lease's file says of a run that lives; None where none does."""
        try:
            content = json.loads(self.storage.read(LEASE))
        except FileNotFoundError:
            return None
        except ValueError:
            # Half of one: a disk may show that for a moment, and a kill may leave it.
            content = {"beat": self._changed(), "owner": ""}
        except Exception as error:
            raise ConfigError(
                f"{self.storage.url} cannot be read: {describe_error(error)}"
            ) from error
        if not isinstance(content, dict) or not isinstance(content.get("beat"), int | float):
            return None
        return content if time.time() - content["beat"] < self._dead_s else None

    def _changed(self) -> float:
        """When the lease's file was written; 0 where it is gone. Stores never hold a half of one."""
        try:
            return Path(self.storage.root, LEASE).stat().st_mtime if self.storage.is_local else 0.0
        except FileNotFoundError:
            return 0.0

    @property
    def _dead_s(self) -> float:
        return self.beat_s * _SILENT_BEATS

    def _content(self) -> bytes:
        said = {"owner": self.owner, "host": f"{socket.gethostname()}, process {os.getpid()}"}
        return json.dumps({**said, "about": self.about, "beat": time.time()}).encode()

    def _is_own(self) -> bool:
        try:
            return bool(json.loads(self.storage.read(LEASE))["owner"] == self.owner)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False

    def _beat(self) -> None:
        while not self._ended.wait(self.beat_s):
            try:
                if not self._is_own():
                    self.is_lost = True
                    return
                self.storage.write(LEASE, self._content())
            except Exception as error:  # a store in trouble: the next beat may come through
                logger.warning("the lease could not be renewed: %s", describe_error(error))
