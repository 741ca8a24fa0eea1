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

    Smaller budgets come first: a larger one leaves out what they broke. So the units of the same
    images belong to one process (see `share`).
    """
    starts = range(0, count, batch_size)
    batches = [range(start, min(start + batch_size, count)) for start in starts]
    return [Unit(eps, rows) for eps in (0.0, *sorted(budgets)) for rows in batches]


def share(units: Sequence[Unit], *, process: int, processes: int) -> list[Unit]:
    """The units of every `processes`-th batch of images, from batch number `process`."""
    batches = list(dict.fromkeys(unit.rows for unit in units))
    own = set(batches[process::processes])
    return [unit for unit in units if unit.rows in own]


class Claims:
    """Claims on pieces of work, as empty files in a folder that all processes make together.

    Every process goes through the same pieces and does those that it is the first to claim. A new
    start forgets the claims of earlier ones.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder = folder
        if accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        accelerator.wait_for_everyone()

    def take(self, name: str) -> bool:
        """Claim the piece `name`; False where a process has claimed it before."""
        try:
            (self.folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def forget(self) -> None:
        """Remove the folder, when all processes are done."""
        shutil.rmtree(self.folder, ignore_errors=True)
