"""SIGTERM and Ctrl-C, handled between two steps so that the run can be saved."""

import signal
from types import FrameType
from typing import Self

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
AGREE_EVERY = 10


class Interrupt:
    """A context in which the first signal is only noted; a second one ends the process at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received = 0

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

        Several processes must stop at the same step: at every tenth they agree on it.
        """
        if self.accelerator.num_processes == 1:
            return self.received
        if step % AGREE_EVERY:
            return 0
        mine = torch.tensor([self.received], device=self.accelerator.device)
        return int(self.accelerator.gather(mine).max())  # type: ignore[union-attr]
