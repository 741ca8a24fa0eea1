"""rdc: robust classification with diffusion models."""

from typing import TYPE_CHECKING, Any

from rdc import lazy

if TYPE_CHECKING:
    from rdc.public import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    return lazy.attribute(__name__, name)


def __dir__() -> list[str]:
    return lazy.names(__name__)
