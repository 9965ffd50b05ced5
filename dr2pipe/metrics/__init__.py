"""How good restored faces are: ``METRICS`` says what each number means and what it needs."""

from dr2pipe.metrics.meter import Meter, available
from dr2pipe.metrics.niqe import fit_niqe, save_pristine
from dr2pipe.metrics.reference import ms_ssim, psnr, psnr_luma, ssim
from dr2pipe.metrics.registry import FILES, METRICS, Metric, check_metrics, measure

__all__ = [
    "FILES",
    "METRICS",
    "Meter",
    "Metric",
    "available",
    "check_metrics",
    "fit_niqe",
    "measure",
    "ms_ssim",
    "psnr",
    "psnr_luma",
    "save_pristine",
    "ssim",
]
