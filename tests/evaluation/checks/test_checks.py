"""Every check by itself: what passes it, what fails it, and where it does not apply."""

import threading
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from evaluation.api import evaluate
from evaluation.checks import Check, headline
from evaluation.checks.budgets import any_budget, inside, no_budget
from evaluation.checks.check import OF_RECORDS, check
from evaluation.checks.consistency import (
    addressable,
    alone_and_in_a_batch,
    no_memory,
    with_a_gradient,
)
from evaluation.checks.context import Subject
from evaluation.checks.doubling import agreement, draws_doubled, settled, steps_doubled
from evaluation.checks.gradients import dead_gradients, finite_differences, loss_rises
from evaluation.checks.planted import Readout, features, planted, surface
from evaluation.factories import as_module
from evaluation.target import copied
from rdc.data import load
from rdc.networks.image_classifier import ImageClassifier
from tests.support import fakes
from tests.support.oracle import some_images
from tests.support.victims import IMAGES, LABELS, Linear, NoisyImages

DIGITS = load("digits", "test").subset(slice(16))
CNN = ImageClassifier.from_pretrained("digits-cnn")


def subject(model: nn.Module = CNN, count: int = 8, **changes) -> Subject:
    settings = {"norm": "linf", "eps": 0.2, "steps": 10, "draws": 1, "max_rows": 256, **changes}
    images, labels = DIGITS.images[:count], DIGITS.labels[:count]
    return Subject(model.eval(), images, labels, seeds=list(range(count)), **settings)


class Constant(nn.Module):
    """The same for every image, with a gradient of zero."""

    def forward(self, images: Tensor) -> Tensor:
        return 0 * images.flatten(1)[:, :10] + torch.arange(10.0).to(images)


def test_headline_is_the_worst_news() -> None:
    good, bad, none = Check("a", True, ""), Check("b", False, ""), Check("c", None, "")
    assert headline([good, bad, none, replace(bad, name="d")]) == "CHECKS FAILED: b, d"
    assert headline([good, good]) == "all 2 checks passed"
    assert headline([good, none, none]) == "all 1 checks passed (2 do not apply)"
    assert headline([]) == headline([none]) == "checks were not run"
    records = [Check(name, True, "") for name in OF_RECORDS[:2]]
    assert headline([*records, good]) == "all 3 checks passed"
    assert headline(records) == "the model was not checked; 2 checks of the records passed"


def test_checks_of_records_are_known_by_name() -> None:
    found = evaluate(Constant(), DIGITS.images[:2], DIGITS.labels[:2], eps=0.1, only="square",
                     checks=False)  # fmt: skip
    assert tuple(check.name for check in found.summary.checks) == OF_RECORDS


def test_a_model_that_answers_with_an_error_fails() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AttributeError("a mistake in the code is no finding")

    nan = addressable(subject(nn.Sequential(Constant(), nn.Threshold(100, torch.nan))))
    assert nan.passed is False and "NaN in its logits" in nan.detail

    @check("named")
    def sound() -> tuple[bool | None, str]:
        """A check with a docstring."""
        return None, "why"

    assert sound() == Check("named", None, "why")
    assert sound.__doc__ == "A check with a docstring."
    with pytest.raises(AttributeError):
        addressable(subject(Broken()))


def test_addressable_randomness() -> None:
    assert addressable(subject()).passed
    assert addressable(subject(fakes.RandomPhase(CNN), draws=3)).passed
    assert addressable(Subject(NoisyImages(), IMAGES, LABELS, "l2", 0.1, 2, 4, 7, range(20))).passed
    for model in (fakes.RandomLabels(CNN), fakes.RandomPhase(CNN, "fresh"), CNN_WITH_DROPOUT):
        found = addressable(replace(subject(), model=model))
        assert found.passed is False and "noise='frozen'" in found.detail


CNN_WITH_DROPOUT = nn.Sequential(nn.Dropout(0.01).train(), CNN)


def test_alone_and_in_a_batch() -> None:
    assert alone_and_in_a_batch(subject()).passed
    assert alone_and_in_a_batch(subject(fakes.Coupled(CNN))).passed is False
    gradient = alone_and_in_a_batch(subject(fakes.RightOneByOne(CNN)))
    assert gradient.passed is False and "gradients by 2 of" in gradient.detail
    training = ImageClassifier.from_pretrained("digits-cnn").train()
    assert alone_and_in_a_batch(replace(subject(), model=training)).passed is False
    for single in (subject(max_rows=1), subject(count=1)):
        assert alone_and_in_a_batch(single).passed is None


def test_places_in_a_batch_are_seen() -> None:
    """Also where those that are asked about alone are not concerned."""

    class Last(fakes.Fake):
        def forward(self, images: Tensor) -> Tensor:
            return self.classifier(torch.cat([images[:7], images[7:].flip(2)]))

    assert alone_and_in_a_batch(subject(Last(CNN))).passed is False


def test_the_same_with_a_gradient() -> None:
    assert with_a_gradient(subject()).passed
    assert with_a_gradient(subject(fakes.ForShow(CNN))).passed is False


def memory(model: nn.Module) -> Check:
    asked = subject(model)
    unused, before = copied(model), asked.logits()
    return no_memory(asked, unused, before, replace(asked, steps=3).attack())


def test_no_memory() -> None:
    assert memory(CNN).passed
    assert memory(fakes.RandomPhase(CNN)).passed
    for model in (fakes.Remembers(CNN), fakes.Remembers(CNN, fakes.Shared())):
        found = memory(model)
        assert found.passed is False and "remembers" in found.detail


def test_memory_of_what_cannot_be_copied() -> None:
    honest, forger = fakes.Fake(CNN), fakes.Remembers(CNN)
    for model in (honest, forger):
        model.lock = threading.Lock()  # type: ignore[assignment]
    assert memory(honest).passed and "cannot be copied" in memory(honest).detail
    assert memory(forger).passed is False


class InFloat32(fakes.Fake):
    """Insists on its precision."""

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.float32:
            raise RuntimeError("float32 only")
        return self.classifier(images)


@pytest.mark.parametrize("norm", ["linf", "l2", "stadv"])
def test_finite_differences(norm) -> None:
    assert finite_differences(subject(norm=norm)).passed
    wrong = (fakes.StraightThrough, fakes.HalfDetached, fakes.Flipped, fakes.RightAtCleanImages)
    for fake in wrong:
        found = finite_differences(subject(fake(CNN), norm=norm))
        assert found.passed is False and "float64" in found.detail
    assert finite_differences(subject(Constant())).passed is None


def test_finite_differences_of_what_has_no_float64() -> None:
    found = finite_differences(subject(InFloat32(CNN)))
    assert found.passed and "float32" in found.detail
    assert finite_differences(subject(InFloat32(fakes.HalfDetached(CNN)))).passed is False
    # The weights inside a function stay as they are, and CNN refuses images of another precision.
    found = finite_differences(subject(as_module(lambda images: CNN(images))))
    assert found.passed and "float32" in found.detail


@pytest.mark.parametrize(
    "answer",
    [
        lambda network, images: deepcopy(network).to(images.dtype)(images).half(),
        lambda network, images: deepcopy(network).half()(images.half()).float(),
        lambda network, images: deepcopy(network).bfloat16()(images.bfloat16()).float(),
    ],
)
def test_finite_differences_cannot_see_through_16_bits(answer) -> None:
    """Rounding to 16 bits is no wrong gradient."""
    found = finite_differences(subject(as_module(lambda images: answer(CNN, images))))
    assert found.passed is None and "16 bits" in found.detail


def test_gradients_of_weights_of_16_bits_are_compared_in_float64() -> None:
    class Half(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = deepcopy(network).half()

        def forward(self, images: Tensor) -> Tensor:
            return self.network(images.to(next(self.parameters()).dtype))

    assert finite_differences(subject(Half(CNN))).passed
    assert finite_differences(subject(Half(fakes.HalfDetached(CNN)))).passed is False


def test_finite_differences_see_errors_beside_the_gradient_and_along_it() -> None:
    """A gradient of another length, and one with a foreign part that no step along it notices."""

    def scaled(scale: Tensor) -> nn.Module:
        class Scaled(fakes.Fake):
            def forward(self, images: Tensor) -> Tensor:
                return self.classifier(fakes.Scaled.apply(images, scale.to(images)))

        return Scaled(CNN)

    assert finite_differences(subject(scaled(torch.tensor(1.0)))).passed
    assert finite_differences(subject(scaled(torch.tensor(1.3)))).passed is False
    half = torch.ones(1, 1, 8, 8)
    half[..., 4:] = 0.3
    assert finite_differences(subject(scaled(half))).passed is False


def test_the_loss_rises() -> None:
    for norm in ("linf", "l2"):
        assert loss_rises(subject(norm=norm)).passed
        for fake in (fakes.Shattered, fakes.Lattice, fakes.Flipped):
            assert loss_rises(subject(fake(CNN), norm=norm)).passed is False
    assert loss_rises(subject(Constant())).passed is None


def test_the_rise_of_a_linear_model_is_all_that_is_promised() -> None:
    linear = Subject(Linear(), IMAGES, LABELS, "linf", 0.1, 2, 1, 256, range(20))
    assert "by 1.00 times" in loss_rises(linear).detail
    noisy = replace(linear, model=NoisyImages(), draws=3)
    assert "by 1.00 times" in loss_rises(noisy).detail


@pytest.mark.slow
def test_dead_gradients() -> None:
    assert dead_gradients(subject()).passed
    for fake in (fakes.Rounding, fakes.Vanishing, fakes.Saturated, fakes.Detached):
        found = dead_gradients(subject(fake(CNN)))
        assert found.passed is False and "8 of 8 images have no gradient" in found.detail


@pytest.mark.slow
def test_dead_gradients_count_where_answers_change() -> None:
    class Partly(fakes.Fake):
        """Dark images have no gradient; where `firm`, their answer cannot change either."""

        def __init__(self, firm: bool) -> None:
            super().__init__(CNN)
            self.firm = firm

        def forward(self, images: Tensor) -> Tensor:
            dark = (images[:, :, :, ::2].sum((1, 2, 3)) < 11)[:, None]
            logits = self.classifier(images)
            said = nn.functional.one_hot(logits.argmax(1), 10).to(images)
            rest = torch.eye(10)[:1] if self.firm else said
            return torch.where(dark, rest, logits)

    model = Partly(firm=False)
    dark = (DIGITS.images[:8, :, :, ::2].sum((1, 2, 3)) < 11).sum().item()
    assert 0 < dark < 8
    found = dead_gradients(subject(model))
    assert found.passed is False and f"{dark} of 8" in found.detail
    small = dead_gradients(subject(Partly(firm=True), eps=1e-4))
    assert small.passed and f"{dark} of 8" in small.detail
    assert dead_gradients(subject(Constant())).passed is False


class Cliff(fakes.Fake):
    """Another class as soon as any pixel is none of 17 gray levels."""

    def forward(self, images: Tensor) -> Tensor:
        logits = self.classifier(images)
        beside = ((16 * images - (16 * images).round()).abs() > 1e-6).flatten(1).any(1)
        return torch.where(beside[:, None], logits.roll(1, 1), logits)


def test_no_budget() -> None:
    for norm in ("linf", "l2", "stadv"):
        assert no_budget(subject(norm=norm)).passed
    assert no_budget(subject(fakes.RandomPhase(CNN), draws=2)).passed
    found = no_budget(subject(Cliff(CNN)))
    assert found.passed is False and "8 of 8 images" in found.detail


def test_any_budget() -> None:
    for norm in ("linf", "l2"):
        found = any_budget(subject(norm=norm))
        assert found.passed and "0 of 8 withstand" in found.detail
        assert any_budget(subject(fakes.Rounding(CNN), norm=norm)).passed is False
    assert any_budget(subject(norm="stadv")).passed is None


def test_chance_is_allowed_its_interval() -> None:
    """With 8 images and 10 classes, 3 may withstand (probability 3.8 %), 4 may not (0.5 %)."""
    for count, passes in ((3, True), (4, False)):
        labels = torch.tensor([9] * count + [0] * (8 - count))
        assert any_budget(replace(subject(Constant()), labels=labels)).passed is passes


def test_inside() -> None:
    for norm in ("linf", "l2", "stadv"):
        asked = subject(norm=norm)
        assert inside(asked, replace(asked, steps=3).attack()).passed
        assert inside(asked, asked.images - 1e-3).passed is False
        assert inside(asked, asked.images * torch.nan).passed is False
    far = (subject().images - 0.5).sign() * -0.2002
    assert inside(subject(), subject().images + far).passed is False
    assert inside(subject(norm="stadv"), subject().images + far).passed


def test_inside_allows_rounding() -> None:
    images = some_images(50, (3, 20, 20), dtype=torch.float32)
    for norm, eps in (("linf", 0.5 / 255), ("l2", 0.5)):
        asked = replace(subject(norm=norm, eps=eps), images=images)
        attacked = surface(asked, [torch.Generator().manual_seed(i) for i in range(50)])
        assert inside(asked, attacked).passed
        assert inside(replace(asked, eps=0.999 * eps), attacked).passed is False


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_planted_vulnerability(norm) -> None:
    for model in (CNN, fakes.RandomPhase(CNN)):
        asked = subject(model, norm=norm, eps=0.2 if norm == "linf" else 1.0)
        found = planted(asked)
        if model is CNN:
            assert found.passed and "on 8 of 8 images, 10 random" in found.detail
        else:
            assert found.passed is False
    for fake in (fakes.Rounding, fakes.Flipped):
        assert planted(subject(fake(CNN), norm=norm)).passed is False


def test_planting_needs_a_ball_and_logits_that_change() -> None:
    assert planted(subject(norm="stadv")).passed is None
    found = planted(subject(Constant()))
    assert found.passed is None and "8 of 8" in found.detail


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.7)])
def test_readout_has_its_class_where_it_is_planted(norm, eps: float) -> None:
    asked = subject(count=16, norm=norm, eps=eps)
    readout = Readout.fit(asked)
    index = torch.arange(16)

    def values(points: Tensor) -> Tensor:
        return readout(features(asked, [points])[:, 0], asked.labels, index)

    assert readout.tells.all()
    assert (values(asked.images) < 0).all() and (values(readout.points) > 0).all()
    assert inside(asked, readout.points).passed
    assert inside(replace(asked, eps=0.99 * eps), readout.points).passed is False


def test_steps_doubled() -> None:
    asked = subject()
    assert steps_doubled(asked, asked.attack()).passed
    found = steps_doubled(asked, asked.images)
    assert found.passed is False and "--suite.steps" in found.detail


def test_a_few_images_may_always_fall() -> None:
    """All but three right: losing two of eight is chance, losing three is not."""
    once = torch.ones(8)
    for lost, passes in ((0, True), (2, True), (3, False)):
        twice = once.clone()
        twice[:lost] = 0
        assert settled(once, twice)[0] is passes
    one = torch.eye(16)[0]
    assert settled(one, 0 * one) == (True, 0)


@pytest.mark.slow
def test_draws_doubled() -> None:
    noisy = Subject(NoisyImages(), IMAGES, LABELS, "l2", 0.1, 3, 4, 256, range(20))
    assert draws_doubled(noisy).passed
    model = fakes.RandomPhase(CNN, frequency=100)
    found = draws_doubled(subject(model, count=16, draws=8, steps=5))
    assert found.passed is False and "--suite.eot-samples" in found.detail
    assert draws_doubled(subject()).passed is None
    assert "the same in every draw" in draws_doubled(subject(draws=2)).detail


def test_agreement_of_gradients_is_their_cosine() -> None:
    """A linear model has one gradient; ripples of random phase have any."""
    noisy = Subject(NoisyImages(), IMAGES, LABELS, "l2", 0.1, 3, 4, 256, range(20))
    assert agreement(noisy) == pytest.approx(1)
    assert abs(agreement(subject(fakes.RandomPhase(CNN), count=16, draws=1))) == pytest.approx(1)
    assert abs(agreement(subject(fakes.RandomPhase(CNN), count=16, draws=2))) < 0.1
