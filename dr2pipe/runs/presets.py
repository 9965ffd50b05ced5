"""Presets: what each one needs, costs and allows; and getting what is missing by one command."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dr2pipe.convert.fetch import check_remembered, fetch, remember
from dr2pipe.convert.write import write_native
from dr2pipe.core import files
from dr2pipe.core.config import load_config, resource
from dr2pipe.core.errors import ConfigError, UnreadableFileError
from dr2pipe.core.models import find_model, is_built_in, is_here, place_model, user_folder
from dr2pipe.core.official import BY_HAND, FILES, HUB, how_to_get
from dr2pipe.core.processes import process_state
from dr2pipe.diffusion.auto import load_auto
from dr2pipe.diffusion.stage1 import DR2Config, candidate_configs
from dr2pipe.diffusion.timesteps import default_omega
from dr2pipe.restoration.settings import RestorationConfig, load_restorer

_FOLDER = "configs/restore"
_MEASURED = "preset_seconds.json"


@dataclass(frozen=True)
class Need:
    """A model that a preset needs.

    Attributes:
        name: as the preset names it.
        state: ``comes with dr2pipe``, ``here`` or ``missing``.
        terms: its licence, and whether it may be used commercially.
        megabytes: on the disk, or of the network where it is missing; None where it is unknown.
    """

    name: str
    state: str
    terms: str
    megabytes: float | None


@dataclass(frozen=True)
class Preset:
    """What a preset is.

    Attributes:
        name: for ``--preset``.
        about: its first sentence.
        needs: its models.
        calls: network calls of stage 1 for a face; of an automatic setting the most.
        seconds: for a face on this machine, as :func:`measure` found; None before.
    """

    name: str
    about: str
    needs: list[Need]
    calls: int
    seconds: float | None

    @property
    def missing(self) -> list[str]:
        """Names of the models that are not here."""
        return [need.name for need in self.needs if need.state == "missing"]


def list_presets() -> list[Preset]:
    """The presets of ``configs/restore``."""
    seconds = _measured()
    return [_describe(path, seconds) for path in _preset_files().values()]


def measure(preset: str) -> float:
    """Seconds that both stages take for one face on this machine; remembered for the list.

    The networks run once to warm up, and once with the clock.
    """
    config = load_config(RestorationConfig, _preset_files()[preset])
    device = process_state().device
    restorer, _ = load_restorer(config, device)
    face = torch.zeros(1, 3, restorer.input_size, restorer.input_size)
    for _ in range(2):
        began = time.monotonic()
        restorer(face, [0]).restored.cpu()
        seconds = time.monotonic() - began
    measured = _measured() | {preset: round(seconds, 2)}
    files.write_bytes(user_folder() / _MEASURED, json.dumps(measured, indent=1).encode())
    return seconds


def set_up(name: str, *, file: str | None = None, mirror: str | None = None) -> list[str]:
    """Get a model, or all models of a preset, and convert them.

    Args:
        name: of an official file, or of a preset.
        file: the downloaded file of a model that is downloaded by hand.
        mirror: as :func:`dr2pipe.convert.fetch.fetch` takes it.

    Returns:
        What was done, in sentences.

    Raises:
        ConfigError: an unknown name, or a model that is downloaded by hand, without ``file``.
        FetchError: a failed download, or another file than came first under its name.
    """
    presets = _preset_files()
    if name in presets:
        if file is not None:
            raise ConfigError(f"{name} is a preset; --file belongs to the name of a model")
        needs = _describe(presets[name], {}).needs
        return [line for need in needs for line in _set_up_model(need.name, None, mirror)] + [
            f"next: dr2pipe restore PHOTOS OUTPUT --preset {name}"
        ]
    if how_to_get(name) is None:
        models = [n for n, f in FILES.items() if f.kind is not None] + list(BY_HAND)
        raise ConfigError(
            f"unknown name '{name}'; models: {', '.join(models)}; presets: {', '.join(presets)}"
        )
    return _set_up_model(name, file, mirror)


def _set_up_model(name: str, file: str | None, mirror: str | None) -> list[str]:
    if is_here(name) and file is None:
        return [f"{name} is here already"]
    if name in HUB or how_to_get(name) is None:
        find_model(name)  # downloads it, or says what is wrong
        return [f"{name} is here ({HUB[name].terms})" if name in HUB else f"{name} is here"]
    official = FILES.get(name) or BY_HAND[name]
    assert official.kind is not None
    if file is not None:
        source = Path(file)
        check_remembered(source)
    elif name in BY_HAND:
        raise ConfigError(f"'{name}' is not for download by programs: {how_to_get(name)}")
    else:
        source = fetch(name, mirror=mirror)
    folder = place_model(name)
    write_native(source, folder, official.kind)
    remember(source)
    return [f"{source.name} ({official.terms}) -> {folder}"]


def _preset_files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(resource(_FOLDER).glob("*.yaml"))}


def _describe(path: Path, seconds: dict[str, Any]) -> Preset:
    config = load_config(RestorationConfig, path)
    names = [config.dr2.model] if config.dr2.enabled else []
    if config.enhancer.weights is not None:
        names.append(config.enhancer.weights)
    about = _first_sentence(path.read_text(encoding="utf-8"))
    calls = _calls(config.dr2)
    return Preset(path.stem, about, [_need(n) for n in names], calls, seconds.get(path.stem))


def _first_sentence(text: str) -> str:
    lines = itertools.takewhile(lambda line: line.startswith("# "), text.splitlines())
    comment = " ".join(line.removeprefix("# ") for line in lines)
    return comment.partition(". ")[0].removesuffix(".")


def _calls(config: DR2Config) -> int:
    if not config.enabled:
        return 0
    if config.mode == "auto":
        setting, _ = load_auto(config.auto)
        return max(_calls(candidate) for candidate in candidate_configs(config, setting))
    omega = config.omega
    if omega is None:
        omega = default_omega(config.tau, config.factor, config.num_steps)
    calls = config.num_evaluations or omega - config.tau + 1
    return 2 * calls if config.antithetic else calls


def _need(name: str) -> Need:
    if not is_here(name):
        official = FILES.get(name) or BY_HAND.get(name) or HUB.get(name)
        return Need(
            name,
            "missing",
            official.terms if official else "unknown",
            official.megabytes if official else None,
        )
    weights = [path for path in find_model(name).rglob("*.safetensors")]
    megabytes = sum(path.stat().st_size for path in weights) / 1e6
    if is_built_in(name):
        return Need(name, "comes with dr2pipe", "Apache-2.0, commercial use: yes", megabytes)
    official = FILES.get(name) or BY_HAND.get(name) or HUB.get(name)
    return Need(name, "here", official.terms if official else "unknown", megabytes)


def _measured() -> dict[str, Any]:
    try:
        read = files.read_regular(user_folder() / _MEASURED, max_bytes=1 << 16)
        found = json.loads(read)
    except (UnreadableFileError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
