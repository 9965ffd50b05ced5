"""Pipes, devices and folders in the place of every file that a command takes.

The parsers and the schemas say what there is, so that a new option is tested by itself.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import typing
from pathlib import Path

import pytest
import toy_commands
from conftest import make_pictures
from hostile_files import time_limit

from dr2pipe.cli import report_errors
from dr2pipe.cli.arguments import build_parser
from dr2pipe.core.config import resource
from dr2pipe.evaluation.protocol import Protocol
from dr2pipe.evaluation.sweep import SweepConfig
from dr2pipe.runs.coarse import CoarseConfig
from dr2pipe.runs.restore import RestoreConfig
from dr2pipe.training.recipe import TrainConfig
from dr2pipe.training.recipes import RECIPES

LIMIT_S = 60
SPECIAL = ("pipe", "device", "folder")
# Results may go into an empty folder.
OUTPUTS = {"output": ("pipe", "device"), "dir": ("pipe", "device")}
# A folder is what it should be; what may be wrong with one is tested with the command.
TAKES_FOLDERS = {("report", "input"): ("pipe", "device")}
# What an option needs beside it.
NEEDED = {"exemplar": "mask"}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Toy commands that have all they need."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DR2PIPE_TOY_MIRROR", "http://127.0.0.1:9")
        made = toy_commands.make_commands(folder)
        sweep = build_parser().parse_args(made["sweep"].arguments(folder / "sweep"))
        assert run(sweep, folder, limit_s=300)[0] == 0
        yield made


def special(kind, folder):
    folder.mkdir()
    if kind == "device":
        return Path("/dev/zero")
    path = folder / f"a_{kind}"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    return path


# A command that times things has no results to compare, so it is none of the toy commands.
BENCHMARK = ["benchmark", "--parts", "machinery", "--pictures", "2", "--size", "32"]

# A name, an address and a password, not files.
NO_FILES = {("web", "host"), ("web", "user"), ("web", "password"), ("video", "codec")}


def others(name, commands, out):
    """Arguments of a command that is none of the toy commands."""
    faces = Path(commands["restore"].arguments(out)[1])
    face = str(faces / "group_0" / "face_0.png")
    return {
        "report": ["report", str(out)],
        "export": ["export", str(out), str(out / "model")],
        "verify": ["verify", face, "--original", face],
        "explain": ["explain", face],
        "setup": ["setup", "gfpgan14", "--mirror", "http://127.0.0.1:9"],
        "restore-many": ["restore-many", str(faces), str(out)],
    }.get(name, BENCHMARK)


# Settings that a command takes no value of.
REFUSED = (
    "coarse faces are made with drawn settings, not dr2.mode=auto",
    "a sweep varies the settings of stage 1",
    "of a teacher must be",
)


def run(options, out, limit_s=LIMIT_S):
    """Exit code of a command, and all that it says."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), time_limit(limit_s):
        code = report_errors(lambda: int(options.run(options)))
    failures = [f.read_text() for f in (out, out / "variant_00") for f in f.glob("failures.jsonl")]
    return code, said.getvalue() + "".join(failures)


def is_refused(options, path, out):
    """Whether a command ends with an error that names the path."""
    code, said = run(options, out)
    assert code not in (0, 1), said
    assert str(path) in said or path.name in said or any(r in said for r in REFUSED), said


def text_options():
    """(command, option) of all that take any text."""
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return [
        (name, action.dest)
        for name, command in commands.choices.items()
        for action in command._actions
        if isinstance(action, argparse._StoreAction)
        and (action.type, action.choices) == (None, None)
        and action.nargs in (None, "?")
        and (name, action.dest) not in NO_FILES
    ]


@pytest.mark.parametrize(("command", "option"), text_options())
def test_options(command, option, commands, tmp_path):
    for kind in TAKES_FOLDERS.get((command, option)) or OUTPUTS.get(option, SPECIAL):
        path, out = special(kind, tmp_path / kind), tmp_path / kind / "out"
        known = commands[command].arguments if command in commands else None
        given = known(out) if known else others(command, commands, out)
        options = build_parser().parse_args(given)
        for name in (option, NEEDED.get(option, option)):
            setattr(options, name, str(path))
        is_refused(options, path, out)


@pytest.mark.parametrize("command", ["fit-auto", "fit-niqe"])
def test_a_folder_is_no_output_file(command, commands, tmp_path):
    path = special("folder", tmp_path / "new")
    options = build_parser().parse_args(commands[command].arguments(path))
    options.output = str(path)
    is_refused(options, path, path)


# -- settings ----------------------------------------------------------------------------------

SCHEMAS = {
    "restore": RestoreConfig,
    "make-coarse": CoarseConfig,
    "evaluate": Protocol,
    "sweep": SweepConfig,
    **{f"train {name}": parts[0] for name, parts in RECIPES.items()},
}
# Text that is no name of anything.
FREE_TEXT = {"name"}
# What a setting needs beside it, at any depth. Losses that are off read no weights.
BESIDE = {
    "degraded": ["clean.degraded={path}", "degradations=[given]"],
    "groups": ["clean.groups=[{path}]", "clean.groups_csv={table}"],
    "groups_csv": ["clean.groups=[sex]"],
    "auto": ["{start}mode=auto"],
    "dr2.variance": ["{start}scheduler=ddpm"],
    "exemplar": ["repair.mask={path}"],
    "repair.model": ["repair.mask={faces}"],
    "repair.style_encoder": ["repair.mask={faces}"],
    "enhancer.weights": ["{start}name=sparnet", "{start}options={{}}"],
    "metric_files.niqe": ["metrics=[niqe]"],
    "coarse": ["pairs.coarse_share=0.5"],
    "vgg16": ["loss.perceptual=1", "{by}", "{lpips}"],
    "vgg19": ["loss.perceptual=1", "{vgg}"],
    "perceptual_by": ["loss.perceptual=1"],
    "loss.ddpm": ["loss.perceptual=1", "loss.perceptual_by=ddpm"],
    "loss.lpips": ["loss.perceptual=1", "{by}", "loss.vgg16={path}"],
    "discriminator_weights": ["loss.gan=1"],
    "arcface": ["loss.identity=1"],
    "identity_network": ["loss.identity=1"],
    "landmarks": ["loss.component=1", "loss.component_style=0"],
}
# Recipes whose losses have LPIPS.
BY_LPIPS = ("exegan", "enhancer", "vqfr", "vqfr_codebook")
CONFIGS = {
    "ddpm": "ddpm_portrait128",
    "enhancer": "enhancer256",
    "stylegan2": "stylegan2_128",
    "degradation_encoder": "degradation_encoder",
    "degradation_grid": "degradation_encoder_64",
    "gfpgan": "gfpgan_128",
    "exegan": "exegan_64",
    "panini": "panini_64",
    "vqfr_codebook": "vqfr_codebook_64",
    "vqfr": "vqfr_64",
    "distil": "distil_portrait128",
}
# Small networks, and nothing else that is read.
SMALL: dict[str, list[str]] = {
    "ddpm": ["unet.channels=[32,32]", "unet.attention_sizes=[]"],
    "enhancer": [
        "pairs.coarse_share=0",
        "pairs.coarse=null",
        "pairs.degradations={mild: 1}",
        "enhancer.options.size=64",
        "enhancer.options.patch=2",
    ],
    "degradation_encoder": ["norm_group=2", "batch_size=4"],
    "degradation_grid": ["columns=2"],
    "gfpgan": [
        "landmarks=null",
        "loss.component=0",
        "loss.component_style=0",
        "prior=null",
        "train_prior=true",
        "pairs.input_size=64",
        "discriminator_weights=null",
    ],
}


def text_keys(schema, start=""):
    """(key, value) of all settings that take any text, with the place of a path in the value."""
    for field in dataclasses.fields(schema):
        key, kind = start + field.name, typing.get_type_hints(schema)[field.name]
        kind = next((k for k in typing.get_args(kind) if k is not type(None)), kind) if (
            type(None) in typing.get_args(kind)
        ) else kind  # fmt: skip
        value = "{path}"
        if typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
            key += ".niqe" if field.name == "metric_files" else ".other"
        elif typing.get_origin(kind) is list:
            (kind,) = typing.get_args(kind)
            value = "[{path}]"
        if dataclasses.is_dataclass(kind):
            yield from text_keys(kind, f"{key}.")
        elif kind is str and field.name not in FREE_TEXT:
            yield key, value


SHARED = set(text_keys(TrainConfig))
# Their settings are read as those of the other recipes are.
SLOW_RECIPES = {
    f"train {name}" for name in ("stylegan2", "gfpgan", "panini", "exegan", "vqfr", "vqfr_codebook")
}


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        pytest.param(name, *found, marks=pytest.mark.slow if name in SLOW_RECIPES else ())
        for name, schema in SCHEMAS.items()
        for found in text_keys(schema)
        if found not in SHARED or not name.startswith("train") or name == "train ddpm"
    ],
)
def test_settings(command, key, value, commands, tmp_path):
    start, _, last = key.rpartition(".")
    recipe = command.partition(" ")[2]
    chooses = recipe in BY_LPIPS and recipe != "exegan"  # by which network it compares
    table = tmp_path / "table.csv"
    table.write_text("file,sex\n")
    path, out = special("pipe", tmp_path / "new"), tmp_path / "new" / "out"
    arguments = given(command, commands, out)
    places = {
        "path": path,
        "table": table,
        "faces": next(a for a in commands["degrade"].arguments(out) if a.endswith("faces")),
        "start": f"{start}." * bool(start),
        "lpips": f"loss.lpips={path}" if recipe in BY_LPIPS else "loss.perceptual=1",
        "by": f"loss.perceptual{'_by=lpips' if chooses else '=1'}",
        "vgg": f"loss.perceptual{'_by=vgg19' if chooses else '=1'}",
    }
    beside = BESIDE.get(".".join(key.split(".")[-2:]), BESIDE.get(last, []))
    arguments += [text.format(**places) for text in (*beside, f"{key}={value}")]
    is_refused(build_parser().parse_args(arguments), path, out)


def given(command, commands, out):
    """Arguments of a command that end where settings follow."""
    name, _, recipe = command.partition(" ")
    arguments = commands[name].arguments(out)
    if not recipe:
        return arguments
    faces = next(a for a in arguments if a.startswith("data.path="))
    small = ["total_steps=1", "precision=fp32", "batch_size=2", "loader_workers=0", "data.size=64"]
    config = resource("configs") / "train" / f"{CONFIGS[recipe]}.yaml"
    if recipe in ("exegan", "panini"):
        small.append("data.sources=null")
    if recipe == "distil":  # of portrait128
        small.append("data.size=128")
        faces = f"data.path={out.parent / 'large'}"
        make_pictures(out.parent / "large", 1, height=128, width=128)
    return ["train", str(config), f"output={out}", faces, *small, *SMALL.get(recipe, [])]
