"""Attack a defense and keep what happened to every image:
`accelerate launch -m evaluation.evaluate --out results/rdc --defense.kind rdc --eps 0.1 0.2`.
"""

import sys
from dataclasses import fields

from evaluation.config import EvaluateConfig, Options
from evaluation.distributed import make_accelerator, stoppable
from evaluation.eps import written
from evaluation.evaluation import evaluated
from evaluation.results.summary import SUMMARY
from evaluation.runner import Runner
from evaluation.target import target_of
from rdc.commands.program import run_program


def main(config: EvaluateConfig) -> None:
    """Run what is missing, then summarize."""
    accelerator = make_accelerator()
    accelerator.print(
        f"{config.defense.kind} on {config.images} {config.split} images of {config.data}, "
        f"{config.norm} eps {', '.join(map(written, config.eps))}"
    )
    runner = Runner(
        target_of(config, accelerator.device), options(config), out=config.out,
        process=accelerator.process_index, processes=accelerator.num_processes,
    )  # fmt: skip
    for note in runner.target.data.notes:
        accelerator.print(note)
    calls = runner.costs.per_image(len(config.eps))
    accelerator.print(
        f"{len(runner.entries)} attacks: at most {calls['gradients']:,} gradients and "
        f"{calls['forwards']:,} forward passes per image"
    )
    main = accelerator.is_main_process
    with stoppable(config.out, main=main):
        found = evaluated(
            runner, name=config.defense.kind, show=main, main=main,
            wait=accelerator.wait_for_everyone,
        )  # fmt: skip
    if found is not None:
        print(f"{found.summary.text}\nwrote {config.out / SUMMARY}")
    accelerator.end_training()


def options(config: EvaluateConfig) -> Options:
    """The part of the settings that holds for any model and data."""
    return Options(**{field.name: getattr(config, field.name) for field in fields(Options)})


if __name__ == "__main__":
    sys.exit(run_program(main))
