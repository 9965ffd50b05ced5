"""Readers of foreign files on hostile ones: they refuse them by the package's own errors, quickly.

``make test`` tries a few hundred examples, always the same; ``make test-slow`` tries new ones for
a minute at every target.
"""

import dataclasses
import json
import random
import resource
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import hostile_corpus as corpus
import parity
import pytest
import torch
from hostile_files import hostile_file, readers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dr2pipe.convert import CONVERTERS, convert_checkpoint
from dr2pipe.core.config import load_config, parse_overrides, peek
from dr2pipe.core.errors import CheckpointError, ConfigError, Dr2pipeError
from dr2pipe.runs.restore import RestoreConfig

MINUTE = 60
LIMIT_MS = 10_000
MOST_GROWTH_MB = 1_000
PRESET = corpus.ROOT / "configs" / "restore" / "portrait128.yaml"
READERS = readers()
SEEDS = st.integers(0, 2**32)


# -- targets: a check of one example, and what its examples are made from ------------------------


def check_file(kind, seed):
    """A mutation of a valid file is read, or refused by an error of its kind."""
    reader = READERS[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = hostile_file(reader, random.Random(seed), Path(folder))
        with suppress(reader.errors):
            reader.read(path)


JSON = st.recursive(
    st.sampled_from([None, True, -1, 1e400, "", "\0", "../x", "\ud800"]) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
RECORD = json.loads(corpus.records()["manifest.jsonl"].splitlines()[0]) | {"path": "a.png"}


def check_records(changes, removed):
    """A run goes on from a manifest whose lines are JSON with any values."""
    record = {**RECORD, **changes}
    for name in removed:
        record.pop(name, None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.jsonl"
        other = record | {"path": "other.png"}
        path.write_text(json.dumps(record) + "\n" + json.dumps(other) + "\n")
        READERS["records"].read(path)


KEYS = [
    f"{outer}{inner}"
    for outer, schema in (
        ("", RestoreConfig),
        ("dr2.", None),
        ("enhancer.", None),
        ("repair.", None),
    )
    for inner in (
        [f.name for f in dataclasses.fields(schema)] if schema else ("name", "model", "tau")
    )
]
VALUES = st.text(max_size=20) | st.sampled_from(
    ["", "010", "1:30", "1e400", "nan", "{", "[", "{a: 1}", "[1, 2]", "&a [*a]", "!!python/name:os.system",
     "${oc.env:HOME}", "${input}", "null", "~", "2024-01-01", "0x10", "\ud800", "a: b", "- 1", "'", "9" * 400,
     "[" * 500]
)  # fmt: skip


def check_overrides(pairs):
    """Every ``key=value`` gives settings, or a ConfigError."""
    overrides = ["=".join(pair) for pair in pairs]
    for read in (
        lambda: load_config(RestoreConfig, PRESET, ["input=a", "output=b", *overrides]),
        lambda: parse_overrides(overrides),
        lambda: peek(PRESET, overrides, "dr2"),
    ):
        with suppress(ConfigError):
            read()


def _zeros(keys, kept=None):
    """A state dict of these shapes, which takes no memory; converters look at few values."""
    zeros = {
        key: torch.zeros(1).expand(r["shape"]) if r["shape"] else torch.zeros(())
        for key, r in keys.items()
    }
    return zeros | {key: torch.tensor(value) for key, value in (kept or {}).items()}


def _checkpoints():
    """(kind, constructor, state dict) of a network of every kind, those that take long last."""
    unet, clean, original, sparnet, parts = (
        parity.load(name)[0]
        for name in (
            "dr2_sampler", "gfpgan_clean", "gfpgan_original", "sparnethd",
            "gfpgan_component_arcface",
        )
    )  # fmt: skip
    yield "guided_diffusion_unet", unet["constructor"], _zeros(unet["keys"])
    yield "gfpgan_clean", clean["constructor_small"], _zeros(clean["keys_small"])
    yield "gfpgan_original", original["constructor_small"], _zeros(original["keys_small"])
    yield "face_part_discriminator", {}, _zeros(parts["keys"]["component"])
    yield "arcface_resnet18", {}, _zeros(parts["keys"]["arcface"])
    for kind, fixture, model in (
        ("exegan", "exe_gan_generator", "generator"),
        ("exegan_discriminator", "exe_gan_discriminator", "discriminator64"),
        ("psp_encoder", "exe_gan_style_encoder", "encoder"),
        ("stylegan2_generator", "panini_gpm", "generator64"),
        ("stylegan2_discriminator", "panini_gpm", "discriminator64"),
        ("moco_degradation_encoder", "panini_dre", "encoder"),
        ("panini_sr", "panini_net_sr", "net"),
        ("panini_mfr", "panini_net_mfr", "net"),
        ("resnet101_identity", "exe_gan_svgl", "id_resnet101"),
    ):
        record = parity.load(fixture)[0]["models"][model]
        beside = {"latent_avg": [[0.0] * 512] * 18} if kind == "psp_encoder" else {}
        yield kind, {}, _zeros(record["keys"], record["kept_values"] | beside)
    yield "vqfr_v1", {}, _zeros(parity.load("vqfr_v1")[0]["keys"])
    yield "sparnet", {}, _zeros(sparnet["keys"])


CHECKPOINTS = list(_checkpoints())
NUM_LARGE = 5


def check_converter(which, seed):
    """A changed state dict is converted, or refused by an error of its kind."""
    kind, constructor, tensors = CHECKPOINTS[which]
    changed = corpus.mutate_tensors(tensors, random.Random(seed))
    with suppress(CheckpointError, ConfigError):
        convert_checkpoint(changed, kind, **constructor)


KEY = st.sampled_from(KEYS) | st.text(max_size=12)
TARGETS = {
    "pictures": (check_file, {"kind": st.just("picture"), "seed": SEEDS}, 150),
    "records": (check_file, {"kind": st.just("records"), "seed": SEEDS}, 25),
    "values of records": (
        check_records,
        {
            "changes": st.dictionaries(
                st.sampled_from(sorted(RECORD)), JSON, min_size=1, max_size=3
            ),
            "removed": st.lists(st.sampled_from(sorted(RECORD)), max_size=2),
        },
        60,
    ),
    "configurations": (check_file, {"kind": st.just("config"), "seed": SEEDS}, 30),
    "overrides": (
        check_overrides,
        {"pairs": st.lists(st.tuples(KEY, VALUES), min_size=1, max_size=2)},
        80,
    ),
    "tables": (check_file, {"kind": st.just("table"), "seed": SEEDS}, 40),
    "faces": (check_file, {"kind": st.just("faces"), "seed": SEEDS}, 50),
    "models": (check_file, {"kind": st.just("model"), "seed": SEEDS}, 15),
    "automatic settings": (check_file, {"kind": st.just("automatic"), "seed": SEEDS}, 40),
    "checkpoints": (check_file, {"kind": st.just("weights"), "seed": SEEDS}, 40),
    "state dicts": (
        check_converter,
        {"which": st.integers(0, len(CHECKPOINTS) - NUM_LARGE - 1), "seed": SEEDS},
        40,
    ),
    "large state dicts": (
        check_converter,
        {"which": st.integers(len(CHECKPOINTS) - NUM_LARGE, len(CHECKPOINTS) - 1), "seed": SEEDS},
        3,
    ),
}


def run(target, *, max_examples, derandomize):
    check, strategies, _ = TARGETS[target]
    chosen = settings(
        max_examples=max_examples,
        deadline=LIMIT_MS,
        derandomize=derandomize,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    before = peak_mb()
    chosen(given(**strategies)(check))()
    assert peak_mb() - before < MOST_GROWTH_MB


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_files_are_refused(target):
    run(target, max_examples=TARGETS[target][2], derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_hostile_files_are_refused_for_a_minute(target):
    end = time.monotonic() + MINUTE
    while time.monotonic() < end:
        run(target, max_examples=100, derandomize=False)


def test_valid_state_dicts_are_converted():
    assert {kind for kind, _, _ in CHECKPOINTS} == set(CONVERTERS)
    for kind, constructor, tensors in CHECKPOINTS[:-NUM_LARGE]:
        assert convert_checkpoint(tensors, kind, **constructor)


@pytest.mark.parametrize("kind", READERS)
def test_valid_files_are_read(kind, tmp_path):
    """So that a refusal of a mutation says something about the mutation."""
    for name, data in READERS[kind].corpus.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(data)
        if kind == "weights" or name == "float.tif":
            with pytest.raises(Dr2pipeError):
                READERS[kind].read(folder / name)
        else:
            READERS[kind].read(folder / name)
