"""Work of an evaluation in units, and claims of several processes on them."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator


@dataclass(frozen=True)
class Unit:
    """Images `rows` of the data under one budget; eps 0 stands for the images as they are."""

    eps: float
    rows: range

    @property
    def name(self) -> str:
        """Unique within a run, and part of the name of a file."""
        return f"eps{self.eps:g}-{self.rows.start:05d}"


def units(count: int, batch_size: int, budgets: Sequence[float]) -> list[Unit]:
    """All units of a run on `count` images, in an order that every process knows.

    Smaller budgets come first: a larger one leaves out what they broke. So one process does all
    units of the same images (see `evaluation.schedule`).
    """
    starts = range(0, count, batch_size)
    batches = [range(start, min(start + batch_size, count)) for start in starts]
    return [Unit(eps, rows) for eps in (0.0, *sorted(budgets)) for rows in batches]


class Claims:
    """Claims on pieces of work, as empty files in a folder that all processes make together.

    Every process goes through the same pieces and does those that it is the first to claim. A new
    start forgets the claims of earlier ones. Without a folder or an accelerator there is one
    process, and all pieces are its own.
    """

    def __init__(self, folder: Path | None, accelerator: Accelerator | None) -> None:
        self.accelerator = accelerator
        self.folder = folder if accelerator else None
        self._main = accelerator is None or accelerator.is_main_process
        if self.folder is not None and self._main:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        self.wait()

    def take(self, name: str) -> bool:
        """Claim the piece `name`; False where a process has claimed it before."""
        try:
            if self.folder is not None:
                (self.folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def wait(self) -> None:
        """Wait until all processes have come to this."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def forget(self) -> None:
        """Remove the folder, when all processes are done."""
        self.wait()
        if self.folder is not None and self._main:
            shutil.rmtree(self.folder, ignore_errors=True)
