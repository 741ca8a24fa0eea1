"""Work that several processes take in turn: whoever is free takes the next piece."""

import shutil
from pathlib import Path

from accelerate import Accelerator


class Claims:
    """Who has taken what, as empty files in a folder of one start; all processes make it together.

    Every process goes through the same pieces and does those that it is the first to claim. A
    start forgets what the ones before it have claimed.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder = folder
        if accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        accelerator.wait_for_everyone()

    def take(self, name: str) -> bool:
        """Whether this process is the first to ask for the piece `name`."""
        try:
            (self.folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def forget(self) -> None:
        """Remove the folder, when everybody is done."""
        shutil.rmtree(self.folder, ignore_errors=True)
