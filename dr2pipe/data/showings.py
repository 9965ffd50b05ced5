"""The order in which training sees its faces, and the seed of each showing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from dr2pipe.core.config import stable_seed

Item = dict[str, Any]


class ShowingDataset(Dataset[Item], ABC):
    """A data set for training, addressed by ``(index, position)``.

    ``index`` selects the face; ``position`` counts the faces seen since training began and
    seeds everything random about this one showing (flip, noise). So a run can be resumed, or
    split over processes, without storing any generator.
    """

    @abstractmethod
    def __len__(self) -> int:
        """The number of faces."""

    @abstractmethod
    def __getitem__(self, key: tuple[int, int]) -> Item:
        """One showing; every item has ``name`` (str) and ``seed`` (int)."""


class ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """Batches of ``(index, position)`` that depend on (seed, step) alone.

    The training order is one endless sequence, each pass over the data freshly shuffled by
    (seed, pass). Optimizer step ``s`` takes the ``s``-th slice of ``global_batch`` entries,
    whatever the number of processes; each process takes its part of the slice. So resuming
    needs only the step number, and 2 processes of 8 see what 1 process of 16 sees.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        batch_size: int,
        accumulation_steps: int,
        rank: int,
        world_size: int,
        first_step: int,
        total_steps: int,
    ):
        self.length, self.seed = length, seed
        self.batch_size, self.accumulation_steps = batch_size, accumulation_steps
        self.rank, self.world_size = rank, world_size
        self.first_step, self.total_steps = first_step, total_steps

    def __len__(self) -> int:
        return (self.total_steps - self.first_step) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_process = self.batch_size * self.accumulation_steps
        shuffled_pass, order = -1, torch.empty(0)
        for step in range(self.first_step, self.total_steps):
            start = (step * self.world_size + self.rank) * per_process
            for micro_batch in range(self.accumulation_steps):
                batch = []
                for offset in range(self.batch_size):
                    position = start + micro_batch * self.batch_size + offset
                    this_pass, place = divmod(position, self.length)
                    if this_pass != shuffled_pass:
                        shuffle = torch.Generator().manual_seed(
                            stable_seed(self.seed, "pass", this_pass)
                        )
                        order = torch.randperm(self.length, generator=shuffle)
                        shuffled_pass = this_pass
                    batch.append((int(order[place]), position))
                yield batch
