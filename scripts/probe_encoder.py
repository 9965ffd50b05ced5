"""What a degradation encoder knows: python scripts/probe_encoder.py MODEL FACES.npz"""

import argparse
import sys

import numpy as np

from dr2pipe import images
from dr2pipe.cli import report_errors
from dr2pipe.data.folders import FaceDataset
from dr2pipe.degradation_features import degradation_features
from dr2pipe.embed_folder import embed, load_encoder, untrained_like
from dr2pipe.probe import as_table, probe


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of the encoder")
    parser.add_argument("faces", help=".npz, or a folder of aligned faces, not seen in training")
    parser.add_argument("--size", type=int, default=64, help="side in pixels (64)")
    options = parser.parse_args()
    encoder = load_encoder(options.model)
    data = FaceDataset(options.faces, size=options.size, flip=False)
    items = [data[i, 0]["image"] for i in range(len(data))]
    faces = np.stack([images.to_uint8(image[None])[0] for image in items])
    descriptions = {
        "projected vector": lambda x: embed(encoder, x),
        "vector": lambda x: embed(encoder, x, projected=False),
        "untrained encoder": lambda x: embed(untrained_like(encoder, x), x, projected=False),
        "features by formula": lambda x: degradation_features(x).numpy(),
    }
    print(f"right answers on {len(faces)} faces")
    print(as_table(probe(descriptions, faces)))
    return 0


if __name__ == "__main__":
    sys.exit(report_errors(main))
