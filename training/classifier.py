"""Train an ordinary classifier: `accelerate launch -m training.classifier --out runs/digits-cnn`.

Standard or adversarial (PGD, TRADES), our own networks or timm's: classifiers that defenses are
compared with, and networks that guide a purifier (AGDM's is a TRADES classifier).
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rdc.commands.program import run_program
from rdc.data import Dataset
from rdc.networks.image_classifier import ImageClassifier, ImageClassifierConfig
from training.adversarial import classifier_losses, perturb
from training.augment import flip, shift
from training.batches import Batches, part_generator, step_generator
from training.config import ClassifierTrainConfig
from training.run import Run, Task
from training.setup import load_data, start_accelerator


class ImageBatch(NamedTuple):
    images: Tensor
    labels: Tensor
    step: int


class ClassifierTask(Task[ImageClassifier]):
    """Cross-entropy, on images or on the worst ones near them."""

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

    def measure(
        self, model: ImageClassifier, data: Dataset, accelerator: Accelerator
    ) -> dict[str, float]:
        """Accuracy; for adversarial training first that under PGD of its own strength."""
        first, processes = accelerator.process_index, accelerator.num_processes
        right = torch.zeros(2, device=accelerator.device)
        for rows in torch.arange(first, len(data), processes).split(500):
            right += self._right(model, data.subset(rows))
        robust, clean = (torch.as_tensor(accelerator.reduce(right, "sum")) / len(data)).tolist()
        if self.config.objective.kind == "standard":
            return {"validation_accuracy": clean}
        return {"validation_robust_accuracy": robust, "validation_accuracy": clean}

    def _right(self, model: ImageClassifier, data: Dataset) -> Tensor:
        """Numbers of correctly classified images: attacked, and unattacked (2,)."""
        device, objective = self.batches.device, self.config.objective
        images, labels = data.images.to(device), data.labels.to(device)
        attacked = images
        if objective.kind != "standard":
            generator = torch.Generator(device).manual_seed(self.config.seed)
            attacked = perturb(model, images, labels=labels, config=objective, generator=generator)
        with torch.no_grad():
            return torch.stack(
                [(model(given).argmax(1) == labels).sum() for given in (attacked, images)]
            )

    def save(self, model: ImageClassifier, out: Path, validation: Dataset | None) -> None:
        model.save_pretrained(out)


def main(config: ClassifierTrainConfig) -> None:
    """Train, validate and save; the averaged weights are what is saved."""
    accelerator = start_accelerator(config)
    data, validation = load_data(config, accelerator)
    task = ClassifierTask(config, data, accelerator.device)
    Run(config, task, accelerator, data, validation).train()


if __name__ == "__main__":
    sys.exit(run_program(main))
