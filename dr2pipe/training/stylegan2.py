"""What recipes with a StyleGAN2 share: latents, noise, and what lazy regularisation needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import reduce

from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config
from dr2pipe.core.processes import process_state
from dr2pipe.core.seeding import generator_of
from dr2pipe.diffusion.noise import Philox
from dr2pipe.stylegan2 import StyleGAN2Generator

_MEAN_LENGTH_DECAY = 0.01


class RunningStatistics(ModelMixin, ConfigMixin):
    """What the losses remember from step to step; saved with every checkpoint."""

    mean_path_length: torch.Tensor
    augment_probability: torch.Tensor

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_path_length", torch.zeros(()))
        self.register_buffer("augment_probability", torch.zeros(()))

    def updated_mean_path_length(self, lengths: torch.Tensor) -> torch.Tensor:
        """The running mean of path lengths after those of this step, (B,), of all processes."""
        self.mean_path_length.lerp_(mean_over_processes(lengths.mean()), _MEAN_LENGTH_DECAY)
        return self.mean_path_length.clone()


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """The mean of ``value`` over all processes of a run; the same on each."""
    process_state()  # accelerate's functions need it
    mean: torch.Tensor = reduce(value, "mean")
    return mean


def random_latents(
    generator: StyleGAN2Generator, seeds: list[int], mixing_probability: float
) -> torch.Tensor:
    """W+ latents (B,rows,C) of random z with style mixing (Karras et al. 2019, §3.1).

    In a share ``mixing_probability`` of the pictures, the rows from a random one on are those of
    a second random z.
    """
    width, rows, device = generator.config.style_channels, generator.num_latents, generator.device
    first, second = (draw_z(seeds, width, name).to(device) for name in ("z", "z2"))
    w, other = generator.mapping(torch.cat([first, second])).float().chunk(2)
    coins = torch.stack([torch.rand(2, generator=generator_of([s], "mixing")) for s in seeds])
    coins = coins.to(device)
    crossover = 1 + (coins[:, 1] * (rows - 1)).long()
    crossover[coins[:, 0] >= mixing_probability] = rows
    from_first = torch.arange(rows, device=device) < crossover[:, None]
    return torch.where(from_first[:, :, None], w[:, None], other[:, None])


def lazy_adam(network: torch.nn.Module, rate: float, every: int | None) -> torch.optim.Adam:
    """Adam with Karras et al.'s correction for lazy regularisation (2020, §3.1).

    Args:
        network: all its parameters are trained.
        rate: learning rate without the correction.
        every: a regulariser is added in every ``every``-th step; None without one.
    """
    share = 1.0 if every is None else every / (every + 1)
    return torch.optim.Adam(network.parameters(), lr=rate * share, betas=(0.0, 0.99**share))


def draw_z(seeds: Sequence[int], width: int, purpose: str) -> torch.Tensor:
    """Standard normal (B,width), each row by its own seed and ``purpose``."""
    return torch.stack([torch.randn(width, generator=generator_of([s], purpose)) for s in seeds])


def draw_noises(
    seeds: Sequence[int], sizes: Sequence[int], device: torch.device
) -> list[torch.Tensor]:
    """The noise of a StyleGAN2 for a batch, (B,1,R,R) for each R of ``sizes``.

    A picture's noise depends on its own seed, not on the batch or process it is in.
    """
    philox = Philox(seeds, "stylegan2")
    return [philox.normal((len(seeds), 1, r, r), device) for r in sizes]
