"""Fit dr2.mode=auto on a sweep: ``python scripts/fit_auto.py SWEEP OUTPUT.json``.

SWEEP is a folder that scripts/sweep.py left, run with_off=true.
"""

import argparse
import sys

from dr2pipe.cli import report_errors
from dr2pipe.evaluation.fit_auto import fit_from_sweep


def main() -> int:
    """Parse the command line and print how the setting does on faces left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", help="folder that scripts/sweep.py left, with_off=true")
    parser.add_argument("output", help=".json file, for dr2.auto")
    options = parser.parse_args()
    print(fit_from_sweep(options.sweep, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
