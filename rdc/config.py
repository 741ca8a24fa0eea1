"""Configurations: frozen dataclasses, checked where they are made and stored as JSON."""

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# Metadata of a field that is younger than some files: where it is missing they mean its default.
ADDED = {"added": True}
LARGEST_JSON = 2**24
"""Bytes of a JSON file that is read whole."""
NUMBERS: dict[Any, tuple[type, str, bool]] = {
    int: (Integral, "a whole number, of type int", False),
    int | None: (Integral, "a whole number, of type int", True),
    float: (Real, "a number", False),
    float | None: (Real, "a number", True),
}
"""Types of fields that are numbers: what their values are, in words too, and whether None is."""
SMALLEST, LARGEST = 1e-12, 1e12
"""Absolute values of the numbers in a configuration, except 0: others overflow or vanish."""


def require(config: Any, **rules: tuple[bool, str]) -> None:
    """Refuse a configuration unless the condition of every named field holds.

    rules: for each field, the condition and the text of what is right.

    Fields of a dataclass that choose among names (`Literal`) must have one of them, those of type
    `int` or `float` a number, whole or not. All numbers, also in tuples, must be finite and either
    0 or of a size in [1e-12, 1e12].

    Raises:
        ValueError: names every field that does not hold, its value and what is right.
    """
    fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()
    values = {name: getattr(config, name) for name in (*rules, *(each.name for each in fields))}
    size = f"0 or of a size in [{SMALLEST:g}, {LARGEST:g}]"
    unbounded = {name: size for name, value in values.items() if not _bounded(value)}
    broken = {name: right for name, (holds, right) in rules.items() if not holds}
    broken |= _of_other_types(type(config), values) | unbounded
    if broken:
        texts = (f"{name}={short(values[name])} must be {right}" for name, right in broken.items())
        raise ValueError(f"{type(config).__name__}: {'; '.join(texts)}")


def require_read(config: Any, choice: str, readers: Mapping[str, Sequence[str]]) -> None:
    """Refuse settings of a dataclass that differ from their default where nothing reads them.

    `choice` names the field that decides, `readers` its values that read a field, by field.
    """
    chosen = getattr(config, choice)
    right = f"left at its default for {choice}={chosen!r}, which does not read it"
    require(
        config,
        **{
            name: (chosen in values or getattr(config, name) == getattr(type(config), name), right)
            for name, values in readers.items()
        },
    )


def require_type(config: Any, kind: type) -> None:
    """Refuse an argument `config` that holds the settings of something else."""
    if not isinstance(config, kind):
        raise TypeError(f"config: a {type(config).__name__} must be a {kind.__name__}")


def rule_of_names(names: Sequence[str], count: int) -> tuple[bool, str]:
    """The rule of `class_names` for `require`."""
    fits = not isinstance(names, str) and (not names or len(names) == len(set(names)) == count)
    return fits, f"empty, or {count} different names: one per class"


def _of_other_types(cls: type, values: dict[str, Any]) -> dict[str, str]:
    """Texts of what is right, for fields whose value is no allowed name or of no allowed type."""
    broken = {}
    for name, hint in (typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}).items():
        if typing.get_origin(hint) is typing.Literal:
            names = typing.get_args(hint)
            if values[name] not in names:
                broken[name] = f"one of {names}"
        elif hint in NUMBERS:
            kind, text, optional = NUMBERS[hint]
            if not (isinstance(values[name], kind) or (optional and values[name] is None)):
                broken[name] = text
    return broken


def _bounded(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_bounded, value))
    if not isinstance(value, int | float) or value == 0:
        return True
    return SMALLEST <= abs(value) <= LARGEST  # false for NaN


def short(value: Any) -> str:
    """The representation of a value, cut after 200 characters."""
    return cut(repr(value))


def cut(text: str) -> str:
    """The text, cut after 200 characters."""
    return text if len(text) <= 200 else f"{text[:200]}..."


def some(texts: Sequence[str]) -> str:
    """The first three of the texts, each cut, and their number."""
    shown = ", ".join([*map(cut, texts[:3]), *(["..."] if len(texts) > 3 else [])])
    return f"{shown} ({len(texts)} in all)"


def to_json(config: Any) -> str:
    """A configuration dataclass as JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(cls: type[T], path: Path) -> T:
    """The configuration dataclass `cls` from a JSON file.

    Unknown keys are errors, and so are missing ones, except for fields that are ADDED.

    Raises:
        ValueError: names the file, the key, its value and what it must be.
    """
    return _decode(cls, read_json(path), str(path))


def read_json(path: Path) -> Any:
    """The content of a JSON file of at most 16 MiB; errors name the file."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a regular file; give a JSON file")
    if (size := path.stat().st_size) > LARGEST_JSON:
        raise ValueError(
            f"{path} has {size:,} bytes, but its settings take no more than {LARGEST_JSON:,}; give "
            "the file that was saved with the model or the run"
        )
    return parse_json(path.read_bytes(), str(path))


def parse_json(content: bytes, where: str) -> Any:
    """The value that UTF-8 text in JSON stands for; errors begin with `where`."""
    try:
        return json.loads(content.decode())
    except RecursionError:
        raise ValueError(f"{where} is not JSON of ours: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def _decode(cls: type[T], values: Any, where: str) -> T:
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a JSON object with the fields of {cls.__name__}")
    fields = {each.name: each.metadata for each in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    missing = sorted(name for name in set(fields) - set(values) if fields[name] != ADDED)
    if unknown or missing:
        raise ValueError(
            f"{where} does not describe a {cls.__name__}: unknown keys {short(unknown)}, "
            f"missing keys {short(missing)}"
        )
    hints = typing.get_type_hints(cls)
    decoded = {k: _decode_value(hints[k], v, f"{where}: {k}") for k, v in values.items()}
    try:
        return cls(**decoded)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _decode_value(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and value is not None:
            return _decode(typing.cast(type, option), value, where)
    value = tuple(value) if isinstance(value, list) else value
    if not any(_fits(option, value) for option in options):
        raise ValueError(f"{where}={short(value)} must be {inspect.formatannotation(hint)}")
    return value


def _fits(hint: Any, value: Any) -> bool:
    """True for a decoded JSON value of the annotated type; integers are accepted as floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(arguments[0], item) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)
