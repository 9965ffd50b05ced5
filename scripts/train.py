"""Train a recipe: ``accelerate launch scripts/train.py CONFIG [key=value ...]``."""

import sys

from dr2pipe.cli import script

if __name__ == "__main__":
    sys.exit(script("train"))
