"""Every defense under every threat, on digits: `torchrun --nproc_per_node 2 -m evaluation.sweep`.

Each pair is an evaluation in a folder of its own, so that a killed sweep continues. Whichever
process is free takes the next batch, the slowest defenses first.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from evaluation.distributed import make_accelerator, stoppable
from evaluation.evaluate import options
from evaluation.evaluation import tasks
from evaluation.progress import Progress
from evaluation.results.compare import comparison, results
from evaluation.runner import Runner
from evaluation.summarize import finish
from evaluation.sweep_config import SweepConfig
from evaluation.target import target_of
from evaluation.work_queue import Claims, Unit
from rdc.commands.program import run_program
from rdc.runs.atomic import write_atomically


def main(config: SweepConfig) -> None:
    """Run what is missing, then check, and write the table and the report."""
    accelerator = make_accelerator()
    accelerator.print(
        f"{', '.join(config.defenses)} on {config.images} {config.split} images of {config.data}, "
        f"{', '.join(config.norms)}"
    )
    runs = list(evaluations(config, accelerator.device))
    with stoppable(config.out, main=accelerator.is_main_process):
        attack([runner for _, runner in reversed(runs)], config.out, accelerator)
    if accelerator.is_main_process:
        found = results((name, run.journal.records(), run.options.norm) for name, run in runs)
        text = comparison(found, reference=config.reference)
        write_atomically(config.out / "table.md", text + "\n")
        # matplotlib takes a second to import; only the report needs it.
        from evaluation.report.page import write

        # The report begins with the state of the checks, and so does what is printed.
        write([config.out], config.out / "report", log=print)
        print(f"{text}\nwrote {config.out / 'table.md'}")
    accelerator.end_training()


def evaluations(config: SweepConfig, device: torch.device) -> Iterator[tuple[str, Runner]]:
    """Every defense under every norm; all norms share its models and the times of their passes."""
    for name, of_norms in groupby(config.evaluations(), key=lambda pair: pair[0]):
        configs = [each for _, each in of_norms]
        target = target_of(configs[0], device)
        yield from ((name, Runner(target, options(each), out=each.out)) for each in configs)


def attack(runners: Sequence[Runner], out: Path, accelerator: Accelerator) -> None:
    """Run and summarize everything, each unit in the process that is the first to take it."""
    # Asked before anybody writes: all have the same list.
    todo = [(runner, unit) for runner in runners for unit in runner.units if runner.missing(unit)]
    if accelerator.is_main_process:
        for runner in tqdm(runners, desc="timing passes of the models", leave=False):
            runner.measure_passes()
    planned = [
        task
        for runner in runners
        for task in tasks(runner, [unit for other, unit in todo if other is runner])
    ]
    progress = Progress(
        planned, show=accelerator.is_main_process, workers=accelerator.num_processes
    )
    claims = Claims(out / ".claims", accelerator)
    take(todo, claims, progress)
    accelerator.wait_for_everyone()
    for runner in runners:
        if claims.take(f"{runner.name} summary"):
            finish(runner, progress)
    accelerator.wait_for_everyone()
    progress.close()
    if accelerator.is_main_process:
        claims.forget()


def take(todo: Sequence[tuple[Runner, Unit]], claims: Claims, progress: Progress) -> None:
    """All units of the images that this process is the first to take, under one threat."""
    own = set()
    for runner, unit in todo:
        piece = f"{runner.name} images-{unit.rows.start:05d}"
        if piece in own or claims.take(piece):
            own.add(piece)
            runner.run(unit, progress)
        else:
            for task in runner.tasks([unit]):
                progress.drop(task)


if __name__ == "__main__":
    sys.exit(run_program(main))
