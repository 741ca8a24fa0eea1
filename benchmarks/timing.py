"""Times of calls that are compared."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

Name = TypeVar("Name")


def medians(
    calls: Mapping[Name, Callable[[], object]],
    repeats: int,
    *,
    clock: Callable[[], float] = time.process_time,
) -> dict[Name, float]:
    """Median seconds of each call, all in turns, after a round that warms up."""
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            started = clock()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(clock() - started)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}
