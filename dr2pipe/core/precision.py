"""The types of numbers that networks compute with, and which of them a device is fast at."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

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
    return any(_cpu_capabilities().get(name) for name in _CPU_CAPABILITIES[precision])


def parts_of_batch(count: int, device: torch.device, dtype: torch.dtype) -> list[slice]:
    """The parts of a batch of ``count`` pictures that go through a network together.

    On a CPU in float32, that is every picture alone. A matrix product adds in another order where the
    batch has another size, and a result should not depend on the pictures beside it. Little is lost:
    see docs/performance.md. Elsewhere it is the whole batch.
    """
    if count and device.type == "cpu" and dtype == torch.float32:
        return [slice(i, i + 1) for i in range(count)]
    return [slice(count)]


def warn_if_slow(precision: str, device: torch.device | str) -> None:
    """Warn, once, of a precision in which a CPU is many times slower than in fp32."""
    if precision == "fp32" or torch.device(device).type != "cpu" or multiplies(device, precision):
        return
    if _cpu_capabilities().get("architecture") == "x86_64":  # no other kind was measured
        _warn_of_slow(precision)


def is_x86_without_avx512(device: torch.device | str) -> bool:
    """Whether a device is a CPU of this kind."""
    said = _cpu_capabilities() if torch.device(device).type == "cpu" else {}
    return said.get("architecture") == "x86_64" and not said.get("avx512_f")


def _cpu_capabilities() -> dict[str, Any]:
    """What torch says of the CPU; empty in versions that had no such question."""
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return found


@lru_cache
def _warn_of_slow(precision: str) -> None:
    logger.warning(
        "this CPU has no instructions for precision=%s: it takes many times as long as precision=fp32",
        precision,
    )
