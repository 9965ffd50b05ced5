"""Noise by counters: the published words, the distribution, and independence of everything else."""

import numpy as np
import pytest
import torch
from conftest import DEVICE, make_unet
from scipy import stats

from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.dr2 import remove_degradation
from dr2pipe.diffusion.low_pass import build_low_pass
from dr2pipe.diffusion.noise import Philox, noise_inside, noise_of, philox_4x32, resolve_noise
from dr2pipe.diffusion.timesteps import build_scheduler

ONES = 0xFFFFFFFF


def words(values):
    return tuple(torch.tensor(value) for value in values)


def picture(seed, draw=0, size=32, purpose=""):
    """The numbers of one picture in one draw, as float64."""
    philox = Philox([seed], purpose)
    philox.draws = draw
    return philox.normal((1, 3, size, size)).flatten().double()


# Random123's kat_vectors of philox4x32-10; the third are digits of π.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_the_published_words(counter, key, expected):
    assert [int(word) for word in philox_4x32(words(counter), words(key))] == expected


def test_the_distribution_is_normal():
    x = Philox(range(64)).normal((64, 3, 64, 64)).flatten().double()
    error = 1 / len(x) ** 0.5
    assert x.mean().abs() < 4 * error
    assert (x.square().mean() - 1).abs() < 4 * 2**0.5 * error
    assert (x**3).mean().abs() < 4 * 15**0.5 * error
    assert ((x**4).mean() - 3).abs() < 4 * 96**0.5 * error
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-3
    assert 4.5 < x.abs().max() < 6


def test_neighbours_of_every_kind_are_independent():
    """Correlations of single numbers, and of their squares, are within chance."""
    x = picture(5, size=128)
    others = {
        "the next place": x.roll(1),
        "the next but one": x.roll(2),
        "the next block": x.roll(4),
        "the next row": x.roll(128),
        "the next channel": x.roll(128 * 128),
        "the next draw": picture(5, draw=1, size=128),
        "the next seed": picture(6, size=128),
        "a seed of other high bits": picture(5 + (1 << 40), size=128),
        "another purpose": picture(5, purpose="ddpm", size=128),
    }
    for what, y in others.items():
        for one, other in ((x, y), (x.square() - 1, y.square() - 1)):
            correlation = (one * other).mean() / (
                one.square().mean() * other.square().mean()
            ).sqrt()
            assert correlation.abs() < 4.5 / len(x) ** 0.5, what


def test_a_picture_does_not_depend_on_its_batch():
    seeds = [3, 2**63 - 1, 0, 7]
    batch = Philox(seeds)
    first, second = batch.normal((4, 3, 5, 7)), batch.normal((4, 2, 3))
    for i, seed in enumerate(seeds):
        single = Philox([seed])
        assert torch.equal(single.normal((1, 3, 5, 7))[0], first[i])
        assert torch.equal(single.normal((1, 2, 3))[0], second[i])
    assert len({tuple(row.flatten().tolist()) for row in first}) == 4
    as_tensor = Philox(torch.tensor(seeds)).normal((4, 3, 5, 7))
    assert torch.equal(as_tensor, first)
    with pytest.raises(ConfigError, match="3 pictures need as many seeds, not 4"):
        batch.normal((3, 3, 5, 7))


def test_integers_are_even():
    drawn = Philox(range(20_000)).integers(10)
    counts = np.bincount(drawn.numpy())
    assert len(counts) == 10
    assert stats.chisquare(counts).pvalue > 1e-3
    assert Philox(range(50)).integers(1).tolist() == [0] * 50
    # The number after a draw of pictures is another one than the first.
    later = Philox(range(20_000))
    later.normal((20_000, 1))
    assert (later.integers(10) == drawn).float().mean() < 0.2


def degraded():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(7)) * 2 - 1


def remove(generator, scheduler, unet, pictures):
    return remove_degradation(
        unet, build_scheduler(*scheduler[:1], **dict(scheduler[1:])),
        build_low_pass("bicubic", factor=4), pictures, omega=9, tau=4, generator=generator,
    )  # fmt: skip


@pytest.mark.parametrize(
    "scheduler",
    [("ddpm", ("variance", "fixed_small")), ("ddpm", ("variance", "learned_range")), ("ddim",)],
)
def test_dr2_draws_from_it(scheduler, unet6):
    """Posterior noise included: nothing comes from another stream."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    both = remove(Philox([1, 2]), scheduler, unet6, degraded())
    assert torch.equal(torch.get_rng_state(), before)
    assert both.isfinite().all()
    # A batch equals its pictures, and the order of draws is the reference's: x, then (posterior,
    # guidance) in every step but the last.
    for i, seed in enumerate((1, 2)):
        philox = Philox([seed])
        single = remove(philox, scheduler, unet6, degraded()[i : i + 1])
        assert (single[0] - both[i]).abs().max() < 1e-5
        assert philox.draws == (11 if scheduler[0] == "ddpm" else 6)
    assert (remove(Philox([3, 2]), scheduler, unet6, degraded())[0] - both[0]).abs().max() > 0.01


def test_a_scheduler_gets_the_numbers_of_the_draw():
    scheduler = build_scheduler("ddpm", variance="fixed_large")
    scheduler.set_timesteps(100)
    x, x0, t = degraded(), degraded() / 2, int(scheduler.timesteps[50])
    scheduler.register_to_config(prediction_type="sample")
    with noise_inside(Philox([4, 5])) as own:
        drawn = scheduler.step(x0, t, x, generator=own).prev_sample
        assert torch.zeros(2).sum() == 0  # everything else is torch's
    with noise_inside(Philox([6, 7])) as own:
        other = scheduler.step(x0, t, x, generator=own).prev_sample
    difference = Philox([4, 5]).normal(x.shape) - Philox([6, 7]).normal(x.shape)
    ratio = (drawn - other) / difference
    assert torch.allclose(ratio, ratio.median(), atol=1e-3)
    generator = torch.Generator()
    with noise_inside(generator) as own:
        assert own is generator


def test_which_noise_a_device_uses():
    assert resolve_noise("auto", "cpu") == "reference"
    assert resolve_noise("auto", "cuda") == resolve_noise("auto", torch.device("mps")) == "philox"
    assert resolve_noise("reference", "cuda") == "reference"
    with pytest.raises(ConfigError, match="noise 'gauss': choose auto, reference, philox"):
        resolve_noise("gauss", "cpu")
    assert isinstance(noise_of("philox", [1]), Philox)
    assert [g.initial_seed() for g in noise_of("reference", [1, 2])] == [1, 2]


@pytest.mark.gpu
def test_a_gpu_draws_the_same_numbers():
    seeds = [1, 2, 3, 4]
    here, there = Philox(seeds, "x"), Philox(seeds, "x")
    for _ in range(3):
        difference = there.normal((4, 3, 64, 64), DEVICE).cpu() - here.normal((4, 3, 64, 64))
        assert difference.abs().max() < 1e-5
    assert torch.equal(there.integers(1000, DEVICE).cpu(), here.integers(1000))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_coarse_faces():
    results = []
    for device in ("cpu", DEVICE):
        unet = make_unet(out_channels=6).to(device)
        coarse = remove(Philox([1, 2]), ("ddpm",), unet, degraded().to(device))
        results.append(coarse.cpu())
    assert (results[0] - results[1]).abs().max() <= 2 / 255
