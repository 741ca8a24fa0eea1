"""Certified radii of randomized smoothing."""

from typing import TYPE_CHECKING, Any

from rdc import lazy

if TYPE_CHECKING:
    from evaluation.certification.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    return lazy.attribute(__name__, name)


def __dir__() -> list[str]:
    return lazy.names(__name__)
