"""Progress of a run and its speed, both part of its checkpoints."""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class Progress:
    """Steps done, figures of all measurements, and time spent: part of the checkpoints."""

    def __init__(self) -> None:
        self.step = 0
        self.history: list[dict[str, float]] = []
        self._before, self._started = 0.0, time.perf_counter()

    def seconds(self) -> float:
        """Time spent on the run, over all its stretches."""
        return self._before + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "history": self.history, "seconds": self.seconds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.history, self._before = state["step"], state["history"], state["seconds"]
        self._started = time.perf_counter()


class Meter:
    """Mean loss and speed since the last measurement, summed on the device: no step waits for it.

    Part of the checkpoints, so that a killed run writes the same history.
    """

    SHOW_EVERY = 2.0
    """seconds between looks at the device for the progress bar"""

    def __init__(self, batch_size: int, accelerator: Accelerator) -> None:
        self.batch_size, self.accelerator = batch_size, accelerator
        self.shown_at = 0.0
        self.total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        self.count = 0
        self.restart()

    def restart(self) -> None:
        """Restart the clock: the time since the last step was not spent on training."""
        self.timed, self.since = 0, time.perf_counter()

    def add(self, loss: Tensor) -> None:
        self.total += loss
        self.count += 1
        self.timed += 1

    def show(self, bar: Any) -> None:
        """Show this process's loss and speed in the progress bar, every few seconds."""
        if time.perf_counter() - self.shown_at > self.SHOW_EVERY:
            self.shown_at = time.perf_counter()
            loss = float(self.total / self.count)
            speed = f"{self._speed():.4g}"
            bar.set_postfix(loss=f"{loss:.4g}", images_per_second=speed, refresh=False)

    def _speed(self) -> float:
        return self.timed * self.batch_size / (time.perf_counter() - self.since)

    def agree(self, step: int) -> None:
        """Give all processes the same sum; every one of them calls this.

        Raises:
            FloatingPointError: the loss is no longer a number.
        """
        self.total = torch.as_tensor(self.accelerator.reduce(self.total, "mean"))
        if not math.isfinite(loss := float(self.total)):
            raise FloatingPointError(
                f"the loss is {loss} within the {self.count} steps before step {step}; continue "
                "from the last checkpoint with --resume auto, or start anew with a smaller "
                "--learning-rate or --precision no"
            )

    def read(self, step: int) -> dict[str, float]:
        """Loss and images per second since the last reading; every process calls this."""
        self.agree(step)
        loss = float(self.total / self.count)
        self.total.zero_()
        self.count = 0
        return {"loss": loss, "images_per_second": round(self._speed(), 1)}

    def state_dict(self) -> dict[str, float]:
        return {"total": float(self.total), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total.fill_(state["total"])
        self.count = state["count"]


def in_words(figures: Mapping[str, float]) -> str:
    """Figures for the terminal; accuracies in percent."""
    words = []
    for name, value in figures.items():
        percent = name.endswith("accuracy")
        shown = f"{100 * value:.1f} %" if percent else f"{value:.4g}"
        words.append(f"{name.replace('_', ' ')} {shown}")
    return ", ".join(words)
