"""Probe a degradation encoder: what can a linear classifier read from its vectors?

It should read how a face is degraded, and not whose face it is.

Usage: ``python scripts/research/probe_encoder.py MODEL FACES.npz``
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from dr2pipe.cli import report_errors
from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import Dr2pipeError
from dr2pipe.data.folders import FaceDataset
from dr2pipe.degradations import SEVERITIES, degrade
from dr2pipe.diffusion.degradation_features import degradation_features
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.runs.embed import embed, load_encoder

# Kinds of damage that look different; none of them is in a training chain under this name.
FAMILIES = (
    "defocus",
    "salt_and_pepper",
    "poisson_noise",
    "pixelation",
    "low_bit_depth",
    "haze",
    "scratches",
    "halftone",
)
_STRENGTH = 1e-2  # of the ridge, relative to the number of rows

# (M,3,S,S) in [-1,1] to vectors (M,C)
Describe = Callable[[torch.Tensor], np.ndarray]


@dataclass
class Probe:
    """Shares of right answers on faces that the classifier has not seen, and those by chance."""

    family: float
    severity: float  # mean over families of a classifier for each
    content: float  # which face, on severities that the classifier has not seen
    family_chance: float
    severity_chance: float
    content_chance: float


def probe(
    descriptions: Mapping[str, Describe], faces: np.ndarray, *, seed: int = 0
) -> dict[str, Probe]:
    """Classify degraded faces by the vectors of several descriptions.

    Faces are degraded in 8 families at 5 severities; half of the faces are for fitting.

    Args:
        descriptions: functions from (M,3,S,S) in [-1,1] to vectors (M,C), by name.
        faces: (N,S,S,3) uint8 RGB.
        seed: of the degradations.

    Raises:
        Dr2pipeError: fewer than four faces.
    """
    if len(faces) < 4:
        raise Dr2pipeError(f"a probe takes four faces or more, not {len(faces)}")
    pixels, family, severity, face = [], [], [], []
    for i, picture in enumerate(faces):
        for f, name in enumerate(FAMILIES):
            for level in SEVERITIES:
                rng = np.random.default_rng(stable_seed(seed, name, level, i))
                pixels.append(degrade(picture, name, rng, severity=level)[0])
                family.append(f)
                severity.append(level - 1)
                face.append(i)
    family, severity, face = (np.array(x) for x in (family, severity, face))
    pictures = images.to_tensor(np.stack(pixels))
    return {
        name: _classify(np.asarray(describe(pictures), dtype=np.float64), family, severity, face)
        for name, describe in descriptions.items()
    }


def as_table(probes: Mapping[str, Probe]) -> str:
    """Return a table with a row for each name, and one for chance."""
    first = next(iter(probes.values()))
    rows = {name: (p.family, p.severity, p.content) for name, p in probes.items()}
    rows["chance"] = (first.family_chance, first.severity_chance, first.content_chance)
    width = max(map(len, rows))
    lines = [f"{'':{width}}  family  severity  content"]
    for name, (family, severity, content) in rows.items():
        lines.append(f"{name:{width}}  {family:6.1%}  {severity:8.1%}  {content:7.1%}")
    lines.append("severity: the mean of one classifier per family; content: which face it is")
    return "\n".join(lines)


def _classify(
    vectors: np.ndarray, family: np.ndarray, severity: np.ndarray, face: np.ndarray
) -> Probe:
    seen = face % 2 == 0
    by_family = [
        _accuracy(vectors[family == f], severity[family == f], seen[family == f])
        for f in range(len(FAMILIES))
    ]
    return Probe(
        family=_accuracy(vectors, family, seen),
        severity=float(np.mean(by_family)),
        content=_accuracy(vectors, face, severity % 2 == 0),
        family_chance=1 / len(FAMILIES),
        severity_chance=1 / len(SEVERITIES),
        content_chance=1 / (face.max() + 1),
    )


def _accuracy(vectors: np.ndarray, labels: np.ndarray, seen: np.ndarray) -> float:
    """Return the accuracy of a ridge classifier (one column per class) on standardised vectors."""
    mean, scale = vectors[seen].mean(axis=0), vectors[seen].std(axis=0) + 1e-9
    x = np.c_[(vectors - mean) / scale, np.ones(len(vectors))]
    wanted = np.eye(labels.max() + 1)[labels]
    gram = x[seen].T @ x[seen] + _STRENGTH * seen.sum() * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x[seen].T @ wanted[seen])
    return float(((x[~seen] @ weights).argmax(axis=1) == labels[~seen]).mean())


@torch.no_grad()
def untrained_like(encoder: DegradationEncoder, pictures: torch.Tensor) -> DegradationEncoder:
    """A random encoder of the same size, normalised by the statistics of ``pictures``.

    It is a baseline: what its vectors tell was not learned.
    """
    generator = torch.Generator().manual_seed(0)
    network = copy.deepcopy(encoder)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            # torch's own initialisation of these layers
            torch.nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            if layer.bias is not None:
                bound = 1 / math.sqrt(layer.weight[0].numel())
                torch.nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        elif isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_parameters()
            layer.momentum = None  # the mean over all batches
    network.train()
    for part in torch.split(pictures, 16):
        network(part)
    return network.eval().requires_grad_(False)


def main() -> int:
    """Parse the command line and print the table."""
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
