"""Attack a defense and keep what happened to every image:
`accelerate launch -m evaluation.evaluate --out results/rdc --defense.kind rdc --eps 0.1 0.2`.
"""

import sys
from dataclasses import fields

from evaluation.config import EvaluateConfig, Options
from evaluation.distributed import make_accelerator, stoppable
from evaluation.eps import written
from evaluation.results.summary import SUMMARY, Summary
from evaluation.runner import Runner
from evaluation.schedule import complete
from evaluation.target import target_of
from rdc.commands.program import run_program


def main(config: EvaluateConfig) -> None:
    """Run what is missing, then summarize."""
    accelerator = make_accelerator()
    target = target_of(config, accelerator.device)
    accelerator.print(
        f"{config.defense.kind} on {len(target.data)} {config.split} images of {config.data}, "
        f"{config.norm} eps {', '.join(map(written, config.eps))}"
    )
    runner = Runner(target, options(config), out=config.out, process=accelerator.process_index)
    for note in target.data.notes:
        accelerator.print(note)
    calls = runner.costs.per_image(len(config.eps))
    accelerator.print(
        f"{len(runner.entries)} attacks: at most {calls['gradients']:,} gradients and "
        f"{calls['forwards']:,} forward passes per image"
    )
    main, file = accelerator.is_main_process, config.out / SUMMARY
    with stoppable(config.out, main=main):
        complete([runner], out=config.out, accelerator=accelerator, show=main)
    if main:
        print(f"{Summary.read(file).text}\nwrote {file}")
    accelerator.end_training()


def options(config: EvaluateConfig) -> Options:
    """The part of the settings that holds for any model and data."""
    return Options(**{field.name: getattr(config, field.name) for field in fields(Options)})


if __name__ == "__main__":
    sys.exit(run_program(main))
