"""Configurations: dataclass schemas filled from a YAML file and ``key=value`` overrides.

A schema is an ordinary dataclass; OmegaConf checks names and types. Anything that does
not fit raises :class:`ConfigError` with the key and what would have been valid.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.resources
import io
import json
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dr2pipe.core.errors import ConfigError, UnreadableFileError
from dr2pipe.core.foreign import read_yaml_text
from dr2pipe.core.numbers import refuse_odd_numbers

Schema = TypeVar("Schema")

# OmegaConf and PyYAML raise more kinds than their own on values that fit nowhere.
_MISFITS = (
    OmegaConfBaseException,
    yaml.YAMLError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    RecursionError,
)


def load_config(
    schema: type[Schema], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> Schema:
    """An instance of ``schema``: its defaults, then ``path`` (YAML), then ``overrides``.

    Args:
        schema: a dataclass type; ``omegaconf.MISSING`` marks values that must be given.
        path: YAML file, or None for the defaults alone.
        overrides: ``"a.b=value"`` strings. For a text field the value is taken as it stands,
            so that a path may have any character; else it is parsed as YAML.
            ``key={...}`` replaces a whole mapping, such as the shares of a mix; of a section it
            changes the settings that it names. A schema with ``complete_overrides`` says what
            follows from them.

    Raises:
        ConfigError: unknown key, wrong type, missing value, unreadable file or override.
    """
    config = OmegaConf.structured(schema)
    complete = getattr(schema, "complete_overrides", None)
    try:
        if path is not None:
            config = OmegaConf.merge(config, _read_yaml(path))
        single = [one for override in overrides for one in _single_settings(schema, override)]
        for override in single if complete is None else complete(single):
            key, text = _split_override(override)
            if _is_text(schema, key) and text != "null":
                _set_text(config, key, text)
            elif _is_mapping(schema, key) and OmegaConf.is_dict(_value_of(override)):
                OmegaConf.update(config, key, _value_of(override), merge=False)
            else:
                config = OmegaConf.merge(config, _parse_override(override))
        loaded = OmegaConf.to_object(config)
    except ConfigError:
        raise
    except _MISFITS as error:
        raise ConfigError(_explain(error, schema, path)) from None
    assert isinstance(loaded, schema)  # what OmegaConf makes of a structured config
    return loaded


def from_dict(schema: type[Schema], values: dict[str, Any]) -> Schema:
    """An instance of ``schema`` from what :func:`to_dict` returned.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    try:
        loaded = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except _MISFITS as error:
        raise ConfigError(_explain(error, schema, None)) from None
    assert isinstance(loaded, schema)
    return loaded


def peek(path: str | Path, overrides: Sequence[str], key: str) -> Any:
    """The value of the top-level ``key`` before the schema is known; None when absent.

    Raises:
        ConfigError: an unreadable file or override.
    """
    merged = _merge(_read_yaml(path), overrides)
    try:
        return merged.get(key)
    except _MISFITS as error:
        raise ConfigError(f"'{key}' in {path} or the overrides: {_first_line(error)}") from None


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The values of ``"key=value"`` strings, each parsed as YAML, as a plain nested dict.

    Raises:
        ConfigError: one that is not of this form.
    """
    values = OmegaConf.to_container(_merge(OmegaConf.create({}), overrides))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def to_dict(config: Any) -> dict[str, Any]:
    """A plain nested dict of a config dataclass, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def to_yaml(config: dict[str, Any]) -> str:
    """YAML text of a plain dict, keys in their given order."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def stable_hash(value: Any) -> str:
    """Hex digest (16 digits) of a JSON-like value; the same on every machine and run."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def stable_seed(*parts: Any) -> int:
    """A seed in [0, 2**63) that depends on ``parts`` alone, not on the process or platform."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def resource(folder: str) -> Path:
    """The folder ``configs`` or ``checkpoints``, or one below, of this installation.

    A wheel carries both inside the package; a checkout has them beside it.

    Raises:
        ConfigError: this installation has neither.
    """
    package = Path(str(importlib.resources.files("dr2pipe")))
    for place in (package, package.parent):
        if (place / folder).is_dir():
            return place / folder
    raise ConfigError(
        f"the installation in {package} lacks {folder}: install the wheel of dr2pipe, or a "
        "checkout by: pip install -e ."
    )


def _read_yaml(path: str | Path) -> DictConfig:
    try:
        text = read_yaml_text(path)
        refuse_odd_numbers(text, str(path))
        loaded = OmegaConf.load(io.StringIO(text))
    except UnreadableFileError as error:
        if error.reason == "no such file":
            raise ConfigError(f"no configuration file at {path}") from None
        raise ConfigError(f"cannot read the configuration {error}") from None
    except ConfigError:
        raise
    # Values that YAML knows and configurations do not: dates, sets, keys that are lists.
    except (*_MISFITS, OSError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"cannot read {path} as a configuration: {said}") from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path} must hold 'key: value' lines at its top level")
    return loaded


def _merge(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        try:
            config.merge_with(_parse_override(override))
        except ConfigError:
            raise
        except _MISFITS as error:
            raise ConfigError(f"cannot use '{override}': {_first_line(error)}") from None
    return config


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _split_override(override: str) -> tuple[str, str]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"'{override}' is not of the form key=value")
    return key.strip(), text


def _is_text(schema: type, key: str) -> bool:
    """Whether the field of a dotted key holds text (``str`` or ``str | None``)."""
    kind = _type_of(schema, key)
    return kind is str or set(typing.get_args(kind)) == {str, type(None)}


def _is_mapping(schema: type, key: str) -> bool:
    """Whether the field of a dotted key is a ``dict``."""
    return typing.get_origin(_type_of(schema, key)) is dict


def _type_of(schema: type, key: str) -> Any:
    """The declared type of a dotted key; None where there is no such field."""
    kind: Any = schema
    for name in key.split("."):
        kind = typing.get_type_hints(kind).get(name) if dataclasses.is_dataclass(kind) else None
    return kind


def _single_settings(schema: type, override: str) -> Iterator[str]:
    """An override; of a section, ``a={b: 1}``, each of its settings: ``a.b=1``."""
    key, text = _split_override(override)
    if not dataclasses.is_dataclass(_type_of(schema, key)) or not text.lstrip().startswith("{"):
        yield override
        return
    values: Any = OmegaConf.to_container(_value_of(override))
    for name, value in values.items():
        said = value if isinstance(value, str) else json.dumps(value)
        yield from _single_settings(schema, f"{key}.{name}={said}")


def _value_of(override: str) -> Any:
    return OmegaConf.select(_parse_override(override), _split_override(override)[0])


def _set_text(config: DictConfig, key: str, text: str) -> None:
    # "${" would begin an interpolation; a backslash makes it stand for itself.
    OmegaConf.update(config, key, text.replace("${", "\\${"))


def _parse_override(override: str) -> DictConfig:
    key, text = _split_override(override)
    try:
        refuse_odd_numbers(text, f"the override '{key}'")
        return OmegaConf.from_dotlist([override])
    except ConfigError:
        raise
    except _MISFITS as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"cannot read the override '{override[:200]}': {said}") from None


def _explain(error: Exception, schema: type, path: str | Path | None) -> str:
    where = f" (in {path} or the overrides)" if path else ""
    if not isinstance(error, OmegaConfBaseException):
        return f"the configuration{where} cannot be used: {_first_line(error)}"
    key = error.full_key or str(error.key or "")
    name = type(error).__name__
    if name == "MissingMandatoryValue":
        return f"'{key}' must be given{where}"
    if name in ("ConfigKeyError", "ConfigAttributeError"):
        *parents, last = key.split(".")
        valid = _field_names(schema, parents)
        close = difflib.get_close_matches(last, valid, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else "."
        return f"unknown key '{key}'{where}{hint} Valid here: {', '.join(valid)}"
    before, colon, value = key.partition(":")
    if colon and "not Optional" in str(error):  # YAML takes both for a key without a value
        name = before.rpartition(".")[2]
        return f"'{key}'{where} has no value: write {name}: {value}, with a space after the colon"
    return f"'{key}'{where}: {_first_line(error)}"


def _field_names(schema: Any, parents: Sequence[str]) -> list[str]:
    node = OmegaConf.structured(schema)
    try:
        for parent in parents:
            node = node[parent]
        return sorted(str(k) for k in node)
    except _MISFITS:  # what should hold the key holds no keys
        return []
