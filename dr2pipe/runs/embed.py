"""``dr2pipe embed``: vectors that describe how pictures are degraded, and a map of them."""

from __future__ import annotations

import io
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dr2pipe.core import files, images
from dr2pipe.core.config import to_yaml
from dr2pipe.core.errors import ConfigError, Dr2pipeError, PictureError
from dr2pipe.core.extras import needs_extra
from dr2pipe.core.foreign import read_csv
from dr2pipe.core.markers import MARKER, marked
from dr2pipe.core.model_folders import load_network
from dr2pipe.core.models import find_model
from dr2pipe.core.records import check_output
from dr2pipe.degradations import SEVERITIES
from dr2pipe.enhancers.degradation_encoder import DegradationEncoder
from dr2pipe.runs.degrade import PARAMETERS

with needs_extra("evaluate"):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_BATCH = 16
_MARKS = "os^DvP*X"
_KIND = "embedding"  # in the marker
_VECTORS, _MAP = "vectors.npz", "map.png"
_TOO_LARGE = 2  # times the side to which the encoder itself reduces pictures
Vectors = npt.NDArray[np.float32]


@dataclass
class Embedded:
    """The vectors of N pictures.

    Attributes:
        paths: relative to the folder that was embedded.
        vectors: (N,C) float32.
        places: (N,2) float32 on the map.
        failures: reasons by path of pictures that could not be read.
    """

    paths: list[str]
    vectors: Vectors
    places: Vectors
    failures: dict[str, str]


def embed_folder(source: str, output: str, model: str, *, size: int | None = None) -> Embedded:
    """Write ``vectors.npz`` (paths, vectors, places, family, severity) and ``map.png``.

    Args:
        source: picture or folder of pictures. Tables of ``dr2pipe degrade`` in the folder give
            families and severities.
        output: folder for both files.
        model: name or folder of a degradation encoder.
        size: side in pixels to which pictures are resized first; None: that of the first one.

    Raises:
        ConfigError: an impossible size, no pictures, or no such model.
        PictureError: no picture that can be read.
        CheckpointError: the model is not a degradation encoder.
    """
    if size is not None and size < 1:
        raise ConfigError(f"size={size} must be at least 1")
    encoder = load_encoder(model)
    inputs, folder = Path(source), Path(output)
    check_output(folder, [MARKER, _VECTORS, _MAP], kind=_KIND)
    found = _pictures_of(inputs)
    root = inputs if inputs.is_dir() else inputs.parent
    embedded = _embed(encoder, found, root, size)
    if not embedded.paths:
        path, reason = next(iter(embedded.failures.items()))
        raise PictureError(f"no readable picture in {source}, the first: {path}: {reason}")
    known = read_parameters(inputs) if inputs.is_dir() else {}
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
    marker = marked({"result_files": [_MAP], "kind": _KIND, "input": str(source)}, [])
    files.write_bytes(folder / MARKER, to_yaml(marker).encode())
    files.write_bytes(folder / _VECTORS, buffer.getvalue())
    files.write_bytes(folder / _MAP, draw_map(embedded.places, labels))
    return embedded


def load_encoder(model: str) -> DegradationEncoder:
    """A frozen encoder by the name or folder of its model.

    Raises:
        ConfigError: no such model.
        CheckpointError: another network there.
    """
    folder = find_model(model)
    return load_network(folder, DegradationEncoder).float().eval().requires_grad_(False)


@torch.no_grad()
def embed(
    encoder: DegradationEncoder, pictures: torch.Tensor, *, projected: bool = True
) -> Vectors:
    """(N,3,S,S) RGB in [-1,1] to vectors (N,C) float32.

    ``projected``: the vectors that the contrastive loss compared. Without the projection, a
    vector depends on whose face it is, too.
    """
    parts = [encoder(part, projected=projected) for part in torch.split(pictures, _BATCH)]
    vectors: Vectors = torch.cat(parts).numpy()
    return vectors


def _pictures_of(source: Path) -> list[Path]:
    """All pictures, also results of ``dr2pipe degrade``, but not the maps of ``dr2pipe embed``."""
    if not source.is_dir():
        if not os.path.lexists(source):
            raise ConfigError(f"no file or folder at {source}")
        return [source]
    found = images.find_images(source, with_results=True).paths
    if not found:
        raise ConfigError(f"no pictures in {source}")
    return found


def _embed(
    encoder: DegradationEncoder, found: list[Path], root: Path, size: int | None
) -> Embedded:
    paths: list[str] = []
    failures: dict[str, str] = {}
    sizes: Counter[tuple[int, int]] = Counter()

    def read() -> Iterator[npt.NDArray[np.uint8]]:
        nonlocal size
        for path in found:
            name = path.relative_to(root).as_posix()
            try:
                picture = images.read_image(path).pixels
            except PictureError as error:
                failures[name] = str(error)
                continue
            height, width = picture.shape[:2]
            size = size or min(height, width)
            sizes[height, width] += 1
            paths.append(name)
            yield images.resize_pixels(picture, (size, size))

    parts, pictures = [], read()
    while batch := list(itertools.islice(pictures, _BATCH)):
        parts.append(embed(encoder, images.to_tensor(np.stack(batch))))
    if size is None or not parts:
        empty = np.zeros((0, 2), np.float32)
        return Embedded([], empty, empty, failures)
    _warn_of_sizes(sizes, size, encoder.config.max_size)
    vectors = np.concatenate(parts)
    return Embedded(paths, vectors, principal_components(vectors), failures)


def _warn_of_sizes(sizes: Counter[tuple[int, int]], size: int, max_size: int) -> None:
    """Warn about resizing, which is a degradation itself and hides others."""
    if len(sizes) > 1:
        changed = sizes.total() - sizes[size, size]
        logger.warning(
            "pictures of %d sizes: %d of %d were resized to %dx%d pixels, which changes how they "
            "are degraded",
            len(sizes), changed, sizes.total(), size, size,
        )  # fmt: skip
    largest = max(max(shape) for shape in sizes)
    if largest > _TOO_LARGE * max_size:
        logger.warning(
            "pictures of up to %d pixels are reduced to %d, which hides fine damage",
            largest, min(size, max_size),
        )  # fmt: skip


def principal_components(vectors: Vectors) -> Vectors:
    """(N,C) to (N,2): places along the two directions in which the vectors differ most."""
    centred = vectors - vectors.mean(axis=0)
    left, strengths, _ = np.linalg.svd(centred, full_matrices=False)
    places = (left * strengths)[:, :2]
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))


def read_parameters(source: str | Path) -> dict[str, tuple[str, str]]:
    """(family, severity) by the resolved path of a picture, from every ``parameters.csv`` inside."""
    known = {}
    for table in sorted(Path(source).rglob(PARAMETERS)):
        for row in read_csv(table):
            if "output" in row and "degradation" in row:
                try:
                    path = files.safe_join(table.parent, row["output"]).resolve()
                except Dr2pipeError:  # no run of ours wrote this line
                    continue
                severity = row.get("severity", "")
                known[str(path)] = (
                    row["degradation"],
                    severity if severity in map(str, SEVERITIES) else "",
                )
    return known


def draw_map(places: Vectors, labels: list[tuple[str, str]]) -> bytes:
    """A PNG with a mark for each picture: the colour shows the family, the size the severity.

    Args:
        places: (N,2), see :func:`principal_components`.
        labels: (family, severity) of each picture.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    families = sorted({family for family, _ in labels})
    for number, family in enumerate(families):
        at = [i for i, label in enumerate(labels) if label[0] == family]
        sizes = [14 + 14 * int(labels[i][1] or 0) for i in at]
        mark = _MARKS[number // 10 % len(_MARKS)]
        x, y = places[at].T
        axes.scatter(x, y, s=sizes, marker=mark, alpha=0.7, lw=0, label=family or "unknown")
    axes.set_xlabel("first principal component")
    axes.set_ylabel("second")
    axes.legend(fontsize=8, markerscale=0.8, loc="center left", bbox_to_anchor=(1, 0.5))
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
