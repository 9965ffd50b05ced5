"""Restore a folder: ``accelerate launch scripts/restore.py CONFIG [key=value ...]``."""

import sys

from dr2pipe.cli import script

if __name__ == "__main__":
    sys.exit(script("restore"))
