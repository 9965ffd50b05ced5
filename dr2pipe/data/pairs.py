"""Training pairs for enhancers: cached coarse faces and fresh degradations, by given shares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError
from dr2pipe.data.coarse import CoarseCache, gaussian_blur
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.landmarks import Parts, match_parts
from dr2pipe.data.shares import check_share, normalised_shares
from dr2pipe.data.showings import Item, ShowingDataset
from dr2pipe.data.variations import draw_colours, draw_move, move
from dr2pipe.degradations import UNSEEN, check_degradation, degrade

_LUMA = torch.tensor(images.LUMA).view(3, 1, 1)  # as the chains'


class PairDataset(ShowingDataset):
    """A clean face and a degraded or coarse version of it, addressed like :class:`FaceDataset`.

    Args:
        faces: the clean faces, at the enhancer's output size.
        input_size: side in pixels at which faces are degraded; the size of stage 1.
        degradations: share of each chain, see ``degradations.degrade``.
        coarse: cached coarse faces, see ``dr2pipe make-coarse``.
        coarse_share: share of coarse faces among the inputs, in [0,1].
        coarse_sigma_px: range of σ of the blur of coarse faces (DR2, §3.3: y = k_σ * DR2(x)).
        recolour: strength 0..1 of random changes of brightness, contrast and tint. Input and
            clean face share them, so that the colours of one studio are not learned.
        jitter: strength 0..1 of random shifts, scales and turns, which input and clean face
            share, so that a network cannot memorise few faces.
        parts: places of eyes and mouth, see ``landmarks.read_parts``; for recipes that need them.

    Raises:
        ConfigError: invalid settings, or shares that are negative or all 0.
        Dr2pipeError: faces without a coarse version or without landmarks.
    """

    def __init__(
        self,
        faces: FaceDataset,
        *,
        input_size: int,
        degradations: Mapping[str, float],
        coarse: CoarseCache | None = None,
        coarse_share: float = 0.0,
        coarse_sigma_px: tuple[float, float] = (0.0, 1.0),
        recolour: float = 0.0,
        jitter: float = 0.0,
        parts: Mapping[str, Parts] | None = None,
    ):
        check_share("coarse_share", coarse_share)
        check_share("recolour", recolour)
        if input_size < 1:
            raise ConfigError(f"pairs.input_size={input_size} must be at least 1")
        check_share("jitter", jitter)
        if jitter > 0 and parts is not None:
            raise ConfigError("jitter moves the faces, but not their landmarks; set it to 0")
        if (coarse_share > 0) != (coarse is not None):
            raise ConfigError(
                "pairs.coarse, a folder of coarse faces, and a pairs.coarse_share above 0 go together"
            )
        for name in degradations:
            if name in UNSEEN:
                raise ConfigError(f"'{name}' is kept for evaluation; training must not see it")
            check_degradation(name)
        self.shares = np.zeros(0)  # not used where all inputs are coarse faces
        if coarse_share < 1:
            self.shares = normalised_shares("degradations", degradations)
        if coarse is not None and coarse_share > 0:
            coarse.find(faces)
        self.parts = None if parts is None else match_parts(parts, faces.names)
        self.faces, self.input_size = faces, input_size
        self.names = list(degradations)
        self.coarse, self.coarse_share = coarse, coarse_share
        self.coarse_sigma_px, self.recolour, self.jitter = coarse_sigma_px, recolour, jitter

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """The face's item with ``input`` (3,S,S) in [-1,1], S = ``input_size``.

        With landmarks also ``parts`` (3,3) float32: rows are left eye, right eye and mouth;
        columns are x, y and half a side in pixels of the face. The first pixel's centre is at 0.
        """
        item = self.faces[key]
        rng = np.random.default_rng(item["seed"])
        by = None
        if self.jitter > 0:
            by = draw_move(self.jitter, np.random.default_rng([item["seed"], 1]))
            clean = images.to_uint8(item["image"][None])[0]
            item["image"] = images.to_tensor(move(clean, by))[0]
        if rng.random() < self.coarse_share and self.coarse is not None:
            degraded = self.coarse.read(item["name"], rng)
            if item["flipped"]:
                degraded = degraded[:, ::-1]
            if by is not None:
                degraded = move(degraded, by)
            degraded = gaussian_blur(degraded, rng.uniform(*self.coarse_sigma_px))
        else:
            clean = images.to_uint8(item["image"][None])[0]
            small = images.resize_pixels(clean, (self.input_size, self.input_size))
            name = str(rng.choice(self.names, p=self.shares))
            degraded, parameters = degrade(small, name, rng)
            if parameters.get("grey_target"):
                luma = (item["image"] * _LUMA).sum(dim=0, keepdim=True)
                item["image"] = luma.expand(3, -1, -1)
        side = (self.input_size, self.input_size)
        item["input"] = images.to_tensor(images.resize_pixels(degraded, side))[0]
        if self.recolour > 0:
            gain, shift = draw_colours(self.recolour, rng)
            for name in ("image", "input"):
                item[name] = (item[name] * gain + shift).clamp(-1, 1)
        if self.parts is not None:
            parts = self.parts[item["name"]]
            item["parts"] = _parts_in_pixels(parts, self.faces.size, flipped=item["flipped"])
        return item


def _parts_in_pixels(parts: Parts, size: int, *, flipped: bool) -> torch.Tensor:
    """(3,3) shares of the face's side to pixels; the first pixel's centre is at 0."""
    parts = parts * size
    if flipped:
        parts = parts[[1, 0, 2]]  # the eyes change places
        parts[:, 0] = size - parts[:, 0]
    parts[:, :2] -= 0.5
    return torch.from_numpy(parts).float()
