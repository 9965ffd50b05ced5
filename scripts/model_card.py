"""Pictures and numbers for a model card.

python scripts/model_card.py losses PNG RUN [RUN ...]    loss curves; prints steps, speed, time
python scripts/model_card.py terms PNG RUN               every term of a recipe's loss
python scripts/model_card.py samples PNG MODEL           16 faces of a DDPM, out of noise alone
python scripts/model_card.py restorations PNG NPZ        16 faces through the default preset
python scripts/model_card.py inpaintings PNG MODEL NPZ   8 faces with holes, filled by an EXE-GAN
"""

import argparse
import sys

from dr2pipe.cli import report_errors
from dr2pipe.model_card import write_inpaintings, write_losses, write_restorations, write_samples


def main() -> int:
    parser = argparse.ArgumentParser(description="Pictures and numbers for a model card.")
    kinds = ["losses", "terms", "samples", "restorations", "inpaintings"]
    parser.add_argument("what", choices=kinds)
    parser.add_argument("png", help="picture to write")
    parser.add_argument(
        "of", nargs="+", help="training runs, one DDPM, an EXE-GAN, an .npz of faces"
    )
    options = parser.parse_args()
    if options.what in ("losses", "terms"):
        print(write_losses(options.of, options.png, terms=options.what == "terms"))
    elif options.what == "restorations":
        write_restorations("portrait64", options.of[0], options.png)
    elif options.what == "inpaintings":
        model, faces = options.of
        write_inpaintings(model, faces, options.png)
    else:
        write_samples(options.of[0], options.png)
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
