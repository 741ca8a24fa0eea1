"""Configurations are frozen dataclasses: checked where they are made, and kept as JSON."""

import dataclasses
import inspect
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# Metadata of a field that is younger than some files: where it is missing they mean its default.
ADDED = {"added": True}


def require(config: Any, **rules: tuple[bool, str]) -> None:
    """Refuse a configuration unless each named field holds; beside it, what would be right."""
    broken = [
        f"{name}={getattr(config, name)!r} must be {right}"
        for name, (holds, right) in rules.items()
        if not holds
    ]
    if broken:
        raise ValueError(f"{type(config).__name__}: " + "; ".join(broken))


def to_json(config: Any) -> str:
    """A configuration dataclass as JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(cls: type[T], path: Path) -> T:
    """The configuration dataclass `cls` from a JSON file.

    Unknown keys are errors, and so are missing ones, but for fields that are ADDED.
    """
    return _decode(cls, read_json(path), str(path))


def read_json(path: Path) -> Any:
    """What a JSON file holds, or an error that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _decode(cls: type[T], values: Any, where: str) -> T:
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a JSON object with the fields of {cls.__name__}")
    fields = {each.name: each.metadata for each in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    missing = sorted(name for name in set(fields) - set(values) if fields[name] != ADDED)
    if unknown or missing:
        raise ValueError(
            f"{where} does not describe a {cls.__name__}: unknown keys {unknown}, "
            f"missing keys {missing}"
        )
    hints = typing.get_type_hints(cls)
    return cls(**{k: _decode_value(hints[k], v, f"{where}: {k}") for k, v in values.items()})


def _decode_value(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and value is not None:
            return _decode(typing.cast(type, option), value, where)
    value = tuple(value) if isinstance(value, list) else value
    if not any(_fits(option, value) for option in options):
        raise ValueError(f"{where}={value!r} must be {inspect.formatannotation(hint)}")
    return value


def _fits(hint: Any, value: Any) -> bool:
    """Whether a decoded JSON value has the type of its annotation; an int will do as a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(arguments[0], item) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)
