"""Tones of photographs: grey, tinted and faded ones, other light, small moves.

A network that removes degradations must know that any face can stand in any kind of picture. So
every kind of face is shown in grey and in mixed tints, and old portraits never in a tint of
their own alone. Most faces in colour are shown as they are, so that what a network makes by
itself looks like a photograph (augmentations do not leak while unchanged pictures prevail;
Karras et al., NeurIPS 2020, section 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.shares import check_share
from dr2pipe.data.showings import ShowingDataset
from dr2pipe.data.variations import draw_move, move

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

_LUMA = np.array(images.LUMA)
_SHOWN_GROUPS = 10  # in a message
# Colours (of 0..1) that the dark and the light end of a tinted photograph may lean to.
_DARK_TINTS = np.array(
    [[0.16, 0.09, 0.04], [0.05, 0.06, 0.14], [0.12, 0.05, 0.10], [0.06, 0.10, 0.06]]
)
_LIGHT_TINTS = np.array(
    [[1.0, 0.92, 0.76], [0.93, 0.96, 1.0], [1.0, 0.93, 0.93], [0.95, 1.0, 0.90]]
)


@dataclass
class ToneConfig:
    """Shares of faces that are shown changed; each lies in [0,1].

    ``monochrome`` of the colour pictures turn grey or tinted; of pictures of
    ``monochrome_groups`` all do. ``tinted`` of the monochrome ones get a tint, ``faded`` of them
    an old photograph's tone curve. ``relit`` is the share with other light and colours, ``moved``
    the share that is turned, scaled and shifted a little.
    """

    monochrome: float = 0.0
    monochrome_groups: list[str] = field(default_factory=list)
    tinted: float = 0.5
    faded: float = 0.5
    relit: float = 0.0
    moved: float = 0.0
    move_strength: float = 0.25  # of what variations.draw_move allows


class TonedFaces(ShowingDataset):
    """Faces with random tones; some groups are shown more often.

    The group of a face is the first folder of its name: ``historic`` of ``historic/a.jpg``.

    Args:
        faces: the faces as they are.
        tones: the share of each change.
        repeats: {group: times that its faces are shown in one pass}; 1 where not given.

    Raises:
        ConfigError: a share outside [0,1], a group without faces, or repeats below 1.
    """

    def __init__(
        self, faces: FaceDataset, tones: ToneConfig, repeats: Mapping[str, int] | None = None
    ):
        for name in ("monochrome", "tinted", "faded", "relit", "moved", "move_strength"):
            check_share(f"tones.{name}", getattr(tones, name))
        repeats = dict(repeats or {})
        if min(repeats.values(), default=1) < 1:
            raise ConfigError(f"repeats={repeats}: every group must be shown at least once")
        groups = [faces.relative(name).replace("\\", "/").split("/")[0] for name in faces.names]
        unknown = sorted({*repeats, *tones.monochrome_groups} - set(groups))
        if unknown:
            known = sorted(set(groups))
            some = ", ".join(known[:_SHOWN_GROUPS])
            more = f" and {len(known) - _SHOWN_GROUPS} more" if len(known) > _SHOWN_GROUPS else ""
            raise ConfigError(
                f"repeats and tones.monochrome_groups name {', '.join(unknown)}, which is no folder "
                f"in data.path; there are {some}{more}"
            )
        self.faces, self.tones = faces, tones
        self.order = np.repeat(np.arange(len(faces)), [repeats.get(group, 1) for group in groups])
        self.always_monochrome = np.isin(groups, tones.monochrome_groups)

    def __len__(self) -> int:
        """Showings in one pass."""
        return len(self.order)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """An item of ``faces`` with ``image`` in the tones that its seed gives."""
        place, position = key
        index = int(self.order[place])
        item = self.faces[index, position]
        rng = np.random.default_rng([item["seed"], 2])
        pixels = images.to_uint8(item["image"][None])[0]
        toned = draw_tones(pixels, self.tones, rng, bool(self.always_monochrome[index]))
        item["image"] = images.to_tensor(toned)[0]
        return item


def draw_tones(
    pixels: Pixels, tones: ToneConfig, rng: np.random.Generator, monochrome: bool
) -> Pixels:
    """(S,S,3) uint8 RGB as one showing has it; ``monochrome``: grey or tinted for certain."""
    if rng.random() < tones.moved:
        pixels = move(pixels, draw_move(tones.move_strength, rng))
    monochrome |= bool(rng.random() < tones.monochrome)
    relit = rng.random() < tones.relit
    if not (monochrome or relit):
        return pixels
    values = pixels / 255.0
    if relit:
        values = relight(values, rng)
    if monochrome:
        luma = values @ _LUMA
        if rng.random() < tones.faded:
            luma = fade(luma, rng)
        values = tint(luma, rng) if rng.random() < tones.tinted else np.stack([luma] * 3, axis=-1)
    return images.round_to_uint8(255 * values)


def relight(values: Floats, rng: np.random.Generator) -> Floats:
    """(S,S,3) in [0,1] under mildly other light: exposure, gamma, white balance, saturation."""
    gamma = np.exp(rng.uniform(-0.2, 0.2))
    gains = rng.uniform(0.88, 1.1) * rng.uniform(0.95, 1.05, size=3)
    values = np.clip(values**gamma * gains, 0, 1)
    luma = (values @ _LUMA)[..., None]
    saturated: Floats = np.clip(luma + rng.uniform(0.75, 1.2) * (values - luma), 0, 1)
    return saturated


def fade(luma: Floats, rng: np.random.Generator) -> Floats:
    """(S,S) in [0,1] with an old print's tone curve: gamma, lifted blacks, yellowed whites."""
    black, white = rng.uniform(0, 0.25), rng.uniform(0.8, 1)
    faded: Floats = black + (white - black) * luma ** np.exp(rng.uniform(-0.35, 0.35))
    return faded


def tint(luma: Floats, rng: np.random.Generator) -> Floats:
    """(S,S) in [0,1] as RGB (S,S,3) between a dark and a light colour, as toned prints are."""
    strength = rng.uniform(0.1, 1)
    dark, light = (rng.dirichlet([0.5] * len(t)) @ t for t in (_DARK_TINTS, _LIGHT_TINTS))
    dark, light = strength * dark, 1 - strength * (1 - light)
    # The middle leans to the light end's colour more than a straight line would have it.
    bend = luma[..., None] ** (1 + 0.5 * strength * (1 - light))
    tinted: Floats = dark + (light - dark) * bend
    return tinted
