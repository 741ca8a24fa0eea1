"""Attack a defense and keep what happened to every image:
`accelerate launch -m evaluation.evaluate --out results/rdc --defense.kind rdc --eps 0.1 0.2`.
"""

import sys

from accelerate.utils import tqdm

from evaluation.config import EvaluateConfig
from evaluation.runner import Runner, make_accelerator
from evaluation.summarize import finish
from rdc.commands.program import run_program


def main(config: EvaluateConfig) -> None:
    """Run what is missing, then summarize."""
    accelerator = make_accelerator()
    runner = Runner(config, accelerator)
    units, cost = runner.missing(), runner.cost
    if units:
        accelerator.print(
            f"{len(runner.data)} images, {len(runner.entries)} attacks, eps {config.eps}: "
            f"{cost['gradients']:,} gradients and {cost['forwards']:,} calls per image, about "
            f"{runner.estimate(units) / 60:.1f} minutes here"
        )
    with tqdm(total=sum(len(unit.rows) for unit in units), unit="image") as bar:
        for unit in units:
            runner.run(unit, announce=bar.set_postfix_str)
            bar.update(len(unit.rows))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        print(finish(runner).text)
        print(f"wrote {config.out / 'summary.json'}")
    accelerator.end_training()


if __name__ == "__main__":
    sys.exit(run_program(main))
