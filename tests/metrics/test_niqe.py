from math import gamma

import cv2
import numpy as np
import pytest
import torch

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError
from dr2pipe.degradations import codecs
from dr2pipe.metrics.niqe import (
    Pristine,
    _fit_asymmetric,
    _normalise,
    block_features,
    fit_niqe,
    load_pristine,
    niqe,
    save_pristine,
)


def texture(seed, side=128):
    """Something like a photograph: noise with a spectrum that falls with the frequency."""
    rng = np.random.default_rng(seed)
    fy, fx = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij")
    falling = 1 / np.maximum(np.hypot(fy, fx), 1 / side)
    spectrum = np.fft.fft2(rng.standard_normal((side, side))) * falling
    grey = np.real(np.fft.ifft2(spectrum))
    grey = (grey - grey.mean()) / grey.std() * 45 + 120
    return np.repeat(images.round_to_uint8(grey)[..., None], 3, axis=2)


@pytest.fixture(scope="module")
def pristine():
    return fit_niqe((images.to_tensor(texture(i))[0] for i in range(12)), block_px=32)


def score(pixels, pristine):
    return niqe(images.to_tensor(pixels), pristine).item()


def test_damage_raises_it(pristine):
    rng = np.random.default_rng(0)
    clean = [texture(i) for i in range(100, 104)]
    damages = {
        "blur": lambda p: cv2.GaussianBlur(p, (0, 0), 2.5),
        "noise": lambda p: images.round_to_uint8(p + rng.normal(0, 30, p.shape)),
        "blocks": lambda p: codecs.jpeg_roundtrip(p, 4),
    }
    base = np.mean([score(p, pristine) for p in clean])
    for damage in damages.values():
        assert np.mean([score(damage(p), pristine) for p in clean]) > 1.3 * base


def test_a_picture_counts_alone(pristine):
    pictures = images.to_tensor(np.stack([texture(i) for i in range(3)]))
    together = niqe(pictures, pristine)
    for i in range(3):
        assert niqe(pictures[i : i + 1], pristine).item() == pytest.approx(together[i].item())


def test_normalisation_equals_its_formula():
    luma = torch.from_numpy(texture(0)[..., 0].astype(np.float64))
    blurred = cv2.GaussianBlur(luma.numpy(), (7, 7), 7 / 6, borderType=cv2.BORDER_REPLICATE)
    squares = cv2.GaussianBlur(luma.numpy() ** 2, (7, 7), 7 / 6, borderType=cv2.BORDER_REPLICATE)
    deviation = np.sqrt(np.abs(squares - blurred**2))
    made, found = _normalise(luma)
    assert np.allclose(found.numpy(), deviation, atol=1e-6)
    assert np.allclose(made.numpy(), (luma.numpy() - blurred) / (deviation + 1), atol=1e-8)


@pytest.mark.parametrize(
    ("shape", "left", "right"), [(2.0, 1.0, 1.0), (1.0, 0.5, 1.5), (0.7, 2, 1)]
)
def test_moments_find_the_distribution_again(shape, left, right):
    rng = np.random.default_rng(1)
    count = 400_000
    # |x| = β·Γ(1/α)^(1/α); each side is drawn as often as it is wide.
    sizes = rng.gamma(1 / shape, 1, count) ** (1 / shape)
    on_left = rng.random(count) < left / (left + right)
    values = torch.from_numpy(np.where(on_left, -left * sizes, right * sizes))
    found_shape, found_left, found_right, mean = _fit_asymmetric(values)
    assert found_shape.item() == pytest.approx(shape, rel=0.03)
    assert found_left.item() == pytest.approx(left, rel=0.04)
    assert found_right.item() == pytest.approx(right, rel=0.04)
    assert mean.item() == pytest.approx(values.mean().item(), abs=0.02)


def niqe_by_formula(pixels, mean, covariance, side):
    """Mittal et al. 2013 on (H,W,3) bytes in float64, with numpy alone."""
    grey = np.round(pixels.astype(np.float64) @ [0.2989, 0.5870, 0.1140])
    rows, columns = (length // side for length in grey.shape)
    grey = grey[: rows * side, : columns * side]
    features = []
    for scale in (1, 2):
        if scale == 2:
            grey = halved(halved(grey).T).T
        normal = normalised_by_formula(grey)
        cut = side // scale
        features.append(
            [
                block_by_formula(normal[y * cut : (y + 1) * cut, x * cut : (x + 1) * cut])
                for y in range(rows)
                for x in range(columns)
            ]
        )
    features = np.concatenate(features, axis=1)
    apart = mean - features.mean(axis=0)
    pooled = (covariance + np.cov(features.T)) / 2
    return float(np.sqrt(apart @ np.linalg.pinv(pooled) @ apart))


def halved(x):
    """Columns of (H,W) by half, bicubic (a = -0.5) stretched to the pixels that it covers."""
    width = x.shape[1]
    made = np.empty((x.shape[0], width // 2))
    for i in range(width // 2):
        places = np.arange(2 * i - 3, 2 * i + 5)
        places = places[(places >= 0) & (places < width)]
        d = np.abs(places + 0.5 - (2 * i + 1)) / 2
        near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
        weights = np.where(d <= 1, near, np.where(d < 2, far, 0))
        made[:, i] = x[:, places] @ weights / weights.sum()
    return made


def normalised_by_formula(grey):
    """Eq. 1-3: a Gaussian window of 7 pixels, σ 7/6, borders repeated."""
    steps = np.arange(-3, 4)
    window = np.exp(-(steps[:, None] ** 2 + steps**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    around = np.lib.stride_tricks.sliding_window_view(np.pad(grey, 3, mode="edge"), (7, 7))
    mean = (around * window).sum(axis=(2, 3))
    deviation = np.sqrt(((around - mean[..., None, None]) ** 2 * window).sum(axis=(2, 3)))
    return (grey - mean) / (deviation + 1)


def block_by_formula(block):
    """The 18 features of a block at one scale, neighbours across its border on the other side."""
    shape, left, right = fitted_by_formula(block)
    found = [shape, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = fitted_by_formula(block * np.roll(block, shift, axis=(0, 1)))
        found += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return found


def fitted_by_formula(x):
    """Shape and both widths of an asymmetric generalised Gaussian by its moments."""
    left, right = np.sqrt((x[x < 0] ** 2).mean()), np.sqrt((x[x > 0] ** 2).mean())
    ratio = left / right
    wanted = np.abs(x).mean() ** 2 / (x**2).mean()
    wanted *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes = np.arange(200, 10001) / 1000
    known = [gamma(2 / a) ** 2 / (gamma(1 / a) * gamma(3 / a)) for a in shapes]
    shape = shapes[np.abs(np.array(known) - wanted).argmin()]
    width = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * width, right * width


def test_a_value_by_the_papers_formulas(pristine):
    rng = np.random.default_rng(0)
    colourful = np.stack([texture(i, side=70)[..., 0] for i in (20, 21, 22)], axis=2)
    noisy = images.round_to_uint8(colourful + rng.normal(0, 20, colourful.shape))
    model = pristine.mean.numpy(), pristine.covariance.numpy(), 32
    for pixels in (colourful, noisy):
        expected = niqe_by_formula(pixels, *model)
        assert score(pixels, pristine) == pytest.approx(expected, abs=1e-4)
    assert score(noisy, pristine) > score(colourful, pristine) + 1


def test_flat_pictures_have_a_value(pristine):
    flat = np.full((64, 64, 3), 128, np.uint8)
    assert np.isfinite(score(flat, pristine))


def test_files(pristine, tmp_path):
    save_pristine(pristine, tmp_path / "p.npz")
    again = load_pristine(tmp_path / "p.npz")
    assert torch.equal(again.mean, pristine.mean)
    assert torch.equal(again.covariance, pristine.covariance)
    assert again.block_px == 32
    scipy_io = pytest.importorskip("scipy.io")
    stored = {"mu_prisparam": pristine.mean.numpy()[None], "cov_prisparam": np.eye(36)}
    scipy_io.savemat(tmp_path / "modelparameters.mat", stored)
    official = load_pristine(tmp_path / "modelparameters.mat")
    assert official.block_px == 96
    assert torch.equal(official.mean, pristine.mean)
    np.savez(tmp_path / "other.npz", a=1)
    for name, says in (("none.npz", "no NIQE parameters at"), ("other.npz", "holds no NIQE")):
        with pytest.raises(ValueError, match=says):
            load_pristine(tmp_path / name)


def test_too_small(pristine):
    with pytest.raises(ValueError, match="blocks of 32 pixels needs larger pictures than 20x20"):
        niqe(torch.zeros(1, 3, 20, 20), pristine)
    with pytest.raises(ValueError, match="too few to fit"):
        fit_niqe([images.to_tensor(texture(0))[0]], block_px=64)
    for block_px in (-2, 0, 33):
        with pytest.raises(ConfigError, match=f"must be even and above 0, not {block_px}"):
            fit_niqe([images.to_tensor(texture(0))[0]], block_px=block_px)
    features, sharpness = block_features(images.to_tensor(texture(0))[0], 64)
    assert features.shape == (4, 36)
    assert sharpness.shape == (4,)
    assert isinstance(pristine, Pristine)
