"""Train a denoiser: `accelerate launch -m training.train --out runs/digits`.

What it learns is in `training/denoising.py`; what every trainer does, from checkpoints to averages,
in `training/run.py`.
"""

import tyro

from rdc.data import Dataset
from training.denoising import DenoiserTask, TrainConfig
from training.run import Run, load_split, start_accelerator


def main(config: TrainConfig) -> None:
    """Train, validate and save; the averaged weights are what is saved."""
    accelerator = start_accelerator(config)
    network = config.network
    shape = (network.channels, network.image_size, network.image_size)
    data = load_split(config, "train", accelerator, shape)
    validation = load_split(config, "validation", accelerator, shape)
    check_classes(config, data)
    task = DenoiserTask(config, data, accelerator.device)
    Run(config, task, accelerator, data, validation).train()


def check_classes(config: TrainConfig, data: Dataset) -> None:
    if config.network.num_classes != len(data.class_names):
        raise ValueError(
            f"--network.num-classes {config.network.num_classes}, but {config.data} has "
            f"{len(data.class_names)} classes"
        )


if __name__ == "__main__":
    main(tyro.cli(TrainConfig))
