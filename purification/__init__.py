"""Purification: noise an image and follow a diffusion model back, guided or not."""

from typing import TYPE_CHECKING, Any

from rdc import lazy

if TYPE_CHECKING:
    from purification.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    return lazy.attribute(__name__, name)


def __dir__() -> list[str]:
    return lazy.names(__name__)
