"""VQFR and its codebook trained at toy size, by their recipes."""

import json

import numpy as np
import pytest
import torch
from conftest import make_pixels, run_command
from safetensors.torch import load_file

from dr2pipe.core.errors import ConfigError
from dr2pipe.enhancers import build_enhancer
from dr2pipe.training.codes import CodeStatistics, k_means
from dr2pipe.training.recipes import run_recipe

SHARED = """
data: {size: 16}
vqfr: {base_channels: 8, channel_multipliers: [1, 2], encoder_blocks: 1, decoder_blocks: 1,
  num_codes: 12, code_channels: 4, condition_channels: 4, deformable_groups: 2, norm_groups: 4}
discriminator: {channel_multiplier: 1, narrow: 0.03125}
batch_size: 4
total_steps: 6
log_every_steps: 1
preview_every_steps: 6
save_every_steps: 3
ema_decay: 0.9
learning_rate: 1.0e-3
"""
CODEBOOK = (
    SHARED
    + """
recipe: vqfr_codebook
loss: {gan: 0.1, gan_from_step: 3, r1_every_steps: 2}
quantise_from_step: 2
revive_every_steps: 2
revive_until_step: 4
kept_vectors: 200
"""
)
VQFR = (
    SHARED
    + """
recipe: vqfr
pairs: {input_size: 16, degradations: {mild: 1.0}}
patch_discriminator: {width: 8, halvings: 1}
loss: {main_gan_from_step: 2, r1_every_steps: 2}
"""
)


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    pixels = np.stack([make_pixels(i, 16, 16) for i in range(8)])
    np.savez(folder / "faces.npz", images=pixels, files=np.array([f"{i}.jpg" for i in range(8)]))
    return folder / "faces.npz"


@pytest.fixture(scope="module")
def codebook(faces, tmp_path_factory):
    return train(tmp_path_factory.mktemp("codebook"), CODEBOOK, faces, "run")


def train(folder, text, faces, output, *overrides):
    (folder / "config.yaml").write_text(text)
    paths = [f"data.path={faces}", f"output={folder / output}"]
    assert run_recipe(folder / "config.yaml", [*paths, *overrides]) == 0
    return folder / output


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights_of(run, network):
    newest = max((run / "checkpoints").iterdir())
    return load_file(newest / network / "diffusion_pytorch_model.safetensors")


def test_codebook(codebook):
    log = log_of(codebook)
    assert [line["vqfr/codebook"] == 0 for line in log] == [True, True, False, False, False, False]
    assert ["discriminator/gan" in line for line in log] == [False] * 3 + [True] * 3
    assert all(line["vqfr/revived"] == 0 for line in log if line["step"] != 5)
    final = build_enhancer("vqfr", codebook / "final")
    fresh = type(final).from_config(final.config).codebook.codes
    # The codes lie where the encoder's vectors do: nearly as well as codes can.
    vectors = weights_of(codebook, "codes")["newest"]
    trained = weights_of(codebook, "vqfr")["codebook.codes"]
    best = k_means(vectors, 12, torch.Generator().manual_seed(0))
    trained, fresh, best = (
        torch.cdist(vectors, codes.detach()).min(1).values.mean()
        for codes in (trained, fresh, best)
    )
    assert trained < best + 0.3 * (fresh - best), (trained, fresh, best)
    assert (codebook / "previews" / "step_00000006.png").is_file()


def test_codebook_resumes_bit_for_bit(codebook, faces, tmp_path):
    run = train(tmp_path, CODEBOOK, faces, "run", "total_steps=3")
    train(tmp_path, CODEBOOK, faces, "run")
    for network in ("vqfr", "discriminator", "codes"):
        ours, theirs = weights_of(run, network), weights_of(codebook, network)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_restoration(codebook, faces, tmp_path):
    run = train(tmp_path, VQFR, faces, "run", f"codebook={codebook / 'final'}")
    log = log_of(run)
    assert ["main_whole/gan" in line for line in log] == [False] * 2 + [True] * 4
    assert all("texture_patches/loss" in line for line in log)
    before, after = (build_enhancer("vqfr", folder / "final") for folder in (codebook, run))
    assert torch.equal(before.codebook.codes, after.codebook.codes)
    for part in ("encoder.first", "texture_decoder.last.1", "main_decoder.last", "input_features"):
        old, new = before.get_submodule(part).weight, after.get_submodule(part).weight
        assert not torch.equal(old, new), part


def test_a_texture_decoder_alone_is_trained_towards_the_clean_face(codebook, faces, tmp_path):
    """The loss of the codes falls where nothing else pulls."""
    only = [
        "loss.pixel=0",
        "loss.gan=0",
        "loss.patch_gan=0",
        "total_steps=40",
        "preview_every_steps=100",
    ]
    run = train(tmp_path, VQFR, faces, "run", f"codebook={codebook / 'final'}", *only)
    code = [line["vqfr/code"] for line in log_of(run)]
    assert sum(code[-8:]) < 0.8 * sum(code[:8])


@pytest.mark.slow  # quick ones have one of GFP-GAN and one of a DDPM
@pytest.mark.parametrize("recipe", ["vqfr_codebook", "vqfr"])
def test_two_processes(recipe, codebook, faces, tmp_path):
    text = {"vqfr_codebook": CODEBOOK, "vqfr": VQFR}[recipe]
    (tmp_path / "config.yaml").write_text(text)
    given = [f"data.path={faces}", f"output={tmp_path / 'run'}", "batch_size=2"]
    given += [f"codebook={codebook / 'final'}"] if recipe == "vqfr" else []
    result = run_command(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2,
        "scripts/train.py", tmp_path / "config.yaml", *given,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    if recipe == "vqfr_codebook":
        both, alone = (weights_of(run, "codes") for run in (tmp_path / "run", codebook))
        assert torch.equal(both["seen"], alone["seen"])
        assert torch.equal(both["uses"].sum(), alone["uses"].sum())


def test_k_means_finds_groups():
    groups = 10 * torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    vectors = groups.repeat_interleave(40, 0)
    vectors = vectors + 0.1 * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2))
    centres = k_means(vectors, 20, torch.Generator().manual_seed(0))
    assert torch.cdist(groups, centres).min(1).values.max() < 0.2
    # More centres than vectors, and vectors that are all the same.
    assert k_means(vectors[:3], 7, torch.Generator()).isfinite().all()
    same = k_means(vectors[:1].repeat(9, 1), 4, torch.Generator())
    assert torch.allclose(same, vectors[:1].repeat(4, 1))


def test_unused_codes_are_revived():
    statistics = CodeStatistics(4, 2, 6)
    vectors = torch.arange(20.0).reshape(1, 1, 10, 2)
    statistics.add(vectors, torch.tensor([[[0, 0, 2, 2, 2, 0, 0, 0, 0, 0]]]))
    assert set(statistics.vectors[:, 0].tolist()) == {8.0, 10, 12, 14, 16, 18}  # the newest
    codes = torch.full((4, 2), -1.0)
    assert statistics.revive(codes, torch.Generator()) == 2
    assert codes[[0, 2]].eq(-1).all()
    assert (codes[[1, 3], 0] >= 8).all()
    assert statistics.revive(codes, torch.Generator()) == 4  # counted anew


@pytest.mark.parametrize(
    ("text", "overrides", "says"),
    [
        (CODEBOOK, ["loss.r1_every_steps=0"], "r1_every_steps=0"),
        (CODEBOOK, ["kept_vectors=0"], "kept_vectors=0"),
        (CODEBOOK, ["quantise_from_step=0"], "quantise_from_step=0"),
        (VQFR, [], "name the folder that the recipe vqfr_codebook left"),
        (VQFR, ["codebook=nowhere"], "no model 'nowhere'"),
        (VQFR, ["codebook=x", "pairs.input_size=8"], "pairs.input_size=8 must be data.size=16"),
        (VQFR, ["codebook=x", "loss.r1_every_steps=0"], "r1_every_steps=0"),
    ],
)
def test_errors_come_before_the_first_step(faces, tmp_path, text, overrides, says):
    with pytest.raises(ConfigError, match=says):
        train(tmp_path, text, faces, "run", *overrides)
    assert not (tmp_path / "run").exists()
