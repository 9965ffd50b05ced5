"""Whether a restored face still is the same person: by an input, or by photos of that person.

``identity_similarity`` is 1 minus the distance of dlib's embeddings, and 0 from a distance of 1 on.
Typical values (docs/evaluate.md): 1 for equal pictures, 0.4 and more for two photos of one person,
about 0.2 for two people. It is a measure of pictures, and no proof of who is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError, PictureError
from dr2pipe.core.images import Pixels
from dr2pipe.features.dlib_identity import Embeddings, IdentityEmbedder

Embedding = npt.NDArray[np.float64]  # (128,)


class FoundFace(Protocol):
    """A face in a photo, in its pixels."""

    @property
    def box(self) -> Sequence[float]:
        """x, y, width, height."""

    @property
    def landmarks(self) -> npt.NDArray[np.float64]:
        """(5,2) x, y; see :meth:`dr2pipe.features.dlib_identity.IdentityEmbedder.embed`."""


# (H,W,3) RGB and the photo's path to its faces.
Detect = Callable[[Pixels, str], Sequence[FoundFace]]


def identity_similarity(a: Embedding, b: Embedding) -> float:
    """How much two faces look like one person, from 0 to 1; 1 for equal embeddings (128,)."""
    return max(0.0, 1.0 - float(np.linalg.norm(a - b)))


class References:
    """Photos of one person.

    Args:
        embeddings: (R,128), one per photo.

    Attributes:
        embeddings: as given.
        without_face: photos in which no face was found, or that cannot be read, and why.
    """

    def __init__(self, embeddings: Embeddings, without_face: dict[str, str] | None = None):
        self.embeddings, self.without_face = embeddings, without_face or {}

    @classmethod
    def read(cls, folder: str | Path, detect: Detect, embedder: IdentityEmbedder) -> References:
        """Take the largest face of every photo in a folder.

        Raises:
            ConfigError: no folder, no photo in it, or none with a face; the message names it.
        """
        if not Path(folder).is_dir():
            raise ConfigError(f"{folder} is no folder; it should hold photos of the person")
        paths = images.find_images(folder).paths
        found, without = [], dict[str, str]()
        for path in paths:
            name = path.relative_to(folder).as_posix()
            try:
                pixels = images.decode_image(images.read_file(path), whole_photo=True).pixels
                faces = detect(pixels, name)
            except PictureError as error:
                without[name] = str(error)
                continue
            if faces:
                largest = max(faces, key=lambda face: face.box[2] * face.box[3])
                found.append(embedder.embed(pixels, largest.landmarks))
            else:
                without[name] = "no face found"
        if not found:
            reasons = "".join(f"\n{name}: {why}" for name, why in list(without.items())[:20])
            raise ConfigError(
                f"{folder} has no photo with a face ({len(paths)} pictures searched); "
                f"it should hold photos of the person{reasons}"
            )
        return cls(np.stack(found), without)

    def similarity(self, embedding: Embedding) -> float:
        """The mean of :func:`identity_similarity` to the photos."""
        return float(np.mean([identity_similarity(embedding, one) for one in self.embeddings]))

    def nearest(self, candidates: Embeddings | Sequence[Embedding]) -> int:
        """The place of the candidate with the smallest mean distance to the photos.

        Args:
            candidates: (K,128), K at least 1; of equal ones the first is taken.
        """
        differences: npt.NDArray[Any] = np.asarray(candidates)[:, None] - self.embeddings[None]
        return int(np.linalg.norm(differences, axis=2).mean(axis=1).argmin())
