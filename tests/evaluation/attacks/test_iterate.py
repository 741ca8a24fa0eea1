"""The loop of iterative attacks: images leave their batch once they have fallen."""

from functools import partial

import pytest
import torch
from torch import Tensor

from evaluation.attacks.apgd import apgd
from evaluation.attacks.eot import Expectation
from evaluation.attacks.fab import fab
from evaluation.attacks.iterate import batch_size
from evaluation.attacks.lagrange import lagrange
from evaluation.attacks.losses import margin, targeted_dlr
from evaluation.attacks.low_frequency import low_frequency
from evaluation.attacks.pgd import pgd
from evaluation.attacks.random_search import random_search
from evaluation.attacks.square import square
from evaluation.attacks.stadv import stadv
from tests.support.victims import IMAGES, Linear, labels_of

MODEL = Linear(5)
LABELS = labels_of(MODEL)
SHARP = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ATTACKS = {
    "pgd": partial(pgd, eps=0.2, steps=8),
    "apgd": partial(apgd, eps=0.225, loss=margin, steps=20, restarts=2),
    "apgd-t": partial(apgd, eps=0.225, loss=targeted_dlr, targets=3, steps=20),
    "apgd, l2": partial(apgd, eps=0.47, norm="l2", loss=margin, steps=20),
    "fab": partial(fab, eps=0.225, targets=4, steps=10),
    "square": partial(square, eps=0.23, queries=100),
    "random": partial(random_search, eps=0.3, trials=60),
    "low": partial(low_frequency, eps=0.4, block=2, steps=8),
    "lagrange": partial(
        lagrange, eps=0.225, surrogate=MODEL, penalty=lambda x: x.square().mean((1, 2, 3)), steps=8
    ),
    "stadv": partial(stadv, eps=0.5, steps=20, step_size=0.05),
}


class Counting(Linear):
    """Remembers how many images each call had."""

    def __init__(self) -> None:
        super().__init__(5)
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return super().forward(images)


@pytest.mark.parametrize("name", ATTACKS)
def test_fallen_images_leave_and_the_same_images_fall(name: str) -> None:
    """Removing images saves work and does not change the attack on the others."""
    images = SHARP if name == "stadv" else IMAGES
    labels = labels_of(MODEL, images)
    wrong, work = [], []
    for stop in (False, True):
        model = Counting()
        victim = Expectation(model, stop_when_wrong=stop)
        found = ATTACKS[name](victim, images, labels, seeds=range(20))
        wrong.append(model(found).argmax(1) != labels)
        work.append(sum(model.sizes))
        assert len(set(model.sizes)) <= 10 or name == "square"
    assert torch.equal(*wrong) and 1 < wrong[0].sum() < 20
    assert work[1] < work[0] or name == "square"  # whose images always leave


@pytest.mark.parametrize("name", ["apgd-t", "fab", "stadv"])
def test_the_result_for_an_image_is_the_same_alone_and_in_a_batch(name: str) -> None:
    """The others, which fill up the batch, change nothing for an image that is done."""
    images = SHARP if name == "stadv" else IMAGES
    labels = labels_of(MODEL, images)
    victim = Expectation(MODEL, stop_when_wrong=True)
    together = ATTACKS[name](victim, images, labels, seeds=range(20))
    for i in range(20):
        one = slice(i, i + 1)
        alone = ATTACKS[name](victim, images[one], labels[one], seeds=[i])
        torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["pgd", "low"])
def test_what_is_done_is_misclassified_by_more_than_rounding(name: str) -> None:
    """By a tenth of the first margin, or as far as the attack goes."""
    stopped, whole = (
        margin(
            MODEL(ATTACKS[name](Expectation(MODEL, stop_when_wrong=stop), IMAGES, LABELS)), LABELS
        )
        for stop in (True, False)
    )
    enough = 0.1 * margin(MODEL(IMAGES), LABELS).abs()
    assert (stopped >= enough.minimum(whole) - 1e-12).all() and (stopped < whole).any()


def test_nothing_stops_on_means() -> None:
    """All draws of one step may be wrong by chance."""
    works = []
    for stop in (False, True):
        model = Counting()
        victim = Expectation(model, draws=2, stop_when_wrong=stop)
        apgd(victim, IMAGES, LABELS, eps=0.04, loss=margin, steps=10)
        works.append(model.sizes)
    assert works[0] == works[1]


def test_few_sizes_of_batches() -> None:
    assert [batch_size(n) for n in range(10)] == [*range(9), 10]
    assert [batch_size(n) for n in (17, 32, 33, 97, 129)] == [20, 32, 40, 112, 160]
