"""Gaussian noise that is the same on every device, and for every batch and order.

Two kinds. ``torch.Generator`` draws one number after another, on the host here: the reference
implementation of DR2 does so, and results that must agree with it need its numbers. :class:`Philox` computes
every number from its place alone, by a counter-based generator (Salmon et al., "Parallel Random
Numbers: As Easy as 1, 2, 3", SC 2011), so a GPU draws its own noise and copies nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from dr2pipe.core.config import stable_seed
from dr2pipe.core.diffusers_types import randn_tensor
from dr2pipe.core.errors import ConfigError

NOISES = ("auto", "reference", "philox")

_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_LOW_WORD = 0xFFFFFFFF

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox_4x32(counter: Words, key: tuple[torch.Tensor, torch.Tensor]) -> Words:
    """Four random words for each counter and key: Philox 4x32 with ten rounds.

    Args:
        counter: four int64 tensors of words 0..2**32-1, of shapes that broadcast.
        key: two of them.

    Returns:
        Four int64 tensors of words 0..2**32-1, in the common shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 keeps the low 64 bits of a product, so both its words are right.
        product0, product2 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = _high_word(product2) ^ c1 ^ k0, _high_word(product0) ^ c3 ^ k1
        c1, c3 = product2 & _LOW_WORD, product0 & _LOW_WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW_WORD, (k1 + _KEY_STEPS[1]) & _LOW_WORD
    return c0, c1, c2, c3


def _high_word(product: torch.Tensor) -> torch.Tensor:
    return (product >> 32) & _LOW_WORD


class Philox:
    """Random numbers of a batch; those of a picture depend on its seed and the draw alone.

    Draws are counted: the first ``normal`` or ``integers`` is draw 0. It takes the place of a
    list of generators in :func:`dr2pipe.diffusion.dr2.remove_degradation`.

    Args:
        seeds: (B,) whole numbers 0..2**63-1, one for each picture; a tensor may be on any device.
        purpose: numbers for different purposes are independent where seeds are the same.
    """

    def __init__(self, seeds: Sequence[int] | torch.Tensor, purpose: str = ""):
        self.seeds = torch.as_tensor(seeds, dtype=torch.int64)
        self.stream = stable_seed("noise", purpose) & _LOW_WORD if purpose else 0
        self.draws = 0

    def normal(self, shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
        """Draw (B,...) float32 of the standard normal distribution, by Box and Muller.

        Args:
            shape: as many pictures as there are seeds come first.
            device: where it is computed. Devices differ in the last bits of a logarithm and
                the like.

        Raises:
            ConfigError: another number of pictures.
        """
        count, size = shape[0], math.prod(shape[1:])
        words = self._words(count, (size + 3) // 4, device)
        radii = [_unit(word).log().mul(-2).sqrt() for word in words[::2]]
        angles = [_unit(word).mul(2 * math.pi) for word in words[1::2]]
        parts = [
            radius * wave(angle)
            for radius, angle in zip(radii, angles, strict=True)
            for wave in (torch.cos, torch.sin)
        ]
        return torch.stack(parts, dim=2).flatten(1)[:, :size].reshape(*shape)

    def integers(self, limit: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Draw (B,) int64 of 0..limit-1, all about equally likely.

        Args:
            limit: 1..2**31.
            device: where it is computed.
        """
        word = self._words(len(self.seeds), 1, device)[0]
        return (word[:, 0] * limit) >> 32

    def _words(self, count: int, blocks: int, device: torch.device | str) -> Words:
        """Four (B,blocks) tensors of the next draw."""
        if count != len(self.seeds):
            raise ConfigError(f"{count} pictures need as many seeds, not {len(self.seeds)}")
        # Copied once, and without a wait where the seeds are in pinned memory.
        self.seeds = self.seeds.to(device, non_blocking=True)
        key = self.seeds[:, None] & _LOW_WORD, self.seeds[:, None] >> 32
        place = torch.arange(blocks, device=device)[None]
        draw, stream = (torch.full_like(place, n) for n in (self.draws, self.stream))
        self.draws += 1
        return philox_4x32((place, draw, stream, torch.zeros_like(place)), key)


def _unit(word: torch.Tensor) -> torch.Tensor:
    """A word as a float32 number in (0,1]."""
    return (word.float() + 0.5) * 2.0**-32


class Antithetic:
    """Noise for a batch and, behind it, its negative for the same batch again.

    Antithetic variates (Hammersley and Morton 1956): what a mean over both owes to the noise cancels,
    as far as it is linear in it.

    Args:
        half: what the noise of one half is drawn from.
    """

    def __init__(self, half: Generators):
        self.half = half

    def normal(self, shape: Sequence[int], device: torch.device | str) -> torch.Tensor:
        """Draw standard normal float32 numbers of the shape (2B,...)."""
        count, *rest = shape
        empty = torch.empty((count // 2, *rest), device=device)
        noise = draw_like(empty, self.half)
        return torch.cat([noise, -noise])


# One torch generator for a batch, or one for each picture, or Philox, or Antithetic of these; None:
# torch's global stream.
Generators = torch.Generator | list[torch.Generator] | Philox | Antithetic | None


def draw_like(picture: torch.Tensor, generator: Generators) -> torch.Tensor:
    """Draw standard normal noise of the shape, type and device of ``picture`` (B,3,H,W).

    Raises:
        ConfigError: another number of generators than pictures.
    """
    if isinstance(generator, list | tuple) and len(generator) != len(picture):
        raise ConfigError(f"{len(picture)} pictures need as many generators, not {len(generator)}")
    if isinstance(generator, Philox | Antithetic):
        return generator.normal(picture.shape, picture.device).to(picture.dtype)
    return randn_tensor(picture.shape, generator, picture.device, picture.dtype)


@contextmanager
def noise_inside(generator: Generators) -> Iterator[torch.Generator | list[torch.Generator] | None]:
    """What to hand to a diffusers scheduler's ``step`` inside the block as its generator.

    Schedulers draw by ``torch.randn`` and take torch's generators alone. With :class:`Philox` and
    :class:`Antithetic`, this function gives their numbers inside the block.
    """
    if not isinstance(generator, Philox | Antithetic):
        yield generator
        return
    with _RandnOf(generator):
        yield None


class _RandnOf(TorchFunctionMode):
    """Inside ``with``, ``torch.randn`` draws from ``source``."""

    def __init__(self, source: Philox | Antithetic):
        super().__init__()
        self.source = source

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """As of every mode."""
        kwargs = kwargs or {}
        if func is torch.randn:
            return self.source.normal(args[0], kwargs["device"]).to(kwargs["dtype"])
        return func(*args, **kwargs)


def resolve_noise(noise: str, device: torch.device | str) -> str:
    """``reference`` or ``philox``: ``noise`` itself, or what ``auto`` is on this device.

    On the CPU that is ``reference``, whose numbers all published results have; elsewhere
    ``philox``, since a device would wait for noise from the host.

    Raises:
        ConfigError: none of ``NOISES``.
    """
    if noise not in NOISES:
        raise ConfigError(f"noise '{noise}': choose {', '.join(NOISES)}")
    if noise != "auto":
        return noise
    return "reference" if torch.device(device).type == "cpu" else "philox"


def noise_of(noise: str, seeds: Sequence[int]) -> list[torch.Generator] | Philox:
    """What the noise of a batch is drawn from, as ``reference`` or ``philox`` says."""
    if noise == "philox":
        return Philox(seeds)
    return [torch.Generator().manual_seed(operator.index(seed)) for seed in seeds]
