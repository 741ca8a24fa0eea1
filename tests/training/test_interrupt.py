"""Agreement of several processes on a signal: at the same steps, often enough for slow ones."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training import interrupt
from training.interrupt import AGREE_EVERY, AGREE_SECONDS, Interrupt


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.01, [0, 1, 11, 21]), (2.0, [0, 1, 3, 5]), (3 * AGREE_SECONDS, [0, 1, 2, 3])],
)
def test_slow_steps_are_agreed_on_more_often(monkeypatch, seconds: float, expected) -> None:
    """Also where this process is fast and another one slow."""
    clock, agreements = [0.0], []
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: clock[0])

    def gather(mine: torch.Tensor) -> torch.Tensor:
        agreements.append(step)
        return torch.cat([mine, mine * torch.tensor([[1.0, 0.5]])])

    place: Any = SimpleNamespace(num_processes=2, device=torch.device("cpu"), gather=gather)
    asked = Interrupt(place)
    step, last = 0, 2 * AGREE_EVERY + 2
    for step in range(last):
        assert asked.asked(step) == 0
        clock[0] += seconds
    assert agreements[:4] == expected
    asked.received = signal.SIGTERM
    said = [asked.asked(number) for number in range(last, last + AGREE_EVERY)]
    assert signal.SIGTERM in said
