"""How good restored faces are, by name: ``METRICS`` says what each number means and needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dr2pipe.features.arcface import FILE as ARCFACE_FILE
from dr2pipe.features.vgg import FILES as VGG_FILES
from dr2pipe.metrics import faces, reference, sets
from dr2pipe.metrics.niqe import load_pristine, niqe
from dr2pipe.metrics.reference import check_mask, ms_ssim, psnr, psnr_luma, ssim

__all__ = [
    "FILES",
    "METRICS",
    "Metric",
    "check_metrics",
    "measure",
    "ms_ssim",
    "psnr",
    "psnr_luma",
    "ssim",
]

# What `metric_files` may name, and where each comes from.
FILES = {
    "vgg16": f"torchvision's {VGG_FILES['vgg16']}",
    "lpips": "LPIPS's linear weights vgg.pth, version 0.1, from the package lpips",
    "arcface": f"GFP-GAN's {ARCFACE_FILE}: dr2pipe fetch arcface_resnet18",
    "niqe": "an .npz by 'dr2pipe fit-niqe', or the authors' modelparameters.mat",
    "yunet": "OpenCV Zoo's face_detection_yunet_2023mar.onnx",
    "landmarks": "your own csv of points that a detector found, see metrics/faces.py",
    "inception": "torch-fidelity's weights-inception-2015-12-05-6726825d.pth",
}


@dataclass(frozen=True)
class Metric:
    """A measure of restored faces.

    Attributes:
        better: "higher" or "lower".
        range: of its values, in words.
        load: from the paths of ``needs`` to the function that computes it. Functions take
            (restored, original), both (B,3,H,W) in [-1,1], and return (B,); with ``maskable``
            also a mask (B,1,H,W). Those of whole ``sets`` are loaded as an embedding of bytes
            (B,3,H,W) into (B,F) and a distance between two sets of features.
        needs: names in ``FILES``.
        package: a package beyond dr2pipe's own that ``load`` imports.
    """

    unit: str
    better: str
    decimals: int
    range: str
    load: Callable[..., Any]
    needs: tuple[str, ...] = ()
    least_side_px: int = 1
    maskable: bool = False
    of_sets: bool = False
    package: str | None = None


def _load_lpips(vgg16: str, lpips: str) -> Callable:
    from dr2pipe.features.lpips import load_lpips

    network = load_lpips(vgg16, lpips)
    return torch.no_grad()(network.forward)


def _load_identity_angle(arcface: str) -> Callable:
    from dr2pipe.features.arcface import load_arcface

    network = load_arcface(arcface)
    return lambda restored, original: faces.identity_angle(restored, original, network)


def _load_landmark_error(yunet: str) -> Callable:
    detect = faces.load_yunet(yunet)
    return lambda restored, original: faces.landmark_error(restored, original, detect)


def _load_listed_landmark_error(landmarks: str) -> Callable:
    detect = faces.read_landmarks(landmarks)
    return lambda restored, original: faces.landmark_error(restored, original, detect)


def _load_niqe(path: str) -> Callable:
    pristine = load_pristine(path)
    return lambda restored, original: niqe(restored, pristine)


METRICS: dict[str, Metric] = {
    "psnr": Metric("dB", "higher", 2, "0 to infinity", lambda: psnr, maskable=True),
    "psnr_luma": Metric("dB", "higher", 2, "0 to infinity", lambda: psnr_luma, maskable=True),
    "ssim": Metric("", "higher", 3, "-1 to 1", lambda: ssim, least_side_px=11, maskable=True),
    "ms_ssim": Metric(
        "",
        "higher",
        3,
        "0 to 1",
        lambda: ms_ssim,
        least_side_px=reference.LEAST_SIDE_OF_MS_SSIM_PX,
    ),
    "lpips": Metric(
        "", "lower", 4, "0 to about 1", _load_lpips, ("vgg16", "lpips"), 16, maskable=True
    ),
    "identity_angle": Metric("°", "lower", 2, "0 to 180", _load_identity_angle, ("arcface",)),
    "landmark_error": Metric(
        "% of the eyes' distance", "lower", 2, "0 to infinity", _load_landmark_error, ("yunet",)
    ),
    "listed_landmark_error": Metric(
        "% of the eyes' distance",
        "lower",
        2,
        "0 to infinity",
        _load_listed_landmark_error,
        ("landmarks",),
    ),
    "niqe": Metric("", "lower", 2, "0 to infinity", _load_niqe, ("niqe",)),
    "fid": Metric(
        "",
        "lower",
        2,
        "0 to infinity",
        lambda path: (sets.load_inception(path), sets.frechet_distance),
        ("inception",),
        of_sets=True,
        package="torch-fidelity",
    ),
    "kid": Metric(
        "",
        "lower",
        4,
        "about 0 to infinity",
        lambda path: (sets.load_inception(path), sets.kernel_distance),
        ("inception",),
        of_sets=True,
        package="torch-fidelity",
    ),
}


def measure(
    restored: torch.Tensor,
    original: torch.Tensor,
    metrics: Mapping[str, Callable] | list[str],
    mask: torch.Tensor | None = None,
) -> dict[str, list[float]]:
    """Values by name, one per picture, of (B,3,H,W) RGB in [-1,1].

    Args:
        metrics: loaded functions by name, or names of metrics that need no files.
        mask: (B,1,H,W), 1 where pixels count.

    Raises:
        ValueError: a name that is not in ``METRICS``, pictures of different shapes or too
            small, or a mask that does not fit, is empty, or that a metric cannot use.
    """
    check_metrics(list(metrics), min(original.shape[-2:]))
    if restored.shape != original.shape:
        raise ValueError(
            f"cannot compare {tuple(restored.shape)} with {tuple(original.shape)}; resize first"
        )
    if isinstance(metrics, list):
        metrics = {name: METRICS[name].load() for name in metrics}
    masked = ()
    if mask is not None:
        check_mask(mask, original)
        whole = [name for name in metrics if not METRICS[name].maskable]
        if whole:
            raise ValueError(f"{', '.join(whole)} cannot be restricted to a mask")
        masked = (mask,)
    return {name: run(restored, original, *masked).tolist() for name, run in metrics.items()}


def check_metrics(names: list[str], size: int | None = None) -> None:
    """Raise ValueError for a name not in ``METRICS``, or one that ``size`` pixels are too few for."""
    for name in names:
        if name not in METRICS:
            raise ValueError(f"unknown metric '{name}'; choose from {', '.join(METRICS)}")
        least = METRICS[name].least_side_px
        if size is not None and size < least:
            raise ValueError(f"{name} needs pictures of {least} pixels or more, not {size}")
