"""Exposure of faces brought to what a face DDPM knows, and back.

DR2 keeps the low frequencies of its input, and a dark or a hazy picture differs from all faces of
a training just there. So such a picture is brought to usual brightness and contrast first. What
stage 1 changes is then brought back into the picture as it was.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dr2pipe.core.images import LUMA

# Mean and standard deviation of the luma of faces in [-1,1]: the 5th and 95th percentile of 600
# aligned portraits. Pictures between them are left alone.
MEANS, DEVIATIONS = (-0.12, 0.25), (0.27, 0.47)
# What is darker or paler than this gain can mend is mostly noise.
_MOST_GAIN = 8.0

Undo = Callable[[torch.Tensor], torch.Tensor]


def normalise_exposure(degraded: torch.Tensor) -> tuple[torch.Tensor, Undo]:
    """Faces with usual brightness and contrast, and what brings a result back.

    Contrast is only raised: a picture that has too much of it has lost what is too bright.

    Args:
        degraded: (B,3,H,W) RGB in [-1,1].

    Returns:
        The pictures in [-1,1], and a function of results (B,3,H,W) for them: it returns the
        degraded pictures, changed as the results differ from the normalised ones. A result that
        differs nowhere gives the degraded picture, whatever was clipped.
    """
    luma = (degraded * degraded.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1).flatten(1)
    mean, deviation = (v.view(-1, 1, 1, 1) for v in (luma.mean(dim=1), luma.std(dim=1)))
    gain = (deviation.clamp(*DEVIATIONS) / deviation.clamp(min=1e-6)).clamp(1, _MOST_GAIN)
    aim = mean.clamp(*MEANS)
    is_usual = (gain == 1) & (aim == mean)
    normal = torch.where(is_usual, degraded, ((degraded - mean) * gain + aim).clamp(-1, 1))

    def undo(result: torch.Tensor) -> torch.Tensor:
        return torch.where(is_usual, result, degraded + (result - normal) / gain)

    return normal, undo
