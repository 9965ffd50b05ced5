"""Does Panini-Net take more from its prior for heavier damage?

    python scripts/research/measure_prior_share.py MODEL FACES.npz --size 128

Every face is damaged by the chains mild, medium and severe, which training knows, and in eight
families at five severities, which it does not. For each family and each level of the
network it prints Spearman's rank correlation of the prior's share with the severity, and an interval
of 95 % from 1,000 draws of faces with replacement.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from probe_encoder import FAMILIES
from torchmetrics.functional import spearman_corrcoef

from dr2pipe.cli import report_errors
from dr2pipe.core import images
from dr2pipe.core.config import stable_seed
from dr2pipe.core.errors import ConfigError
from dr2pipe.data.folders import FaceDataset
from dr2pipe.degradations import SEVERITIES, degrade
from dr2pipe.enhancers import build_enhancer
from dr2pipe.enhancers.panini import PaniniNet

CHAINS = ("mild", "medium", "severe")
_BATCH, _DRAWS = 20, 1000


@dataclass
class Correlation:
    """Of shares with severities: the value for all faces, and an interval of 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def correlate(shares: npt.NDArray[np.float64], severities: Sequence[int]) -> Correlation:
    """Spearman's rank correlation of (N,M) shares of N faces with the M severities."""
    rng, count = np.random.default_rng(0), len(shares)
    drawn = [rng.integers(0, count, count) for _ in range(_DRAWS)]
    low, high = np.quantile([_spearman(shares[rows], severities) for rows in drawn], (0.025, 0.975))
    return Correlation(_spearman(shares, severities), float(low), float(high))


def _spearman(shares: npt.NDArray[np.float64], severities: Sequence[int]) -> float:
    wanted = torch.tensor(severities, dtype=torch.float64).repeat(len(shares))
    return float(spearman_corrcoef(torch.from_numpy(shares.ravel()), wanted))


def measure_shares(
    network: PaniniNet, faces: npt.NDArray[np.uint8], damages: Sequence[tuple[str, int | None]]
) -> npt.NDArray[np.float64]:
    """(N,K,L): the share of the prior for N faces, K damages (name and severity), L levels."""
    damaged = [
        degrade(face, name, np.random.default_rng(stable_seed(name, level, i)), severity=level)[0]
        for i, face in enumerate(faces)
        for name, level in damages
    ]
    pictures = images.to_tensor(np.stack(damaged))
    shares = torch.cat([network.prior_shares(part) for part in pictures.split(_BATCH)])
    return shares.double().numpy().reshape(len(faces), len(damages), -1)


def main() -> int:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a Panini-Net with interpolation")
    parser.add_argument("faces", help=".npz, or a folder of aligned faces, not seen in training")
    parser.add_argument("--size", type=int, default=128, help="side in pixels (128)")
    options = parser.parse_args()
    network = build_enhancer("panini", options.model).float().eval()
    if not isinstance(network, PaniniNet) or not network.config.interpolate:
        raise ConfigError(f"{options.model} is no Panini-Net with interpolation")
    data = FaceDataset(options.faces, size=options.size, flip=False)
    items = [data[i, 0]["image"] for i in range(len(data))]
    faces = np.stack([images.to_uint8(image[None])[0] for image in items])
    sides = [f"{side} px" for side in network.fused_sides]
    print(f"share of the prior against severity, {len(faces)} faces")
    print(f"| family | {' | '.join(sides)} | all levels |")
    print(f"|{'---|' * (len(sides) + 2)}")
    chains = measure_shares(network, faces, [(chain, None) for chain in CHAINS])
    _print_row(", ".join(CHAINS), chains, range(len(CHAINS)))
    by_family = {
        family: measure_shares(network, faces, [(family, level) for level in SEVERITIES])
        for family in FAMILIES
    }
    for family, shares in by_family.items():
        _print_row(family, shares, SEVERITIES)
    # A face's mean over its severities is taken off, so that only its changes count.
    changes = [shares - shares.mean(axis=1, keepdims=True) for shares in by_family.values()]
    _print_row("all families", np.concatenate(changes, axis=1), [*SEVERITIES] * len(FAMILIES))
    means = np.mean([shares.mean(axis=(0, 2)) for shares in by_family.values()], axis=0)
    print(f"mean share by severity: {', '.join(f'{mean:.4f}' for mean in means)}")
    return 0


def _print_row(name: str, shares: npt.NDArray[np.float64], severities: Sequence[int]) -> None:
    """One line of the table for (N,M,L) shares."""
    levels = [*np.moveaxis(shares, 2, 0), shares.mean(axis=2)]
    found = [str(correlate(np.ascontiguousarray(level), severities)) for level in levels]
    print(f"| {name} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    sys.exit(report_errors(main))
