"""Distances between two sets of pictures, by features (N,F) of an Inception network."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dr2pipe.core.errors import Dr2pipeError
from dr2pipe.core.extras import needs_extra


def frechet_distance(features: torch.Tensor, others: torch.Tensor) -> float:
    """FID (Heusel et al. 2017, eq. 6), 0 and more; lower is better.

    It becomes lower as sets grow: compare only values of sets of the same size.

    Args:
        features: (N,F).
        others: (M,F).

    Raises:
        Dr2pipeError: fewer than two pictures in a set.
    """
    _check(features, others)
    features, others = features.double(), others.double()
    means = (features.mean(dim=0) - others.mean(dim=0)).square().sum()
    a, b = torch.cov(features.T), torch.cov(others.T)
    # The trace of the root of a·b, from its eigenvalues; rounding makes some slightly negative.
    cross = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    return float((means + a.trace() + b.trace() - 2 * cross).clamp(min=0))


def kernel_distance(features: torch.Tensor, others: torch.Tensor) -> float:
    """KID (Bińkowski et al. 2018, §4), unbiased, may be below 0; lower is better.

    It is computed of the whole sets, not as the mean over random subsets, so that the same
    pictures always give the same number.

    Args:
        features: (N,F).
        others: (N,F).

    Raises:
        Dr2pipeError: sets of different sizes, or fewer than two pictures.
    """
    with needs_extra("evaluate"):
        from torchmetrics.image.kid import poly_mmd

    _check(features, others)
    if len(features) != len(others):
        raise Dr2pipeError(
            f"kid compares sets of the same size, not {len(features)} and {len(others)}"
        )
    return float(poly_mmd(others.double(), features.double()))


def _check(features: torch.Tensor, others: torch.Tensor) -> None:
    if min(len(features), len(others)) < 2:
        raise Dr2pipeError("fid and kid need two pictures or more in each set")


def load_inception(path: str | Path) -> nn.Module:
    """torch-fidelity's InceptionV3, bytes (B,3,H,W) to (B,2048), with weights from ``path``.

    Raises:
        ImportError: torch-fidelity, or torchvision that it wants, cannot be imported.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
    )
    return _FirstOutput(network.eval())


class _FirstOutput(nn.Module):
    """The first of the feature maps that the network returns as a tuple."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bytes (B,3,H,W) to features (B,F)."""
        features: torch.Tensor = self.network(pixels)[0]
        return features
