"""PGD against the optimum of a linear classifier; what every attack promises about its images."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.attacks.apgd import apgd
from evaluation.attacks.eot import Expectation
from evaluation.attacks.fab import fab
from evaluation.attacks.losses import cross_entropy, dlr, margin, targeted_dlr, targeted_margin
from evaluation.attacks.low_frequency import low_frequency
from evaluation.attacks.pgd import pgd
from evaluation.attacks.random_search import random_search
from evaluation.attacks.square import square
from evaluation.attacks.stadv import stadv
from evaluation.demo import harmful, pgd_evaluation
from rdc.choices import Norm
from rdc.data import Dataset
from rdc.norms import size
from tests.support.victims import (
    IMAGES,
    LABELS,
    Linear,
    NoisyImages,
    NoisyLogits,
    labels_of,
    smallest_eps,
)

pytestmark = pytest.mark.slow

UNTARGETED = {
    "pgd": pgd,
    "pgd-ce": partial(pgd, loss=cross_entropy),
    "apgd-ce": partial(apgd, steps=40),
    "apgd-margin": partial(apgd, loss=margin, steps=40),
    "apgd-dlr": partial(apgd, loss=dlr, steps=40),
}
TARGETED = {
    "apgd-t": partial(apgd, loss=targeted_dlr, targets=4, steps=40),
    "apgd-margin-t": partial(apgd, loss=targeted_margin, targets=4, steps=40),
    "fab": partial(fab, targets=4, steps=20),
}
BALL = {
    "pgd": partial(pgd, steps=5),
    "apgd": partial(apgd, loss=margin, steps=8, restarts=2),
    "apgd-t": partial(apgd, loss=targeted_dlr, targets=2, steps=8),
    "fab": partial(fab, targets=2, steps=5, restarts=2),
    "square": partial(square, queries=55),
    "random": partial(random_search, trials=60),
    "low": partial(low_frequency, block=2, steps=5),
}
EVERY = {**BALL, "stadv": partial(stadv, steps=8)}
balls = pytest.mark.parametrize("name", BALL)
every = pytest.mark.parametrize("name", EVERY)
both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])


def test_reaches_the_optimal_loss() -> None:
    model = Linear()
    attacked = pgd(model, IMAGES, LABELS, eps=0.1, generator=torch.Generator().manual_seed(0))
    best = margin(model(IMAGES), LABELS) + 0.1 * (model.weight[0] - model.weight[1]).abs().sum()
    torch.testing.assert_close(margin(model(attacked), LABELS), best)


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1), st.integers(1, 5), st.booleans())
def test_stays_in_ball_and_box(eps: float, steps: int, start: bool) -> None:
    generator = torch.Generator().manual_seed(1) if start else None
    attacked = pgd(Linear(), IMAGES, LABELS, eps=eps, steps=steps, generator=generator)
    assert (attacked - IMAGES).abs().max() <= eps + 1e-12
    assert attacked.min() >= 0 and attacked.max() <= 1


def test_more_steps_do_not_lower_the_loss_and_the_best_point_is_returned() -> None:
    """On a bumpy function a long walk passes its best point; that one comes back."""

    def bumpy(images: torch.Tensor) -> torch.Tensor:
        value = (40 * images.flatten(1)).sin().sum(1)
        return torch.stack([-value, value], 1)

    labels = torch.zeros(20, dtype=torch.int64)
    losses = [
        margin(bumpy(pgd(bumpy, IMAGES, labels, eps=0.2, steps=n, step_size=0.05)), labels)
        for n in (1, 5, 25)
    ]
    assert (losses[1] >= losses[0]).all() and (losses[2] >= losses[1]).all()
    assert (losses[0] >= margin(bumpy(IMAGES), labels)).all()


def test_a_misclassified_point_comes_back_where_another_has_a_larger_loss() -> None:
    """Cross-entropy rises from 0.95, where the image is misclassified, to 1.08, where it is not."""

    def model(images: torch.Tensor) -> torch.Tensor:
        far = images.mean((1, 2, 3)) - 0.55
        first = torch.where(far < 0, 0.2 + 44 * far, 0.2 - 4.6 * far)
        second = torch.where(far < 0, -1 + 80 * far, -1 + 19.4 * far)
        return torch.stack([torch.zeros_like(far), first, second], 1)

    image, label = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64), torch.tensor([0])
    attacked = pgd(model, image, label, eps=0.1, steps=2, step_size=0.05, loss=cross_entropy)
    assert model(image).argmax() == model(image + 0.1).argmax() == 0
    assert model(attacked).argmax() == 1


def test_margin_is_positive_exactly_where_misclassified() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0], [1.0, 0.5, 0.0]])
    assert margin(logits, torch.tensor([0, 2, 1])).tolist() == [-1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    "bad",
    [
        {"eps": -0.1}, {"eps": 8}, {"eps": 0.1, "steps": 0}, {"eps": 0.1, "step_size": 0.0},
        {"eps": 0.1, "step_size": -0.01},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=list(bad)[-1]):
        pgd(Linear(), IMAGES, LABELS, **bad)


@both_norms
@pytest.mark.parametrize(
    ("name", "classes"),
    [(name, 2) for name in {**UNTARGETED, **TARGETED}] + [(name, 5) for name in TARGETED],
)
def test_linear_classifiers_break_at_their_optimum(name: str, classes: int, norm) -> None:
    """Just above the smallest budget everything breaks; toward the nearest class of several, for
    which an attack must have tried them all."""
    model = Linear(classes)
    labels = labels_of(model)
    attack = {**UNTARGETED, **TARGETED}[name]
    image, label = IMAGES[:1], labels[:1]
    eps = smallest_eps(model, image, label, norm).item()
    for ratio in (0.99, 1.01):
        attacked = attack(model, image, label, eps=ratio * eps, norm=norm)
        assert (model(attacked).argmax(1) != label).item() == (ratio > 1)


def test_noise_on_the_margin_does_not_change_which_point_is_best() -> None:
    """Every step sees new draws, and so does the best point before: their noise cancels."""
    noisy = pgd(Expectation(NoisyLogits(std=3.0), draws=2), IMAGES, LABELS, eps=0.1)
    torch.testing.assert_close(noisy, pgd(Linear(), IMAGES, LABELS, eps=0.1))


def test_low_frequencies_reach_their_own_optimum() -> None:
    """Linear in the block sums of the weights: L1 norm of the sums, or L2 with the root of 4."""
    model = Linear()
    slope = (model.weight[1] - model.weight[0]).view(4, 4)
    sums = slope.unflatten(0, (2, 2)).unflatten(2, (2, 2)).sum((1, 3))
    toward = (1 - 2 * LABELS).double()
    gains: dict[Norm, torch.Tensor] = {"linf": sums.abs().sum(), "l2": sums.norm() / 2}
    for norm, gain in gains.items():
        attacked = low_frequency(model, IMAGES, LABELS, eps=0.1, norm=norm, block=2)
        risen = margin(model(attacked), LABELS) - margin(model(IMAGES), LABELS)
        torch.testing.assert_close(risen, (0.1 * gain).expand(20))
        change = (attacked - IMAGES).view(20, 2, 2, 2, 2)
        torch.testing.assert_close(change, change[:, :, :1, :, :1].expand_as(change))
        assert ((attacked - IMAGES)[:, 0] * slope).sum((1, 2)).sign().eq(toward).all()


@balls
@both_norms
@settings(max_examples=3, deadline=None)
@given(eps=st.floats(0.001, 1), seed=st.integers(0, 1000))
def test_every_attack_stays_in_ball_and_box(name: str, norm, eps: float, seed: int) -> None:
    model = Linear(3)
    images, labels = IMAGES[:4].float(), labels_of(model)[:4]
    seeds = range(seed, seed + 4)
    single = partial(EVERY[name], lambda x: model(x.double()).float(), images, labels)
    attacked = single(eps=eps, norm=norm, seeds=seeds)
    assert size(attacked - images, norm).max() <= eps + 1e-6
    assert attacked.min() >= 0 and attacked.max() <= 1


@every
def test_no_budget_returns_the_images(name: str) -> None:
    assert torch.equal(EVERY[name](Linear(), IMAGES, LABELS, eps=0), IMAGES)


@every
@pytest.mark.parametrize("victim", [Linear(4), Expectation(NoisyImages(4), draws=3, max_rows=7)])
def test_every_attack_treats_an_image_alike_alone_and_in_a_batch(name: str, victim) -> None:
    images, labels, seeds = IMAGES[:3], labels_of(Linear(4))[:3], [7, 2**40, 0]
    together = EVERY[name](victim, images, labels, eps=0.1, seeds=seeds)
    assert torch.equal(EVERY[name](victim, images, labels, eps=0.1, seeds=seeds), together)
    for i in (0, 1):
        alone = EVERY[name](
            victim, images[i : i + 1], labels[i : i + 1], eps=0.1, seeds=seeds[i : i + 1]
        )
        torch.testing.assert_close(alone, together[i : i + 1])


@pytest.mark.parametrize("name", ["apgd", "square", "random"])
def test_other_seeds_give_other_images(name: str) -> None:
    model = Linear(4)
    found = [
        EVERY[name](model, IMAGES, labels_of(model), eps=0.01, norm="l2", seeds=range(s, s + 20))
        for s in (0, 100)
    ]
    assert not torch.equal(*found)


@every
def test_no_attack_does_less_harm_than_nothing(name: str) -> None:
    """The landscape is bumpy, and half of the images are misclassified before the attack."""

    def bumpy(images: torch.Tensor) -> torch.Tensor:
        value = (40 * images.flatten(1)).sin().sum(1)
        return torch.stack([-value, value], 1)

    labels = torch.zeros(20, dtype=torch.int64)
    attacked = EVERY[name](bumpy, IMAGES, labels, eps=0.05)
    clean, harm = (margin(bumpy(x), labels) for x in (IMAGES, attacked))
    assert ((harm >= clean) | (harm > 0)).all()


REFUSED = {
    "images": ({"images": IMAGES * 255}, "normalize inside the model"),
    "shape": ({"images": IMAGES[0]}, r"must be \(B, C, H, W\)"),
    "labels": ({"labels": LABELS[:3]}, r"must be \(20,\)"),
    "kind": ({"labels": LABELS.float()}, "int64"),
    "class": ({"labels": LABELS - 1}, "-1 is no class"),
    "class of K": ({"labels": LABELS + 2}, "labels: up to 2, but the model has 2 classes"),
    "eps": ({"eps": 8.0}, "eps=8.0 must be in"),
    "nan": ({"eps": float("nan")}, "eps=nan must be in"),
    "seeds": ({"seeds": [1, 2]}, "2 of them for 20 images"),
    "seed": ({"seeds": range(-1, 19)}, "seeds: -1 must be 0 or more"),
}


@every
@pytest.mark.parametrize("what", REFUSED)
def test_every_attack_refuses_what_it_cannot_use(name: str, what: str) -> None:
    change, message = REFUSED[what]
    arguments = {"images": IMAGES, "labels": LABELS, "eps": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        EVERY[name](Linear(), **arguments)


@balls
def test_an_unknown_norm_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="norm='l7' must be one of"):
        EVERY[name](Linear(), IMAGES, LABELS, eps=0.1, norm="l7")  # type: ignore[arg-type]


def test_a_block_must_fit() -> None:
    with pytest.raises(ValueError, match="block=5 must be from 1 to"):
        low_frequency(Linear(), IMAGES, LABELS, eps=0.1, block=5)


def test_random_search_needs_no_gradient_and_gets_better() -> None:
    model = Linear()
    for norm in ("linf", "l2"):
        few, many = (
            margin(
                model(random_search(model, IMAGES, LABELS, eps=0.1, norm=norm, trials=n)), LABELS
            )
            for n in (4, 400)
        )
        assert (many >= few).all() and (many > few).any()


class Masked(Linear):
    """The same classifier with a gradient that points the wrong way."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return 2 * logits.detach() - logits


def test_the_worst_over_surrogates_undoes_a_masked_gradient() -> None:
    """Its own gradient finds nothing; the surrogate breaks it, and the union says so."""
    masked, images = Masked().float(), IMAGES.float()
    eps = 2 * smallest_eps(masked, images, LABELS, "linf").max().item()
    data = Dataset.of(images, LABELS, ("a", "b"))
    through = {"own": masked, "linear": Linear().float()}
    found = pgd_evaluation(masked, data, eps=(eps,), steps=40, through=through)
    right = {attack: found.accuracy("linf", eps, attack=attack).mean for attack in through}
    assert right == {"own": 1, "linear": 0} and found.accuracy("linf", eps).mean == 0
    assert (masked(harmful(found, eps)).argmax(1) != LABELS).all()
