"""``python -m dr2pipe`` is the command ``dr2pipe``."""

import sys

from dr2pipe.cli import main

if __name__ == "__main__":
    sys.exit(main())
