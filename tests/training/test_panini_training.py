import json

import numpy as np
import pytest
import torch
from conftest import make_pixels
from safetensors.torch import load_file

from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.enhancers import build_enhancer
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.stylegan2 import StyleGAN2Generator
from dr2pipe.training.recipes import run_recipe
from dr2pipe.training.recipes.panini import PaniniRecipe, PaniniTrainConfig

PRIOR = {"style_channels": 8, "mapping_layers": 2, "narrow": 1 / 64}
NETWORK = {"fused_size": 8, "rrdb_channels": 4, "rrdb_blocks": 1, "degradation_width": 4} | PRIOR
SMALL = [
    "recipe=panini", "data.size=16", "pairs.input_size=16", "pairs.degradations={mild: 1.0}",
    *(f"panini.{k}={v}" for k, v in NETWORK.items()), "discriminator.narrow=0.015625",
    "loss.perceptual=0", "learning_rate=1e-3", "batch_size=2", "total_steps=6",
    "save_every_steps=2", "log_every_steps=1", "preview_every_steps=4", "ema_decay=0.5",
]  # fmt: skip


@pytest.fixture
def data(tmp_path):
    pixels = np.stack([make_pixels(i, 16, 16) for i in range(6)])
    np.savez(tmp_path / "faces.npz", images=pixels, files=np.array([f"f{i}" for i in range(6)]))
    (tmp_path / "empty.yaml").write_text("{}\n")
    return tmp_path / "faces.npz"


def train(data, output, *more):
    given = [*SMALL, f"data.path={data}", f"output={output}", *more]
    return run_recipe(data.parent / "empty.yaml", given)


def weights_of(folder):
    return load_file(folder / "final/diffusion_pytorch_model.safetensors")


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_all_losses_flow_and_resume_is_exact(data, tmp_path):
    assert train(data, tmp_path / "a") == 0
    train(data, tmp_path / "b", "total_steps=4")
    train(data, tmp_path / "b")
    a, b = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert all(torch.equal(a[key], b[key]) for key in a)
    last = log_of(tmp_path / "a")[-1]
    assert {"panini/pixel", "panini/gan", "discriminator/loss"} <= set(last)
    network = build_enhancer("panini", tmp_path / "a/final")
    assert network(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 16, 16)


def test_it_learns_with_and_without_interpolation(data, tmp_path):
    for interpolate in ("true", "false"):
        more = [f"panini.interpolate={interpolate}", "total_steps=60", "loss.gan=0"]
        train(data, tmp_path / interpolate, *more, "log_every_steps=10", "learning_rate=5e-3")
        losses = [line["panini/pixel"] for line in log_of(tmp_path / interpolate)]
        assert losses[-1] < 0.8 * losses[0]


def test_given_parts_are_used(data, tmp_path, monkeypatch):
    monkeypatch.setenv("DR2PIPE_HOME", str(tmp_path))
    torch.manual_seed(1)
    prior = StyleGAN2Generator(size=16, **PRIOR)
    encoder = DegradationEncoder(4, projection_width=2)
    for norm in encoder.norms:
        norm.running_mean.normal_()
    prior.save_pretrained(tmp_path / "prior")
    encoder.save_pretrained(tmp_path / "models" / "encoder")
    given = [f"prior={tmp_path / 'prior'}", "encoder_weights=encoder"]  # a path, a name
    # One picture at a time: what the encoder is normalised by does not move.
    train(data, tmp_path / "o", *given, "train_prior=false", "batch_size=1")
    found = weights_of(tmp_path / "o")
    for key, value in prior.state_dict().items():
        if not key.startswith("mapping"):  # it is not used
            assert torch.equal(found[f"prior.{key}"], value), key
    for key, value in encoder.state_dict().items():
        if not key.startswith("projection"):  # it is not used
            moved = not torch.equal(found[f"degradation_encoder.{key}"], value)
            assert moved == key.endswith(("weight", "bias")), key


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["train_prior=false"], "name the folder of a StyleGAN2"),
        (["batch_size=1"], "set batch_size to 2 or more"),
        (["panini.degradation=learned", "encoder_weights=x"], "has no encoder"),
        (["loss.perceptual=1"], "vgg16-397923af.pth"),
        (["panini.fused_size=16"], "fused_size=16 must be at most"),
        (["prior=nowhere"], "no model 'nowhere'"),
        (["encoder_weights=nowhere"], "no model 'nowhere'"),
        (["panini.size=16"], r"panini\.size is set by data\.size; leave it out"),
        (["panini.input_size=16"], r"panini\.input_size is set by pairs\.input_size"),
    ],
)
def test_what_cannot_be(tmp_path, more, says):
    given = [*SMALL, "data.path=x", f"output={tmp_path}", *more]
    with pytest.raises(ValueError, match=says):
        PaniniRecipe(load_config(PaniniTrainConfig, None, given)).build()


def built(*more):
    recipe = PaniniRecipe(
        load_config(PaniniTrainConfig, None, [*SMALL, "data.path=x", "output=y", *more])
    )
    return recipe, {name: trained.network for name, trained in recipe.build().items()}


def test_priors_that_do_not_fit(tmp_path):
    prior = tmp_path / "prior"
    for change, says in (
        ({"narrow": 1 / 32}, r"narrow=0\.03125 instead of 0\.015625"),
        ({"resample": "bilinear"}, "resample=bilinear instead of fir"),
    ):
        StyleGAN2Generator(size=16, **PRIOR | change).save_pretrained(prior)
        with pytest.raises(ConfigError, match=says):
            built(f"prior={prior}")


def test_a_prior_with_another_mapping_network_fits(tmp_path):
    prior = StyleGAN2Generator(size=16, **PRIOR | {"mapping_layers": 3, "mapping_lr": 1.0})
    prior.save_pretrained(tmp_path / "prior")
    _, networks = built(f"prior={tmp_path / 'prior'}")
    assert networks["panini"].config.mapping_layers == 2
    assert torch.equal(networks["panini"].prior.convs[0].conv.weight, prior.convs[0].conv.weight)


@pytest.mark.parametrize("degradation", ["encoder", "learned"])
@pytest.mark.parametrize("interpolate", ["true", "false"])
def test_all_that_is_trained_gets_a_gradient(degradation, interpolate):
    """Several processes wait for the gradient of every parameter that asks for one."""
    recipe, networks = built(
        f"panini.degradation={degradation}", f"panini.interpolate={interpolate}"
    )
    pictures = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for name, loss, _ in recipe.step(networks, {"image": pictures, "input": pictures}):
        loss.backward()
        idle = [
            key
            for key, p in networks[name].named_parameters()
            if p.requires_grad and p.grad is None
        ]
        assert not idle, idle


def test_without_interpolation_one_picture_is_enough():
    built("panini.interpolate=false", "batch_size=1")
