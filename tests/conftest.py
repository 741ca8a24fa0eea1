"""Settings shared by the tests; the checkout is importable, for `tests.support`."""

import os
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
# The tests' networks are tiny: a second thread costs more than it brings. Set before anything
# imports torch, which xdist's own process need not wait for.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--emulate", action="store_true",
        help="run the tests of GPUs on an emulated device (tests/emulated); needs a C++ compiler",
    )  # fmt: skip
    parser.addoption(
        "--kills", type=int, default=0,
        help="how often tests/project/test_kills.py kills each program",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--emulate"):
        from tests import emulated

        emulated.start()


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """A context whose children start with everything imported."""
    from tests.support.launchers import context

    return context()
