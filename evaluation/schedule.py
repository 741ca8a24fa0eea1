"""Runs from their missing attacks to their summaries, by any number of processes."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from evaluation.progress import Progress, Task
from evaluation.results.summary import Summary
from evaluation.runner import Runner
from evaluation.summarize import checks_task, finish, make_checks, misses_checks
from evaluation.work_queue import Claims, Unit
from rdc.runs.exclusive import exclusive

Pieces = dict[tuple[Runner, range], list[Unit]]
"""Units that belong to one process: of the same images, ascending by budget."""


def complete(
    runners: Sequence[Runner],
    *,
    out: Path | None = None,
    accelerator: Accelerator | None = None,
    show: bool = False,
) -> list[Summary]:
    """Run what is missing, and summarize; the summaries that this process made.

    Processes of the `accelerator` share the work by claims in the folder `out`: whichever is free
    takes the next images. With `show`, a bar of the progress.

    Raises:
        ValueError: another start is at work in `out`; they would take each other's claims.
    """
    main = accelerator is None or accelerator.is_main_process
    with exclusive(out) if out and main else nullcontext():
        return _complete(runners, out=out, accelerator=accelerator, show=show)


def _complete(
    runners: Sequence[Runner], *, out: Path | None, accelerator: Accelerator | None, show: bool
) -> list[Summary]:
    todo = pieces(runners)
    # Waits for all: nobody writes before everybody has the same pieces.
    claims = Claims(out and out / ".claims", accelerator)
    if show:
        for runner in tqdm(runners, desc="timing passes of the models", leave=False):
            runner.measure_passes()
    planned = {runner: tasks(runner) for runner in runners}
    workers = accelerator.num_processes if accelerator else 1
    progress = Progress([*chain(*planned.values())], show=show, workers=workers)
    try:
        take(todo, claims, progress)
        check(runners, claims, progress)  # while others are still at their last images
        progress.wait_for_others()
        claims.wait()
        found = [
            finish(runner, measured=bool(planned[runner]))
            for runner in runners if claims.take(f"{runner.name} summary")
        ]  # fmt: skip
        claims.forget()
        return found
    finally:
        progress.close()


def pieces(runners: Iterable[Runner]) -> Pieces:
    """The units of runs that have missing attacks."""
    found: Pieces = {}
    for runner in runners:
        for unit in runner.units:
            if runner.missing(unit):
                found.setdefault((runner, unit.rows), []).append(unit)
    return found


def take(todo: Pieces, claims: Claims, progress: Progress) -> None:
    """Run the pieces that this process is the first to take."""
    for (runner, rows), units in todo.items():
        own = claims.take(f"{runner.name} images-{rows.start:05d}")
        for unit in units:
            if own:
                runner.run(unit, progress)
            else:
                progress.drop(*runner.tasks(unit))


def check(runners: Iterable[Runner], claims: Claims, progress: Progress) -> None:
    """Make the missing checks of the runs that this process is the first to take.

    The longest come first, as far as they were timed, so that nobody waits long for the last one.
    """
    for runner in sorted(runners, key=lambda runner: -checks_task(runner).seconds):
        if claims.take(f"{runner.name} checks"):
            make_checks(runner, progress)
        else:
            progress.drop(checks_task(runner))


def tasks(runner: Runner) -> list[Task]:
    """The missing attacks of a run, and its checks if they are missing."""
    found = [task for unit in runner.units for task in runner.tasks(unit)]
    if misses_checks(runner):
        found.append(checks_task(runner))
    return found
