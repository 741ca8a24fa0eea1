"""SIGTERM and Ctrl-C, handled between two steps so that the run can be saved."""

import signal
import time
from types import FrameType
from typing import Self

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
AGREE_EVERY, AGREE_SECONDS = 10, 5.0
"""Steps, and roughly seconds, between two agreements; torchrun kills 30 seconds after SIGTERM."""


class Interrupt:
    """A context in which the first signal is only noted; a second one ends the process at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received = 0
        self.agreed: tuple[int, float] | None = None  # step and time of the last agreement
        self.next = 0

    def __enter__(self) -> Self:
        self.before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        self.received = number
        for again in SIGNALS:
            signal.signal(again, signal.SIG_DFL)

    def asked(self, step: int) -> int:
        """The signal that any process has received, or 0.

        Several processes must stop at the same step: at every tenth they agree on it, where steps
        are slow more often.
        """
        if self.accelerator.num_processes == 1:
            return self.received
        if step < self.next:
            return 0
        now = time.monotonic()
        before, since = self.agreed or (step, now)
        seconds = (now - since) / max(1, step - before)  # of a step
        mine = torch.tensor([[self.received, seconds]], device=self.accelerator.device)
        number, slowest = self.accelerator.gather(mine).amax(0).tolist()  # type: ignore[union-attr]
        # At first nothing is known: agree after the next step.
        steps = AGREE_SECONDS / slowest if slowest else 1
        self.next = step + max(1, min(AGREE_EVERY, int(steps)))
        self.agreed = step, now
        return int(number)
