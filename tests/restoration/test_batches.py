"""Sizes of batches: measured, padded for compiled networks, and smaller where memory runs out."""

from types import SimpleNamespace

import pytest
import torch
from conftest import make_unet

from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.diffusion.low_pass import build_low_pass
from dr2pipe.diffusion.stage1 import Choice, Remover
from dr2pipe.diffusion.timesteps import build_scheduler
from dr2pipe.enhancers import build_enhancer
from dr2pipe.restoration import batch_size
from dr2pipe.restoration.batch_size import resolve_batch_size
from dr2pipe.restoration.restorer import Restorer
from dr2pipe.restoration.settings import check_restoration
from dr2pipe.runs.restore import RestoreConfig

SPARNET = {"size": 32, "channels": (8, 16), "residual_blocks": 1, "hourglass_depth": 2}


def make_remover(unet, tau=4):
    return Remover(
        unet, build_scheduler("ddpm", variance="fixed_small"), build_low_pass("bicubic", factor=2),
        omega=10, tau=tau, num_evaluations=3,
    )  # fmt: skip


def faces(count):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Limited(Restorer):
    """A restorer whose memory ends, and whose time does not grow with every face.

    Its clock is the one that :mod:`batch_size` looks at.
    """

    def __init__(self, most, faces_at_once):
        super().__init__(None, build_enhancer("bicubic", size=16))
        self.most, self.faces_at_once, self.seen = most, faces_at_once, []
        self.now, self.says = 0.0, "CUDA out of memory. Tried to allocate 2 GiB"

    def __call__(self, degraded, seeds):
        self.seen.append(len(seeds))
        if len(seeds) > self.most:
            raise RuntimeError(self.says)
        self.now += -(-len(seeds) // self.faces_at_once)
        return super().__call__(degraded, seeds)


@pytest.fixture
def limited(monkeypatch):
    def make(most, faces_at_once):
        restorer = Limited(most, faces_at_once)
        clock = SimpleNamespace(perf_counter=lambda: restorer.now)
        monkeypatch.setattr(batch_size, "time", clock)
        return restorer

    return make


def test_auto_is_the_largest_batch_that_fits(limited):
    restorer = limited(most=5, faces_at_once=100)
    assert resolve_batch_size("auto", restorer) == 4
    assert restorer.seen == [1, 1, 2, 2, 4, 4, 8]


def test_a_kernel_that_takes_no_more_numbers_is_no_memory_either(limited):
    restorer = limited(most=5, faces_at_once=100)
    restorer.says = "input tensor must fit into 32-bit index math"
    assert resolve_batch_size("auto", restorer) == 4


def test_auto_ends_where_a_face_becomes_no_faster(limited):
    restorer = limited(most=10_000, faces_at_once=4)
    assert resolve_batch_size("auto", restorer) == 4
    assert max(restorer.seen) == 8
    assert restorer.padded_to == 0


def test_auto_where_nothing_fits(limited):
    with pytest.raises(RuntimeError, match="out of memory"):
        resolve_batch_size("auto", limited(most=0, faces_at_once=1))


def test_numbers_and_words(limited):
    restorer = limited(most=1, faces_at_once=1)
    assert resolve_batch_size(7, restorer) == 7
    assert restorer.seen == []
    for wrong, says in ((0, "batch_size=0 must be"), ("most", "'most': choose a number or auto")):
        with pytest.raises(ConfigError, match=says):
            resolve_batch_size(wrong, restorer)
    given = ["input=x", "output=y"]
    assert load_config(RestoreConfig, None, [*given, "batch_size=auto"]).batch_size == "auto"
    assert load_config(RestoreConfig, None, [*given, "batch_size=4"]).batch_size == 4
    config = load_config(RestoreConfig, None, [*given, "noise=gauss"])
    with pytest.raises(ConfigError, match="noise 'gauss': choose"):
        check_restoration(config)


class TwoSettings:
    """Chooses one of two removers by the place of a picture."""

    def __init__(self, unet):
        self.removers = [make_remover(unet, 4), make_remover(unet, 6)]
        self.networks, self.size = [unet], 16

    def choose(self, degraded):
        return [Choice(self.removers[i % 3 == 1]) for i in range(len(degraded))]


@pytest.fixture
def whole_batches(monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr(Restorer, "_parts", lambda self, count: [slice(count)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_go_alone_where_a_batch_would_change_them(dtype):
    torch.manual_seed(0)
    unet, enhancer = make_unet(), build_enhancer("sparnet", **SPARNET)
    restorer = Restorer(TwoSettings(unet), enhancer, dtype=dtype)
    shapes = []
    for network in (unet, enhancer):
        network.register_forward_pre_hook(lambda _, given: shapes.append(len(given[0])))
    batch = restorer(faces(5), list(range(5)))
    assert (max(shapes) == 1) == (dtype == torch.float32)
    assert len(batch.choices) == len(batch.restored) == 5
    again = restorer.enhance(batch.coarse)
    if dtype == torch.float32:
        assert again.equal(batch.restored)
        alone = restorer(faces(5)[3:4], [3])
        assert alone.restored.equal(batch.restored[3:4])


@pytest.mark.usefixtures("whole_batches")
@pytest.mark.parametrize("noise", ["reference", "philox"])
def test_compiled_networks_see_one_shape_and_give_the_same(noise):
    """Without a compiler: what the networks get is watched."""
    torch.manual_seed(0)
    unet, enhancer = make_unet(), build_enhancer("sparnet", **SPARNET)
    plain = Restorer(TwoSettings(unet), enhancer, noise=noise)
    padding = Restorer(TwoSettings(unet), enhancer, noise=noise)
    padding.compiled = True  # as far as shapes go
    shapes = []
    hooks = [
        network.register_forward_pre_hook(lambda _, given: shapes.append(len(given[0])))
        for network in (unet, enhancer)
    ]
    for count in (4, 3, 1):
        shapes.clear()
        found = padding(faces(count), list(range(count)))
        assert set(shapes) == {4}
        shapes.clear()
        wanted = plain(faces(count), list(range(count)))
        assert max(shapes) <= count
        for name in ("coarse", "restored"):
            one, other = getattr(found, name), getattr(wanted, name)
            assert one.shape == other.shape
            assert (one - other).abs().max() < 1e-4
    for hook in hooks:
        hook.remove()


@pytest.mark.usefixtures("whole_batches")
def test_padding_ends_where_memory_does():
    restorer = Restorer(None, build_enhancer("bicubic", size=16))
    restorer.compiled = True
    restorer(faces(4), [0] * 4)
    assert restorer.padded_to == 4

    def run(degraded, seeds, choices):
        raise RuntimeError("not enough memory: you tried to allocate 1 byte")

    usual, restorer._run = restorer._run, run
    with pytest.raises(RuntimeError, match="not enough"):
        restorer(faces(4), [0] * 4)
    restorer._run = usual
    restorer(faces(2), [0] * 2)
    assert restorer.padded_to == 2


def test_noise_of_philox_in_both_stages():
    """A batch equals its pictures, and another noise than torch's is used."""
    remover = make_remover(make_unet())
    philox = Restorer(remover, build_enhancer("none"), noise="philox")
    batch = philox(faces(3), [1, 2, 3]).restored
    for i in range(3):
        single = philox(faces(3)[i : i + 1], [i + 1]).restored[0]
        assert single.equal(batch[i])
    reference = Restorer(remover, build_enhancer("none"))(faces(3), [1, 2, 3]).restored
    assert (reference - batch).abs().mean() > 1e-3


@pytest.mark.slow
def test_a_compiled_network_is_compiled_once():
    unet = make_unet()
    compiled = Restorer(make_remover(unet), build_enhancer("none"), compile=True)
    torch._dynamo.utils.counters.clear()
    compiled(faces(3), [0, 1, 2])
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled(faces(2), [0, 1])
    compiled(faces(1), [0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0
