"""The sharp variant of an enhancer whose faithful one was trained further.

    python scripts/research/move_sharp.py OLD NEW OUT

OLD has both variants. The difference between them is added to the weights of NEW, which was
trained from OLD's faithful variant (task arithmetic, Ilharco et al., ICLR 2023). OUT is a model
folder with both; ``enhancer256_sharp.yaml`` can train it further.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from dr2pipe.enhancers import SHARP

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def move_sharp(old: Path, new: Path, output: Path) -> None:
    """Write ``output``, which must not exist.

    Raises:
        KeyError: the networks are not of one kind.
    """
    faithful, sharp = load_file(old / _WEIGHTS), load_file(old / SHARP / _WEIGHTS)
    moved = {}
    for name, weight in load_file(new / _WEIGHTS).items():
        difference = sharp[name].float() - faithful[name].float()
        moved[name] = (weight.float() + difference).to(weight.dtype)
    for folder in (output, output / SHARP):
        folder.mkdir(parents=True)
        shutil.copy(new / "config.json", folder)
    shutil.copy(new / _WEIGHTS, output)
    save_file(moved, output / SHARP / _WEIGHTS, metadata={"format": "pt"})


def main() -> None:
    """Read the arguments and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("old", "new", "output"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    move_sharp(options.old, options.new, options.output)


if __name__ == "__main__":
    main()
