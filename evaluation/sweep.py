"""Every defense under every threat, on digits: `torchrun --nproc_per_node 2 -m evaluation.sweep`.

Each pair is an evaluation in a folder of its own, so that a killed sweep continues. Whichever
process is free takes the next batch, the slowest defenses first.
"""

import sys
from collections.abc import Iterator
from itertools import groupby

from accelerate import Accelerator

from evaluation.distributed import make_accelerator, stoppable
from evaluation.evaluate import options
from evaluation.results.compare import comparison, results
from evaluation.results.summary import SUMMARY, Summary, failed_checks
from evaluation.runner import Runner
from evaluation.schedule import complete
from evaluation.sweep_config import SweepConfig
from evaluation.target import target_of, without_transfer
from rdc.commands.program import run_program
from rdc.runs.atomic import write_atomically


def main(config: SweepConfig) -> None:
    """Run what is missing, then check, and write the table and the report."""
    accelerator = make_accelerator()
    accelerator.print(
        f"{', '.join(config.defenses)} on {config.images} {config.split} images of {config.data}, "
        f"{', '.join(config.norms)}"
    )
    runs, main = list(evaluations(config, accelerator)), accelerator.is_main_process
    with stoppable(config.out, main=main):
        slowest_first = [runner for _, runner in reversed(runs)]
        complete(slowest_first, out=config.out, accelerator=accelerator, show=main)
    if main:
        found = results((name, run.journal.records(), run.options.norm) for name, run in runs)
        failed = failed_checks(
            (name, Summary.read(config.out / run.name / SUMMARY)) for name, run in runs
        )
        text = comparison(found, reference=config.reference, failed=failed)
        write_atomically(config.out / "table.md", text + "\n")
        # matplotlib takes a second to import; only the report needs it.
        from evaluation.report.page import write

        # The report begins with the state of the checks, and so does what is printed.
        write([config.out], config.out / "report", log=print)
        print(f"{text}\nwrote {config.out / 'table.md'}")
    accelerator.end_training()


def evaluations(config: SweepConfig, accelerator: Accelerator) -> Iterator[tuple[str, Runner]]:
    """Every defense under every norm; all norms share its models and the times of their passes."""
    process = accelerator.process_index
    for name, of_norms in groupby(config.evaluations(), key=lambda pair: pair[0]):
        configs = [each for _, each in of_norms]
        # Only attacks have a transfer model, whatever the first norm is.
        attacks = [each for each in configs if each.norm != "corruption"]
        target = target_of((attacks or configs)[0], accelerator.device)
        for each in configs:
            own = target if each in attacks else without_transfer(target, each)
            yield name, Runner(own, options(each), out=each.out, process=process)


if __name__ == "__main__":
    sys.exit(run_program(main))
