"""Libraries that the tests use where they are installed: nothing of ours needs them."""

import warnings
from importlib import import_module
from typing import Any

import pytest


def installed(name: str) -> Any:
    """The module; where it cannot be imported, the test (or its whole file) is skipped.

    An installation that does not fit the rest of its environment may raise anything, as
    torchvision's does beside another release of torch: it is named in the reason.
    """
    with warnings.catch_warnings():
        # foolbox 3.3.4 imports gaussian_filter from a name that scipy has deprecated.
        warnings.filterwarnings("ignore", "Please import `gaussian_filter`", DeprecationWarning)
        try:
            return import_module(name)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            pytest.skip(f"{name} cannot be imported: {why}", allow_module_level=True)
