"""Train an ordinary classifier: `accelerate launch -m training.classifier --out runs/digits-cnn`.

Standard or adversarial (PGD, TRADES), our own networks or timm's: classifiers that defenses are
compared with, and networks that guide a purifier (AGDM's is a TRADES classifier).
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rdc.commands.program import run_program
from rdc.data import Dataset
from rdc.networks.image_classifier import ImageClassifier, ImageClassifierConfig
from training.adversarial import classifier_losses, perturb, random_start
from training.augment import flip, shift
from training.batches import Batches, part_generator, step_generator
from training.config import ClassifierTrainConfig
from training.run import Run
from training.setup import load_data, start_accelerator
from training.task import Task


class ImageBatch(NamedTuple):
    images: Tensor
    labels: Tensor
    step: int


class ClassifierTask(Task[ImageClassifier]):
    """Cross-entropy, on images or on the worst ones near them."""

    measured_rows = 500

    def __init__(self, config: ClassifierTrainConfig, data: Dataset, device: torch.device) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        channels, size, _ = data.shape
        self.averaged = self.module = ImageClassifier(
            ImageClassifierConfig(
                config.architecture, size, channels, len(data.class_names),
                stem=config.stem, class_names=data.class_names,
            )
        )  # fmt: skip
        self.batches = Batches(data, config.batch_size, config.seed, device)

    def batch(self, step: int) -> ImageBatch:
        generator = step_generator(self.config.seed, step, self.batches.device)
        images, labels = self.batches(step)
        if self.config.augment == "flip-shift":
            images = flip(images, generator)
        if self.config.augment != "none":
            images = shift(images, generator)
        return ImageBatch(images, labels, step)

    def losses(self, network: nn.Module, batch: ImageBatch, rows: slice) -> Tensor:
        # Draws of the part suffice: batch statistics depend on how a batch is divided anyway.
        generator = part_generator(self.config.seed, batch.step, rows.start, self.batches.device)
        return classifier_losses(
            network, batch.images[rows], batch.labels[rows], self.config.objective, generator,
            attacked=self.averaged,
        )  # fmt: skip

    def answers(self, model: ImageClassifier, data: Dataset) -> Tensor:
        """1 where an image is right and else 0, attacked and unattacked: (N, 2).

        The attack is PGD of the training's own strength; standard training has none.
        """
        device, objective = self.batches.device, self.config.objective
        images, labels = data.images.to(device), data.labels.to(device)
        attacked = images
        if objective.kind != "standard":
            generator = torch.Generator(device).manual_seed(self.config.seed)
            start = random_start(images, objective, generator)
            attacked = perturb(model, images, labels=labels, config=objective, start=start)
        with torch.no_grad():
            right = [model(given).argmax(1) == labels for given in (attacked, images)]
        return torch.stack(right, 1).float()

    def figures(self, answers: Tensor, labels: Tensor) -> dict[str, float]:
        robust, clean = answers.double().mean(0).tolist()
        if self.config.objective.kind == "standard":
            return {"validation_accuracy": clean}
        return {"validation_robust_accuracy": robust, "validation_accuracy": clean}

    def save(
        self, model: ImageClassifier, out: Path, answers: Tensor | None, labels: Tensor
    ) -> None:
        model.save_pretrained(out)


def main(config: ClassifierTrainConfig) -> None:
    """Train, validate and save; the averaged weights are what is saved."""
    accelerator = start_accelerator(config)
    data, validation = load_data(config, accelerator)
    task = ClassifierTask(config, data, accelerator.device)
    Run(config, task, accelerator, data, validation).train()


if __name__ == "__main__":
    sys.exit(run_program(main))
