"""Exclusive use of a run's folder by one start of a command."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rdc.runs.atomic import make_folder

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """A context in which no other start works in the folder, which is made where it is missing.

    The main process of a start enters it for all. The system ends it with the process, however
    that ends. Windows, and file systems without locks, allow any number of starts.

    Raises:
        ValueError: another one is at work there.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(make_folder(folder), os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"out={folder} is in use by another start of a command; wait for its end, or give "
                "another folder"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
