"""The wheel restores in an environment of its own, from any directory, with the core packages."""

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import PATIENCE_SECONDS, ROOT, make_pictures

MAX_BYTES = 60_000_000
SOURCES = ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
STRAY = ("build/lib/dr2pipe/stale.py", "checkpoints/stale/config.json")
SHIPPED = (
    "auto_portrait128",
    "degradation_encoder_64",
    "enhancer256",
    "exegan_64",
    "portrait128",
    "portrait128_student",
)
OPTIONAL = ("tensorboard", "jinja2", "matplotlib", "torchmetrics", "spandrel", "xformers")
# torch and the like are taken from the running environment, but no optional package.
SITE = f"""
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec

def find_others(name, path=None, target=None):
    return None if name.partition(".")[0] in {OPTIONAL} else find_spec(name, path, target)

PathFinder.find_spec = find_others
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy that has the module of an earlier build, and a model of its own."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    for name in ("dr2pipe", "configs", "checkpoints"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for stray in STRAY:
        (copy / stray).parent.mkdir(parents=True)
        (copy / stray).touch()
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", dist, copy)  # fmt: skip
    (found,) = dist.iterdir()
    return found


@pytest.fixture(scope="module")
def environment(tmp_path_factory, wheel):
    """The ``bin`` folder of an environment with the wheel."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet",
        "--no-deps", "--no-compile", wheel)  # fmt: skip
    (packages / "running.pth").write_text("\n".join(site.getsitepackages()))
    (packages / "sitecustomize.py").write_text(SITE)
    return folder / "bin"


def run(*command, cwd=None, **variables):
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_content(wheel):
    """All models that a preset or a default names, but no strays."""
    assert wheel.stat().st_size < MAX_BYTES
    names = {name.removeprefix("dr2pipe/") for name in zipfile.ZipFile(wheel).namelist()}
    assert "configs/restore/portrait128.yaml" in names
    for model in (ROOT / "checkpoints").glob("*"):
        presets = (ROOT / "configs" / "restore").glob("*.yaml")
        if model.stem in SHIPPED or any(f": {model.stem}\n" in p.read_text() for p in presets):
            path = f"checkpoints/{model.name}"
            assert any(name == path or name.startswith(f"{path}/") for name in names), path
    assert not [name for name in names if "stale" in name]


# Several commands in one process: importing torch takes longest.
OTHERS = """
import dr2pipe
from dr2pipe.cli import main

print(dr2pipe.__file__)
assert main(["degrade", "in", "bad", "--with", "severe"]) == 0
assert main(["doctor"]) == 0
assert main(["evaluate", "protocol.yaml"]) == 2
"""


def test_it_restores_anywhere_with_the_core_packages(wheel, environment, tmp_path):
    assert wheel.stat().st_size < MAX_BYTES
    make_pictures(tmp_path / "in", 1)
    where = {"cwd": tmp_path, "DR2PIPE_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    assert "1 restored" in run(environment / "dr2pipe", "restore", "in", "out", **where)
    assert len(list((tmp_path / "out" / "restored").iterdir())) == 1
    imported, *said = run(environment / "python", "-c", OTHERS, **where).splitlines()
    assert Path(imported).is_relative_to(environment.parent)
    for expected in ("1 degraded", str(tmp_path / "home"), "pip install 'dr2pipe[evaluate]'"):
        assert any(expected in line for line in said)
