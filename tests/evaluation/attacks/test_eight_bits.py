"""Attacks on images of 8 bits."""

import pytest
import torch
from torch import Tensor

from evaluation.attacks.apgd import apgd
from evaluation.attacks.eight_bits import OnGrid, inside, rounded
from evaluation.attacks.eot import Expectation
from evaluation.attacks.losses import margin
from evaluation.suite_config import Sizes
from evaluation.suites import run, suite
from rdc.norms import size
from tests.support.victims import IMAGES, Linear, labels_of

STORED = rounded(IMAGES)
LABELS = labels_of(Linear(3), STORED)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("linf", 0.05), ("l2", 0.2)])
def test_every_attack_of_a_suite_gives_images_of_8_bits_within_the_budget(norm, eps: float) -> None:
    sizes = Sizes(steps=3, targets=1, queries=5, eot_samples=1)
    for name, entry in suite(Linear(3), norm, sizes, transfer=Linear(3)).items():
        (found,) = run(
            entry, STORED, LABELS, eps=eps, norm=norm, max_rows=64, seeds=list(range(20)),
            round=True,
        )  # fmt: skip
        assert torch.equal(found, rounded(found)), name
        assert size(found - STORED, norm).max() <= eps + 1e-9, name
        assert not torch.equal(found, STORED), name


def test_other_values_keep_to_the_budget_in_linf_and_are_refused_in_l2() -> None:
    points = (IMAGES + 0.1).clamp(0, 1)
    found = inside(points, IMAGES, 0.1, "linf")
    assert torch.equal(found, rounded(found)) and (found - IMAGES).abs().max() <= 0.1 + 1e-6
    with pytest.raises(ValueError, match=r"not of 8 bits.*multiples of 1/255"):
        inside(points, IMAGES, 0.4, "l2")


def test_the_model_sees_no_other_images() -> None:
    seen = []

    def model(images: Tensor) -> Tensor:
        seen.append(torch.equal(images, rounded(images)))
        return Linear(3)(images)

    apgd(OnGrid(model), STORED, LABELS, eps=0.05, steps=5)
    assert all(seen)


def test_a_mistake_between_two_levels_is_none() -> None:
    """A stripe of mistakes narrower than a level; only pixels of other values find it."""

    def model(images: Tensor) -> Tensor:
        value = images.flatten(1)[:, 0]
        gap = (value - 100.4 / 255).abs() * 255
        return torch.stack([torch.zeros_like(value), 0.2 - gap], 1)

    images = torch.full((4, 1, 1, 1), 100 / 255, dtype=torch.float64)
    labels = torch.zeros(4, dtype=torch.int64)
    for victim, found in ((Expectation(model), True), (OnGrid(model), False)):
        attacked = apgd(victim, images, labels, eps=2 / 255, loss=margin, steps=20)
        attacked = attacked if found else inside(attacked, images, 2 / 255, "linf")
        assert (model(attacked).argmax(1) == 1).any() == found
