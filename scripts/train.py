"""Train a recipe: ``accelerate launch scripts/train.py CONFIG [key=value ...]``."""

import sys

from dr2pipe.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
