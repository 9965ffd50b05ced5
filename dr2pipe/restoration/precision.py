"""In what precision and layout of memory a restoration runs."""

from __future__ import annotations

import torch

from dr2pipe.core.precision import AUTO, is_x86_without_avx512, resolve_precision

# Measured faster in bf16, at nearly the same result (docs/performance.md). Stage 1 is too.
_FASTER_IN_BF16 = ("none", "bicubic", "sparnet", "gfpgan")


def restoration_precision(precision: str, enhancer: str, device: torch.device | str) -> str:
    """As :func:`~dr2pipe.core.precision.resolve_precision`, for both stages.

    ``auto`` is bf16 only with networks that measured faster in it.

    Args:
        precision: ``auto`` or a key of ``PRECISIONS``.
        enhancer: the name of stage 2.
        device: where the networks will run.

    Raises:
        ConfigError: another name.
    """
    if precision == AUTO and enhancer not in _FASTER_IN_BF16:
        return "fp32"
    return resolve_precision(precision, device)


def is_faster_channels_last(precision: str, device: torch.device | str, *, compiled: bool) -> bool:
    """Whether networks measured faster with channels last (docs/performance.md).

    In low precision they do; on an NVIDIA GPU only if they are compiled, because its norms and
    mirrored borders convert the layout there and back. In float32 they do on x86 without AVX-512.
    """
    if precision == "fp32":
        return is_x86_without_avx512(device)
    return compiled or torch.device(device).type != "cuda"
