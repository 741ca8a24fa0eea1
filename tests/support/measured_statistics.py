"""`python -m tests.support.measured_statistics FLAGS`: the figures are of running statistics.

Answers are the first running means of the measured network, and the figure is how far those of
different images, which different processes answer, are apart.
"""

import sys

from torch import Tensor

from rdc.commands.program import run_program
from rdc.data import Dataset
from rdc.networks.image_classifier import ImageClassifier
from training.classifier import ClassifierTask, main


def answers(self: ClassifierTask, model: ImageClassifier, data: Dataset) -> Tensor:
    means = [b for name, b in model.named_buffers() if name.endswith("running_mean")]
    return means[0].repeat(len(data), 1)


def figures(self: ClassifierTask, answers: Tensor, labels: Tensor) -> dict[str, float]:
    low, high = answers.aminmax(dim=0)
    return {"apart": (high - low).max().item()}


ClassifierTask.answers, ClassifierTask.figures = answers, figures

if __name__ == "__main__":
    sys.exit(run_program(main))
