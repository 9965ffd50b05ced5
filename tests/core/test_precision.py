import types

import pytest
import torch

from dr2pipe.core import precision
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.precision import PRECISIONS, name_of, resolve_precision, warn_if_slow
from dr2pipe.restoration.precision import is_faster_channels_last, restoration_precision


def cpu_with(monkeypatch, **capabilities):
    known = types.MappingProxyType({"avx2": True, **capabilities})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)


@pytest.mark.parametrize(
    ("capabilities", "enhancer", "wanted"),
    [
        ({"avx512_bf16": True}, "sparnet", "bf16"),
        ({"amx_bf16": True}, "none", "bf16"),
        ({"avx512_bf16": False}, "sparnet", "fp32"),
        ({}, "gfpgan", "fp32"),
        ({"bf16": True}, "sparnet", "fp32"),  # of ARM: nothing was measured there
        ({"avx512_bf16": True}, "spandrel", "fp32"),  # some of its networks refuse bf16
    ],
)
def test_auto_is_what_measured_faster(monkeypatch, capabilities, enhancer, wanted):
    cpu_with(monkeypatch, **capabilities)
    assert restoration_precision("auto", enhancer, "cpu") == wanted
    if enhancer != "spandrel":
        assert resolve_precision("auto", "cpu") == wanted


@pytest.mark.parametrize(
    ("name", "device", "compiled", "wanted"),
    [
        ("bf16", "cpu", False, True),
        ("bf16", "mps", False, True),
        ("bf16", "cuda", False, False),  # norms convert it there and back
        ("fp16", "cuda", True, True),
        ("fp32", "cpu", False, False),
        ("fp32", "cuda", True, False),
    ],
)
def test_channels_last_is_where_it_measured_faster(monkeypatch, name, device, compiled, wanted):
    cpu_with(monkeypatch, architecture="x86_64", avx512_f=True)
    assert is_faster_channels_last(name, device, compiled=compiled) is wanted


@pytest.mark.parametrize(
    ("capabilities", "wanted"),
    [
        ({"architecture": "x86_64", "avx512_f": False}, True),
        ({"architecture": "x86_64", "avx512_f": True}, False),
        ({"architecture": "aarch64"}, False),
        ({}, False),
    ],
)
def test_channels_last_in_fp32_depends_on_the_cpu(monkeypatch, capabilities, wanted):
    cpu_with(monkeypatch, **capabilities)
    assert is_faster_channels_last("fp32", "cpu", compiled=False) is wanted
    assert not is_faster_channels_last("fp32", "cuda", compiled=True)


def test_auto_on_a_gpu_asks_for_real_bf16(monkeypatch):
    for answer in (True, False):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, a=answer: a
        )
        assert precision.multiplies("cuda", "bf16") is answer
    assert precision.multiplies("cuda", "fp16")
    assert not precision.multiplies("mps", "bf16")


def test_an_old_torch_does_not_know(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve_precision("auto", "cpu") == "fp32"


def test_named_precisions_are_kept(monkeypatch):
    cpu_with(monkeypatch, avx512_bf16=True)
    for name, dtype in PRECISIONS.items():
        assert restoration_precision(name, "sparnet", "cpu") == name
        assert name_of(dtype) == name
    with pytest.raises(ConfigError, match="choose auto, fp32, bf16, fp16"):
        resolve_precision("int8", "cpu")


def test_parts_of_a_batch():
    cpu = torch.device("cpu")
    assert precision.parts_of_batch(2, cpu, torch.float32) == [slice(0, 1), slice(1, 2)]
    assert precision.parts_of_batch(2, cpu, torch.bfloat16) == [slice(2)]
    assert precision.parts_of_batch(2, torch.device("cuda"), torch.float32) == [slice(2)]
    assert precision.parts_of_batch(0, cpu, torch.float32) == [slice(0)]


def test_a_slow_precision_is_named_once(monkeypatch, caplog):
    precision._warn_of_slow.cache_clear()
    cpu_with(monkeypatch, architecture="aarch64", bf16=True)
    warn_if_slow("bf16", "cpu")
    cpu_with(monkeypatch, architecture="x86_64", avx512_bf16=True)
    for name in ("fp32", "bf16"):
        warn_if_slow(name, "cpu")
    warn_if_slow("fp16", "mps")
    assert not caplog.messages
    for _ in range(2):
        warn_if_slow("fp16", "cpu")
    assert len(caplog.messages) == 1
    assert "no instructions for precision=fp16" in caplog.messages[0]
