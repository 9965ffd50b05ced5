"""What a run of ``dr2pipe video`` knows, in files from which it goes on."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dr2pipe.core import files
from dr2pipe.faces import FaceTrack, Quality
from dr2pipe.restoration.video import Before
from dr2pipe.runs.video_io import Damage


@dataclass
class Plan:
    """What is known of a video after the first pass.

    Attributes:
        pts: times of its frames in units of the time base.
        tracks: of its faces.
        damage: what could not be read.
        is_interlaced: whether a frame is made of two half pictures.
    """

    pts: list[int]
    tracks: list[FaceTrack]
    damage: Damage
    is_interlaced: bool


def save_plan(path: Path, plan: Plan) -> None:
    """Write a plan into a file that appears whole or not at all."""
    arrays: dict[str, Any] = {"pts": np.array(plan.pts, np.int64)}
    told = []
    for track in plan.tracks:
        values = {f.name: getattr(track, f.name) for f in dataclasses.fields(track)}
        for name in ("points", "boxes"):
            arrays[f"{name}_{track.number}"] = values.pop(name)
        told.append(values | {"quality": dataclasses.asdict(track.quality)})
    damage = dataclasses.asdict(plan.damage)
    text = json.dumps({"tracks": told, "damage": damage, "is_interlaced": plan.is_interlaced})
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(text), **arrays)
    files.write_bytes(path, buffer.getvalue())


def read_plan(path: Path) -> Plan:
    """What :func:`save_plan` wrote."""
    with np.load(path) as arrays:
        about = json.loads(str(arrays["about"]))
        tracks = [
            FaceTrack(
                **told | {"quality": Quality(**told["quality"])},
                points=arrays[f"points_{told['number']}"],
                boxes=arrays[f"boxes_{told['number']}"],
            )
            for told in about["tracks"]
        ]
        pts = arrays["pts"].tolist()
    return Plan(pts, tracks, Damage(**about["damage"]), about["is_interlaced"])


def save_before(path: Path, known: dict[int, Before]) -> None:
    """Write what is remembered of each track's frame before, whole or not at all."""
    arrays = {}
    for track, before in known.items():
        arrays[f"degraded_{track}"] = before.degraded.numpy()
        arrays[f"coarse_{track}"] = before.coarse.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    files.write_bytes(path, buffer.getvalue())


def read_before(path: Path) -> dict[int, Before]:
    """What :func:`save_before` wrote."""
    with np.load(path) as arrays:
        numbers = [int(name.removeprefix("coarse_")) for name in arrays if "coarse" in name]
        return {
            n: Before(*(torch.from_numpy(arrays[f"{kind}_{n}"]) for kind in ("degraded", "coarse")))
            for n in numbers
        }
