"""The bridge to spandrel, against a stand-in: the library itself needs torchvision."""

import sys
import types

import pytest
import torch
from conftest import make_pictures

from dr2pipe.cli import main
from dr2pipe.enhancers import build_enhancer


class Descriptor:
    noise = 0.0

    def __init__(self, scale=2, channels=3):
        self.model = torch.nn.Conv2d(3, 3, 1)
        self.scale, self.input_channels, self.output_channels = scale, channels, 3
        self.supports_half, self.supports_bfloat16 = False, True
        self.architecture = types.SimpleNamespace(name="Enlarger")

    def __call__(self, picture):
        assert picture.shape[0] == 1
        assert picture.min() >= 0
        assert picture.max() <= 1
        picture = picture + 0 * torch.randn(1) + self.noise * torch.randn(picture.shape)
        return picture.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)


@pytest.fixture
def library(monkeypatch):
    found = {"descriptor": Descriptor()}

    class ModelLoader:
        def __init__(self, device):
            pass

        def load_from_file(self, path):
            if isinstance(found["descriptor"], Exception):
                raise found["descriptor"]
            return found["descriptor"]

    module = types.ModuleType("spandrel")
    module.ModelLoader, module.ImageModelDescriptor = ModelLoader, Descriptor
    monkeypatch.setitem(sys.modules, "spandrel", module)
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", None)
    return found


@pytest.fixture
def weights(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_pictures_go_through_one_by_one_in_the_librarys_range(library, weights):
    enhancer = build_enhancer("spandrel", weights)
    assert (enhancer.input_size, enhancer.output_size) == (256, 512)
    x = torch.rand(3, 3, 8, 8) * 2 - 1
    made = enhancer(x)
    assert made.shape == (3, 3, 16, 16)
    assert torch.allclose(made[:, :, ::2, ::2], x, atol=1e-6)
    assert any(True for _ in enhancer.parameters())


def test_networks_that_draw_noise_repeat_themselves(library, weights, monkeypatch):
    monkeypatch.setattr(Descriptor, "noise", 0.1)
    enhancer, x = build_enhancer("spandrel", weights), torch.zeros(2, 3, 8, 8)
    state = torch.get_rng_state()
    made = enhancer(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(made, enhancer(x))
    assert torch.equal(made[0], made[1])  # whatever the place in the batch


def test_precisions_that_the_network_lacks_are_refused(library, weights):
    enhancer = build_enhancer("spandrel", weights)
    with pytest.raises(ValueError, match="does not support"):
        enhancer.to(device="cpu", dtype=torch.float16)
    assert enhancer.to(dtype=torch.bfloat16).network.weight.dtype == torch.bfloat16


def test_it_restores_a_folder(library, weights, tmp_path):
    make_pictures(tmp_path / "in", 2)
    settings = ["dr2.enabled=false", "enhancer.name=spandrel", f"enhancer.weights={weights}"]
    assert (
        main(
            [
                "restore",
                "--aligned",
                str(tmp_path / "in"),
                str(tmp_path / "out"),
                "--set",
                *settings,
            ]
        )
        == 0
    )
    assert len(list((tmp_path / "out" / "restored").iterdir())) == 2


def test_clear_errors(library, weights, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no file at"):
        build_enhancer("spandrel", tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="takes weights alone"):
        build_enhancer("spandrel")
    library["descriptor"] = Descriptor(channels=1)
    with pytest.raises(ValueError, match="is not a network from one RGB picture"):
        build_enhancer("spandrel", weights)
    library["descriptor"] = KeyError("unknown architecture")
    with pytest.raises(ValueError, match=r"spandrel cannot load .*spandrel_extra_arches"):
        build_enhancer("spandrel", weights)


def test_a_machine_without_torchvision(weights, monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "spandrel":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "spandrel", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ValueError, match=r"a torchvision that fits torch .*nms does not exist"):
        build_enhancer("spandrel", weights)
