"""``dr2pipe embed``: how every picture of a folder is degraded, as vectors and as a map."""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dr2pipe.core import files, images
from dr2pipe.core.errors import PictureError
from dr2pipe.core.extras import needs_extra
from dr2pipe.core.models import find_model
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder

with needs_extra("evaluate"):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_BATCH = 16
_MARKS = "os^DvP*X"
_VECTORS, _MAP = "vectors.npz", "map.png"
_TOO_LARGE = 2  # times the side to which the encoder itself reduces pictures


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
        source: picture or folder of pictures; what ``dr2pipe degrade`` left in a folder tells
            families and severities.
        model: folder of a degradation encoder.
        size: side in pixels to which pictures are brought first; None: that of the first one.

    Raises:
        ValueError: an impossible size, no pictures, none that can be read, or no degradation
            encoder at ``model``.
    """
    if size is not None and size < 1:
        raise ValueError(f"size={size} must be at least 1")
    encoder = load_encoder(model)
    source, output = Path(source), Path(output)
    found = _pictures_of(source)
    root = source if source.is_dir() else source.parent
    embedded = _embed(encoder, found, root, size)
    if not embedded.paths:
        path, reason = next(iter(embedded.failures.items()))
        raise ValueError(f"no readable picture in {source}, the first: {path}: {reason}")
    known = read_parameters(source) if source.is_dir() else {}
    labels = [known.get(str((root / path).resolve()), ("", "")) for path in embedded.paths]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        paths=np.array(embedded.paths),
        vectors=embedded.vectors,
        places=embedded.places,
        family=np.array([family for family, _ in labels]),
        severity=np.array([severity for _, severity in labels]),
    )
    files.write_bytes(output / _VECTORS, buffer.getvalue())
    files.write_bytes(output / _MAP, draw_map(embedded.places, labels))
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
def embed(
    encoder: DegradationEncoder, pictures: torch.Tensor, *, projected: bool = True
) -> np.ndarray:
    """(N,3,S,S) RGB in [-1,1] to vectors (N,C) float32.

    ``projected``: what the contrastive loss compared; without it the vector still tells whose
    face it is.
    """
    parts = [encoder(part, projected=projected) for part in pictures.split(_BATCH)]
    return torch.cat(parts).numpy()


@torch.no_grad()
def untrained_like(encoder: DegradationEncoder, pictures: torch.Tensor) -> DegradationEncoder:
    """A new encoder of the same size, normalised by the statistics of ``pictures``.

    What can be read from its vectors was not learned.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DegradationEncoder(encoder.config.width, encoder.config.max_size)
    for norm in network.norms:
        norm.momentum = None  # the mean over all batches
    network.train()
    for part in pictures.split(_BATCH):
        network(part)
    return network.eval().requires_grad_(False)


def _pictures_of(source: Path) -> list[Path]:
    """Also what ``dr2pipe degrade`` left, which is what one looks at; not the maps from here."""
    if not source.is_dir():
        if not os.path.lexists(source):
            raise ValueError(f"no file or folder at {source}")
        return [source]
    found = [
        path
        for path in images.find_images(source, with_results=True)
        if path.name != _MAP or not (path.parent / _VECTORS).is_file()
    ]
    if not found:
        raise ValueError(f"no pictures in {source}")
    return found


def _embed(
    encoder: DegradationEncoder, found: list[Path], root: Path, size: int | None
) -> Embedded:
    kept, failures, sizes = [], {}, Counter()

    def read() -> Iterator[np.ndarray]:
        nonlocal size
        for path in found:
            name = path.relative_to(root).as_posix()
            try:
                picture = images.read_image(path).pixels
            except PictureError as error:
                failures[name] = str(error)
                continue
            size = size or min(picture.shape[:2])
            sizes[picture.shape[:2]] += 1
            kept.append(name)
            yield images.resize_pixels(picture, (size, size))

    vectors, pictures = [], read()
    while batch := list(itertools.islice(pictures, _BATCH)):
        vectors.append(embed(encoder, images.to_tensor(np.stack(batch))))
    if not kept:
        return Embedded([], np.zeros((0, 0)), np.zeros((0, 2)), failures)
    _warn_of_sizes(sizes, size, encoder.config.max_size)
    vectors = np.concatenate(vectors)
    return Embedded(kept, vectors, principal_components(vectors), failures)


def _warn_of_sizes(sizes: Counter, size: int, max_size: int) -> None:
    """Resizing is a degradation too, and hides others."""
    if len(sizes) > 1:
        changed = sizes.total() - sizes[size, size]
        logger.warning(
            "pictures of %d sizes: %d of %d were brought to %dx%d pixels, which changes how they "
            "are degraded",
            len(sizes), changed, sizes.total(), size, size,
        )  # fmt: skip
    largest = max(max(shape) for shape in sizes)
    if largest > _TOO_LARGE * max_size:
        logger.warning(
            "pictures of up to %d pixels are reduced to %d, which hides fine damage",
            largest, min(size, max_size),
        )  # fmt: skip


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
