import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEVICE, ROOT, make_pictures, run_here
from PIL import Image
from torch.utils.data import DataLoader

from dr2pipe.core.config import load_config, peek
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.precision import resolve_precision
from dr2pipe.data.coarse import CoarseCache
from dr2pipe.data.folders import FaceDataset
from dr2pipe.data.pairs import PairDataset
from dr2pipe.enhancers import build_enhancer
from dr2pipe.runs.coarse import CoarseConfig, draw_settings, make_coarse
from dr2pipe.training.recipe import check_config
from dr2pipe.training.recipes import RECIPES, export_run, run_recipe
from dr2pipe.training.recipes.ddpm import DDPMConfig, build_unet
from dr2pipe.training.recipes.enhancer import EnhancerRecipe, EnhancerTrainConfig

CONFIG = """
recipe: enhancer
data: {size: 32}
pairs: {input_size: 16, degradations: {mild: 0.5, severe: 0.5}}
enhancer:
  name: sparnet
  options: {size: 32, channels: [8, 16], residual_blocks: 1, hourglass_depth: 1, hourglass_channels: 8}
discriminator: {scales: 2, width: 8, halvings: 2}
learning_rate: 2.0e-3
total_steps: 12
batch_size: 4
log_every_steps: 2
preview_every_steps: 6
save_every_steps: 6
ema_decay: 0.9
"""


@pytest.fixture
def clean(tmp_path):
    return make_pictures(tmp_path / "clean", 6, height=32, width=32)


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    return tmp_path / "tiny.yaml"


def coarse_config(clean, output, model_folder, *overrides):
    settings = [
        f"input={clean}", f"output={output}", f"dr2.model={model_folder}", "variants=3",
        "dr2.scheduler=ddim", "dr2.num_evaluations=2", "factors=[2,4]", "taus=[2,4]",
        "omegas=[8,10]", *overrides,
    ]  # fmt: skip
    return load_config(CoarseConfig, None, settings)


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_coarse_faces_are_made_once(clean, model_folder, tmp_path):
    settings = ["precision=auto", "degradations={severe: 0.5}"]
    config = coarse_config(clean, tmp_path / "coarse", model_folder, *settings)
    assert [s.restored for s in make_coarse(config)] == [6, 6, 6]
    assert [s.skipped for s in make_coarse(config)] == [6, 6, 6]
    other = "fp32" if resolve_precision("auto", DEVICE) == "bf16" else "bf16"
    again = dataclasses.replace(config, precision=other)
    assert [s.restored for s in make_coarse(again)] == [6, 6, 6]
    drawn = [draw_settings(config, variant) for variant in range(30)]
    assert {d.factor for d in drawn} == {2, 4}
    assert {d.tau for d in drawn} == {2, 4}
    assert {d.omega for d in drawn} == {8, 10}
    cache = CoarseCache(tmp_path / "coarse")
    faces = FaceDataset(clean, size=32, flip=False)
    cache.find(faces)
    name = faces.names[0]
    seen = {cache.read(name, np.random.default_rng(i)).tobytes() for i in range(20)}
    assert len(seen) == 3
    lines = (tmp_path / "coarse/variant_00/manifest.jsonl").read_text()
    assert '"degraded_by": "severe"' in lines
    # A face that was replaced is not trained on with the coarse versions of the former one.
    Path(faces.names[1]).write_bytes(Path(faces.names[0]).read_bytes())
    with pytest.raises(ValueError, match=r"face_001\.png has changed since its coarse version"):
        cache.find(faces)


def test_coarse_faces_of_another_run_are_not_mixed_in(clean, model_folder, tmp_path):
    make_coarse(coarse_config(clean, tmp_path / "c", model_folder))
    with pytest.raises(ConfigError, match="variant_02 of another configuration"):
        make_coarse(coarse_config(clean, tmp_path / "c", model_folder, "variants=2"))


def test_unfinished_coarse_faces_are_refused(clean, model_folder, tmp_path):
    config = coarse_config(clean, tmp_path / "coarse", model_folder)
    make_coarse(config)
    assert len(CoarseCache(tmp_path / "coarse").variants) == 3
    shutil.rmtree(tmp_path / "coarse" / "variant_02")
    with pytest.raises(ValueError, match="has 2 of 3 variants"):
        CoarseCache(tmp_path / "coarse")


def test_a_folder_has_no_sources(clean, model_folder, tmp_path):
    config = coarse_config(clean, tmp_path / "coarse", model_folder, "sources=[2]")
    with pytest.raises(ConfigError, match="for a folder set sources=null"):
        make_coarse(config)
    assert not (tmp_path / "coarse").exists()


def test_folders_within_folders(clean, model_folder, tmp_path):
    for name in ("a", "b"):  # equal names in two folders
        make_pictures(tmp_path / "nested" / name, 1, height=32, width=32)
    make_coarse(coarse_config(tmp_path / "nested", tmp_path / "c", model_folder, "variants=1"))
    faces = FaceDataset(tmp_path / "nested", size=32, flip=False)
    assert [faces.relative(name) for name in faces.names] == ["a/face_000.png", "b/face_000.png"]
    pairs = PairDataset(
        faces,
        input_size=16,
        degradations={},
        coarse=CoarseCache(tmp_path / "c"),
        coarse_share=1.0,
        coarse_sigma_px=(0, 0),
    )
    assert pairs[0, 0]["input"].shape == (3, 16, 16)


def test_a_grey_input_of_sparnets_chain_has_a_grey_target(clean):
    faces = FaceDataset(clean, size=32, flip=False)
    pairs = PairDataset(faces, input_size=32, degradations={"sparnet": 1.0})
    seen = set()
    for position in range(30):
        item = pairs[0, position]
        spread = (item["image"].amax(dim=0) - item["image"].amin(dim=0)).max()
        seen.add(bool(spread < 1e-6))
    assert seen == {True, False}


def test_coarse_faces_of_an_npz(model_folder, tmp_path):
    pixels = np.zeros((4, 32, 32, 3), np.uint8)
    files = np.array([f"f{i}.jpg" for i in range(4)])
    np.savez(tmp_path / "faces.npz", images=pixels, files=files, source=np.array([0, 1, 1, 1]))
    config = coarse_config(tmp_path / "faces.npz", tmp_path / "c", model_folder, "sources=[1]")
    assert [s.restored for s in make_coarse(config)] == [3, 3, 3]
    assert sorted(p.name for p in (tmp_path / "c/clean").iterdir()) == [
        "f1.png",
        "f2.png",
        "f3.png",
    ]
    # Other faces in the same place would leave both sets there for training.
    with pytest.raises(ValueError, match=r"is not of .*choose another output"):
        make_coarse(
            coarse_config(tmp_path / "faces.npz", tmp_path / "c", model_folder, "sources=[0]")
        )
    np.savez(tmp_path / "faces.npz", images=pixels + 1, files=files, source=np.array([0, 1, 1, 1]))
    with pytest.raises(ValueError, match=r"f1\.png is another picture"):
        make_coarse(config)
    files[1] = "f2.png"
    np.savez(tmp_path / "twice.npz", images=pixels, files=files, source=np.array([0, 1, 1, 1]))
    with pytest.raises(ValueError, match=r"two faces of the name 'f2.png', number 1 and 2"):
        make_coarse(coarse_config(tmp_path / "twice.npz", tmp_path / "d", model_folder))


def test_pairs_mix_coarse_and_degraded_and_flip_together(clean, model_folder, tmp_path):
    folder = tmp_path / "coarse/variant_00/restored"
    for i in range(6):  # coarse faces that can be told: red on the left, blue on the right
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[:, :8, 0] = pixels[:, 8:, 2] = 255
        Image.fromarray(pixels).save(folder / f"face_{i:03d}.png")
    dataset = PairDataset(
        FaceDataset(clean, size=32), input_size=16, degradations={"mild": 1.0},
        coarse=CoarseCache(tmp_path / "coarse"), coarse_share=0.5, coarse_sigma_px=(0.0, 0.0),
    )  # fmt: skip
    coarse = 0
    for position in range(200):
        item = dataset[(position % 6, position)]
        again = dataset[(position % 6, position)]
        assert torch.equal(item["input"], again["input"])
        assert item["input"].shape == (3, 16, 16)
        corner = item["input"][:, 0, 0].tolist()
        if corner in ([1, -1, -1], [-1, -1, 1]):
            coarse += 1
            assert item["flipped"] == (corner == [-1, -1, 1])
    assert 70 < coarse < 130


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"coarse_share": 2.0}, r"must lie in \[0, 1\]"),
        ({"recolour": -0.1}, "recolour=-0.1 must lie in"),
        ({"degradations": {"rain": 1.0}}, "kept for evaluation"),
        ({"coarse_share": 0.5}, "go together"),
        ({"degradations": {}}, "must be 0 or more, not all 0"),
        ({"degradations": {"mild": -1.0}}, "must be 0 or more, not all 0"),
    ],
)
def test_bad_shares(clean, options, says):
    with pytest.raises(ValueError, match=says):
        PairDataset(
            FaceDataset(clean, size=32),
            **{"input_size": 16, "degradations": {"mild": 1.0}} | options,
        )


def test_missing_coarse_faces_are_an_error(clean, tmp_path):
    with pytest.raises(ValueError, match="no coarse faces"):
        CoarseCache(tmp_path)
    (tmp_path / "coarse/variant_00/restored").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"6 faces have no coarse version.*face_000"):
        PairDataset(
            FaceDataset(clean, size=32), input_size=16, degradations={},
            coarse=CoarseCache(tmp_path / "coarse"), coarse_share=1.0,
        )  # fmt: skip


def test_plain_l1_training_learns_and_exports(config_file, clean, tmp_path):
    run = tmp_path / "run"
    settings = [f"data.path={clean}", f"output={run}", "total_steps=60", "export_precision=fp16"]
    assert run_recipe(config_file, settings) == 0
    losses = [r["enhancer/loss"] for r in log_of(run)]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:2])
    enhancer = build_enhancer("sparnet", run / "final")
    assert enhancer(torch.zeros(1, 3, 32, 32)).isfinite().all()
    assert (run / "previews").is_dir()
    assert export_run(run, tmp_path / "exported") == 60
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "exported" / name).read_bytes() == (run / "final" / name).read_bytes()


def test_adversarial_training_moves_both_networks(config_file, clean, tmp_path):
    run = tmp_path / "run"
    settings = ["loss.gan=1.0", "loss.feature_matching=10.0", "loss.pixel=100.0"]
    assert run_recipe(config_file, [f"data.path={clean}", f"output={run}", *settings]) == 0
    records = log_of(run)
    names = {"enhancer/gan", "enhancer/feature_matching", "enhancer/pixel", "discriminator/loss"}
    assert names <= records[0].keys()
    assert all(np.isfinite(list(r.values())).all() for r in records)
    assert all(r["discriminator/grad_norm"] > 0 for r in records)
    assert records[0]["discriminator/loss"] != records[-1]["discriminator/loss"]
    state = torch.load(run / "checkpoints/step_00000012/training_state.pt", weights_only=True)
    assert set(state["emas"]) == {"enhancer"}
    assert set(state["optimizers"]) == {"enhancer", "discriminator"}


def test_discriminators_compare_squares_of_one_place(tmp_path):
    """Of the enhancer's output, they see only a square; of the target, the same one."""
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    settings = ["loss.gan=1", "loss.pixel=0", "loss.adversarial_px=16", "discriminator.halvings=1"]
    settings += ["data.path=x", "output=x"]
    recipe = EnhancerRecipe(load_config(EnhancerTrainConfig, tmp_path / "tiny.yaml", settings))
    networks = {n: t.network for n, t in recipe.build().items()}
    seen, gradients = [], []

    def keep_gradient(network, given, output):
        output.register_hook(gradients.append)

    networks["discriminator"].register_forward_hook(lambda _, given, __: seen.append(given[0]))
    networks["enhancer"].register_forward_hook(keep_gradient)
    # Every pixel of a target says where it is.
    places = torch.arange(32.0).repeat(32, 1) / 32
    target = torch.stack([places.T, places, 0 * places]).repeat(3, 1, 1, 1)
    batch = {"image": target, "input": torch.rand(3, 3, 16, 16), "seed": torch.tensor([5, 6, 7])}
    for loss in recipe.step(networks, batch):
        loss[1].backward()
    assert [tuple(x.shape) for x in seen] == [(3, 3, 16, 16)] * 4
    assert torch.equal(seen[1], seen[3])
    corners = [tuple((32 * real[:2, 0, 0]).int().tolist()) for real in seen[1]]
    assert len(set(corners)) == 3
    recipe.config.discriminator.halvings = 2
    with pytest.raises(ConfigError, match="need 24 pixels a side, not 16"):
        recipe.build()
    for gradient, (top, left) in zip(gradients[0], corners, strict=True):
        assert gradient[:, top : top + 16, left : left + 16].abs().sum() > 0
        gradient[:, top : top + 16, left : left + 16] = 0
        assert gradient.abs().sum() == 0


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("enhancer.name=gan", "unknown enhancer 'gan'"),
        ("enhancer.name=exegan", "exegan takes mask and latents besides a face"),
        ("discriminator_learning_rate=-1", "discriminator_learning_rate=-1.0 must not be below 0"),
        ("betas=[0.5, 1.5]", r"betas=\[0.5, 1.5\] must be at least 0 and below 1"),
        ("pairs.input_size=0", "pairs.input_size=0 must be at least 1"),
        ("enhancer.options.hourglass_depth=9", "hourglass_depth=9 does not fit size=32"),
        ("enhancer.options.hourglass_depth=0", "hourglass_depth=0 does not fit size=32"),
        ("discriminator.scales=0", "of the discriminator must be at least 1"),
        ("loss.pixel=-1", "loss.pixel=-1.0 must not be below 0"),
        ("loss.adversarial_px=15", "adversarial_px=15 must be at least 16"),
        ("data.size=16", "set enhancer.options.size"),
        ("loss.perceptual=1.0", r"vgg19-dcbb9e9d\.pth"),
        ("pairs.degradations={fog: 1.0}", "unknown degradation 'fog'"),
    ],
)
def test_errors_come_before_the_first_step(config_file, clean, tmp_path, setting, says):
    with pytest.raises((ValueError, ConfigError), match=says):
        run_recipe(config_file, [f"data.path={clean}", f"output={tmp_path / 'run'}", setting])
    assert not (tmp_path / "run").exists()


def test_the_commands(clean, config_file, model_folder, tmp_path):
    (tmp_path / "coarse.yaml").write_text(
        f"variants: 1\ntaus: [2]\nomegas: [8]\ndr2: {{model: {model_folder}, scheduler: ddim}}\n"
    )
    made = run_here(
        "scripts/make_coarse.py", tmp_path / "coarse.yaml", f"input={clean}",
        f"output={tmp_path / 'coarse'}",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "variant 0: 6 made" in made.stdout
    trained = run_here(
        "scripts/train.py", config_file, f"data.path={clean}", f"output={tmp_path / 'run'}",
        f"pairs.coarse={tmp_path / 'coarse'}", "pairs.coarse_share=0.7", "total_steps=4",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "final" / "config.json").is_file()


def test_spectral_norm_trains_resumes_and_leaves_plain_weights(clean, config_file, tmp_path):
    given = [
        f"data.path={clean}", "enhancer.spectral_norm=true", "enhancer.initial_std=0.02",
        "total_steps=8", "save_every_steps=4", "ema_decay=0.0",
    ]  # fmt: skip
    assert run_recipe(config_file, [*given, f"output={tmp_path / 'a'}"]) == 0
    exported = build_enhancer("sparnet", tmp_path / "a/final")
    assert not any("parametrizations" in name for name in exported.state_dict())
    # Divided by its largest singular value, a weight has one of about 1.
    weight = exported.inner[0].conv1.conv.conv.weight
    largest = torch.linalg.matrix_norm(weight.detach().flatten(1), 2)
    assert float(largest) == pytest.approx(1, abs=0.2)
    shutil.rmtree(tmp_path / "a/checkpoints/step_00000008")
    shutil.rmtree(tmp_path / "a/final")
    assert run_recipe(config_file, [*given, f"output={tmp_path / 'a'}"]) == 0
    again = build_enhancer("sparnet", tmp_path / "a/final").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in exported.state_dict().items())
    with pytest.raises(ConfigError, match="spectral_norm"):
        run_recipe(config_file, [f"data.path={clean}", f"output={tmp_path / 'a'}", "total_steps=9"])


def test_published_sizes():
    """The configs of published settings make the published networks (parameter counts)."""
    given = ["data.path=x"]
    ddpm = load_config(DDPMConfig, ROOT / "configs/train/ddpm_ffhq256.yaml", given)
    enhancer = load_config(
        EnhancerTrainConfig,
        ROOT / "configs/train/enhancer_sparnethd512.yaml",
        [*given, "loss.vgg19=x"],
    )
    with torch.device("meta"):
        unet = build_unet(ddpm.unet, ddpm.data.size, out_channels=6)
        sparnet = build_enhancer("sparnet", **enhancer.enhancer.options)
    assert sum(p.numel() for p in unet.parameters()) == 93_563_910
    assert sum(p.numel() for p in sparnet.parameters()) == 85_793_412


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs/train").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_training_config_fits_its_schema(path):
    schema = RECIPES[peek(path, [], "recipe")][0]
    given = ["data.path=x"] + (["loss.vgg19=x"] if "sparnethd" in path.stem else [])
    config = load_config(schema, path, given)
    check_config(config)
    if hasattr(config, "pairs"):  # nothing is mixed in that the file does not name
        assert config.pairs.degradations == peek(path, [], "pairs")["degradations"]


def test_pairs_are_the_same_in_any_order_and_from_any_number_of_workers(clean):
    pairs = PairDataset(
        FaceDataset(clean, size=32), input_size=16, degradations={"gfpgan": 1.0, "sparnet": 1.0}
    )
    keys = [(position % 6, position) for position in range(12)]
    expected = {key: pairs[key]["input"] for key in keys}
    for workers, order in ((0, keys[::-1]), (1, keys), (3, keys[::2] + keys[1::2])):
        batches = [order[:5], order[5:]]
        loader = DataLoader(pairs, batch_sampler=batches, num_workers=workers)
        for batch, pictures in zip(batches, loader, strict=True):
            for key, picture in zip(batch, pictures["input"], strict=True):
                assert torch.equal(picture, expected[key])


def test_recolouring_changes_both_pictures_alike(clean):
    def pairs(recolour):
        faces = FaceDataset(clean, size=32)
        return PairDataset(faces, input_size=16, degradations={"mild": 1.0}, recolour=recolour)

    shifts = []
    for position in range(20):
        plain, coloured = (pairs(r)[(position % 6, position)] for r in (0.0, 0.3))
        assert coloured["image"].abs().max() <= 1
        moved = [(coloured[k] - plain[k]).mean(dim=(1, 2)) for k in ("image", "input")]
        assert torch.allclose(*moved, atol=0.1)
        shifts.append(moved[0])
    shifts = torch.stack(shifts)
    assert (shifts.std(dim=0) > 0.05).all()
    assert (shifts.max(dim=1).values - shifts.min(dim=1).values).max() > 0.05  # a tint


def test_a_mix_given_on_the_command_line_is_the_whole_mix(config_file):
    given = ["data.path=x", "output=y", "pairs.degradations={gfpgan: 1.0}"]
    config = load_config(EnhancerTrainConfig, config_file, given)
    assert config.pairs.degradations == {"gfpgan": 1.0}
    one = load_config(
        EnhancerTrainConfig, config_file, ["data.path=x", "output=y", "pairs.degradations.mild=0.9"]
    )
    assert one.pairs.degradations == {"mild": 0.9, "severe": 0.5}


def test_a_zero_convolution_takes_no_spectral_norm(clean, config_file, tmp_path):
    given = [f"data.path={clean}", f"output={tmp_path / 'a'}", "enhancer.options.add_input=true"]
    with pytest.raises(ConfigError, match="add_input begins with"):
        run_recipe(config_file, [*given, "enhancer.spectral_norm=true"])


def test_jitter_moves_input_and_face_alike(tmp_path):
    """A bright dot stays at the same place of both, whatever the size."""
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    pixels[0, 20:24, 40:44] = 255
    np.savez(tmp_path / "dot.npz", images=pixels, files=np.array(["dot.png"]))
    folder = tmp_path / "coarse/variant_00/restored"
    folder.mkdir(parents=True)
    Image.fromarray(pixels[0]).resize((32, 32), Image.Resampling.BOX).save(folder / "dot.png")
    dataset = PairDataset(
        FaceDataset(tmp_path / "dot.npz", size=64), input_size=32, degradations={},
        coarse=CoarseCache(tmp_path / "coarse"), coarse_share=1.0, coarse_sigma_px=(0.0, 0.0),
        jitter=1.0,
    )  # fmt: skip

    def centre(picture):
        weights = (picture[0] + 1).clamp(min=0)
        side = len(weights)
        places = (torch.arange(side) + 0.5) / side
        total = weights.sum()
        return (weights.sum(0) @ places / total).item(), (weights.sum(1) @ places / total).item()

    seen = []
    for position in range(20):
        item = dataset[0, position]
        assert centre(item["image"]) == pytest.approx(centre(item["input"]), abs=0.015)
        assert torch.equal(item["image"], dataset[0, position]["image"])
        seen.append(centre(item["image"]))
    upright = [x for x, _ in seen if x > 0.5]
    assert np.std(upright) > 0.02
    with pytest.raises(ValueError, match="but not their landmarks"):
        PairDataset(dataset.faces, input_size=32, degradations={"mild": 1.0}, jitter=0.5, parts={})
