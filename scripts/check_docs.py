"""Every command of README.md and docs: run on toy data, or at least understood. ``make docs-check``.

Commands that restore, degrade, inpaint or describe run for real, on two small portraits. Those that
train, study or download are read by the parser of dr2pipe: their options exist, and so do the
configuration files, presets and scripts that they name. Needs ``dr2pipe[demo]``.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np
from demo import PORTRAITS
from PIL import Image

from dr2pipe import cli
from dr2pipe.cli.arguments import build_parser, parse_script_arguments
from dr2pipe.core import images
from dr2pipe.core.models import find_file, is_here
from dr2pipe.faces.align import align, cut

ROOT = Path(__file__).resolve().parent.parent
_STARTS = ("dr2pipe ", "accelerate ", "torchrun ", "python ", "make ", "pip ")
_RUN = (
    *("restore", "inpaint", "degrade", "cut-faces", "embed", "explain", "report"),
    *("presets", "doctor"),
)
# What these commands read, and the scripts' folders of configuration files.
_SCRIPTS = {"train": "train", "evaluate": "protocols", "sweep": "sweep", "make_coarse": "coarse"}


def commands_of(text: str) -> list[str]:
    """Commands in the indented and fenced code of a page, without comments."""
    text = re.sub(r"\s*\\\n\s*", " ", text)
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    lines += [line for block in fenced for line in block.splitlines()]
    bare = [re.sub(r"\s+#.*", "", line).strip() for line in lines]
    return [line for line in bare if line.startswith(_STARTS) or line == "make"]


def prepare(folder: Path) -> None:
    """The files that commands of the documentation name, small."""
    for name in ("PHOTOS", "PHOTOS_OF_THE_PERSON", "FACES", "INPUT", "MASKS", "MARKS", "FOLDER"):
        (folder / name).mkdir()
    for number, (name, portrait) in enumerate(PORTRAITS.items()):
        left, top, right, bottom = portrait.frame
        photo = Image.fromarray(portrait.load()[top:bottom, left:right]).resize((150, 170))
        face = cut(portrait.load(), align(np.array(portrait.landmarks)), 64)
        if number == 0:
            photo.save(folder / "PHOTOS" / f"{name}.png")
            photo.save(folder / "PHOTOS_OF_THE_PERSON" / f"{name}.png")
            photo.save(folder / "PHOTO", "PNG")
            marks = np.zeros((170, 150, 3), np.uint8)
            marks[60:64, 50:110] = 255
            images.write_png(folder / "MARKS" / f"{name}.png", marks)
        for place in ("FACES", "INPUT", "FOLDER"):
            images.write_png(folder / place / f"{name}.png", face)
        mask = np.zeros((64, 64, 3), np.uint8)
        mask[30:34, 10:50] = 255
        images.write_png(folder / "MASKS" / f"{name}.png", mask)
    images.write_png(folder / "FACE.png", face)
    points = ",".join(
        f"{v}_{a}" for v in ("eyeL", "eyeR", "nose", "mouthL", "mouthR") for a in "xy"
    )
    (folder / "faces.csv").write_text(f"file,{points}\n")


def check(command: str, folder: Path) -> str:
    """``ran`` or ``read``; raises what is wrong."""
    words = shlex.split(command)
    if words[0] == "dr2pipe":
        return _check_dr2pipe(words[1:], folder)
    scripts = [word for word in words if word.endswith(".py")]
    for script in scripts:
        if not (ROOT / script).is_file():
            raise FileNotFoundError(script)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        unknown = [w for w in words[1:] if "=" not in w and w not in targets]
        if unknown:
            raise ValueError(f"no target {unknown}")
    elif scripts and scripts[0].startswith("scripts/") and scripts[0].count("/") == 1:
        name = Path(scripts[0]).stem
        if name in _SCRIPTS:
            config, _ = parse_script_arguments(name, words[words.index(scripts[0]) + 1 :])
            find_file(f"configs/{_SCRIPTS[name]}", str(ROOT / config), what="configuration file")
    return "read"


def _check_dr2pipe(words: list[str], folder: Path) -> str:
    if any(re.search(r"\b(KIND|KEY|NAME|FILE)$", word) for word in words):
        return "read"
    words = [str(ROOT / w) if w.startswith(("configs/", "checkpoints/")) else w for w in words]
    options = build_parser().parse_args(words)
    preset = getattr(options, "preset", "default")
    find_file("configs/restore", preset, what="preset")
    given = [word.partition("=")[2] for word in words if "=" in word]
    elsewhere = [name for name in given if name.startswith("runs/") or name.endswith(".json")]
    models = [word for word in words if word in ("exegan256", "psp_ffhq")]
    needs = {"dr2_ffhq_sparnethd", "celebahq256_gfpgan14", "celebahq256_bicubic"}
    if words[0] not in _RUN or preset in needs or elsewhere or not all(map(is_here, models)):
        return "read"
    if "OUTPUT" in words and words[0] != "report":
        words[words.index("OUTPUT")] = f"out{len(list(folder.glob('out*')))}"
    if words[0] == "report":
        words[1] = "out0"
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = cli.main(words)
    if code != 0:
        raise ValueError(f"exit code {code}: {said.getvalue().strip().splitlines()[-1]}")
    return "ran"


def main() -> int:
    """Check all pages; the exit code."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
    found = [(page, command) for page in pages for command in commands_of(page.read_text("utf-8"))]
    counts = {"ran": 0, "read": 0, "failed": 0}
    done: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["DR2PIPE_HOME"] = str(folder / "home")
        prepare(folder)
        os.chdir(folder)
        for page, command in found:
            if command not in done:
                try:
                    done[command] = check(command, folder)
                except (Exception, SystemExit) as error:
                    done[command] = "failed"
                    print(f"{page.relative_to(ROOT)}: {error}", flush=True)
                counts[done[command]] += 1
                print(f"{done[command]}: {command}", flush=True)
    said = ", ".join(f"{count} {what}" for what, count in counts.items())
    print(f"{len(pages)} pages, {len(done)} different commands: {said}")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
