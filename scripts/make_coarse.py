"""Coarse faces for training: ``accelerate launch scripts/make_coarse.py CONFIG [key=value ...]``."""

import sys

from dr2pipe.cli import script

if __name__ == "__main__":
    sys.exit(script("make_coarse"))
