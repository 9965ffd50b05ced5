"""``dr2pipe embed``: how every picture of a folder is degraded, as vectors and as a map."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dr2pipe import files, images
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.models import find_model

_BATCH = 16
_MARKS = "os^DvP*X"


@dataclass
class Embedded:
    """``vectors`` (N,C) float32 and ``places`` (N,2) on the map of the pictures ``paths``."""

    paths: list[str]
    vectors: np.ndarray
    places: np.ndarray
    failures: dict[str, str]


def embed_folder(source: str, output: str, model: str, *, size: int | None = None) -> Embedded:
    """Write ``vectors.npz`` (paths, vectors, places, family, severity) and ``map.png``.

    Args:
        source: folder of pictures; what ``dr2pipe degrade`` left tells families and severities.
        model: folder of a degradation encoder.
        size: side in pixels to which pictures are brought first; None: that of the first one.

    Raises:
        ValueError: no pictures, none that can be read, or no degradation encoder at ``model``.
    """
    encoder = load_encoder(model)
    found = []
    if Path(source).is_dir():  # what `dr2pipe degrade` left is what one looks at
        found = list(images.find_images(source, with_results=True))
    if not found:
        raise ValueError(f"no pictures in {source}")
    embedded = _embed(encoder, found, Path(source), size)
    if not embedded.paths:
        raise ValueError(f"no readable picture in {source}, the first: {embedded.failures}")
    known = read_parameters(source)
    labels = [known.get(str((Path(source) / path).resolve()), ("", "")) for path in embedded.paths]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        paths=np.array(embedded.paths),
        vectors=embedded.vectors,
        places=embedded.places,
        family=np.array([family for family, _ in labels]),
        severity=np.array([severity for _, severity in labels]),
    )
    files.write_bytes(Path(output) / "vectors.npz", buffer.getvalue())
    files.write_bytes(Path(output) / "map.png", draw_map(embedded.places, labels))
    return embedded


def load_encoder(model: str) -> DegradationEncoder:
    """A frozen encoder.

    Raises:
        ValueError: another network, or none, at ``model``.
    """
    folder = find_model(model)
    config = folder / "config.json"
    made_by = json.loads(config.read_text()).get("_class_name") if config.is_file() else None
    if made_by != DegradationEncoder.__name__:
        raise ValueError(f"{folder} holds no degradation encoder ({made_by or 'no config.json'})")
    return DegradationEncoder.from_pretrained(folder).float().eval().requires_grad_(False)


@torch.no_grad()
def embed(encoder: DegradationEncoder, pixels: np.ndarray) -> np.ndarray:
    """(N,S,S,3) uint8 RGB to vectors (N,C) float32."""
    parts = [images.to_tensor(pixels[i : i + _BATCH]) for i in range(0, len(pixels), _BATCH)]
    return torch.cat([encoder(part) for part in parts]).numpy()


def _embed(
    encoder: DegradationEncoder, found: list[Path], root: Path, size: int | None
) -> Embedded:
    kept, pixels, failures = [], [], {}
    for path in found:
        name = path.relative_to(root).as_posix()
        try:
            picture = images.read_image(path).pixels
        except images.PictureError as error:
            failures[name] = str(error)
            continue
        size = size or min(picture.shape[:2])
        pixels.append(images.resize_pixels(picture, (size, size)))
        kept.append(name)
    if not kept:
        return Embedded([], np.zeros((0, 0)), np.zeros((0, 2)), failures)
    vectors = embed(encoder, np.stack(pixels))
    return Embedded(kept, vectors, principal_components(vectors), failures)


def principal_components(vectors: np.ndarray) -> np.ndarray:
    """(N,2): along the two directions in which the vectors differ most."""
    centred = vectors - vectors.mean(axis=0)
    left, strengths, _ = np.linalg.svd(centred, full_matrices=False)
    places = (left * strengths)[:, :2]
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))


def read_parameters(source: str | Path) -> dict[str, tuple[str, str]]:
    """(family, severity) by the resolved path of a picture, of every ``parameters.csv`` inside."""
    known = {}
    for table in sorted(Path(source).rglob("parameters.csv")):
        with table.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if "output" in row and "degradation" in row:
                    path = str((table.parent / row["output"]).resolve())
                    known[path] = (row["degradation"], row.get("severity") or "")
    return known


def draw_map(places: np.ndarray, labels: list[tuple[str, str]]) -> bytes:
    """PNG: a mark for each picture, its colour the family, its size the severity."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    families = sorted({family for family, _ in labels})
    for number, family in enumerate(families):
        at = [i for i, label in enumerate(labels) if label[0] == family]
        sizes = [14 + 14 * int(labels[i][1] or 0) for i in at]
        mark = _MARKS[number // 10 % len(_MARKS)]
        axes.scatter(
            *places[at].T, s=sizes, marker=mark, alpha=0.7, lw=0, label=family or "unknown"
        )
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second")
    axes.legend(fontsize=8, markerscale=0.8, loc="center left", bbox_to_anchor=(1, 0.5))
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
