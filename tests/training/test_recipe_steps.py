"""One step of a recipe against its loss worked out by hand; what a run averages and blurs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_pictures, make_unet
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from dr2pipe.core.config import load_config
from dr2pipe.data.coarse import CoarseCache
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.pairs import PairDataset
from dr2pipe.losses.diffusion import variational_bound
from dr2pipe.training.recipes import run_recipe
from dr2pipe.training.recipes.ddpm import DDPMConfig, DDPMRecipe, build_unet
from dr2pipe.training.recipes.enhancer import EnhancerRecipe, EnhancerTrainConfig

ENHANCER = [
    "recipe=enhancer", "output=x", "data.path=x", "data.size=32", "total_steps=1",
    "enhancer.options={size: 32, channels: [8, 16], residual_blocks: 1, hourglass_depth: 1, "
    "hourglass_channels: 8, add_input: true}",
    "discriminator={scales: 2, width: 8, halvings: 2}",
]  # fmt: skip


def pictures_of(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator) * 2 - 1


def ddpm_step(*settings, pictures=4):
    """A step with a network of 6 channels; its loss, what the network saw and what it made."""
    given = ["recipe=ddpm", "output=x", "data.path=x", "data.size=16", "total_steps=1", *settings]
    recipe, unet, seen = DDPMRecipe(load_config(DDPMConfig, None, given)), make_unet(6), []

    def record(_, arguments, output):
        output.sample.retain_grad()
        seen.append((*arguments, output.sample))

    unet.register_forward_hook(record)
    clean = pictures_of(pictures, 16)
    batch = {"image": clean, "seed": torch.arange(pictures)}
    ((_, loss, _),) = recipe.step({"unet": unet}, batch)
    ((noisy, timesteps, predicted),) = seen
    return SimpleNamespace(
        loss=loss, clean=clean, noisy=noisy, timesteps=timesteps, predicted=predicted
    )


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_the_loss_is_the_weighted_error_and_the_bound(variance):
    done = ddpm_step(
        f"variance={variance}", "p2_gamma=1.0", "p2_k=2.0", "num_train_timesteps=500",
        "max_timestep=499",
    )  # fmt: skip
    all_keep = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 500), 0)
    keep = all_keep[done.timesteps][:, None, None, None]
    # The noise follows from the two pictures, in whatever order the recipe draws.
    noise = (done.noisy - keep.sqrt() * done.clean) / (1 - keep).sqrt()
    epsilon = done.predicted[:, :3]
    weights = 1 / (2 + keep / (1 - keep))
    expected = (weights * (epsilon - noise).square()).mean()
    if variance == "learned_range":
        bound = variational_bound(
            done.clean, done.noisy, done.timesteps, epsilon, done.predicted[:, 3:], all_keep
        )
        expected = expected + 0.5 * bound.mean()  # 500 of 1000 timesteps
    assert done.loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_bound_trains_the_variance_alone():
    gradients = {}
    for variance in ("fixed_small", "learned_range"):
        done = ddpm_step(f"variance={variance}")
        done.loss.backward()
        gradients[variance] = done.predicted.grad
    simple, both = gradients["fixed_small"], gradients["learned_range"]
    assert simple[:, :3].abs().sum() > 0
    assert torch.allclose(both[:, :3], simple[:, :3], rtol=1e-4, atol=1e-9)
    assert both[:, 3:].abs().sum() > 0
    assert not simple[:, 3:].any()


def test_timesteps_reach_the_highest_one_and_no_further():
    timesteps = ddpm_step("max_timestep=5", pictures=64).timesteps
    assert sorted(set(timesteps.tolist())) == [0, 1, 2, 3, 4, 5]


def test_averaged_weights_follow_the_live_ones(tmp_path):
    np.savez(
        tmp_path / "faces.npz",
        images=np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
        files=np.array([f"f{i}.png" for i in range(4)]),
    )
    (tmp_path / "tiny.yaml").write_text(
        "recipe: ddpm\n"
        "data: {size: 16}\n"
        "unet: {channels: [8, 16], attention_sizes: [8], attention_head_channels: 8, norm_groups: 4}\n"
    )
    given = [
        f"data.path={tmp_path / 'faces.npz'}", f"output={tmp_path / 'run'}", "learning_rate=0.01",
        "total_steps=3", "batch_size=2", "save_every_steps=1", "keep_checkpoints=3",
        "ema_decay=0.2",
    ]  # fmt: skip
    assert run_recipe(tmp_path / "tiny.yaml", given) == 0
    unet = load_config(DDPMConfig, tmp_path / "tiny.yaml", [*given, "recipe=ddpm"]).unet
    names = [name for name, _ in build_unet(unet, 16).named_parameters()]
    # EMAModel begins with the weights of the first step; then the decay grows as
    # (1 + n) / (10 + n), n the updates after the first, up to the one that is asked for.
    expected = None
    for step, decay in ((1, 0.0), (2, 2 / 11), (3, min(3 / 12, 0.2))):
        folder = tmp_path / f"run/checkpoints/step_{step:08d}"
        weights = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
        live = [weights[name] for name in names]
        pairs = zip(expected or live, live, strict=True)
        expected = [decay * old + (1 - decay) * new for old, new in pairs]
        state = torch.load(folder / "training_state.pt", weights_only=True)
        for averaged, wanted in zip(state["emas"]["unet"]["shadow_params"], expected, strict=True):
            assert torch.allclose(averaged, wanted, atol=1e-6)
    behind = [(old - new).abs().max() for old, new in zip(expected, live, strict=True)]
    assert max(behind) > 1e-3  # an average that merely copied the live weights would be seen


def test_the_discriminator_learns_to_score_real_faces_higher():
    given = [*ENHANCER, "loss.gan=1.0", "discriminator_learning_rate=0.01"]
    recipe = EnhancerRecipe(load_config(EnhancerTrainConfig, None, given))
    trained = recipe.build()
    networks = {name: t.network for name, t in trained.items()}
    # Real faces are stripes, restored ones the same turned by 90 degrees: with add_input a fresh
    # enhancer returns its input, and it is not trained here.
    wave = torch.sin(torch.arange(32) * 1.5)
    real = wave.expand(4, 3, 32, 32) + 0.1 * pictures_of(4, 32)
    batch = {"image": real, "input": real.transpose(2, 3).contiguous()}
    batch["seed"] = torch.arange(len(real))
    optimizer = trained["discriminator"].optimizer
    for _ in range(10):
        for name, loss, _ in recipe.step(networks, batch):
            if name == "discriminator":
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with torch.no_grad():
        scores = [networks["discriminator"](batch[kind])[0] for kind in ("image", "input")]
    for real_score, fake_score in zip(*scores, strict=True):  # of every scale
        assert real_score.mean() > fake_score.mean() + 0.5


def test_coarse_faces_are_blurred(tmp_path):
    faces = FaceDataset(make_pictures(tmp_path / "clean", 1, height=32, width=32), size=32)
    coarse = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    folder = tmp_path / "coarse/variant_00/restored"
    folder.mkdir(parents=True)
    Image.fromarray(coarse).save(folder / "face_000.png")
    pairs = PairDataset(
        faces, input_size=16, degradations={}, coarse=CoarseCache(tmp_path / "coarse"),
        coarse_share=1.0, coarse_sigma_px=(2, 2),
    )  # fmt: skip
    item = pairs[0, 0]
    offsets = np.arange(-6, 7)
    kernel = np.exp(-(offsets**2) / (2 * 2**2))
    kernel /= kernel.sum()
    expected = np.pad(coarse.astype(float), ((6, 6), (6, 6), (0, 0)), mode="reflect")
    for axis in (0, 1):
        expected = np.apply_along_axis(np.convolve, axis, expected, kernel, mode="valid")
    if item["flipped"]:
        expected = expected[:, ::-1]
    shown = (item["input"].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(shown - expected).max() < 2  # OpenCV blurs 8-bit levels in fixed point


@pytest.fixture(scope="module")
def vgg19():
    """The convolutions of VGG19 in torchvision's order, with weights that keep features alive."""
    torch.manual_seed(0)
    layers, width_in = [], 3
    for count, width in zip((2, 2, 4, 4, 4), (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            convolution = nn.Conv2d(width_in, width, 3, padding=1)
            nn.init.normal_(convolution.weight, std=(2 / (9 * width_in)) ** 0.5)
            layers += [convolution, nn.ReLU()]
            width_in = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.mark.parametrize(
    ("setting", "places"),  # weights of layers by their place in torchvision's row
    [
        ([], {3: 1.0, 8: 1.0, 17: 1.0, 26: 1.0, 34: 1.0}),
        (["loss.perceptual_layers={relu1_2: 0.5, conv5_4: 2.0}"], {3: 0.5, 34: 2.0}),
    ],
)
def test_the_perceptual_loss_of_an_enhancer(vgg19, tmp_path, setting, places):
    stored = {f"features.{key}": value for key, value in vgg19.state_dict().items()}
    torch.save(stored, tmp_path / "vgg19.pth")
    given = ["loss.pixel=2.0", "loss.perceptual=0.3", f"loss.vgg19={tmp_path / 'vgg19.pth'}"]
    recipe = EnhancerRecipe(load_config(EnhancerTrainConfig, None, [*ENHANCER, *given, *setting]))
    enhancer = recipe.build()["enhancer"].network
    nn.init.normal_(enhancer.last.conv.weight, std=0.1)  # from zeros only it would get a gradient
    batch = {"image": pictures_of(2, 32), "input": pictures_of(2, 32, seed=1)}
    batch["seed"] = torch.arange(2)

    def features(pictures):
        x = (pictures + 1) / 2
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (x - mean[:, None, None]) / std[:, None, None]
        found = {}
        for place, layer in enumerate(vgg19):
            x = layer(x)
            found[place] = x
        return found

    restored = enhancer(batch["input"])
    made, wanted = features(restored), features(batch["image"])
    perceptual = sum(w * F.l1_loss(made[place], wanted[place]) for place, w in places.items())
    expected = 2 * F.l1_loss(restored, batch["image"]) + 0.3 * perceptual
    by_hand = torch.autograd.grad(expected, list(enhancer.parameters()))

    ((_, loss, scalars),) = recipe.step({"enhancer": enhancer}, batch)
    assert scalars["enhancer/perceptual"].item() == pytest.approx(perceptual.item(), rel=1e-4)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    for parameter, gradient in zip(enhancer.parameters(), by_hand, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for parameter in recipe.perceptual.network.parameters())
