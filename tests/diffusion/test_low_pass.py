import numpy as np
import parity
import pytest
import torch

from dr2pipe.diffusion.low_pass import LOW_PASS, build_low_pass


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("factor", [2, 4, 16])
def test_bicubic_equals_the_reference_resizer(size, factor):
    _, arrays = parity.load("resizer")
    x = parity.make_input(f"resizer:x{size}", (1, 3, size, size))
    out = build_low_pass("bicubic", factor=factor)(x)
    if size == 64:
        expected = arrays[f"S64_N{factor}_updown"]
    else:
        out, expected = out[..., ::2, ::2], arrays[f"S256_N{factor}_updown_strided"]
    assert (out - parity.tensor(expected)).abs().max() <= 1e-6


def filters():
    return [
        build_low_pass("bicubic", factor=4),
        build_low_pass("gaussian", sigma_px=2.0),
        build_low_pass("fft", cutoff=0.25),
        build_low_pass("none"),
    ]


@pytest.mark.parametrize("low_pass", filters(), ids=list(LOW_PASS))
def test_properties(low_pass):
    x = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    y = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    out = low_pass(x)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert torch.allclose(low_pass(2 * x + y), 2 * out + low_pass(y), atol=1e-5)  # linear
    assert torch.allclose(low_pass(torch.full_like(x, 0.3)), torch.full_like(x, 0.3), atol=1e-6)
    assert torch.allclose(low_pass(x.flip(-1)), out.flip(-1), atol=1e-5)  # no side preferred


@pytest.mark.parametrize("low_pass", filters()[:3], ids=list(LOW_PASS)[:3])
def test_a_checkerboard_is_removed_and_a_slow_wave_is_kept(low_pass):
    across = torch.arange(32, dtype=torch.float32)
    wave = torch.cos(2 * torch.pi * across / 32).expand(1, 1, 32, 32)
    checkerboard = (-1.0) ** (across[:, None] + across[None])[None, None]
    assert low_pass(checkerboard)[..., 8:-8, 8:-8].abs().max() < 0.05
    assert (low_pass(wave) - wave)[..., 8:-8, 8:-8].abs().max() < 0.1


def test_a_filter_first_used_in_inference_mode_has_gradients_later():
    low_pass = build_low_pass("bicubic", factor=np.int64(7))
    with torch.inference_mode():
        low_pass(torch.zeros(1, 3, 77, 77))
    x = torch.zeros(1, 3, 77, 77, requires_grad=True)
    low_pass(x).sum().backward()
    assert x.grad is not None


def test_factor_one_and_non_square():
    x = torch.randn(1, 3, 30, 50)
    assert torch.equal(build_low_pass("bicubic", factor=1)(x), x)
    assert build_low_pass("bicubic", factor=10)(x).shape == x.shape


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("box", {}, "unknown low-pass filter 'box'.*bicubic, gaussian, fft, none"),
        ("bicubic", {}, "takes factor; given: none"),
        ("bicubic", {"sigma": 1}, "takes factor; given: sigma"),
        ("bicubic", {"factor": 0}, "at least 1"),
        ("bicubic", {"factor": 2.5}, "whole number"),
        ("gaussian", {"sigma_px": 0}, "positive"),
        ("fft", {"cutoff": 1.5}, "cutoff must lie"),
    ],
)
def test_errors(name, options, says):
    with pytest.raises(ValueError, match=says):
        build_low_pass(name, **options)


def test_a_factor_that_does_not_divide_is_an_error_with_those_that_do():
    with pytest.raises(ValueError, match=r"N=4 does not divide 66x66.*\[1, 2\]"):
        build_low_pass("bicubic", factor=4)(torch.zeros(1, 3, 66, 66))
