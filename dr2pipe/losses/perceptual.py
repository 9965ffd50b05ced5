"""Perceptual loss: L1 between the features of a frozen network (Johnson et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from dr2pipe.losses.total import weighted_sum


def perceptual_loss(
    features: Mapping[str, torch.Tensor],
    target_features: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
) -> torch.Tensor:
    """Weighted sum over layers of the L1 distance; target features are constants.

    Args:
        features: (B,C,h,w) by layer.
        target_features: as ``features``.
        weights: by layer, of one or more layers.

    Raises:
        KeyError: a weighted layer is missing from the features.
    """
    distances = {
        layer: F.l1_loss(features[layer], target_features[layer].detach()) for layer in weights
    }
    return weighted_sum(distances, weights)


def relative_perceptual_loss(
    features: Mapping[str, torch.Tensor], target_features: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Mean over all layers of the L1 distance, each as a share of the target's mean magnitude.

    So layers of any scale count alike. Target features are constants.

    Args:
        features: (B,C,h,w) by layer, of one or more layers.
        target_features: as ``features``.
    """
    shares = []
    for layer, found in features.items():
        target = target_features[layer].detach()
        shares.append(F.l1_loss(found, target) / target.abs().mean().clamp(min=1e-6))
    return torch.stack(shares).mean()


def gram_matrix(features: torch.Tensor) -> torch.Tensor:
    """(B,C,H,W) to (B,C,C), divided by C·H·W (Johnson et al. 2016, eq. 3)."""
    batch, channels, height, width = features.shape
    flat = features.reshape(batch, channels, height * width)
    return flat @ flat.transpose(1, 2) / (channels * height * width)


def style_loss(
    features: Mapping[str, torch.Tensor],
    target_features: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
) -> torch.Tensor:
    """:func:`perceptual_loss` of Gram matrices (Gatys et al. 2016)."""
    grams = {layer: gram_matrix(features[layer]) for layer in weights}
    targets = {layer: gram_matrix(target_features[layer]) for layer in weights}
    return perceptual_loss(grams, targets, weights)
