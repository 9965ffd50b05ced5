"""The metrics by name: what each number means, and what computing it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dr2pipe.core.errors import ConfigError
from dr2pipe.features import dlib_identity
from dr2pipe.features.alexnet import FILE as ALEXNET_FILE
from dr2pipe.features.arcface import FILE as ARCFACE_FILE
from dr2pipe.features.lpips import BACKBONES
from dr2pipe.features.lpips import carried_file as carried_lpips
from dr2pipe.features.vgg import FILES as VGG_FILES
from dr2pipe.metrics import faces, reference, sets
from dr2pipe.metrics.niqe import load_pristine, niqe
from dr2pipe.metrics.reference import check_mask, ms_ssim, psnr, psnr_luma, ssim

# (restored, original), both (B,3,H,W) RGB in [-1,1], and for some metrics a mask (B,1,H,W), to (B,).
Measure = Callable[..., torch.Tensor]

# The names of `metric_files`, and where each file comes from.
FILES = {
    "vgg16": f"torchvision's {VGG_FILES['vgg16']}",
    "lpips": "LPIPS's linear weights vgg.pth, version 0.1, from the package lpips",
    "alexnet": f"torchvision's {ALEXNET_FILE}",
    "lpips_alex": "LPIPS's linear weights alex.pth, version 0.1, from the package lpips",
    "arcface": f"GFP-GAN's {ARCFACE_FILE}: dr2pipe fetch arcface_resnet18",
    "niqe": "an .npz by 'dr2pipe fit-niqe', or the authors' modelparameters.mat",
    "landmarks": "your own csv of points that a detector found, see metrics/faces.py",
    "inception": "torch-fidelity's weights-inception-2015-12-05-6726825d.pth",
}


@dataclass(frozen=True)
class Metric:
    """A measure of restored faces.

    Attributes:
        unit: of its values; empty for none.
        better: "higher" or "lower".
        decimals: number of decimals worth printing.
        range: of its values, in words.
        load: takes the paths of the files in ``needs``, in their order, and returns a
            ``Measure``. For metrics of whole sets it returns two functions: one embeds pictures
            (B,3,H,W) uint8 as features (B,F), the other is the distance of two sets of features.
        needs: names in ``FILES``.
        carried: finds a file in an installed package that does for all of ``needs`` where none of
            them is given; ``load`` then takes no path.
        least_side_px: the smallest side of pictures that it can measure.
        maskable: its ``Measure`` takes a mask.
        least_side_of: the same, as its file says, for metrics whose file decides it.
        of_sets: it compares whole sets of pictures.
        packages: names on PyPI of the packages it imports beyond dr2pipe's core.
    """

    unit: str
    better: str
    decimals: int
    range: str
    load: Callable[..., Any]
    needs: tuple[str, ...] = ()
    least_side_px: int = 1
    maskable: bool = False
    least_side_of: Callable[[str], int] | None = None
    of_sets: bool = False
    packages: tuple[str, ...] = ()
    carried: Callable[[], Path | None] | None = None


def _load_lpips(
    network_path: str | None = None, weights_path: str | None = None, *, backbone: str
) -> Measure:
    from dr2pipe.features.lpips import load_lpips

    network = load_lpips(network_path, weights_path, backbone)

    @torch.no_grad()
    def distance(
        restored: torch.Tensor, original: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return network.forward(restored, original, mask)

    return distance


def _load_identity_distance() -> Measure:
    return faces.IdentityDistance(dlib_identity.load_identity())


def _load_identity_angle(arcface: str) -> Measure:
    from dr2pipe.features.arcface import load_arcface

    network = load_arcface(arcface)
    return lambda restored, original: faces.identity_angle(restored, original, network)


def _load_landmark_error() -> Measure:
    detect = faces.load_detector()
    return lambda restored, original: faces.landmark_error(restored, original, detect)


def _load_listed_landmark_error(landmarks: str) -> Measure:
    detect = faces.read_landmarks(landmarks)
    return lambda restored, original: faces.landmark_error(restored, original, detect)


def _load_niqe(path: str) -> Measure:
    pristine = load_pristine(path)
    return lambda restored, original: niqe(restored, pristine)


METRICS: dict[str, Metric] = {
    "psnr": Metric("dB", "higher", 2, "0 to 100", lambda: psnr, maskable=True),
    "psnr_luma": Metric("dB", "higher", 2, "0 to 100", lambda: psnr_luma, maskable=True),
    "ssim": Metric("", "higher", 3, "-1 to 1", lambda: ssim, least_side_px=11, maskable=True),
    "ms_ssim": Metric(
        "",
        "higher",
        3,
        "0 to 1",
        lambda: ms_ssim,
        least_side_px=reference.LEAST_SIDE_OF_MS_SSIM_PX,
        packages=("torchmetrics",),
    ),
    "lpips": Metric(
        "",
        "lower",
        4,
        "0 to about 1",
        partial(_load_lpips, backbone="vgg16"),
        ("vgg16", "lpips"),
        BACKBONES["vgg16"].least_side_px,
        maskable=True,
        carried=partial(carried_lpips, "vgg16"),
    ),
    "lpips_alex": Metric(
        "",
        "lower",
        4,
        "0 to about 1",
        partial(_load_lpips, backbone="alexnet"),
        ("alexnet", "lpips_alex"),
        BACKBONES["alexnet"].least_side_px,
        maskable=True,
        carried=partial(carried_lpips, "alexnet"),
    ),
    "identity_distance": Metric(
        "",
        "lower",
        3,
        "0 to about 1.5",
        _load_identity_distance,
        least_side_px=faces.LEAST_SIDE_OF_IDENTITY_PX,
        packages=(dlib_identity.PACKAGE,),
        carried=dlib_identity.weights_file,
    ),
    "identity_angle": Metric("°", "lower", 2, "0 to 180", _load_identity_angle, ("arcface",)),
    "landmark_error": Metric(
        "% of the eyes' distance", "lower", 2, "0 to infinity", _load_landmark_error
    ),
    "listed_landmark_error": Metric(
        "% of the eyes' distance",
        "lower",
        2,
        "0 to infinity",
        _load_listed_landmark_error,
        ("landmarks",),
    ),
    "niqe": Metric(
        "",
        "lower",
        2,
        "0 to infinity",
        _load_niqe,
        ("niqe",),
        least_side_of=lambda path: load_pristine(path).block_px,
    ),
    "fid": Metric(
        "",
        "lower",
        2,
        "0 to infinity",
        lambda path: (sets.load_inception(path), sets.frechet_distance),
        ("inception",),
        of_sets=True,
        packages=("torch-fidelity",),
    ),
    "kid": Metric(
        "",
        "lower",
        4,
        "about 0 to infinity",
        lambda path: (sets.load_inception(path), sets.kernel_distance),
        ("inception",),
        of_sets=True,
        packages=("torch-fidelity", "torchmetrics"),
    ),
}


def measure(
    restored: torch.Tensor,
    original: torch.Tensor,
    metrics: Mapping[str, Measure] | Sequence[str],
    mask: torch.Tensor | None = None,
) -> dict[str, list[float]]:
    """Measure restored pictures against their originals.

    Args:
        restored: (B,3,H,W) RGB in [-1,1].
        original: as ``restored``.
        metrics: loaded functions by name, your own too; or names of metrics that need no files.
        mask: (B,1,H,W), 1 where pixels count.

    Returns:
        Values by name, one per picture; NaN for a restored picture that is not finite.

    Raises:
        ConfigError: a name that is not in ``METRICS`` or needs a file, pictures of different
            shapes or too small, or a mask that a metric cannot use.
        PictureError: a mask that does not fit, or that is empty.
    """
    is_loaded = isinstance(metrics, Mapping)
    known = [name for name in metrics if name in METRICS or not is_loaded]
    if restored.shape != original.shape or restored.ndim != 4:
        raise ConfigError(
            f"cannot compare {tuple(restored.shape)} with {tuple(original.shape)}: both must be "
            "(B,3,H,W) of one size"
        )
    check_metrics(known, min(original.shape[-2:]))
    if not isinstance(metrics, Mapping):
        metrics = {name: _load_without_files(name) for name in metrics}
    masks: list[torch.Tensor] = []
    if mask is not None:
        check_mask(mask, original)
        whole = [name for name in known if not METRICS[name].maskable]
        if whole:
            raise ConfigError(f"{', '.join(whole)} cannot be restricted to a mask")
        masks = [mask]
    values = {name: run(restored, original, *masks).tolist() for name, run in metrics.items()}
    finite = restored.isfinite().flatten(1).all(dim=1).tolist()
    return {
        name: [
            value if is_finite else math.nan for value, is_finite in zip(row, finite, strict=True)
        ]
        for name, row in values.items()
    }


def _load_without_files(name: str) -> Measure:
    metric = METRICS[name]
    if metric.of_sets:
        raise ConfigError(f"{name} compares whole sets of pictures: see dr2pipe evaluate")
    if metric.needs and (metric.carried is None or metric.carried() is None):
        needed = ", ".join(FILES[need] for need in metric.needs)
        raise ConfigError(
            f"{name} needs a file: {needed}. Load it with METRICS['{name}'].load(path)"
        )
    measure_one: Measure = metric.load()
    return measure_one


def check_metrics(names: list[str], size: int | None = None) -> None:
    """Check the names of metrics.

    Args:
        names: to be checked.
        size: the smallest side in pixels of the pictures; None leaves it unchecked.

    Raises:
        ConfigError: a name that is not in ``METRICS``, or pictures that are too small for it.
    """
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"unknown metric '{name}'; choose from {', '.join(METRICS)}")
        least = METRICS[name].least_side_px
        if size is not None and size < least:
            raise ConfigError(f"{name} needs pictures of {least} pixels or more, not {size}")
