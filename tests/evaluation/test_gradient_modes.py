"""Approximate derivatives with which an attacker may replace a defense's own."""

import pytest
import torch
from torch import Tensor, nn

from evaluation.certification.smoothed import SmoothedClassifier
from evaluation.gradient_modes import noises, surrogates
from evaluation.suite_config import SIZES
from evaluation.suites import suite
from purification.guidance import AGDM
from rdc import (
    ClassifierConfig,
    Defense,
    LikelihoodMaximizer,
    MaximizationConfig,
    RDCConfig,
    RobustDiffusionClassifier,
)
from rdc.maximization import GradientMode
from rdc.noise import Noise
from tests.support.guides import CONFIG, SHAPE, Smooth, mixture, purifier
from tests.support.oracle import some_images

IMAGES = some_images(2, SHAPE)


def gradient(model: nn.Module) -> Tensor:
    images = IMAGES.clone().requires_grad_()
    (found,) = torch.autograd.grad(model(images)[:, 0].sum(), images)
    return found


MAXIMIZATION = MaximizationConfig(steps=2, sigma_min=0.2)


def rdc(gradient: GradientMode = "exact") -> RobustDiffusionClassifier:
    config = RDCConfig(ClassifierConfig(levels=3), MAXIMIZATION)
    return RobustDiffusionClassifier(mixture(), config, gradient=gradient)


def defenses() -> dict[str, Defense]:
    classifier = Smooth().eval()
    return {
        "rdc": rdc(),
        "maximized": Defense(LikelihoodMaximizer(mixture(), MAXIMIZATION), classifier),
        "purified": Defense(purifier(), classifier, copies=2),
        "guided": Defense(purifier((0.5, AGDM(Smooth()))), classifier),
    }


@pytest.mark.parametrize("name", list(defenses()))
def test_surrogates_say_what_the_defense_says_and_differ_in_their_gradients(name: str) -> None:
    model = defenses()[name]
    found = surrogates(model)
    guided = {"detached_guidance"} if name == "guided" else set()
    assert set(found) == {"exact", "bpda", "classifier"} | guided
    gradients = {key: gradient(surrogate) for key, surrogate in found.items()}
    assert torch.equal(gradients["exact"], gradient(model))
    for key in found.keys() - {"exact", "classifier"}:
        assert torch.equal(found[key](IMAGES), model(IMAGES))
        assert not torch.allclose(gradients[key], gradients["exact"], rtol=1e-3)
    assert torch.equal(found["classifier"](IMAGES), model.classifier(IMAGES))


def test_exact_is_exact_whatever_the_model_was_built_with() -> None:
    found = surrogates(rdc("bpda"))
    assert torch.equal(gradient(found["exact"]), gradient(rdc()))
    assert torch.equal(gradient(found["bpda"]), gradient(rdc("bpda")))


def test_plain_classifier_is_its_own_surrogate() -> None:
    classifier = Smooth()
    assert surrogates(classifier) == {"exact": classifier}
    assert noises(classifier) == []


@pytest.mark.parametrize(
    "model",
    [
        Defense(purifier(config=CONFIG, noise="fresh"), Smooth()),
        nn.Sequential(Defense(purifier(config=CONFIG, noise="fresh"), Smooth()), nn.Identity()),
        SmoothedClassifier(Smooth(), sigma=0.5),
    ],
)
def test_fresh_noise_is_refused_wherever_it_is(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"noise='fresh'.*noise='frozen'"):
        surrogates(model)
    with pytest.raises(ValueError, match=r"noise='fresh'.*noise='frozen'"):
        suite(model, "linf", SIZES["standard"], attack="standard")


def test_noise_is_found_under_any_name() -> None:
    model = Smooth()
    noise, others = Noise("frozen"), [Noise("frozen", stream=1), Noise("frozen", stream=2)]
    model.randomness, model.others = noise, others  # type: ignore[assignment]
    assert noises(nn.Sequential(model, nn.Identity())) == [noise, *others]
