"""A study on degraded copies of clean faces: ``accelerate launch scripts/evaluate.py CONFIG [key=value ...]``."""

import sys

from dr2pipe.cli import script

if __name__ == "__main__":
    sys.exit(script("evaluate"))
