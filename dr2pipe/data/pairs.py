"""Training pairs for enhancers: cached coarse faces and fresh degradations by given shares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from dr2pipe.core import images
from dr2pipe.data.coarse import CoarseCache, gaussian_blur
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.variations import draw_colours, draw_move, move
from dr2pipe.degradations import UNSEEN, check_degradation, degrade

_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # BT.601, as the chains'


class PairDataset(Dataset):
    """A clean face and what is left of it, addressed like :class:`FaceDataset`.

    Args:
        faces: the clean faces, at the enhancer's output size.
        input_size: side in pixels at which faces are degraded: that of stage 1.
        degradations: share of each chain, see ``degradations.degrade``.
        coarse: cached coarse faces, see ``scripts/make_coarse.py``.
        coarse_share: share of coarse faces among the inputs, in [0,1].
        coarse_sigma_px: range of the blur k_σ on coarse faces (DR2, "y = k_σ * DR2(x)").
        jitter: strength 0..1 of random shifts, scales and turns that input and clean face share,
            against learning few faces by heart.
        parts: where eyes and mouth are, see ``landmarks.read_parts``; for recipes that need it.
        recolour: strength 0..1 of random changes of brightness, contrast and tint that input
            and clean face share, so that faces of one studio teach nothing about colours.

    Raises:
        ValueError: shares that are negative or sum to nothing, coarse faces missing.
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
        parts: Mapping[str, np.ndarray] | None = None,
    ):
        if not 0 <= coarse_share <= 1:
            raise ValueError(f"coarse_share={coarse_share} must lie in [0, 1]")
        for name, strength in (("recolour", recolour), ("jitter", jitter)):
            if not 0 <= strength <= 1:
                raise ValueError(f"{name}={strength} must lie in [0, 1]")
        if jitter > 0 and parts is not None:
            raise ValueError("jitter moves the faces, but not their landmarks; set it to 0")
        if coarse_share > 0 and coarse is None:
            raise ValueError("coarse_share > 0 needs pairs.coarse, a folder of coarse faces")
        for name in degradations:
            if name in UNSEEN:
                raise ValueError(f"'{name}' is kept for evaluation; training must not see it")
            check_degradation(name)
        shares = np.array(list(degradations.values()), dtype=float)
        if coarse_share < 1 and (not len(shares) or (shares < 0).any() or shares.sum() == 0):
            raise ValueError(f"the shares of the degradations {dict(degradations)} make no mix")
        if coarse_share > 0:
            missing = [name for name in faces.names if not coarse.has(faces.relative(name))]
            if missing:
                raise ValueError(
                    f"{len(missing)} faces have no coarse version, the first is {missing[0]}"
                )
        if parts is not None:
            without = [name for name in faces.names if Path(name).stem not in parts]
            stems = [Path(name).stem for name in faces.names]
            if len(set(stems)) < len(stems):
                raise ValueError("landmarks go by file names, and some faces have the same one")
            if without:
                raise ValueError(
                    f"{len(without)} faces have no landmarks, the first is {without[0]}"
                )
        self.faces, self.input_size, self.parts = faces, input_size, parts
        self.names = list(degradations)
        self.shares = shares / shares.sum() if len(shares) else shares
        self.coarse, self.coarse_share = coarse, coarse_share
        self.coarse_sigma_px, self.recolour, self.jitter = coarse_sigma_px, recolour, jitter

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        """As the faces', with ``input``: (3,S,S) in [-1,1], S = ``input_size``.

        With landmarks also ``parts``: (3,3) float32, for left eye, right eye and mouth the x, y
        and half a side in pixels of the face; the first pixel's centre is at 0.
        """
        item = self.faces[key]
        rng = np.random.default_rng(item["seed"])
        moved = None
        if self.jitter > 0:
            moved = draw_move(self.jitter, np.random.default_rng([item["seed"], 1]))
            clean = images.to_uint8(item["image"][None])[0]
            item["image"] = images.to_tensor(move(clean, moved))[0]
        if rng.random() < self.coarse_share:
            degraded = self.coarse.read(self.faces.relative(item["name"]), rng)
            if item["flipped"]:
                degraded = degraded[:, ::-1]
            if moved is not None:
                degraded = move(degraded, moved)
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
            item["parts"] = self._parts_of(item)
        return item

    def _parts_of(self, item: dict) -> torch.Tensor:
        parts = self.parts[Path(item["name"]).stem] * self.faces.size
        if item["flipped"]:
            parts = parts[[1, 0, 2]]  # the eyes change places
            parts[:, 0] = self.faces.size - parts[:, 0]
        parts[:, :2] -= 0.5
        return torch.from_numpy(parts).float()
