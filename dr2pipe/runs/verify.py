"""Make a result again from its original and what it says of itself, and compare the pixels."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import dr2pipe
from dr2pipe.core import images
from dr2pipe.core.config import load_config, to_yaml
from dr2pipe.core.errors import ConfigError, picture_named
from dr2pipe.core.processes import process_state
from dr2pipe.faces import build_detector
from dr2pipe.faces.listed import ListedDetector
from dr2pipe.runs.jobs import Job
from dr2pipe.runs.restore import load_steps
from dr2pipe.runs.restore_config import RestoreConfig, check_config
from dr2pipe.runs.restore_notes import made_on
from dr2pipe.runs.steps import FailedPicture, Steps

_LAST_BITS = 2  # levels of 255; more does not come from another order of additions


@dataclass(frozen=True)
class Verdict:
    """What came of making a result again.

    Attributes:
        differing: share of the samples that differ, 0..1; None: another size or kind of picture.
        largest: the largest difference in levels of the file.
        reasons: what is different from when the result was made, in words.
    """

    differing: float | None
    largest: int
    reasons: list[str]

    @property
    def is_same(self) -> bool:
        """Whether every sample is the same."""
        return self.differing == 0

    def __str__(self) -> str:
        if self.is_same:
            said = "the same: every pixel was made again"
        elif self.differing is None:
            said = "different: another size or kind of picture"
        else:
            said = f"different: {self.differing:.2%} of the samples, by {self.largest} at most"
        return "\n".join([said, *(f"  {reason}" for reason in self.reasons)])


def verify(result: str | Path, original: str | Path, overrides: Sequence[str] = ()) -> Verdict:
    """Make ``result`` of ``dr2pipe restore`` again from ``original``.

    Args:
        result: a file of ``restored/``.
        original: the picture that it was made of.
        overrides: settings as ``key=value``, such as where a model or a mask is now.

    Raises:
        ConfigError: the result does not say how it was made, or weights are missing.
        PictureError: one of the files is no picture.
    """
    for path in (result, original):
        with picture_named(path):
            images.check_file(path, is_face=False)
    if images.read_file(result) == images.read_file(original):
        return Verdict(0.0, 0, ["the result is the original itself: nothing was restored in it"])
    said = _said_by(result)
    config = _config_of(said, Path(original), overrides)
    check_config(config)
    device = process_state().device
    try:
        steps = load_steps(config, device)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. {result} was made with these settings; where a model is elsewhere now, say "
            "so: --set dr2.model=FOLDER, --set enhancer.weights=FOLDER"
        ) from None
    steps.picture_seed = said["seed"]
    there = _samples(images.decode_result(images.read_file(result), keep_own=True))

    def compare() -> tuple[float | None, int]:
        made = _make_again(steps, config, Path(original), Path(result))
        return _compare(there, _samples(images.decode_result(made, keep_own=True)))

    differing, largest = compare()
    reasons = _reasons(said, steps, made_on(device))
    if reasons or differing == 0:
        return Verdict(differing, largest, reasons)
    if differing is not None and largest <= _LAST_BITS * np.iinfo(there.dtype).max / 255:
        if device.type == "cpu" and is_same_with_other_threads(compare):
            return Verdict(0.0, 0, [])
        return Verdict(
            differing,
            largest,
            [
                "so little differs on processors of another kind; in bf16 and on a GPU, also in other batches"
            ],
        )
    reasons = [
        "version, weights and device are the same: the original may be another picture, or the "
        "result not of restored/"
    ]
    return Verdict(differing, largest, reasons)


def is_same_with_other_threads(compare: Callable[[], tuple[float | None, int]]) -> bool:
    """Whether a picture comes out the same with another number of threads.

    torch adds up in another order then, and the last bits differ; a run of several processes has
    fewer threads in each.
    """
    usual, most = torch.get_num_threads(), max(torch.get_num_threads(), os.cpu_count() or 1)
    counts = {*(2**i for i in range(most.bit_length())), most} - {usual}
    try:
        for count in sorted(counts):
            torch.set_num_threads(count)
            if compare()[0] == 0:
                return True
        return False
    finally:
        torch.set_num_threads(usual)


def _said_by(result: str | Path) -> dict[str, Any]:
    try:
        said = json.loads(images.read_mark(result) or "null")
    except ValueError:
        said = None
    kinds = {"config": dict, "settings": dict, "seed": int}
    if not isinstance(said, dict) or not all(
        isinstance(said.get(name), kind) for name, kind in kinds.items()
    ):
        raise ConfigError(f"{result} does not say how dr2pipe restore made it")
    return said


def _config_of(said: dict[str, Any], original: Path, overrides: Sequence[str]) -> RestoreConfig:
    config = said["config"] | {"input": str(original), "output": "-", "batch_size": 1}
    precision = said["settings"].get("precision")
    if isinstance(precision, str):  # what auto was on the machine that made the result
        config["precision"] = precision
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.yaml"  # read as a foreign file is: nothing in it is run
        path.write_text(to_yaml(config), encoding="utf-8")
        return load_config(RestoreConfig, path, overrides)


def _make_again(steps: Steps, config: RestoreConfig, original: Path, result: Path) -> bytes:
    """The file of the result, made again."""
    name = _name_in_run(config, original)
    ending = ".png" if result.suffix == "" else result.suffix
    job = Job(original, name, f"{original.stem}{ending}")
    later = re.search(r"\.page(\d+)$", result.stem)  # of a file with several pages
    if later is not None and not original.stem.endswith(later[0]):
        number = int(later[1])
        job = Job(original, f"{name}#{number}", f"{result.stem}{ending}", number - 1)
    data = images.read_file(original)
    sha256 = images.hash_bytes(data)
    paired = {}
    for name, found in steps.paired.items():
        found.pair_with([job.relative])
        paired[name] = images.read_file(found.path_for(job, sha256))
    loaded = steps.load(job, data, sha256, paired)
    (done,) = steps.process_batch([loaded])
    if isinstance(done, FailedPicture):
        raise done.error
    main = steps.names_of(job)[steps.outputs[0]]
    only = dataclasses.replace(done, pixels={steps.outputs[0]: done.pixels[steps.outputs[0]]})
    return steps.encode(only, lambda: data)[main]


def _name_in_run(config: RestoreConfig, original: Path) -> str:
    """The original's path below the run's input, as far as it matters: in a list of faces."""
    if config.faces.mode != "photos" or config.faces.name != "file":
        return original.name
    detector = build_detector(config.faces)
    assert isinstance(detector, ListedDetector)
    place = original.resolve().as_posix()
    names = [name for name in detector.entries if place.endswith(f"/{name}")]
    return max(names, key=len, default=original.name)


def _samples(picture: images.Picture) -> npt.NDArray[Any]:
    """(H,W,C) of a file, as they are stored, with the alpha channel."""
    assert picture.own is not None
    levels = picture.own.levels
    levels = levels if levels.ndim == 3 else levels[..., None]
    return levels if picture.alpha is None else np.dstack([levels, picture.alpha])


def _compare(there: npt.NDArray[Any], made: npt.NDArray[Any]) -> tuple[float | None, int]:
    if there.shape != made.shape or there.dtype != made.dtype:
        return None, 0
    difference = np.abs(there.astype(np.int64) - made)
    return float((difference > 0).mean()), int(difference.max())


def _reasons(said: dict[str, Any], steps: Steps, here: dict[str, str]) -> list[str]:
    """What is not as it was when the result was made."""
    reasons = []
    if said.get("version") != dr2pipe.__version__:
        reasons.append(f"made by version {said.get('version')}; this is {dr2pipe.__version__}")
    reasons += [
        f"made with {name} {said[name]}; here it is {here[name]}"
        for name in here
        if name in said and said[name] != here[name]
    ]
    then, now = said["settings"], json.loads(json.dumps(steps.settings))
    weights = then.get("weights_sha256", {}), now["weights_sha256"]
    reasons += [
        f"other weights: {name}" for name in weights[1] if weights[0].get(name) != weights[1][name]
    ]
    others = sorted(
        name
        for name in then.keys() | now.keys()
        if name != "weights_sha256" and then.get(name) != now.get(name)
    )
    return reasons + [f"another setting: {name}" for name in others]
