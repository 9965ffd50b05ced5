"""Models by name: which folder or file a name, a path or a hub id means."""

from __future__ import annotations

import os
import re
from pathlib import Path

import platformdirs

from dr2pipe.core.config import resource
from dr2pipe.core.errors import ConfigError
from dr2pipe.core.official import how_to_get

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors"]  # no pickles and no code


def user_folder() -> Path:
    """Where downloads and converted models go.

    The environment variable ``DR2PIPE_HOME``, or the platform's cache folder.
    """
    home = os.environ.get("DR2PIPE_HOME")
    return Path(home) if home else platformdirs.user_cache_path("dr2pipe")


def downloads_folder() -> Path:
    """Where ``dr2pipe fetch`` puts files."""
    return user_folder() / "downloads"


def find_download(name: str) -> Path:
    """A file by its path; a bare name that is not here is looked for among the downloads."""
    path = Path(name)
    downloaded = downloads_folder() / name
    return downloaded if not path.exists() and not _is_path(name) and downloaded.is_file() else path


def find_model(name: str | Path) -> Path:
    """The folder of a model (or, for spandrel, its file).

    Looked for in this order: a built-in model of that name, a converted one in the user folder,
    a path (it has a separator, or is a file), a model of the Hugging Face hub (OWNER/NAME).
    A folder in the current directory is written ``./NAME``, so that it never takes the place of
    a built-in model.

    Raises:
        ConfigError: nothing was found; the message says where it was looked for.
    """
    name = str(name)
    for models in (_models_in(resource("checkpoints")), _models_in(_converted_folder())):
        if name in models:
            return models[name]
    path = Path(name)
    if _is_path(name):
        if path.exists():
            return path
        if _HUB_ID.fullmatch(name):
            return _download(name)
        raise ConfigError(f"no model at {name}: there is no such folder or file")
    if path.is_file():
        return path
    raise ConfigError(_not_found(name))


def place_model(name: str) -> Path:
    """Where a converted model goes: a bare name into the user folder, a path as it is.

    Raises:
        ConfigError: the name of a built-in model, which would be found instead.
    """
    if _is_path(name):
        return Path(name)
    if name in ("", ".", "..") or name in _models_in(resource("checkpoints")):
        raise ConfigError(f"'{name}' cannot name a converted model: choose another name or a path")
    return _converted_folder() / name


def is_here(name: str) -> bool:
    """Whether :func:`find_model` finds a model without the network."""
    here = (_models_in(resource("checkpoints")), _models_in(_converted_folder()))
    if any(name in models for models in here) or Path(name).exists():
        return True
    if not _HUB_ID.fullmatch(name):
        return False
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True)
    except Exception:  # many kinds; all mean "not in the cache"
        return False
    return True


def is_built_in(name: str) -> bool:
    """Whether a model of this name comes with the package."""
    return name in _models_in(resource("checkpoints"))


def find_file(folder: str, name: str | Path, *, what: str, suffix: str = ".yaml") -> Path:
    """A built-in file by name, such as a preset, or a file by its path.

    Args:
        folder: where built-in files lie: ``configs/restore`` and the like.
        name: of a built-in file without ``suffix``, or a path (it has a separator or ``suffix``).
        what: what the file is, for the message.
        suffix: of built-in files.

    Raises:
        ConfigError: there is no such file; the message lists the built-in names.
    """
    name = str(name)
    built_in = {path.stem: path for path in sorted(resource(folder).glob(f"*{suffix}"))}
    if name in built_in:
        return built_in[name]
    if _is_path(name) or name.endswith(suffix):
        if Path(name).is_file():
            return Path(name)
        raise ConfigError(f"no {what} at {name}: there is no such file")
    if Path(name).is_file():
        return Path(name)
    known = ", ".join(built_in)
    raise ConfigError(f"no {what} '{name}'; there are {known}. A file is given by its path")


def _converted_folder() -> Path:
    return user_folder() / "models"


def _models_in(folder: Path) -> dict[str, Path]:
    """Folders with a model by name; empty where there is no such folder."""
    return {path.name: path for path in sorted(folder.glob("*/")) if any(path.glob("*.json"))}


def _is_path(name: str) -> bool:
    return any(separator in name for separator in (os.sep, os.altsep) if separator)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client raises many kinds; all mean "not available"
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"no model '{hub_id}': there is no such folder here, "
            f"and loading it from the Hugging Face hub failed: {reason}. "
            "Where the hub can be reached, this gets all that a preset needs: dr2pipe setup PRESET"
        ) from None


def _not_found(name: str) -> str:
    built_in = ", ".join(_models_in(resource("checkpoints")))
    converted = ", ".join(_models_in(_converted_folder())) or "none"
    if name and Path(name).is_dir():
        return (
            f"no model '{name}' is built in ({built_in}) or converted ({converted}); "
            f"for the folder here write ./{name}"
        )
    if command := how_to_get(name):
        return f"the model '{name}' is not here yet; {command}"
    return (
        f"no model '{name}'. Built in: {built_in}. Converted, in {_converted_folder()}: "
        f"{converted}. For a folder write its path (./NAME), "
        f"for a model of the Hugging Face hub OWNER/NAME"
    )
