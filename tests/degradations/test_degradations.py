import json
import os

import numpy as np
import pytest
from conftest import make_pixels

from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.degradations import UNSEEN, chain_names, degrade
from dr2pipe.degradations.blind import (
    BlindRanges,
    degrade_blind,
    describe_chain,
    jitter_colours,
    load_ranges,
)
from dr2pipe.degradations.kernels import blur, disk_kernel, gaussian_kernel, motion_kernel

FACE = make_pixels(0, 64, 64)
EVERY = [(name, None) for name in chain_names()] + [(name, s) for name in UNSEEN for s in (1, 3, 5)]


@pytest.mark.parametrize(("name", "severity"), EVERY)
def test_same_seed_same_pixels_and_shape(name, severity):
    first, parameters = degrade(FACE, name, np.random.default_rng(3), severity=severity)
    # Another picture in between must not matter: nothing is drawn from a global stream.
    np.random.seed(0)
    degrade(FACE[::-1], name, np.random.default_rng(9), severity=severity)
    second, again = degrade(FACE, name, np.random.default_rng(3), severity=severity)
    assert (first == second).all()
    assert parameters == again
    assert first.shape == FACE.shape
    assert first.dtype == np.uint8
    assert (first != FACE).any()


@pytest.mark.parametrize("name", sorted(UNSEEN))
def test_severity_means_distance_from_the_original(name):
    def distance(severity):
        return np.mean(
            [
                np.abs(
                    degrade(FACE, name, np.random.default_rng(i), severity=severity)[0].astype(int)
                    - FACE
                ).mean()
                for i in range(5)
            ]
        )

    distances = [distance(s) for s in (1, 3, 5)]
    assert distances == sorted(distances)
    assert distances[2] > 1.5 * distances[0]


@pytest.mark.parametrize("name", sorted(UNSEEN))
def test_the_unseen_families_say_what_they_used(name):
    mild, severe = (degrade(FACE, name, np.random.default_rng(0), severity=s)[1] for s in (1, 5))
    assert json.loads(json.dumps(mild)) == mild  # plain numbers
    assert set(mild) == set(severe)
    assert mild != severe


def test_what_a_family_draws_is_recorded():
    angles = [
        degrade(FACE, "motion_blur", np.random.default_rng(i), severity=3)[1]["angle_rad"]
        for i in range(2)
    ]
    assert angles[0] != angles[1]
    length = degrade(FACE, "motion_blur", np.random.default_rng(0), severity=5)[1]["length_px"]
    expected = blur(FACE.astype(np.float32), motion_kernel(length, angles[0]))
    made, _ = degrade(FACE, "motion_blur", np.random.default_rng(0), severity=5)
    assert np.abs(made - expected).max() <= 0.5


@pytest.mark.parametrize("size", [(48, 48), (64, 96), (33, 57)])
@pytest.mark.parametrize("name", [*chain_names(), *UNSEEN])
def test_any_size(name, size):
    severity = 5 if name in UNSEEN else None
    face = make_pixels(1, *size)
    assert degrade(face, name, np.random.default_rng(0), severity=severity)[0].shape == face.shape


def test_the_published_ranges_are_kept():
    drawn = [degrade(FACE, "gfpgan", np.random.default_rng(i))[1] for i in range(400)]
    scale = 64 / 512
    assert all(0.1 * scale <= d["sigma_x_px"] <= 10 * scale for d in drawn)
    assert all(0.8 <= d["shrink"] <= 8 and 0 <= d["noise"] <= 20 for d in drawn)
    assert {d["jpeg_quality"] for d in drawn} == set(range(60, 101))
    assert 0.4 < np.mean([d["sigma_x_px"] == d["sigma_y_px"] for d in drawn]) < 0.6
    assert 0.22 < np.mean(["colour_shift" in d for d in drawn]) < 0.38
    assert 0.22 < np.mean(["hue" in d for d in drawn]) < 0.38
    assert np.mean(["grey" in d for d in drawn]) < 0.05


def test_probabilities_do_not_change_the_other_draws():
    ranges = ([1.0, 4.0], [1.0, 4.0], [0.0, 10.0], [60, 90])
    with_grey = BlindRanges(*ranges, grey_probability=1.0)
    plain, first = degrade_blind(FACE, np.random.default_rng(0), BlindRanges(*ranges))
    grey, second = degrade_blind(FACE, np.random.default_rng(0), with_grey)
    assert {k: second[k] for k in first} == first
    assert (grey == grey[..., :1]).all()
    assert (plain != grey).any()


def test_grey_noise_is_the_same_in_all_channels():
    ranges = ([0.0, 0.0], [1.0, 1.0], [20.0, 20.0], [100, 100])
    plain = np.full((64, 64, 3), 128, np.uint8)
    coloured, first = degrade_blind(plain, np.random.default_rng(0), BlindRanges(*ranges))
    with_grey = BlindRanges(*ranges, grey_noise=True)
    grey, second = degrade_blind(plain, np.random.default_rng(0), with_grey)
    assert first == second
    spread = [np.ptp(picture.astype(int), axis=2).mean() for picture in (coloured, grey)]
    assert spread[1] < 3 < 10 < spread[0]  # JPEG adds a little
    assert grey.std() > 10
    # What was described before this setting existed is described as it was.
    assert "grey_noise" not in describe_chain("severe")
    assert describe_chain("coarse_grain")["grey_noise"]


def test_nothing_to_draw_changes_nothing_but_the_codec():
    ranges = BlindRanges([0, 0], [1, 1], [0, 0], [100, 100])
    degraded, _ = degrade_blind(FACE, np.random.default_rng(0), ranges)
    assert np.abs(degraded.astype(int) - FACE).mean() < 3


def test_jitter_keeps_a_grey_picture_grey():
    grey = np.repeat(FACE[..., :1], 3, axis=2).astype(np.float32)
    for seed in range(10):
        image, _ = jitter_colours(grey, np.random.default_rng(seed))
        assert np.abs(image - image[..., :1]).max() < 0.1


@pytest.mark.parametrize(
    "kernel",
    [
        gaussian_kernel(21, 2.0, 4.0, 0.7),
        motion_kernel(9.0, 0.6),
        motion_kernel(1.0, 0.0),
        disk_kernel(3.4),
    ],
)
def test_kernels_sum_to_one_and_are_centred(kernel):
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    offsets = np.arange(len(kernel)) - (len(kernel) - 1) / 2
    assert (kernel.sum(0) * offsets).sum() == pytest.approx(0, abs=0.1)
    assert (kernel.sum(1) * offsets).sum() == pytest.approx(0, abs=0.1)
    flat = np.full((20, 20, 3), 90.0, np.float32)
    assert np.allclose(blur(flat, kernel), flat, atol=1e-2)


def test_a_published_kernel_is_cut_off(monkeypatch):
    """GFP-GAN's and DifFace's have 41 pixels of 512, whatever their deviation."""
    sizes = []

    def noted(size, *parameters):
        sizes.append(size)
        return gaussian_kernel(size, *parameters)

    monkeypatch.setattr("dr2pipe.degradations.blind.gaussian_kernel", noted)
    face = np.zeros((512, 512, 3), np.uint8)
    for seed in range(20):
        degrade(face, "difface", np.random.default_rng(seed))
    assert max(sizes) == 41
    sizes.clear()
    for seed in range(20):
        degrade(face[:128, :128], "gfpgan", np.random.default_rng(seed))
    assert max(sizes) == 11


def test_gaussian_kernel_has_its_deviations():
    kernel = gaussian_kernel(41, 2.0, 5.0)
    offsets = np.arange(41) - 20
    assert np.sqrt((kernel.sum(0) * offsets**2).sum()) == pytest.approx(2.0, rel=0.01)
    assert np.sqrt((kernel.sum(1) * offsets**2).sum()) == pytest.approx(5.0, rel=0.01)
    turned = gaussian_kernel(41, 2.0, 5.0, np.pi / 2)
    assert np.allclose(turned, kernel.T, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "severity", "says"),
    [
        ("rain", None, r"severity of 1\.\.5, not None"),
        ("rain", 6, "not 6"),
        ("mild", 2, "takes no severity"),
        ("snow", 1, "unknown degradation 'snow'; chains: .*gfpgan.*unseen families: .*rain"),
    ],
)
def test_errors(name, severity, says):
    with pytest.raises(ValueError, match=says):
        degrade(FACE, name, np.random.default_rng(0), severity=severity)


VALID = "sigma_px: [1, 2]\nshrink: [1, 2]\nnoise: [0, 5]\njpeg_quality: [60, 90]\n"


@pytest.mark.parametrize("name", ["medium", "rain"])
@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((32, 32, 3)),
        np.zeros((0, 32, 3), np.uint8),
    ],
)
def test_only_rgb_of_8_bits_is_degraded(name, pixels):
    severity = 5 if name == "rain" else None
    with pytest.raises(PictureError, match="expected"):
        degrade(pixels, name, np.random.default_rng(0), severity=severity)


def test_ranges_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(VALID)
    _, drawn = degrade(FACE, str(path), np.random.default_rng(0))
    assert 60 <= drawn["jpeg_quality"] <= 90


def test_an_edited_file_counts(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(VALID)
    degrade(FACE, str(path), np.random.default_rng(0))
    path.write_text(VALID.replace("[60, 90]", "[10, 12]"))
    os.utime(path, ns=(1, 1))
    assert degrade(FACE, str(path), np.random.default_rng(0))[1]["jpeg_quality"] <= 12


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (VALID.replace("[1, 2]", "[2, 1]"), "sigma_px"),
        (VALID.replace("[60, 90]", "[60, 101]"), "100 or below"),
        (VALID + "grey_probability: 2\n", r"grey_probability=2\.0 must lie in"),
        (VALID + "blur: 3\n", "unknown key 'blur'"),
        ("noise: [0, 1]\n", "'sigma_px' must be given"),
    ],
)
def test_bad_ranges_are_refused(tmp_path, text, says):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_ranges(path)
