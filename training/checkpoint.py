"""Checkpoints of a run: complete or absent, whatever kills the process."""

import os
import re
import shutil
from pathlib import Path

from accelerate import Accelerator

KEEP = 2
PARTIAL = ".partial"


class Checkpoints:
    """Folders `step_00001000` under `folder`, each one state of accelerate and all that it knows.

    A state is written into a hidden folder, flushed to the disk and then renamed, which either
    happens or does not: a folder with a step's name is complete. The last `KEEP` are kept.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder = folder
        self.accelerator = accelerator

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        matches = (re.fullmatch(r"step_(\d{8})", path.name) for path in self.folder.glob("step_*"))
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def save(self, step: int) -> None:
        """Write the state after `step` steps; every process calls this.

        Raises:
            OSError: the state could not be written (a full disk); what was saved before is intact.
        """
        partial = self.folder / PARTIAL
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        try:
            self.accelerator.save_state(str(partial))
        except Exception as error:  # each writer (safetensors, torch, Python) has its own kind
            raise OSError(self._complaint(step, error)) from error
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            flush(partial)
            os.replace(partial, self.path(step))
            flush(self.folder)
            for old in self.steps()[:-KEEP]:
                shutil.rmtree(self.path(old))
        self.accelerator.wait_for_everyone()

    def load_latest(self) -> None:
        """Bring the run back to its last checkpoint, if there is one."""
        if steps := self.steps():
            self.accelerator.load_state(str(self.path(steps[-1])))

    def _complaint(self, step: int, error: Exception) -> str:
        free = shutil.disk_usage(self.folder).free / 2**20
        last = f"the last good one is {self.path(self.steps()[-1])}" if self.steps() else "none yet"
        return (
            f"the checkpoint of step {step} could not be written to {self.folder} "
            f"({free:,.0f} MiB free): {error}; {last}. Make room, then run the same command with "
            "--resume auto"
        )


def flush(folder: Path) -> None:
    """Have the disk hold a folder's entries and its files, not only the operating system."""
    for path in (folder, *(entry for entry in folder.iterdir() if entry.is_file())):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
