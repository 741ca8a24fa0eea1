"""The Lagrange attack where both of its terms are known in closed form."""

import pytest
import torch
from torch import Tensor

from evaluation.attacks.eot import Expectation
from evaluation.attacks.lagrange import lagrange
from evaluation.attacks.losses import margin
from evaluation.attacks.pgd import Ascent
from evaluation.attacks.rng import generators, random_start, spawn
from evaluation.gradient_modes import surrogates
from rdc import (
    ClassifierConfig,
    LikelihoodMaximizer,
    MaximizationConfig,
    RDCConfig,
    RobustDiffusionClassifier,
)
from rdc.choices import Norm
from rdc.images import to_x
from rdc.noise import using_draws
from rdc.norms import size
from tests.support.oracle import MixtureDenoiser, some_images
from tests.support.victims import IMAGES, LABELS, Linear, NoisyImages, NoisyLogits

both_norms = pytest.mark.parametrize("norm", ["linf", "l2"])
CENTER = 0.35


def distance(images: Tensor) -> Tensor:
    """A penalty whose minimum is the gray image: (B,)."""
    return (images - CENTER).square().sum((1, 2, 3))


class Undone(Linear):
    """A defense that puts half of the pixels back to `CENTER`, in front of a classifier that looks
    at them three times as hard as at the others."""

    def __init__(self, *, maximized: bool = True) -> None:
        super().__init__()
        self.weight[0], self.weight[1] = 0, torch.tensor([3.0, 1.0]).repeat_interleave(8)
        self.maximized = maximized

    def forward(self, images: Tensor) -> Tensor:
        top = images[:, :, :2]
        top = torch.full_like(top, CENTER) if self.maximized else top
        return super().forward(torch.cat([top, images[:, :, 2:]], 2)) - torch.tensor([0.0, 12.0])


def undone(images: Tensor) -> Tensor:
    """The loss that `Undone` lowers."""
    return distance(images[:, :, :2])


def test_finds_what_the_defense_leaves_in_place() -> None:
    """The defense breaks at the L2 budget 0.8 / sqrt(8) = 0.28 along the pixels that it leaves. The
    classifier's own direction spends one part in sqrt(10) there: 0.89 would be needed."""
    defense, alone = Undone(), Undone(maximized=False)
    images = torch.full((5, 1, 4, 4), CENTER, dtype=torch.float64)
    labels = torch.zeros(5, dtype=torch.int64)
    torch.testing.assert_close(margin(defense(images), labels), torch.full((5,), -0.8).double())

    def broken(eps: float, *multipliers: float) -> int:
        attacked = lagrange(
            defense, images, labels, eps=eps, norm="l2", surrogate=alone, penalty=undone,
            multipliers=multipliers,
        )  # fmt: skip
        return int((defense(attacked).argmax(1) != labels).sum())

    assert [broken(0.27, 3.0), broken(0.3, 3.0), broken(0.3, 0.0, 3.0)] == [0, 5, 5]
    assert broken(0.6, 0.0) == 0


@both_norms
def test_multiplier_zero_is_pgd_from_a_random_start(norm: Norm) -> None:
    model = Linear(5)
    labels, eps = model(IMAGES).argmax(1), 0.05

    def never(images: Tensor) -> Tensor:
        raise AssertionError("a penalty of weight 0 was asked for")

    found = lagrange(
        model, IMAGES, labels, eps=eps, norm=norm, surrogate=model, penalty=never,
        multipliers=[0], steps=6,
    )  # fmt: skip
    start = random_start(IMAGES, eps, norm, generators(spawn(spawn(range(20), 1), 0)))
    ascent = Ascent(
        Expectation(model), IMAGES, labels, range(20), start=start, eps=eps, norm=norm,
        step_size=2.5 * eps / 6, loss=margin,
    )  # fmt: skip
    expected = ascent.run(6)
    assert torch.equal(found, expected)


@both_norms
def test_large_multiplier_goes_where_the_penalty_is_least(norm: Norm) -> None:
    """The victim is broken by what the penalty likes, so that the end of the way comes back."""
    model = Linear()

    def victim(images: Tensor) -> Tensor:
        return torch.stack([distance(images), torch.zeros_like(images[:, 0, 0, 0])], 1)

    labels = torch.zeros_like(LABELS)
    found = lagrange(
        victim, IMAGES, labels, eps=0.05, norm=norm, surrogate=model, penalty=distance,
        multipliers=[1e6], steps=200,
    )  # fmt: skip
    if norm == "linf":
        best = IMAGES + (CENTER - IMAGES).clamp(-0.05, 0.05)
    else:
        way = CENTER - IMAGES
        best = IMAGES + 0.05 * way / way.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(distance(found), distance(best), rtol=0.01, atol=0)


def test_scale_of_loss_and_penalty_do_not_matter() -> None:
    model = Linear(5)
    labels = model(IMAGES).argmax(1)

    def found(of_loss: float, of_penalty: float) -> Tensor:
        return lagrange(
            model, IMAGES, labels, eps=0.05, surrogate=lambda images: of_loss * model(images),
            penalty=lambda images: of_penalty * distance(images), multipliers=[0.5], steps=5,
        )  # fmt: skip

    torch.testing.assert_close(found(1.0, 1.0), found(2.0**20, 2.0**-20))


def test_points_are_judged_by_the_defense_alone() -> None:
    """Behind a surrogate that leads away from every mistake, nothing better than the start."""
    model = Linear()

    def found(sign: float, steps: int) -> Tensor:
        attacked = lagrange(
            model, IMAGES, LABELS, eps=0.1, surrogate=lambda images: sign * model(images),
            penalty=distance, multipliers=[0.0], steps=steps,
        )  # fmt: skip
        return margin(model(attacked), LABELS)

    before = margin(model(IMAGES), LABELS)
    assert (found(-1.0, 20) >= before).all()
    torch.testing.assert_close(found(-1.0, 20), found(-1.0, 1))
    assert (found(1.0, 20) > before + 0.1).all()


def test_a_longer_walk_keeps_the_best_point_of_a_shorter_one() -> None:
    """The defense is bumpy, so that a long walk passes its best point."""

    def bumpy(images: Tensor) -> Tensor:
        value = (40 * images.flatten(1)).sin().sum(1)
        return torch.stack([-value, value], 1)

    labels = torch.zeros_like(LABELS)
    harm = [
        margin(bumpy(attacked), labels)
        for attacked in (
            lagrange(
                bumpy, IMAGES, labels, eps=0.2, surrogate=Linear(), penalty=distance,
                multipliers=[0.3], steps=steps, step_size=0.05,
            )
            for steps in (1, 5, 25)
        )
    ]  # fmt: skip
    assert (harm[1] >= harm[0]).all() and (harm[2] >= harm[1]).all()
    assert (harm[2] > harm[0]).any()


def test_noise_on_the_margin_does_not_change_which_point_is_best() -> None:
    """Every step sees new draws, and so does the best point before: their noise cancels."""

    def found(victim: Expectation) -> Tensor:
        return lagrange(
            victim, IMAGES, LABELS, eps=0.1, surrogate=Linear(), penalty=distance, steps=20,
            multipliers=[0.1],
        )  # fmt: skip

    noisy = found(Expectation(NoisyLogits(std=3.0), draws=2))
    torch.testing.assert_close(noisy, found(Expectation(Linear())))


class Recording(NoisyImages):
    """Remembers from which seeds it drew."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.seen |= set(self.noise.seeds(len(images)))
        return super().forward(images)


def test_every_step_has_new_draws_which_loss_and_penalty_share() -> None:
    defense, surrogate, penalty = Recording(), Recording(), Recording()
    lagrange(
        Expectation(defense, draws=2), IMAGES[:1], LABELS[:1], eps=0.1, surrogate=surrogate,
        penalty=lambda images: penalty(images)[:, 0], multipliers=[0.3], steps=5,
    )  # fmt: skip
    assert surrogate.seen == penalty.seen and len(surrogate.seen) == 2 * 5
    # The start and every step, and those on which the result is compared with the image.
    assert len(defense.seen) == 2 * (1 + 5 + 1) and surrogate.seen < defense.seen


@both_norms
@pytest.mark.parametrize("draws", [1, 2])
def test_stays_in_ball_and_box_and_never_harms_less_than_nothing(norm: Norm, draws: int) -> None:
    model, eps = NoisyImages(5), 0.7
    images, victim = some_images(20, (1, 4, 4)), Expectation(model, draws=draws)
    labels = model(images).argmax(1)
    found = lagrange(
        victim, images, labels, eps=eps, norm=norm, surrogate=model, penalty=distance, steps=4
    )
    assert found.min() >= 0 and found.max() <= 1
    assert size(found - images, norm).max() <= eps * (1 + 1e-12)
    again = lagrange(
        victim, images[7:9], labels[7:9], eps=eps, norm=norm, surrogate=model, penalty=distance,
        steps=4, seeds=[7, 8],
    )  # fmt: skip
    torch.testing.assert_close(again, found[7:9])


def test_loss_of_maximization_by_hand() -> None:
    """One Gaussian: the residual is a (x - mean) - b sigma n, a = sigma^2 / total, b = 1 - a."""
    denoiser, images = MixtureDenoiser(torch.full((1, 1, 1, 2, 2), 0.2), 0.3), some_images(5)
    maximizer = LikelihoodMaximizer(denoiser, MaximizationConfig(steps=3, draws=2))
    x = to_x(images)[:, None]
    noise, uniform = maximizer.noise.normal_and_uniform(x[:, 0], 6)
    sigma = (0.4 + 0.2 * uniform)[:, :, None, None, None]
    a = sigma.square() / (sigma.square() + 0.09)
    residual = a * (x - 0.2) - (1 - a) * sigma * noise
    expected = (residual / sigma).square().mean((1, 2, 3, 4))
    torch.testing.assert_close(maximizer.loss(images), expected)
    with using_draws([5]):
        other = maximizer.loss(images[:1])
    with using_draws([0, 5]):
        both = maximizer.loss(images[[0, 0]])
    torch.testing.assert_close(both, torch.stack([expected[0], other[0]]))


def test_no_step_of_maximization_lowers_nothing() -> None:
    maximizer = LikelihoodMaximizer(
        MixtureDenoiser(torch.zeros(1, 1, 1, 2, 2), 0.3), MaximizationConfig(steps=0)
    )
    with pytest.raises(ValueError, match="steps=0"):
        maximizer.loss(some_images(1))


def test_images_that_fool_rdc_are_likelier_than_those_of_pgd() -> None:
    """Likelihood is the loss that maximization lowers, on images where both attacks succeed."""
    means = torch.tensor([[[[[0.4, 0.1], [0.2, 0.3]]]], [[[[-0.1, 0.2], [0.0, -0.3]]]]])
    config = RDCConfig(ClassifierConfig(levels=3), MaximizationConfig(steps=3, budget=0.05))
    model = RobustDiffusionClassifier(MixtureDenoiser(means, 0.2), config)
    images = some_images(12, (1, 2, 2))
    labels = model(images).argmax(1)

    def found(multiplier: float) -> Tensor:
        return lagrange(
            model, images, labels, eps=0.5, surrogate=surrogates(model)["classifier"],
            penalty=model.purifier.loss, multipliers=[multiplier], steps=20,
        )  # fmt: skip

    plain, likely = found(0.0), found(1.0)
    both = (model(plain).argmax(1) != labels) & (model(likely).argmax(1) != labels)
    assert both.sum() >= 6
    assert (model.purifier.loss(likely) < 0.8 * model.purifier.loss(plain))[both].all()


@pytest.mark.parametrize(
    "bad",
    [
        {"multipliers": []}, {"multipliers": [-1.0]}, {"steps": 0}, {"step_size": 0.0},
        {"step_size": -0.1}, {"penalty": torch.mean},
    ],
)  # fmt: skip
def test_bad_settings_are_refused(bad: dict) -> None:
    options = {"surrogate": Linear(), "penalty": distance, **bad}
    with pytest.raises(ValueError, match=next(iter(bad))):
        lagrange(Linear(), IMAGES, LABELS, eps=0.1, **options)
