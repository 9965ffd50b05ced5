"""How many copies of the networks the machines of a cluster have place for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dr2pipe.core.errors import ConfigError
from dr2pipe.core.processes import count_cores
from dr2pipe.runs.many import ManyConfig

logger = logging.getLogger(__name__)

Machine = Mapping[str, float]  # its resources, by Ray's names: CPU, GPU


@dataclass(frozen=True)
class ActorPlaces:
    """The actors of a run, and the resources of each.

    Attributes:
        now: actors that have a place.
        most: that there may be, once the cluster has grown.
        gpus: of each, or the part of one.
        cpus: cores of each.
    """

    now: int
    most: int
    gpus: float
    cpus: int


def find_places(config: ManyConfig, machines: Sequence[Machine], *, is_here: bool) -> ActorPlaces:
    """What a run asks for, where its cluster has place for it.

    Args:
        config: the settings.
        machines: of the cluster.
        is_here: there is but this one, and Ray has places for readers and writers beside its cores.

    Raises:
        ConfigError: an actor has no place on any machine, or the actors none on this one.
    """
    cpus, gpus = config.cpus_per_actor, config.gpus_per_actor
    most_gpus = max(machine.get("GPU", 0.0) for machine in machines)
    if gpus is None:
        gpus = 1.0 if most_gpus else 0.0
    if gpus > most_gpus:
        raise ConfigError(
            f"an actor is to have {gpus:g} GPUs, and no machine of the cluster has more than "
            f"{most_gpus:g}: add GPU nodes, or use a smaller --gpus-per-actor, such as 0"
        )
    now = sum(_on(machine, cpus, gpus) for machine in machines)
    one_for_readers = sum(machine.get("CPU", 0.0) for machine in machines) - 1
    now = min(now, int(one_for_readers // cpus))
    if is_here and not gpus and config.actors is None:
        now = max(1, count_cores() // cpus)
    if now < 1:
        raise ConfigError(
            f"no machine of the cluster has place for an actor with {cpus} CPUs and {gpus:g} "
            "GPUs beside a reader: use fewer --cpus-per-actor, or larger nodes"
        )
    most = config.actors or now
    if most > now and is_here:
        raise ConfigError(f"this machine has place for {now} of {most} actors: use fewer --actors")
    if most > now:
        text = "the cluster has place for %d of %d actors now; the others begin when it grows"
        logger.warning(text, now, most)
    return ActorPlaces(min(most, now), most, gpus, cpus)


def _on(machine: Machine, cpus: int, gpus: float) -> int:
    by_cpus = int(machine.get("CPU", 0.0) // cpus)
    has = machine.get("GPU", 0.0)
    if not gpus:
        return by_cpus
    # What is left of two GPUs together is no GPU.
    by_gpus = has // gpus if gpus >= 1 else has * int(1 / gpus + 1e-6)
    return min(by_cpus, int(by_gpus))
