import json
import math
import sys

import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, make_pixels, run_command
from safetensors.torch import load_file

from dr2pipe.convert import convert_checkpoint
from dr2pipe.core.config import load_config
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.images import to_uint8
from dr2pipe.data.degradation_pairs import DegradationPairs
from dr2pipe.data.folders import FaceDataset
from dr2pipe.degradations import degrade
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.losses.contrastive import contrastive_logits, info_nce_loss
from dr2pipe.training.recipes import run_recipe
from dr2pipe.training.recipes.degradation_encoder import (
    DegradationEncoderConfig,
    DegradationEncoderRecipe,
    KeyQueue,
    shuffled_across_groups,
)

SMALL = [
    "recipe=degradation_encoder", "data.size=16", "degradations={mild: 0.5, severe: 0.5}",
    "width=4", "queue=32", "norm_group=2", "batch_size=8", "total_steps=6", "precision=fp32",
    "save_every_steps=2", "log_every_steps=1", "preview_every_steps=4", "ema_decay=0.5",
]  # fmt: skip


@pytest.fixture
def data(tmp_path):
    pixels = np.stack([make_pixels(i, 16, 16) for i in range(10)])
    names = np.array([f"f{i}.png" for i in range(10)])
    np.savez(tmp_path / "faces.npz", images=pixels, files=names)
    return tmp_path / "faces.npz"


LEARNING = [
    "learning_rate=0.1", "width=8", "norm_group=4", "log_every_steps=10", "save_every_steps=200",
]  # fmt: skip


@pytest.fixture
def noise_chain(tmp_path):
    """A degradation that a tiny network can tell."""
    path = tmp_path / "noise.yaml"
    path.write_text("sigma_px: [0, 0]\nshrink: [1, 1]\nnoise: [0, 100]\njpeg_quality: [95, 100]\n")
    return path


def losses_of(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["encoder/loss"] for line in lines]


def train(data, output, *overrides):
    (data.parent / "empty.yaml").write_text("{}\n")
    return run_recipe(
        data.parent / "empty.yaml", [*SMALL, f"data.path={data}", f"output={output}", *overrides]
    )


def assert_close(made, golden, tolerance=1e-4):
    golden = parity.tensor(golden)
    assert made.shape == golden.shape
    assert (made - golden).abs().max() <= tolerance * golden.abs().max()


def test_a_step_equals_the_reference():
    record, arrays = parity.load("moco_infonce")
    raw = {name: parity.tensor(arrays[f"in_{name}"]) for name in ("q_raw", "k_raw", "queue_raw")}
    logits = contrastive_logits(
        F.normalize(raw["q_raw"], dim=1),
        F.normalize(raw["k_raw"], dim=1),
        F.normalize(raw["queue_raw"], dim=0),
        0.07,
    )
    assert_close(logits, arrays["out_logits_formula"])

    weights = parity.make_model(record["models"]["moco"])
    encoder = convert_checkpoint(weights, "moco_degradation_encoder").train()
    of_keys = {
        k.replace("encoder_k.", "encoder_q."): v for k, v in weights.items() if "encoder_k" in k
    }
    memory = KeyQueue(64, 64).train()
    memory.encoder.load_state_dict(
        convert_checkpoint(of_keys, "moco_degradation_encoder").state_dict()
    )
    memory.queue.copy_(F.normalize(weights["queue"], dim=0))
    queries = F.normalize(encoder(parity.tensor(arrays["in_im_q"]), projected=True), dim=1)
    assert_close(memory.encoder.projection[1].weight[:16, :64],
                 arrays["out_encoder_k.mlp.2.weight_before"])  # fmt: skip
    memory.update_encoder(encoder, 0.999)
    assert_close(memory.encoder.projection[1].weight[:16, :64],
                 arrays["out_encoder_k.mlp.2.weight_after_momentum"])  # fmt: skip
    with torch.no_grad():
        keys = memory.encoder(parity.tensor(arrays["in_im_k"]), projected=True)
        keys = F.normalize(keys, dim=1)
    logits = contrastive_logits(queries, keys, memory.queue, 0.07)
    assert_close(logits, arrays["out_logits"])
    loss = info_nce_loss(logits)
    assert loss.item() == pytest.approx(record["scalars"]["loss"], rel=1e-5)
    loss.backward()
    found = encoder.projection[1].bias.grad
    assert_close(found, arrays["out_grad_loss_wrt_encoder_q.mlp.2.bias"])
    memory.place.fill_(record["scalars"]["queue_ptr_start"])
    memory.enqueue(keys)
    assert_close(memory.queue, arrays["out_queue_after"])
    assert int(memory.place) == record["scalars"]["queue_ptr_end"]


def test_the_queue_turns():
    memory = KeyQueue(1, 6)
    for value in (1.0, 2.0, 3.0, 4.0):
        memory.enqueue(torch.full((2, 4), value))
    assert memory.queue[0].tolist() == [4, 4, 2, 2, 3, 3]
    # Batches of another size, as after a resume, turn at the end of the queue too.
    memory.enqueue(torch.full((5, 4), 5.0))
    assert memory.queue[0].tolist() == [5, 4, 5, 5, 5, 5]
    assert int(memory.place) == 1


def test_a_pair_shares_its_degradation_and_nothing_else(data):
    faces = FaceDataset(data, size=16, flip=False)
    pairs = DegradationPairs(faces, {"severe": 1.0})
    assert len(pairs) == 10
    names = set()
    for position in range(20):
        item = pairs[3, position]
        again = pairs[3, position]
        assert all(torch.equal(item[k], again[k]) for k in ("query", "key"))
        rng = np.random.default_rng([item["seed"], 1])
        clean = to_uint8(faces[3, position]["image"][None])[0]
        noise = np.random.default_rng([item["seed"], 2, 0])
        expected, drawn = degrade(clean, "severe", rng, noise_rng=noise)
        assert np.array_equal(to_uint8(item["query"][None])[0], expected)
        # With another noise, the same parameters.
        rng = np.random.default_rng([item["seed"], 1])
        other, other_drawn = degrade(
            clean, "severe", rng, noise_rng=np.random.default_rng([item["seed"], 2, 1])
        )
        assert other_drawn == drawn
        names.add(not np.array_equal(other, expected))
        assert not torch.equal(item["query"], item["key"])
    assert names == {True}


@pytest.mark.parametrize(
    ("degradations", "says"),
    [
        ({}, "must be 0 or more, not all 0"),
        ({"haze": 1.0}, "haze: kept for evaluation"),
        ({"mould": 1.0}, "unknown degradation 'mould'"),
        ({"mild": -1.0}, "must be 0 or more, not all 0"),
    ],
)
def test_unusable_degradations(data, degradations, says):
    with pytest.raises(ValueError, match=says):
        DegradationPairs(FaceDataset(data, size=16), degradations)


def test_one_face_is_no_pair(tmp_path):
    np.savez(tmp_path / "one.npz", images=make_pixels(0, 16, 16)[None], files=np.array(["a"]))
    with pytest.raises(ConfigError, match="a pair needs two faces"):
        DegradationPairs(FaceDataset(tmp_path / "one.npz", size=16), {"mild": 1.0})


def test_keys_are_shuffled_into_other_groups():
    for seed in range(20):
        order = shuffled_across_groups([seed, 1, 2, 3, 4, 5, 6, 7], 4)
        assert sorted(order.tolist()) == list(range(8))
        assert all(len((part // 4).unique()) == 2 for part in order.split(4))
    assert torch.equal(
        shuffled_across_groups([1, 2, 3, 4], 2), shuffled_across_groups([1, 2, 3, 4], 2)
    )


def recipe_at_toy_size(*overrides):
    """A recipe, its networks, and the optimizer of the encoder."""
    given = [*SMALL, "data.path=x", "output=y", *overrides]
    recipe = DegradationEncoderRecipe(load_config(DegradationEncoderConfig, None, given))
    built = recipe.build()
    networks = {name: trained.network for name, trained in built.items()}
    return recipe, networks, built["encoder"].optimizer


def batch_of(step, query, key):
    seeds = torch.arange(len(query)) + step * len(query)
    return {"query": query, "key": key, "seed": seeds, "step": step}


def test_each_query_meets_its_own_key():
    recipe, networks, _ = recipe_at_toy_size()
    memory = networks["memory"]
    for network in (networks["encoder"], memory.encoder):  # vectors of one picture alone
        network.norms = torch.nn.ModuleList(torch.nn.Identity() for _ in network.norms)
    batch = batch_of(0, torch.randn(8, 3, 16, 16), torch.randn(8, 3, 16, 16))
    assert not torch.equal(shuffled_across_groups(batch["seed"].tolist(), 2), torch.arange(8))
    queue = memory.queue.clone()
    ((_, loss, _),) = recipe.step(networks, batch)
    queries, keys = (
        F.normalize(network(batch[role], projected=True), dim=1)
        for network, role in ((networks["encoder"], "query"), (memory.encoder, "key"))
    )
    assert torch.allclose(memory.queue[:, :8].T, keys, atol=1e-5)
    expected = info_nce_loss(contrastive_logits(queries, keys, queue, 0.07))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_step_normalises_keys_in_other_groups_than_their_queries():
    recipe, networks, _ = recipe_at_toy_size("norm_group=4")
    seen = {}

    def note(role):
        def hook(_, pictures, options):
            numbers = pictures[0][:, 0, 0, 0].round().int()
            seen[role] = [set(g.tolist()) for g in numbers.chunk(options["groups"])]

        return hook

    networks["encoder"].register_forward_pre_hook(note("query"), with_kwargs=True)
    networks["memory"].encoder.register_forward_pre_hook(note("key"), with_kwargs=True)
    numbers = torch.arange(8.0).view(8, 1, 1, 1)
    pictures = numbers + 0.1 * torch.randn(8, 3, 16, 16).clamp(-1, 1)
    list(recipe.step(networks, batch_of(0, pictures, pictures)))
    assert seen["query"] == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    assert set.union(*seen["key"]) == set(range(8))
    assert [len(group) for group in seen["key"]] == [4, 4]
    assert all(group not in seen["query"] for group in seen["key"])


@pytest.mark.slow
def test_only_shuffling_keeps_the_statistics_of_a_group_from_telling(monkeypatch):
    """Pairs share nothing here: a key is noisy as the *other* query of its group is.

    All pictures show one pattern beside their noise, and how strong it comes out of a batch
    norm tells how noisy the group is.
    """

    def trained_loss():
        recipe, networks, optimizer = recipe_at_toy_size(
            "batch_size=32", "width=8", "momentum=0.99", "learning_rate=0.1", "data.size=8"
        )
        generator = torch.Generator().manual_seed(0)
        pattern = torch.randn(1, 3, 8, 4, generator=generator).expand(32, -1, -1, -1)

        def pictures(strength):
            noise = strength * torch.randn(32, 3, 8, 4, generator=generator)
            return torch.cat([pattern, noise], dim=3)

        losses = []
        for step in range(200):
            strength = (2 * torch.randn(32, 1, 1, 1, generator=generator)).exp()
            of_mate = strength.unflatten(0, (16, 2)).flip(1).flatten(0, 1)
            batch = batch_of(step, pictures(strength), pictures(of_mate))
            for _, loss, _ in recipe.step(networks, batch):
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(networks["encoder"].parameters(), 1.0)
                optimizer.step()
            losses.append(loss.item())
        return np.mean(losses[-50:])

    chance, shuffled = math.log(1 + 32), trained_loss()
    monkeypatch.setattr(
        "dr2pipe.training.recipes.degradation_encoder.shuffled_across_groups",
        lambda seeds, _: torch.arange(len(seeds)),
    )
    kept = trained_loss()
    print(
        f"loss by chance {chance:.2f}, shuffled {shuffled:.2f}, not shuffled {kept:.2f}",
        file=sys.stderr,
    )
    assert shuffled > chance - 0.6
    assert kept < shuffled - 0.5


def test_pictures_are_normalised_in_groups():
    torch.manual_seed(0)
    network = DegradationEncoder(4).train()
    x = torch.randn(8, 3, 16, 16)
    together = network(x, groups=4)
    alone = torch.cat([network(part) for part in x.chunk(4)])
    assert torch.allclose(together, alone, atol=1e-6)
    network.eval()
    assert torch.allclose(network(x, groups=4), network(x))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("queue=30", "queue=30 must be a multiple of the 8 pictures"),
        ("norm_group=3", "multiple of norm_group=3"),
        ("norm_group=8", "twice norm_group or more"),
        ("momentum=1.0", r"momentum must lie in \[0, 1\)"),
    ],
)
def test_invalid_settings(change, says):
    config = load_config(
        DegradationEncoderConfig, None, [*SMALL, "data.path=x", "output=y", change]
    )
    with pytest.raises(ConfigError, match=says):
        DegradationEncoderRecipe(config)


def test_resume_is_exact_with_the_queue(data, tmp_path):
    assert train(data, tmp_path / "a") == 0
    assert train(data, tmp_path / "b", "total_steps=4") == 0
    assert train(data, tmp_path / "b") == 0
    a, b = (
        load_file(tmp_path / name / "final/diffusion_pytorch_model.safetensors")
        for name in ("a", "b")
    )
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert losses_of(tmp_path / "a") == losses_of(tmp_path / "b")
    network = DegradationEncoder.from_pretrained(tmp_path / "a/final")
    assert network.channels == 16


def test_it_learns_to_tell_degradations(data, noise_chain, tmp_path):
    more = [*LEARNING, "total_steps=120", "momentum=0.9", "batch_size=16", "queue=64"]
    train(data, tmp_path / "a", *more, f"degradations={{{noise_chain}: 1.0}}")
    # Early on, negatives are random vectors, which is easy; by now all are real keys.
    assert losses_of(tmp_path / "a")[-1] < math.log(1 + 64) - 0.2


@pytest.mark.slow
def test_two_processes_learn_like_one(data, noise_chain, tmp_path):
    more = [*LEARNING, f"data.path={data}", "total_steps=160", "momentum=0.99", "queue=64"]
    (tmp_path / "empty.yaml").write_text("{}\n")
    for processes, batch in ((1, 16), (2, 8)):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        done = run_command(
            *launch, ROOT / "scripts/train.py", tmp_path / "empty.yaml", *SMALL, *more,
            f"batch_size={batch}", f"output={tmp_path / str(processes)}",
            f"degradations={{{noise_chain}: 1.0}}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    curves = [losses_of(tmp_path / processes) for processes in ("1", "2")]
    print("losses of 1 and 2 processes:", *curves, sep="\n", file=sys.stderr)
    assert max(curve[-1] for curve in curves) < math.log(1 + 64) - 0.5
    assert np.allclose(curves[0], curves[1], atol=0.3)
