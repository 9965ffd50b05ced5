"""The sharp variant of an enhancer whose faithful one was trained further.

    python scripts/research/move_sharp.py OLD NEW OUT

OLD has both variants. The difference between them is added to the weights of NEW, which was
trained from OLD's faithful variant (task arithmetic, Ilharco et al., ICLR 2023). OUT is a model
folder with both.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from dr2pipe.core import files
from dr2pipe.core.errors import ConfigError
from dr2pipe.enhancers import SHARP

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def move_sharp(old: Path, new: Path, output: Path) -> None:
    """Write ``output``, whole or not at all.

    Raises:
        ConfigError: the networks are not of one kind.
    """
    faithful, sharp, trained = (load_file(folder / _WEIGHTS) for folder in (old, old / SHARP, new))
    shapes = [{name: w.shape for name, w in found.items()} for found in (faithful, sharp, trained)]
    if shapes[0] != shapes[1] or shapes[0] != shapes[2]:
        raise ConfigError(f"{old} and {new} are networks of other sizes")
    moved = {
        name: (weight.float() + sharp[name].float() - faithful[name].float()).to(weight.dtype)
        for name, weight in trained.items()
    }

    def write(path: str) -> None:
        for folder in (Path(path), Path(path) / SHARP):
            folder.mkdir(exist_ok=True)
            shutil.copy(new / "config.json", folder)
        shutil.copy(new / _WEIGHTS, path)
        save_file(moved, Path(path) / SHARP / _WEIGHTS, metadata={"format": "pt"})

    files.write_folder(output, write)


def main() -> None:
    """Read the arguments and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("old", "new", "output"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    move_sharp(options.old, options.new, options.output)


if __name__ == "__main__":
    main()
