"""Whether restored faces still are the same people, and what is done where they are not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dr2pipe.core import images
from dr2pipe.core.errors import ConfigError, MissingPackageError
from dr2pipe.faces import DetectorConfig, build_detector
from dr2pipe.faces.identity import References, identity_similarity
from dr2pipe.features.dlib_identity import IdentityEmbedder, load_identity

logger = logging.getLogger(__name__)


@dataclass
class IdentityConfig:
    """How results are compared with their inputs, and with other photos of the same person."""

    measure: bool | None = None  # note it in the manifest; null: where the extra is installed
    minimum: float | None = None  # 0..1: less alike results are made again with gentler settings
    reference: str | None = None  # folder of photos of the person, to choose among samples


class SamePerson:
    """Compares restored faces with their inputs and with references.

    Args:
        embedder: the recognition network.
        minimum: results less alike their inputs are not used, 0..1; None: all are used.
        references: photos of the person; None where there are none.
    """

    def __init__(
        self, embedder: IdentityEmbedder, *, minimum: float | None, references: References | None
    ):
        self.embedder, self.minimum, self.references = embedder, minimum, references

    def similarities(self, looks: Sequence[images.Pixels], restored: torch.Tensor) -> list[float]:
        """How alike inputs (S,S,3) and restored faces (B,3,S,S) are, 0..1 each."""
        before = self.embedder.embed_aligned(list(looks))
        after = self.embedder.embed_aligned(list(images.to_uint8(restored)))
        return [identity_similarity(a, b) for a, b in zip(before, after, strict=True)]

    def nearest(self, samples: torch.Tensor) -> list[tuple[int, dict[str, Any]]]:
        """Which of K samples (K,B,3,S,S) of each face is most like the references, and how much."""
        assert self.references is not None
        found = []
        for face in samples.unbind(dim=1):
            embeddings = self.embedder.embed_aligned(list(images.to_uint8(face)))
            best = self.references.nearest(embeddings)
            likeness = [self.references.similarity(one) for one in embeddings]
            note = {"sample": best, "similarities": np.round(likeness, 3).tolist()}
            found.append((best, note))
        return found

    def is_enough(self, similarity: float) -> bool:
        """Whether a result may be used."""
        return self.minimum is None or similarity >= self.minimum


def load_same_person(
    config: IdentityConfig, samples: int, device: torch.device | str
) -> SamePerson | None:
    """The comparison that a configuration asks for; None for none.

    Raises:
        ConfigError: an invalid setting, or references without a face.
        MissingPackageError: the recognition network is needed and not installed.
    """
    if config.minimum is not None and not 0 <= config.minimum <= 1:
        raise ConfigError(f"identity.minimum={config.minimum} must lie in 0..1")
    if config.reference is not None and samples < 2:
        raise ConfigError("references choose among samples: give samples=4, for instance")
    needed = config.minimum is not None or config.reference is not None
    if config.measure is False and not needed:
        return None
    try:
        embedder = load_identity(device)
    except MissingPackageError:
        if needed or config.measure:
            raise
        return None
    references = None
    if config.reference is not None:
        # Faces of photos may be listed; those of the references are looked for.
        detector = build_detector(DetectorConfig())
        references = References.read(config.reference, detector.detect, embedder)
        if references.without_face:
            names = ", ".join(list(references.without_face)[:5])
            logger.warning(
                "%s: %d of its photos are not used, for instance because no face was found: %s",
                config.reference,
                len(references.without_face),
                names,
            )
    return SamePerson(embedder, minimum=config.minimum, references=references)
