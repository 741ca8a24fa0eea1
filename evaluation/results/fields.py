"""Fields of the JSON objects that runs write, and refusals that name the field and its value."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

from rdc.config import short


class Kind(NamedTuple):
    """A test of a value as JSON gives it, and the values that pass in words."""

    fits: Callable[[Any], bool]
    words: str


def _number(value: Any) -> bool:
    return (type(value) is float and isfinite(value)) or (type(value) is int and abs(value) < 2**63)


TEXT = Kind(lambda value: isinstance(value, str), "text")
COUNT = Kind(lambda value: type(value) is int and 0 <= value < 2**63, "an integer of 0 or more")
FINITE = Kind(_number, "a finite number")
NUMBER = Kind(lambda value: _number(value) and value >= 0, "a finite number of 0 or more")
SHARE = Kind(lambda value: _number(value) and 0 <= value <= 1, "a number in [0, 1]")
STATE = Kind(lambda value: value is None or isinstance(value, bool), "true, false or null")
OBJECT = Kind(lambda value: isinstance(value, dict), "an object")


def optional(kind: Kind) -> Kind:
    return Kind(lambda value: value is None or kind.fits(value), f"{kind.words}, or null")


def one_of(values: Sequence[str]) -> Kind:
    return Kind(lambda value: value in values, f"one of {list(values)}")


def list_of(kind: Kind) -> Kind:
    return Kind(
        lambda values: isinstance(values, list | tuple) and all(map(kind.fits, values)),
        f"a list, each item {kind.words}",
    )


def object_of(kind: Kind) -> Kind:
    return Kind(
        lambda found: isinstance(found, dict) and all(map(kind.fits, found.values())),
        f"an object, each value {kind.words}",
    )


def require_fields(
    found: Any, kinds: Mapping[str, Kind], where: str, *, others: bool = False
) -> None:
    """Refuse what is not an object with a value of its kind for every field.

    `where` begins the message; `others` allows fields that `kinds` does not name.

    Raises:
        ValueError: names the first field that is missing, unknown or of another kind.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{where}: not an object with the fields {', '.join(kinds)}")
    for name in [] if others else found:
        if name not in kinds:
            raise ValueError(
                f"{where}: {short(name)} is no field of it; fields: {', '.join(kinds)}"
            )
    for name, kind in kinds.items():
        if name not in found:
            raise ValueError(f"{where}: {name} is missing")
        if not kind.fits(found[name]):
            raise ValueError(f"{where}: {name}={short(found[name])} must be {kind.words}")
