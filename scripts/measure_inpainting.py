"""Mean absolute error inside holes: EXE-GAN against simple fillings.

python scripts/measure_inpainting.py exegan_64 FACES.npz
"""

import argparse
import sys

import numpy as np

from dr2pipe.cli import report_errors
from dr2pipe.inpaint import InpainterConfig, load_inpainter
from dr2pipe.measure_inpainting import as_markdown, measure_inpainting


def main() -> int:
    parser = argparse.ArgumentParser(description="L1 inside holes, in levels of 255.")
    parser.add_argument("model", help="folder of an EXE-GAN, or a name in checkpoints/")
    parser.add_argument("faces", help=".npz with images (N,S,S,3) uint8 that no training saw")
    options = parser.parse_args()
    inpainter, _ = load_inpainter(InpainterConfig(options.model))
    with np.load(options.faces, allow_pickle=False) as archive:
        print(as_markdown(measure_inpainting(inpainter, archive["images"])))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
