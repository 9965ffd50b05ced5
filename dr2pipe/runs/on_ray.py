"""Blocks of pictures on a Ray cluster.

Ray Data moves blocks through the three steps of :mod:`dr2pipe.runs.many`: read and decode on CPU
workers, restore in a pool of actors, encode and write on CPU workers. It starts workers anew, keeps
what waits within the memory, and asks for more nodes; none of this is written here.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from dr2pipe.core.errors import ConfigError, StorageError, describe_error
from dr2pipe.core.markers import MARKER
from dr2pipe.core.storage import Storage
from dr2pipe.runs import many
from dr2pipe.runs.actor_places import ActorPlaces, find_places
from dr2pipe.runs.many import Block, ManyConfig
from dr2pipe.runs.many_plan import LISTS
from dr2pipe.runs.ray_cluster import PATIENCE_S, ray_errors
from dr2pipe.runs.restore_config import RestoreConfig
from dr2pipe.runs.steps import Steps

logger = logging.getLogger(__name__)

LoadSteps = Callable[[RestoreConfig, str], Steps]


@dataclass
class Pool:
    """The actors of a run.

    Attributes:
        places: how many there are, and what each has.
        is_here: the cluster is this machine alone.
    """

    places: ActorPlaces
    is_here: bool

    @classmethod
    def of(cls, config: ManyConfig, *, is_here: bool) -> Pool:
        """The pool that a run asks for; ``is_here`` as :func:`cluster` says.

        Raises:
            ConfigError: the cluster is too small for it.
        """
        import ray

        cluster: Any = ray  # it has types for a part of its functions only
        machines = [node["Resources"] for node in cluster.nodes() if node["Alive"]]
        return cls(find_places(config, machines, is_here=is_here), is_here)

    @property
    def device(self) -> str:
        """Where an actor's networks are."""
        return "cuda" if self.places.gpus else "cpu"

    def describe(self, config: ManyConfig, load: LoadSteps) -> Steps:
        """The steps as an actor will have them; also sees that everything can be loaded."""
        if self.is_here and not self.places.gpus:  # no other process need be waited for
            return many.described_steps(load(config.restore, self.device))
        import ray

        folder = os.getcwd()

        def loaded() -> bytes | Exception:
            try:
                _work_in(folder)
                return pickle.dumps(many.described_steps(load(config.restore, self.device)))
            except Exception as error:
                return _sendable(error)

        task = ray.remote(num_cpus=self.places.cpus, num_gpus=self.places.gpus)(loaded)
        with ray_errors():
            waiting = task.remote()
            if not ray.wait([waiting], timeout=PATIENCE_S)[0]:
                logger.warning("waiting for a place on the cluster, or for the networks to load")
            found = ray.get(waiting)
        if isinstance(found, Exception):
            raise found
        steps: Steps = pickle.loads(found)
        return steps

    def run(
        self, blocks: list[Block], config: ManyConfig, steps: Steps, load: LoadSteps, *, alone: bool
    ) -> Iterator[Block]:
        """Blocks after their last step, in any order; those of dead workers never come."""
        import ray.data

        context = ray.data.DataContext.get_current()
        context.max_errored_blocks = -1  # their pictures come again in the next round
        context.target_max_block_size = None  # a block stays one
        context.enable_progress_bars = context.print_on_execution_start = False
        context.enable_operator_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        # Ray has no other way yet to say that blocks are not to be tried again.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        cpu_step: dict[str, Any] = {"num_cpus": 1, "max_retries": 0, "batch_size": 1}
        cpu_step["batch_format"] = "pyarrow"
        tables = [_table(block) for block in blocks]
        folder = os.getcwd()
        described = pickle.dumps((config.restore, steps, folder))
        data = (
            ray.data.from_arrow(tables)
            .map_batches(partial(_step, "read", described), **cpu_step)
            .map_batches(
                _Actor,
                fn_constructor_args=(config.restore, self.device, load, folder),
                compute=ray.data.ActorPoolStrategy(
                    min_size=self.places.now,
                    max_size=self.places.most,
                    max_tasks_in_flight_per_actor=1 if alone else 2,
                ),
                num_cpus=self.places.cpus,
                num_gpus=self.places.gpus,
                batch_size=1,  # a table holds one block; Ray Data refuses None on GPUs
                batch_format="pyarrow",
                max_restarts=-1,
                max_task_retries=0,
            )
            .map_batches(partial(_step, "write", described), **cpu_step)
        )
        with ray_errors():
            for table in data.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                yield from _blocks_of(table)


class _Actor:
    """The networks, in a process that restores one block after another."""

    def __init__(self, config: RestoreConfig, device: str, load: LoadSteps, folder: str):
        import ray

        _work_in(folder)
        self.steps = load(config, device)
        self.name = str(ray.get_runtime_context().get_actor_id())  # of a restarted one too

    def __call__(self, table: Any) -> Any:
        return _each(table, self._restored)

    def _restored(self, block: Block) -> Block:
        return dataclasses.replace(many.restore_block(block, self.steps), actor=self.name)


def _work_in(folder: str) -> None:
    """Be in the folder of the driver where there is one, so that relative paths mean the same."""
    if os.path.isdir(folder):
        os.chdir(folder)


def _sendable(error: Exception) -> Exception:
    """The error, or what it says where it does not come through to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {describe_error(error)}")
    return error


def _step(name: str, described: bytes, table: Any) -> Any:
    def step(block: Block) -> Block:
        steps, output = _of_worker(described, name == "read")
        if name == "read":
            return many.read_block(block, steps, output)
        return many.write_block(block, steps, output)

    return _each(table, step)


@lru_cache(maxsize=2)
def _of_worker(described: bytes, reads: bool) -> tuple[Steps, Storage]:
    """What a worker needs for all of its blocks; a reader has the face detector."""
    config, steps, folder = pickle.loads(described)
    _work_in(folder)
    output = Storage(config.output)
    _check_seen(config, output)
    return many.reading_steps(config, steps) if reads else steps, output


def _check_seen(config: RestoreConfig, output: Storage) -> None:
    """See that this machine has the same output and input before it, not folders of its own."""
    here = f"the machine {socket.gethostname()} does not see"
    try:
        output.read(MARKER)  # the driver has just written it
    except FileNotFoundError:
        raise ConfigError(
            f"{here} {config.output}: several machines need a shared disk or a store"
        ) from None
    except Exception as error:
        raise StorageError(f"{config.output}: {describe_error(error)}") from error
    if config.input.lower().endswith(LISTS):  # the driver alone reads it
        return
    source = Storage(config.input)
    if source.is_local and not os.path.exists(source.root):
        raise ConfigError(f"{here} {config.input}: several machines need a shared disk or a store")


def _each(table: Any, step: Callable[[Block], Block]) -> Any:
    def tried(block: Block) -> Block:
        if block.error is not None:
            return block
        try:
            return step(block)
        except Exception as error:  # a bug, or a full disk: the driver raises it
            return Block(block.items, block.shard, error=_sendable(error))

    import pyarrow as pa

    return pa.concat_tables([_table(tried(block)) for block in _blocks_of(table)])


def _table(block: Block) -> Any:
    import pyarrow as pa

    return pa.table({"block": pa.array([pickle.dumps(block)], pa.large_binary())})


def _blocks_of(table: Any) -> Iterator[Block]:
    for data in table["block"]:
        yield pickle.loads(data.as_buffer())
