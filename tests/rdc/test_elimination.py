"""Prediction by elimination, on exact mixtures of thirty classes."""

from dataclasses import astuple

import pytest
import torch
from torch import Tensor, nn

from rdc import (
    ClassifierConfig,
    DiffusionClassifier,
    OptimalDenoiser,
    predict_by_elimination,
)
from rdc.images import to_pixels
from tests.support.denoisers import random_denoiser

CLASSES = 30
CONFIG = ClassifierConfig(levels=16, draws=4, sigma_min=0.4, sigma_max=3.0)


class OneClassDenoiser(nn.Module):
    """An exact denoiser of data whose classes are asked for one at a time, and the rows asked.

    It has no unconditional estimate, for which a classifier does not ask.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, optimal: OptimalDenoiser) -> None:
        super().__init__()
        self.optimal = optimal
        self.num_classes = self.rows_per_image = optimal.num_classes
        self.image_shape = optimal.image_shape
        self.rows = 0

    def denoise_class(self, x: Tensor, sigma: Tensor | float, labels: Tensor) -> Tensor:
        self.rows += len(x)
        return self.optimal.denoise_classes(x, sigma)[torch.arange(len(x)), labels]

    def denoise_classes(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self.optimal.denoise_classes(x, sigma)


def mixtures(count: int = 40) -> tuple[DiffusionClassifier, Tensor]:
    """Three Gaussians for each class, and images drawn from them (`count`, 1, 3, 3) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat(3)
    means = torch.rand(len(labels), 1, 3, 3, generator=generator, dtype=torch.float64) * 1.2 - 0.6
    shift = 0.2 * torch.randn(count, 1, 3, 3, generator=generator, dtype=torch.float64)
    denoiser = OneClassDenoiser(OptimalDenoiser(means, labels, bandwidth=0.2))
    classifier = DiffusionClassifier(denoiser, CONFIG)  # type: ignore[arg-type]
    return classifier, to_pixels((means[:count] + shift).clamp(-1, 1))


def test_agrees_with_the_classifier_in_fewer_passes():
    classifier, images = mixtures()
    with torch.no_grad():
        logits = classifier(images)
    classifier.denoiser.rows = 0  # type: ignore[assignment]
    found = predict_by_elimination(classifier, images, alpha=0.01)
    assert (found.labels == logits.argmax(1)).double().mean() >= 0.99
    assert found.passes.sum() == classifier.denoiser.rows  # type: ignore[comparison-overlap]
    assert (found.passes >= 8 * CLASSES).all()
    assert found.passes.double().mean() < 0.5 * 64 * CLASSES
    assert (logits.argmax(1).bincount() > 0).sum() > 10  # of the classes


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.01, 0.5])
def test_predicted_class_has_the_largest_logit(alpha):
    classifier, images = mixtures()
    found = predict_by_elimination(classifier, images, alpha=alpha)
    assert torch.equal(found.logits.argmax(1), found.labels)
    with torch.no_grad():
        full = classifier(images).log_softmax(1)
    # Differences between classes are estimates of the classifier's.
    assert (found.logits.softmax(1) - full.exp()).abs().mean() < 0.01


def test_where_nothing_is_eliminated_the_posterior_is_the_classifiers():
    classifier, images = mixtures(5)
    found = predict_by_elimination(classifier, images, alpha=1e-250)
    assert (found.passes == 64 * CLASSES).all()
    with torch.no_grad():
        full = classifier(images)
    torch.testing.assert_close(found.logits.log_softmax(1), full.log_softmax(1))


@pytest.mark.slow
def test_disagrees_with_probability_alpha_at_most():
    """Images halfway between two classes, under many orders."""
    classifier, images = mixtures(30)
    between = (images + images.roll(1, 0)) / 2
    differ, runs = 0.0, 4
    for seed in range(runs):
        other = DiffusionClassifier(classifier.denoiser, CONFIG, seed=seed)
        with torch.no_grad():
            full = other(between).argmax(1)
        differ += (predict_by_elimination(other, between, alpha=0.1).labels != full).double().mean()
    assert differ / runs <= 0.1


@pytest.mark.parametrize("noise", ["frozen", "fresh"])
def test_does_not_depend_on_the_batch(noise):
    classifier, images = mixtures(6)
    found = []
    for size in (6, 2):
        same = DiffusionClassifier(classifier.denoiser, CONFIG, noise=noise)
        parts = [predict_by_elimination(same, part) for part in images.split(size)]
        found.append([torch.cat(x) for x in zip(*map(astuple, parts), strict=True)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_classifier_itself_stays_as_it_is():
    classifier, images = mixtures(3)
    before = classifier(images)
    predict_by_elimination(classifier, images)
    assert torch.equal(classifier(images), before)


def test_label_conditional_networks():
    """A U-Net: all three classes in float64, and the labels of the classifier itself."""
    classifier = DiffusionClassifier(random_denoiser(conditioning="label"), CONFIG)
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    found = predict_by_elimination(classifier, images)
    with torch.no_grad():
        full = classifier(images)
    assert torch.equal(found.labels, full.argmax(1)) and not found.logits.requires_grad
    assert found.passes.max() <= 64 * 3


def test_refused_with_the_reason():
    classifier, images = mixtures(2)
    with pytest.raises(ValueError, match=r"give images\.detach\(\)"):
        predict_by_elimination(classifier, images.requires_grad_())
    with pytest.raises(ValueError, match=r"alpha=1\.0 must be between 0 and 1"):
        predict_by_elimination(classifier, images.detach(), alpha=1.0)
    with pytest.raises(ValueError, match="8 levels x draws, too few"):
        predict_by_elimination(DiffusionClassifier(classifier.denoiser), images.detach())
    with pytest.raises(TypeError, match="OptimalDenoiser answers for all classes in one pass"):
        optimal = DiffusionClassifier(classifier.denoiser.optimal, CONFIG)  # type: ignore[arg-type]
        predict_by_elimination(optimal, images.detach())
    with pytest.raises(TypeError, match="Identity is no DiffusionClassifier"):
        predict_by_elimination(nn.Identity(), images.detach())  # type: ignore[arg-type]
