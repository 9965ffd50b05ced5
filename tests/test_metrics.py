import numpy as np
import pytest
import torch

from dr2pipe.metrics import METRICS, measure


def pictures(count=3, size=128, noise=0.2):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size // 16, size // 16, generator=generator) * 2 - 1
    original = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(-1, 1)
    return original + noise * torch.randn(original.shape, generator=generator), original


def levels(image):
    """(H,W,3) float64, 0..255."""
    return np.clip(np.round((image.double().numpy() + 1) * 127.5), 0, 255).transpose(1, 2, 0)


def test_psnr_by_its_formula():
    restored, original = pictures()
    found = measure(restored, original, ["psnr", "psnr_luma"])
    for i in range(len(original)):
        a, b = levels(restored[i]), levels(original[i])
        assert found["psnr"][i] == pytest.approx(
            10 * np.log10(255**2 / ((a - b) ** 2).mean()), abs=1e-4
        )
        luma = (a - b) @ np.array([65.481, 128.553, 24.966]) / 255
        assert found["psnr_luma"][i] == pytest.approx(
            10 * np.log10(255**2 / (luma**2).mean()), abs=1e-4
        )


def ssim_by_formula(a, b):
    """Gaussian windows of 11 pixels that fit wholly into (H,W), in float64."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def mean(x):
        return np.einsum(
            "ijkl,kl->ij", np.lib.stride_tricks.sliding_window_view(x, (11, 11)), window
        )

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


def test_ssim_by_its_formula():
    restored, original = pictures(count=2, size=48)
    for found, a, b in zip(METRICS["ssim"](restored, original), restored, original, strict=True):
        expected = np.mean(
            [ssim_by_formula(levels(a)[..., c], levels(b)[..., c]) for c in range(3)]
        )
        assert float(found) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_batch_is_its_pictures(name):
    restored, original = pictures()
    together = METRICS[name](restored, original)
    alone = [METRICS[name](restored[i : i + 1], original[i : i + 1])[0] for i in range(3)]
    assert torch.allclose(together, torch.stack(alone), atol=1e-6)
    assert together.shape == (3,)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_closer_is_better(name):
    far, original = pictures(noise=0.4)
    near, _ = pictures(noise=0.1)
    assert (METRICS[name](near, original) > METRICS[name](far, original)).all()


def test_rounded_as_if_saved():
    restored, original = pictures()
    saved = torch.tensor(np.stack([levels(p) for p in restored])).permute(0, 3, 1, 2) / 127.5 - 1
    assert measure(restored, original, ["psnr"]) == measure(saved, original, ["psnr"])


@pytest.mark.parametrize("size", [112, 150, 176])
def test_ms_ssim_of_equal_pictures_is_one(size):
    _, original = pictures(count=1, size=size)
    assert float(METRICS["ms_ssim"](original, original)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("size", "names", "says"),
    [
        (64, ["ms_ssim"], "112 pixels or more, not 64"),
        (64, ["lpips2"], "unknown metric 'lpips2'; choose from psnr"),
    ],
)
def test_errors(size, names, says):
    restored, original = pictures(size=size)
    with pytest.raises(ValueError, match=says):
        measure(restored, original, names)


def test_different_sizes_are_refused():
    with pytest.raises(ValueError, match="resize first"):
        measure(pictures(size=64)[0], pictures(size=128)[0], ["psnr"])
