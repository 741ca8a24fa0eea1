"""Processes of a program: how they wait for each other, and how a signal ends them."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from rdc.runs.device import default_device
from rdc.runs.run_log import entries

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def make_accelerator() -> Accelerator:
    """An Accelerator whose processes wait for each other for up to seven days."""
    patience = InitProcessGroupKwargs(timeout=timedelta(days=7))
    return Accelerator(cpu=default_device().type == "cpu", kwargs_handlers=[patience])


class Stopped(BaseException):
    """A signal to end, raised wherever the program is."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable(out: Path, *, main: bool = True) -> Iterator[None]:
    """A context that Ctrl-C and SIGTERM end with a line on what is kept in `out`.

    The exit status is 128 plus the signal's number. Only the `main` process says it.
    """

    def stop(number: int, _: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN if main else signal.SIG_DFL)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    except Stopped as stopped:
        if main:
            print(f"\nstopped by {signal.Signals(stopped.number).name}: {kept(out)}",
                  file=sys.stderr)  # fmt: skip
        raise SystemExit(128 + stopped.number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def kept(out: Path) -> str:
    """Message about the records that a stopped run has written, and how to continue it."""
    folders = {file.parent for file in out.rglob("records-*.jsonl")}
    count = sum(1 for folder in folders for _ in entries(folder))
    if not count:
        return "nothing was recorded yet; start the same command again"
    return (
        f"{count:,} records are kept in {out}; start the same command again to continue where it "
        "stopped"
    )
