"""The types of numbers that networks compute with, and which of them a device is fast at."""

from __future__ import annotations

import logging
from functools import lru_cache

import torch

from dr2pipe.core.errors import ConfigError

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTO = "auto"
# CPUs with one of these have instructions for matrices of the type. Others convert every number.
_CPU_CAPABILITIES = {"bf16": ("amx_bf16", "avx512_bf16"), "fp16": ("amx_fp16", "avx512_fp16")}


def resolve_precision(precision: str, device: torch.device | str) -> str:
    """A key of ``PRECISIONS``: ``precision`` itself, or what ``auto`` is on this device.

    That is bf16 where the device multiplies it, else fp32.

    Args:
        precision: ``auto`` or a key of ``PRECISIONS``.
        device: where the networks will run.

    Raises:
        ConfigError: another name.
    """
    if precision == AUTO:
        return "bf16" if multiplies(device, "bf16") else "fp32"
    if precision not in PRECISIONS:
        raise ConfigError(f"precision '{precision}': choose {AUTO}, {', '.join(PRECISIONS)}")
    return precision


def name_of(dtype: torch.dtype) -> str:
    """The key of ``PRECISIONS`` that has this type."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def multiplies(device: torch.device | str, precision: str) -> bool:
    """Whether a device has instructions for matrices of bf16 or fp16."""
    kind = torch.device(device).type
    if kind == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return False
    # Versions of torch before it had this question say nothing of either.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in _CPU_CAPABILITIES[precision])


def warn_if_slow(precision: str, device: torch.device | str) -> None:
    """Warn, once, of a precision in which a CPU is many times slower than in fp32."""
    is_cpu = torch.device(device).type == "cpu"
    if precision != "fp32" and is_cpu and not multiplies(device, precision):
        _warn_of_slow(precision)


@lru_cache
def _warn_of_slow(precision: str) -> None:
    logger.warning(
        "this CPU has no instructions for precision=%s: it takes many times as long as precision=fp32",
        precision,
    )
