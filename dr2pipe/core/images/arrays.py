"""8-bit pictures as tensors and back, and their sizes.

Networks see float32 (B,3,H,W) RGB in [-1,1]; pictures are (H,W,3) uint8 RGB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from dr2pipe.core.errors import PictureError

Pixels = npt.NDArray[np.uint8]
Levels = npt.NDArray[Any]  # uint8 or uint16
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in luma (BT.601)


_MOST_IN_TENSOR = 8.0  # what filters and noise add to [-1,1] stays below it; levels of 255 do not


def check_tensor(pictures: torch.Tensor) -> None:
    """Check (B,3,H,W) pictures in [-1,1] before they are restored.

    What they hold is looked at on the CPU alone: a GPU would be waited for.

    Raises:
        PictureError: another shape or type, no picture, or other values.
    """
    shape, kind = tuple(pictures.shape), str(pictures.dtype).removeprefix("torch.")
    if len(shape) != 4 or shape[1] != 3 or 0 in shape or not pictures.is_floating_point():
        raise PictureError(f"expected floats (B,3,H,W) in [-1,1], not {kind} {shape}")
    if pictures.device.type != "cpu":
        return
    broken = [i for i, one in enumerate(pictures) if not one.isfinite().all()]
    if broken:
        raise PictureError(f"picture {broken[0]} of the batch has values that are not finite")
    most = float(pictures.abs().max())
    if most > _MOST_IN_TENSOR:
        raise PictureError(f"expected values in [-1,1]; the largest is {most:g}")


def resize_pixels(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """(H,W[,3]) uint8 resized to ``size`` = (height, width), bicubic with antialiasing.

    One direction at a time, the one that leaves fewer pixels first. Versions of Pillow disagree on
    the order, and 8-bit values are rounded between the two.
    """
    height, width = size
    rows, columns = pixels.shape[:2]
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    steps = [(columns, height), (width, height)]
    if rows * width <= height * columns:
        steps[0] = (width, rows)
    for step in steps:
        if picture.size != step:
            picture = picture.resize(step, Image.Resampling.BICUBIC)
    return np.asarray(picture)


def resize_tensor(image: torch.Tensor, size: int | tuple[int, int]) -> torch.Tensor:
    """(B,C,H,W) resized to ``size``, bicubic (a = -0.5) with antialiasing, unclamped.

    The step between DR2's stages: what torchvision's ``Resize`` does to tensors. ``size`` is the
    side of a square, or (height, width).
    """
    sides = (size, size) if isinstance(size, int) else size
    if image.shape[-2:] == sides:
        return image
    return F.interpolate(image, size=sides, mode="bicubic", antialias=True, align_corners=False)


def to_tensor(pixels: Pixels) -> torch.Tensor:
    """(H,W,3) uint8 RGB, or a stack (B,H,W,3), as (B,3,H,W) float32 in [-1,1]."""
    stack = torch.from_numpy(np.array(pixels if pixels.ndim == 4 else pixels[None]))
    planes = stack.permute(0, 3, 1, 2).contiguous()  # (B,3,H,W) uint8: small, so moved first
    return planes.float().div_(255).sub_(0.5).div_(0.5)


def to_uint8(image: torch.Tensor) -> Pixels:
    """(B,3,H,W) in [-1,1] as (B,H,W,3) uint8 RGB: rounded half to even, saturated."""
    batch, channels, height, width = image.shape
    # An NVIDIA GPU rounds them itself: a quarter of the bytes is copied.
    source = image.detach() if image.is_cuda else image.detach().cpu()
    pixels = torch.empty(batch, height, width, channels, dtype=torch.uint8, device=source.device)
    for one, target in zip(source, pixels, strict=True):
        levels = one.to(torch.float64, copy=True)  # of one picture, changed in place: it is large
        levels.add_(1).mul_(127.5).round_().clamp_(0, 255)
        target.copy_(levels.to(torch.uint8).permute(1, 2, 0))
    if pixels.is_cuda:
        pixels = torch.empty_like(pixels, device="cpu", pin_memory=True).copy_(pixels)
    return pixels.numpy()


def round_to_uint8(pixels: npt.NDArray[Any]) -> Pixels:
    """Floating-point levels 0..255, any shape, rounded and saturated."""
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def to_uint16(image: torch.Tensor) -> npt.NDArray[np.uint16]:
    """(B,3,H,W) in [-1,1] as (B,H,W,3) uint16 RGB: rounded, saturated."""
    levels = image.detach().to("cpu", torch.float64, copy=True)
    levels.add_(1).mul_(32767.5).round_().clamp_(0, 65535)
    return levels.permute(0, 2, 3, 1).numpy().astype(np.uint16)
