"""Restore two portraits that come inside packages: ``python scripts/demo.py [FOLDER]``."""

import sys

from dr2pipe.cli import report_errors
from dr2pipe.commands import quiet_libraries


def main() -> int:
    from dr2pipe.demo import run_demo

    quiet_libraries()
    print(run_demo(sys.argv[1] if len(sys.argv) > 1 else "demo"))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
