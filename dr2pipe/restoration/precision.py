"""In what precision and layout of memory the networks run."""

from __future__ import annotations

import torch

from dr2pipe.core.errors import ConfigError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTO = "auto"
# Measured faster in bf16, at nearly the same result (docs/performance.md). Stage 1 is too.
_FASTER_IN_BF16 = ("none", "bicubic", "sparnet", "gfpgan")
# CPUs with either multiply matrices of bf16. Others convert, which is slower than float32.
_CPU_CAPABILITIES = ("amx_bf16", "avx512_bf16")


def resolve_precision(precision: str, enhancer: str, device: torch.device | str) -> str:
    """A key of ``PRECISIONS``: ``precision`` itself, or what ``auto`` is on this device.

    That is bf16 where the device multiplies it and the networks measured faster in it, else fp32.

    Args:
        precision: ``auto`` or a key of ``PRECISIONS``.
        enhancer: the name of stage 2.
        device: where the networks will run.

    Raises:
        ConfigError: another name.
    """
    if precision == AUTO:
        is_faster = enhancer in _FASTER_IN_BF16 and multiplies_bf16(device)
        return "bf16" if is_faster else "fp32"
    if precision not in PRECISIONS:
        raise ConfigError(f"precision '{precision}': choose {AUTO}, {', '.join(PRECISIONS)}")
    return precision


def name_of(dtype: torch.dtype) -> str:
    """The key of ``PRECISIONS`` that has this type."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def multiplies_bf16(device: torch.device | str) -> bool:
    """Whether a device has instructions for matrices of bf16."""
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind != "cpu":
        return False
    # Versions of torch before it had this question say nothing of bf16.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in _CPU_CAPABILITIES)


def is_faster_channels_last(precision: str, device: torch.device | str, *, compiled: bool) -> bool:
    """Whether networks measured faster with channels last (docs/performance.md).

    In low precision they do; on an NVIDIA GPU only if they are compiled, because its norms and
    mirrored borders convert the layout there and back.
    """
    return precision != "fp32" and (compiled or torch.device(device).type != "cuda")
