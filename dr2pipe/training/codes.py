"""How a codebook comes into use: k-means on what the encoder makes, and new life for unused codes.

A codebook that starts at random keeps most of its codes unused. VQFR (§3.1) estimates them from
the features of many pictures; Dhariwal et al. ("Jukebox", 2020, §3.1) restart unused ones.
"""

from __future__ import annotations

import torch
from accelerate.utils import gather

from dr2pipe.core.diffusers_types import ConfigMixin, ModelMixin, register_to_config


class CodeStatistics(ModelMixin, ConfigMixin):
    """The newest vectors of the encoder, and how often each code was chosen; equal in all processes.

    It has no weights. It is saved with every checkpoint, so a resumed run goes on as it was.

    Args:
        num_codes: of the codebook.
        code_channels: length K of a code.
        capacity: number of vectors that are kept.
    """

    newest: torch.Tensor
    seen: torch.Tensor
    uses: torch.Tensor
    last_change: torch.Tensor

    @register_to_config
    def __init__(self, num_codes: int, code_channels: int, capacity: int):
        super().__init__()
        self.register_buffer("newest", torch.zeros(capacity, code_channels))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("uses", torch.zeros(num_codes, dtype=torch.int64))
        self.register_buffer("last_change", torch.full((), -1, dtype=torch.int64))

    @torch.no_grad()
    def add(self, vectors: torch.Tensor, indices: torch.Tensor) -> None:
        """Note what the encoder made of a batch.

        Args:
            vectors: (B,h,w,K).
            indices: (B,h,w) int64, the codes that were chosen.
        """
        vectors = gather(vectors.detach().float().flatten(0, -2).contiguous())
        chosen = gather(indices.flatten().contiguous())
        capacity = len(self.newest)
        vectors = vectors[-capacity:]
        places = (self.seen + torch.arange(len(vectors), device=vectors.device)) % capacity
        self.newest[places] = vectors
        self.seen += len(vectors)
        self.uses += torch.bincount(chosen, minlength=len(self.uses))

    @property
    def vectors(self) -> torch.Tensor:
        """(N,K), those kept so far."""
        return self.newest[: int(self.seen)]

    @torch.no_grad()
    def estimate(self, codes: torch.Tensor, generator: torch.Generator) -> None:
        """Set all codes (M,K) to the centres of the vectors."""
        codes.copy_(k_means(self.vectors, len(codes), generator))
        self.uses.zero_()

    @torch.no_grad()
    def revive(self, codes: torch.Tensor, generator: torch.Generator) -> int:
        """Set the codes (M,K) that were not chosen since the last time to vectors drawn at random.

        Returns:
            Their number.
        """
        unused = (self.uses == 0).nonzero()[:, 0]
        codes[unused] = self.vectors[_drawn(len(self.vectors), len(unused), generator)]
        self.uses.zero_()
        return len(unused)


def k_means(
    vectors: torch.Tensor, count: int, generator: torch.Generator, *, rounds: int = 10
) -> torch.Tensor:
    """``count`` centres (M,K) of vectors (N,K) by Lloyd's algorithm.

    Centres that are nearest to no vector are drawn anew.

    Args:
        vectors: one or more.
        count: M.
        generator: on the CPU.
        rounds: number of improvements.
    """
    centres = vectors[_drawn(len(vectors), count, generator)].clone()
    for _ in range(rounds):
        nearest = torch.cdist(vectors, centres).argmin(1)
        sizes = torch.bincount(nearest, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        centres = sums / sizes.clamp(min=1)[:, None]
        empty = (sizes == 0).nonzero()[:, 0]
        centres[empty] = vectors[_drawn(len(vectors), len(empty), generator)]
    return centres


def _drawn(total: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` indices below ``total``; none twice before all were drawn once."""
    rounds = -(-count // total)
    return torch.cat(
        [torch.randperm(total, generator=generator) for _ in range(rounds)]
        or [torch.zeros(0, dtype=torch.int64)]
    )[:count]
