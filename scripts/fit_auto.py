"""Fit dr2.mode=auto on a sweep: python scripts/fit_auto.py SWEEP OUTPUT.json"""

import argparse
import sys

from dr2pipe.cli import report_errors
from dr2pipe.diffusion.auto import SCORE, fit_auto, read_sweep, save_auto


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", help="folder that scripts/sweep.py left, with_off=true")
    parser.add_argument("output", help=".json file, for dr2.auto")
    options = parser.parse_args()
    table = read_sweep(options.sweep)
    setting, means = fit_auto(table)
    save_auto(setting, options.output)
    print(f"{len(set(table.faces))} faces, {len(table.candidates)} settings, score {SCORE}")
    for how, values in means.items():
        stated = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"{how}, on faces left out: {stated}")
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
