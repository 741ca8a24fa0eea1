"""Train a denoiser: `accelerate launch -m training.train --out runs/digits`.

`training/denoising.py` has its objective, `training/run.py` the loop of every trainer.
"""

import sys

from rdc.commands.program import run_program
from training.config import TrainConfig
from training.denoising import DenoiserTask
from training.run import Run
from training.setup import load_data, start_accelerator


def main(config: TrainConfig) -> None:
    """Train, validate and save; the averaged weights are what is saved."""
    accelerator = start_accelerator(config)
    data, validation = load_data(config, accelerator)
    task = DenoiserTask(config, data, accelerator.device)
    Run(task.config, task, accelerator, data, validation).train()


if __name__ == "__main__":
    sys.exit(run_program(main))
