"""Randomness as an argument: no code of this package seeds torch's global streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from dr2pipe.core.config import stable_seed


@contextmanager
def random_stream(generator: torch.Generator, device: torch.device | None = None) -> Iterator[None]:
    """Let torch's layers draw from ``generator`` inside the block.

    Constructors of layers and dropout take no generator: they draw from a global stream. Inside
    the block that stream continues ``generator``. After the block the global streams are as
    they were before it, and ``generator`` has advanced by what was drawn.

    Args:
        generator: on the CPU.
        device: its own global stream is seeded from ``generator``, too; None for the CPU alone.
    """
    accelerators = [] if device is None or device.type == "cpu" else [device]
    kind = accelerators[0].type if accelerators else "cuda"  # not used without a device
    with torch.random.fork_rng(accelerators, device_type=kind):
        for accelerator in accelerators:
            seed = int(torch.randint(2**62, (), generator=generator))
            own = torch.Generator(accelerator).manual_seed(seed)
            torch.get_device_module(accelerator).set_rng_state(own.get_state(), accelerator)
        torch.random.set_rng_state(generator.get_state())
        try:
            yield
        finally:
            generator.set_state(torch.random.get_rng_state())


def generator_of(seeds: Sequence[int], purpose: str) -> torch.Generator:
    """A generator on the CPU for one ``purpose``, from the seeds of one or more showings.

    A showing is one appearance of a face in training; data sets give each its own seed.
    """
    return torch.Generator().manual_seed(stable_seed(purpose, *seeds))
