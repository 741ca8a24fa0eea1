"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """`network` in evaluation mode, and then in the modes that its parts were in before.

    It may be in training: a classifier that guides its own purifier, or that an attack queries.
    """
    training = [part for part in network.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True
