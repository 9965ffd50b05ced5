"""Convert a checkpoint: ``python scripts/convert.py SOURCE OUTPUT --kind KIND``."""

import sys

from dr2pipe.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
