"""What dr2.mode=auto should choose by: python scripts/compare_auto_features.py SWEEP ENCODER"""

import argparse
import sys

from dr2pipe.cli import report_errors
from dr2pipe.compare_auto import compare_features


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", help="folder that scripts/sweep.py left, with_off=true")
    parser.add_argument("encoder", help="folder of a degradation encoder")
    options = parser.parse_args()
    for name, means in compare_features(options.sweep, options.encoder).items():
        stated = ", ".join(f"{key} {value:.4f}" for key, value in means.items())
        print(f"{name:8} {stated}")
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
