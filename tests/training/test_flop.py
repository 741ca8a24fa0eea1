"""Operations of a step against a count by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rdc.data import load
from training.classifier import ClassifierTask
from training.config import ClassifierTrainConfig
from training.flop import flop_per_image
from training.objective_config import ClassifierObjectiveConfig

# cnn-4 on 8x8 digits: convolutions at 8x8 and 4x4, one linear layer; multiply and add are two.
FIRST = 2 * 64 * 9 * 1 * 4
REST = 2 * (64 * 9 * 4 * 4 + 16 * 9 * 4 * 8 + 16 * 9 * 8 * 8 + 8 * 4 * 10)
FORWARD = FIRST + REST
TO_WEIGHTS, TO_LAYERS, TO_IMAGES = FORWARD, REST, FORWARD


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (ClassifierObjectiveConfig(), FORWARD + TO_WEIGHTS + TO_LAYERS),
        (
            ClassifierObjectiveConfig("pgd", attack_steps=3),
            3 * (FORWARD + TO_IMAGES) + FORWARD + TO_WEIGHTS + TO_LAYERS,
        ),
        (
            ClassifierObjectiveConfig("trades", attack_steps=3),
            FORWARD + 3 * (FORWARD + TO_IMAGES) + 2 * (FORWARD + TO_WEIGHTS + TO_LAYERS),
        ),
    ],
)
def test_passes_are_counted(objective: ClassifierObjectiveConfig, expected: int) -> None:
    config = ClassifierTrainConfig(out=Path("x"), architecture="cnn-4", batch_size=12)
    data = load("digits", "validation")
    task = ClassifierTask(replace(config, objective=objective), data, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in task.module.state_dict().items()}
    assert flop_per_image(task, slice(0, None, 2)) == expected
    assert all(torch.equal(before[name], t) for name, t in task.module.state_dict().items())
    assert all(weight.grad is None for weight in task.module.parameters())
