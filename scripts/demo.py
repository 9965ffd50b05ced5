"""Restore two portraits that come inside packages: ``python scripts/demo.py [FOLDER]``."""

import sys

from dr2pipe.demo import run_demo

if __name__ == "__main__":
    print(run_demo(sys.argv[1] if len(sys.argv) > 1 else "demo"))
