"""What a restoration says of itself: its settings in the records, and its measures in words."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dr2pipe
from dr2pipe.core import files, images
from dr2pipe.core.config import stable_hash, to_dict
from dr2pipe.core.precision import name_of
from dr2pipe.core.records import RunRecords
from dr2pipe.diffusion.stage1 import describe_dr2, plain_config
from dr2pipe.restoration.inpainter import Inpainter
from dr2pipe.restoration.restorer import Restorer, describe_enhancer
from dr2pipe.runs.restore_config import RestoreConfig

# What is noted of a face before it is restored.
_OF_THE_INPUT = {"score", "side_px", "quality"}


def describe_settings(
    config: RestoreConfig, restorer: Restorer, weight_hashes: dict[str, str]
) -> dict[str, Any]:
    """Everything besides the picture that decides a result, with ω as a number."""
    dr2: dict[str, Any] = {"enabled": False}
    if restorer.remover is not None:
        dr2 = describe_dr2(config.dr2, restorer.remover)
    optional: dict[str, Any] = {}
    if config.samples > 1:
        optional = {"samples": config.samples, "combine": config.combine}
    if restorer.noise != "reference":  # which had no name before there was another
        optional["noise"] = restorer.noise
    if config.contrast != "keep":
        optional["contrast"] = config.contrast
    if config.faces.mode == "photos":
        optional |= {
            "faces": dataclasses.asdict(config.faces) | {"file": _hash_of(config.faces.file)},
            "paste": dataclasses.asdict(config.paste),
            "scale": config.scale,
            "background": config.background.name,
            "identity_minimum": config.identity.minimum,
            "references": _hash_of_folder(config.identity.reference),
        }
    return optional | {
        "mode": config.faces.mode,
        "seed": config.seed,
        "dr2": dr2,
        "enhancer": describe_enhancer(config.enhancer, restorer.enhancer),
        "precision": name_of(restorer.dtype),  # what auto is on this machine
        "colour": config.colour,
        "bits": config.bits,
        "weights_sha256": weight_hashes,
    }


def describe_repair(inpainter: Inpainter) -> list[dict[str, Any]]:
    """The settings of the networks that fill holes; their weights are hashed besides."""
    return [plain_config(network.config) for network in (inpainter.network, inpainter.encoder)]


def text_of_result(
    config: RestoreConfig, settings: dict[str, Any], device: torch.device | str
) -> dict[str, Any]:
    """What every result says of its making, besides its seed.

    ``config`` has what differs from the defaults. Of paths it has the last part alone: a result
    that is given away should not tell how somebody's disk is ordered.
    """
    own = to_dict(config)
    changes_no_pixel = (
        *("input", "output", "batch_size", "loader_threads", "writer_threads", "merge", "verify"),
        *("save_faces", "save_coarse", "save_compare", "boxes", "strict", "pages", "max_pixels"),
        "png_compression",
    )
    for name in changes_no_pixel:
        own.pop(name)
    differing = _without_paths(_differing(own, to_dict(RestoreConfig(input="", output=""))))
    said = {"version": dr2pipe.__version__, **made_on(device)}
    return said | {"settings": settings, "config": differing}


def made_on(device: torch.device | str) -> dict[str, str]:
    """What else decides the last bits of a result: the kind of device, and torch."""
    return {"device": torch.device(device).type, "torch": torch.__version__}


def _differing(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            value = _differing(value, default)
            if value:
                found[name] = value
        elif value != default:
            found[name] = value
    return found


def _without_paths(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_paths(value)
        if isinstance(value, dict)
        else Path(value).name
        if isinstance(value, str) and _is_path(value)
        else value
        for name, value in values.items()
    }


def _is_path(value: str) -> bool:
    """Whether a text is a path, and not, say, a model's name on a hub, which has a slash too."""
    path = Path(value)
    try:
        return path.is_absolute() or (len(path.parts) > 1 and path.exists())
    except (OSError, ValueError):  # such as a name too long
        return False


def _hash_of(path: str | None) -> str | None:
    """sha256 of a list of faces, whose content decides results, not its path."""
    return None if path is None else files.sha256(path)


def _hash_of_folder(path: str | None) -> str | None:
    """Hash of the names and contents of a folder of references."""
    if path is None:
        return None
    found = images.find_images(path).paths
    return stable_hash({p.relative_to(path).as_posix(): files.sha256(p) for p in found})


def describe_notes(output: str | Path) -> list[str]:
    """What the manifest of a run notes, in words.

    First how many faces the photos of a run have. Then the medians of what was measured of each
    result, a line for each measure, such as the spread of samples or an enhancer's own; whole
    numbers are settings, not measures.
    """
    records = list(RunRecords(output).finished().values())
    faces = [face for record in records for face in record.get("faces", [])]
    values: dict[str, dict[str, list[float]]] = {}
    for notes in (*(record.get("notes", {}) for record in records), *faces):
        for name in notes.keys() - _OF_THE_INPUT:
            note = notes[name]
            for part, value in note.items() if isinstance(note, dict) else [("", note)]:
                if isinstance(value, float):
                    values.setdefault(name, {}).setdefault(part, []).append(value)
    lines = []
    if any("faces" in record for record in records):
        skipped = sum("skipped" in face for face in faces)
        lines.append(f"faces: {len(faces)} found, {skipped} of them left as they are")
        if any("good as it is" in face.get("skipped", "") for face in faces):
            lines[-1] += " (good ones: restored too with --set faces.skip_good=false)"
    for name in sorted(values):
        described = []
        for part, numbers in values[name].items():
            low, median, high = np.quantile(numbers, [0.1, 0.5, 0.9])
            described.append(f"{part} {median:.3f} ({low:.3f}..{high:.3f})".strip())
        listed = ", ".join(described)
        lines.append(f"{name.replace('_', ' ')}, median (and 80 % of the faces): {listed}")
    return lines
