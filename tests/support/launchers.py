"""Child processes that are forked from one that has everything imported.

A new Python takes seconds to import torch. Tests start one where the interpreter, the path or the
launcher is what they are about.
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.support.children import run_module

ROOT = Path(__file__).parents[2]
TORCHRUN = ("--standalone", "--nproc_per_node", "2", "-m")
"""Arguments of `torch.distributed.run` for two processes, before a module and its arguments."""


@cache
def context() -> ForkServerContext:
    """The context of all tests; it is also the fixture `processes`."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.support.preloaded"])
    with chdir(ROOT):  # where it finds `tests`
        forkserver.ensure_running()
    return found


def start_module(
    out: Path,
    module: str,
    *arguments: object,
    cwd: Path = ROOT,
    environment: dict[str, str] | None = None,
) -> BaseProcess:
    """Start `python -m MODULE ARGUMENTS`; it prints to the files of `printed(out)`."""
    words = [str(argument) for argument in arguments]
    child = context().Process(target=run_module, args=(out, module, words, cwd, environment or {}))
    child.start()
    return child


def run(out: Path, module: str, *arguments: object, cwd: Path = ROOT) -> int:
    """The exit status of `python -m MODULE ARGUMENTS`."""
    child = start_module(out, module, *arguments, cwd=cwd)
    child.join()
    assert child.exitcode is not None
    return child.exitcode


@contextmanager
def two(folder: Path, module: str, *arguments: object) -> Iterator[list[BaseProcess]]:
    """Two processes with the environment that torchrun gives them; they have ended afterwards.

    They print to the files of `printed(folder / "0")` and `printed(folder / "1")`.
    """
    # As torchrun's, the store is in the launcher: it outlives the first process.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2",
             "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True",
             "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    folder.mkdir()
    children = [
        start_module(
            folder / rank,
            module,
            *arguments,
            environment=place | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    yield children
    for child in children:
        child.join()


def printed(out: Path) -> tuple[str, str]:
    """Output and errors that a child printed."""
    return out.with_suffix(".out").read_text(), out.with_suffix(".err").read_text()
