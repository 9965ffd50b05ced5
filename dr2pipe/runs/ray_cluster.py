"""The Ray cluster that a run uses: there already, or started here."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from dr2pipe.core.errors import ClusterError, ConfigError, describe_error
from dr2pipe.core.extras import needs_extra
from dr2pipe.core.processes import count_cores
from dr2pipe.runs.many import ManyConfig

PATIENCE_S = 30.0  # before somebody is told what is waited for


@contextmanager
def cluster(config: ManyConfig) -> Iterator[bool]:
    """The cluster of RAY_ADDRESS, the one that this process is in, or a new one on this machine.

    Yields whether it was started here, and is this machine alone.

    Raises:
        ConfigError: no cluster answers at RAY_ADDRESS.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with needs_extra("ray"):
        import ray
        import ray.data
    own = not ray.is_initialized()
    is_here = own and not os.environ.get("RAY_ADDRESS")
    if own and not is_here:
        _check_address(os.environ["RAY_ADDRESS"])
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    elif own:
        # Ray's CPUs are places for processes: readers and writers fit beside busy actors.
        places = count_cores() + (config.actors or count_cores()) * config.cpus_per_actor
        ray.init(
            address="local",  # another cluster may have its head here
            num_cpus=places,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        yield is_here
    finally:
        if own:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Ray itself would try for minutes, without a word."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # auto, local
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"no cluster answers at RAY_ADDRESS={address}: {describe_error(error)}"
        ) from None


@contextmanager
def ray_errors() -> Iterator[None]:
    """What Ray says of a failure becomes one sentence.

    Raises:
        ClusterError: the cluster failed.
    """
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise ClusterError(f"the cluster could not go on: {reason}") from error
