"""All checks together: every fake defense is flagged for what it does, and no honest one is."""

import json
from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
from torch import nn

from evaluation.checks import headline, run
from evaluation.defense_config import DefenseConfig
from evaluation.defenses import build
from purification import DiffusionPurifier, PurifierConfig
from rdc import (
    ClassifierConfig,
    Defense,
    Denoiser,
    LikelihoodMaximizer,
    MaximizationConfig,
    RDCConfig,
    RobustDiffusionClassifier,
)
from rdc.data import load
from rdc.networks.image_classifier import ImageClassifier
from tests.support import fakes

pytestmark = pytest.mark.slow

DIGITS = load("digits", "test").subset(slice(16))
CNN = ImageClassifier.from_pretrained("digits-cnn").eval()

FAKES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "rounding": (lambda: fakes.Rounding(CNN), {"dead gradients", "planted vulnerability"}),
    "vanishing": (lambda: fakes.Vanishing(CNN), {"dead gradients", "planted vulnerability"}),
    "saturated": (lambda: fakes.Saturated(CNN), {"dead gradients", "any budget"}),
    "shattered": (lambda: fakes.Shattered(CNN), {"the loss rises"}),
    "lattice": (lambda: fakes.Lattice(CNN), {"the loss rises"}),
    "phase, frozen": (lambda: fakes.RandomPhase(CNN), {"the loss rises"}),
    "phase, fresh": (lambda: fakes.RandomPhase(CNN, "fresh"), {"addressable randomness"}),
    "random labels": (lambda: fakes.RandomLabels(CNN), {"addressable randomness"}),
    "straight-through": (lambda: fakes.StraightThrough(CNN), {"finite differences"}),
    "half detached": (lambda: fakes.HalfDetached(CNN), {"finite differences"}),
    "detached": (lambda: fakes.Detached(CNN), {"an attack runs", "dead gradients"}),
    "flipped": (lambda: fakes.Flipped(CNN), {"finite differences", "the loss rises"}),
    "right at clean images": (lambda: fakes.RightAtCleanImages(CNN), {"finite differences"}),
    "right one by one": (lambda: fakes.RightOneByOne(CNN), {"alone and in a batch"}),
    "for show": (lambda: fakes.ForShow(CNN), {"the same with a gradient"}),
    "coupled": (lambda: fakes.Coupled(CNN), {"alone and in a batch"}),
    "remembers": (lambda: fakes.Remembers(CNN), {"no memory"}),
    "remembers together": (lambda: fakes.Remembers(CNN, fakes.Shared()), {"no memory"}),
}


def failed(model: nn.Module, count: int = 6, **settings) -> set[str]:
    options = {"norm": "linf", "eps": 0.2, "steps": 5, **settings}
    found = run(model.eval(), DIGITS.images[:count], DIGITS.labels[:count], **options)
    json.dumps([asdict(check) for check in found])
    return {check.name for check in found if check.passed is False}


@pytest.mark.parametrize("name", list(FAKES))
def test_fakes_are_flagged(name: str) -> None:
    """The fakes could pass for defenses: they are about as accurate as the classifier."""
    make, expected = FAKES[name]
    with torch.no_grad():
        assert (make()(DIGITS.images).argmax(1) == DIGITS.labels).sum() >= 14
    assert expected <= failed(make())


def test_noise_that_only_fools_few_draws_is_flagged() -> None:
    """Eight draws hardly break it, sixteen break nearly all."""
    model = fakes.RandomPhase(CNN, frequency=100)
    assert "draws doubled" in failed(model, count=16, draws=8, steps=5)


@pytest.mark.parametrize("norm", ["l2", "stadv"])
@pytest.mark.parametrize("name", ["rounding", "straight-through", "shattered", "remembers"])
def test_fakes_are_flagged_in_every_norm(name: str, norm: str) -> None:
    make, expected = FAKES[name]
    eps = {"l2": 1.0, "stadv": 0.1}[norm]
    assert expected - {"planted vulnerability"} <= failed(make(), norm=norm, eps=eps)


def purified(steps: int = 2) -> Defense:
    """DiffPure's process in a few steps."""
    return Defense(DiffusionPurifier(denoiser(), PurifierConfig(t_star=0.1, steps=steps)), CNN)


def maximized() -> Defense:
    """Likelihood maximization of two steps, whose second derivatives are differences."""
    config = MaximizationConfig(steps=2)
    maximizer = LikelihoodMaximizer(denoiser(), config, second_order="central_difference")
    return Defense(maximizer, CNN)


def denoiser() -> Denoiser:
    return Denoiser.from_pretrained("digits").eval().requires_grad_(False)


def rdc() -> RobustDiffusionClassifier:
    """All parts of RDC, with fewer steps, draws and noise levels than the packaged one."""
    levels = ClassifierConfig(levels=2, sigma_min=0.7, sigma_max=3.0)
    maximization = MaximizationConfig(steps=1, draws=1, budget=0.1, step_size=0.02)
    config = RDCConfig(levels, maximization)
    return RobustDiffusionClassifier(denoiser(), config, second_order="central_difference")


HONEST: dict[str, Callable[[], nn.Module]] = {
    "classifier": lambda: fakes.Fake(CNN),
    "trades": lambda: ImageClassifier.from_pretrained("digits-trades"),
    "diffusion": lambda: rdc().classifier,
    "rdc": rdc,
    "maximization": maximized,
    "diffpure": purified,
    "agdm": lambda: build(DefenseConfig("agdm", steps=3), data="digits"),
}


@pytest.mark.parametrize("name", list(HONEST))
def test_honest_models_are_not_flagged(name: str) -> None:
    small = name not in ("classifier", "trades")
    count, steps = (3, 2) if small else (8, 5)
    found = run(
        HONEST[name]().eval(), DIGITS.images[:count], DIGITS.labels[:count],
        norm="linf", eps=0.2, steps=steps,
    )  # fmt: skip
    assert headline(found) == "all 12 checks passed (1 do not apply)", found


@pytest.mark.parametrize(("norm", "eps", "applied"), [("l2", 1.0, 12), ("stadv", 0.05, 10)])
def test_honest_models_pass_in_every_norm(norm, eps: float, applied: int) -> None:
    found = run(CNN, DIGITS.images[:8], DIGITS.labels[:8], norm=norm, eps=eps, steps=10)
    assert headline(found).startswith(f"all {applied} checks passed"), found


def test_random_defense_passes_on_its_draws() -> None:
    found = run(
        purified(), DIGITS.images[:3], DIGITS.labels[:3], norm="linf", eps=0.2, steps=2, draws=2
    )  # fmt: skip
    assert headline(found) == "all 13 checks passed", found


def test_same_seeds_same_findings() -> None:
    options = {"norm": "linf", "eps": 0.2, "steps": 3}
    first, second, other = (
        run(CNN, DIGITS.images[:4], DIGITS.labels[:4], seeds=seeds, **options)
        for seeds in ([1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8])
    )
    assert first == second != other


def test_what_no_attack_takes_is_refused() -> None:
    class Declared(fakes.Coupled):
        batch_coupled = True

    bad = ({"eps": 2.0}, "eps=2.0"), ({"steps": 0}, "steps=0"), ({"draws": 0}, "draws=0")
    for changes, message in bad:
        options = {"norm": "linf", "eps": 0.2, **changes}
        with pytest.raises(ValueError, match=message):
            run(CNN, DIGITS.images, DIGITS.labels, **options)
    with pytest.raises(ValueError, match="max_rows=1"):
        run(Declared(CNN), DIGITS.images, DIGITS.labels, norm="linf", eps=0.2)
    assert "alone and in a batch" not in failed(Declared(CNN), count=4, steps=3, max_rows=1)


def test_a_model_without_numbers_is_flagged() -> None:
    model = nn.Sequential(CNN, nn.Threshold(100, torch.nan))
    assert failed(model, count=2) == {"an attack runs", "dead gradients"}
