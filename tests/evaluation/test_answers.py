"""Answers of a model: the class of its largest logit, and the probability of that class."""

import torch
from torch import Tensor

from evaluation.answers import answers

IMAGES = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def minute(images: Tensor) -> Tensor:
    """Logits whose probabilities are equal in float32: the second is larger by 1e-9."""
    return torch.tensor([0.0, 1e-9, -1e-9]).expand(len(images), 3)


def test_the_class_is_that_of_the_largest_logit_where_probabilities_are_equal() -> None:
    found = answers(minute, IMAGES, [0, 1, 2], draws=1)
    assert minute(IMAGES).softmax(1).argmax(1).tolist() == [0, 0, 0]
    assert found.classes.tolist() == [[1], [1], [1]]
    torch.testing.assert_close(found.confidences, torch.full((3, 1), 1 / 3))
