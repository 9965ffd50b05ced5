"""Pairs of different faces with the same degradation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.shares import check_share, normalised_shares
from dr2pipe.data.showings import Item, ShowingDataset
from dr2pipe.data.variations import draw_colours, draw_move, move
from dr2pipe.degradations import UNSEEN, check_degradation, degrade


class DegradationPairs(ShowingDataset):
    """Positive pairs for contrastive learning.

    One random degradation is applied to two different faces (Wang et al., Panini-Net, AAAI 2022,
    §3.2). They share its parameters, but not the pixels of its noise: equal noise would reveal a
    pair without any knowledge of the degradation. Each face is mirrored, moved and recoloured by
    itself, so that the light of a studio is not learned as a degradation.

    Args:
        faces: clean faces, two or more.
        degradations: share of the pairs by chain.
        recolour: strength 0..1 of the changes of colour.
        jitter: strength 0..1 of the moves.

    Raises:
        ConfigError: a single face, no chain or an unknown one, or a family of degradations that
            is kept for evaluation.
    """

    def __init__(
        self,
        faces: FaceDataset,
        degradations: Mapping[str, float],
        *,
        recolour: float = 0.0,
        jitter: float = 0.0,
    ):
        if len(faces) < 2:
            raise ConfigError("a pair needs two faces, and there is one")
        shares = shares_of_chains(degradations)
        check_share("recolour", recolour)
        check_share("jitter", jitter)
        self.faces, self.names, self.shares = faces, list(degradations), shares
        self.recolour, self.jitter = recolour, jitter

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """``query`` and ``key`` (3,S,S) in [-1,1], ``name`` of the first face, ``seed``."""
        index, position = key
        item = self.faces[key]
        rng = np.random.default_rng(item["seed"])
        other = (index + 1 + int(rng.integers(len(self.faces) - 1))) % len(self.faces)
        chain = str(rng.choice(self.names, p=self.shares))
        pair = {"name": item["name"], "seed": item["seed"]}
        clean = {"query": item["image"], "key": self.faces[other, position]["image"]}
        for number, (role, image) in enumerate(clean.items()):
            own_rng = np.random.default_rng([item["seed"], 3, number])
            # The data set mirrors by the showing, which both faces of a pair share; mirror again.
            pixels = varied(
                image,
                own_rng,
                flip=self.faces.flip,
                recolour=self.recolour,
                jitter=self.jitter,
            )
            degraded, _ = degrade(
                pixels,
                chain,
                np.random.default_rng([item["seed"], 1]),
                noise_rng=np.random.default_rng([item["seed"], 2, number]),
            )
            pair[role] = images.to_tensor(degraded)[0]
        return pair


def shares_of_chains(degradations: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """The shares (N,) of chains for training, so that they sum to 1.

    Raises:
        ConfigError: no chain or an unknown one, or a family that is kept for evaluation.
    """
    shares = normalised_shares("degradations", degradations)
    unseen = [name for name in degradations if name in UNSEEN]
    if unseen:
        raise ConfigError(f"{', '.join(unseen)}: kept for evaluation, training must not see it")
    for name in degradations:
        check_degradation(name)
    return shares


def varied(
    image: torch.Tensor, rng: np.random.Generator, *, flip: bool, recolour: float, jitter: float
) -> npt.NDArray[np.uint8]:
    """(3,S,S) in [-1,1] as (S,S,3), mirrored, moved and recoloured at random.

    Args:
        image: a clean face.
        rng: of the draws.
        flip: mirror half of the faces.
        recolour: strength 0..1 of the change of colours.
        jitter: strength 0..1 of the move.
    """
    if flip and rng.random() < 0.5:
        image = image.flip(-1)
    if recolour > 0:
        gain, shift = draw_colours(recolour, rng)
        image = (image * gain + shift).clamp(-1, 1)
    pixels = images.to_uint8(image[None])[0]
    return move(pixels, draw_move(jitter, rng)) if jitter > 0 else pixels
