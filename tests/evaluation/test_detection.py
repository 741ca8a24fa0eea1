"""The likelihood score against its closed form, and as a detector of images that are not data."""

from types import SimpleNamespace

import pytest
import torch

from evaluation import evaluate
from evaluation.detection import STREAM, denoiser_of, log_likelihoods
from evaluation.results.abstention import auroc
from rdc import LikelihoodMaximizer, RobustDiffusionClassifier
from rdc.levels import Levels
from rdc.noise import Noise
from tests.support.oracle import MixtureDenoiser
from tests.support.tiny import tiny_rdc


def test_score_of_a_gaussian() -> None:
    """With D = m + b^2 / (b^2 + s^2) (x + s n - m) every error has a closed form."""
    mean, std = 0.2 * torch.ones(1, 1, 1, 2, 2, dtype=torch.float64), 0.3
    images = torch.rand(5, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    levels = Levels.build(count=8, low=0.1, high=3.0, spacing="log", weighting="elbo")
    noise = Noise("frozen", stream=STREAM).normal(images, 8)
    expected = torch.zeros(5, dtype=torch.float64)
    for t, (sigma, weight) in enumerate(zip(levels.sigmas, levels.weights, strict=True)):
        shrink = std**2 / (std**2 + sigma**2)
        error = (1 - shrink) * (2 * images - 1 - mean[0]) - shrink * sigma * noise[:, t]
        expected -= weight * error.square().flatten(1).sum(1)
    found = log_likelihoods(MixtureDenoiser(mean, std), images)
    assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-9)


def test_data_are_likelier_than_changed_data() -> None:
    """For a narrow Gaussian in 64 dimensions a change of four deviations is always seen."""
    generator = torch.Generator().manual_seed(0)
    denoiser = MixtureDenoiser(torch.zeros(1, 1, 1, 8, 8, dtype=torch.float64), 0.1)
    noise = torch.randn(40, 1, 8, 8, dtype=torch.float64, generator=generator)
    data = (1 + 0.1 * noise) / 2
    change = 0.2 * torch.randn(40, 1, 8, 8, dtype=torch.float64, generator=generator).sign()
    scores = [log_likelihoods(denoiser, images).tolist() for images in (data, data + change)]
    assert auroc(*scores) > 0.99
    again = log_likelihoods(denoiser, data, max_rows=7)
    assert again.tolist() == pytest.approx(scores[0], rel=1e-12)


def test_the_denoiser_of_a_defense_is_found() -> None:
    model = tiny_rdc()
    assert isinstance(model, RobustDiffusionClassifier)
    assert denoiser_of(model) is denoiser_of(model.classifier) is model.denoiser
    assert denoiser_of(torch.nn.Flatten()) is None


def test_image_shape_and_denoise_suffice_for_a_score() -> None:
    """A denoiser of one's own may know no classes."""
    whole = tiny_rdc().denoiser
    part = SimpleNamespace(image_shape=whole.image_shape, denoise=whole.denoise)
    model = LikelihoodMaximizer(part)  # type: ignore[arg-type]
    assert denoiser_of(model) is part


def test_records_hold_the_likelihood_of_the_image_that_was_answered() -> None:
    model, generator = tiny_rdc(), torch.Generator().manual_seed(0)
    images = torch.rand(3, *model.denoiser.image_shape, generator=generator)
    labels = model(images).argmax(1)
    found = evaluate(model, images, labels, eps=0.1, only=["random"], queries=20, checks=False)
    clean = [record.log_likelihood for record in found.records if not record.eps]
    assert clean == pytest.approx(log_likelihoods(model.denoiser, images).tolist(), abs=1e-4)
    changed = [record.log_likelihood for record in found.records if record.linf]
    assert changed and not {None, *clean} & {*changed}


def test_a_model_without_a_denoiser_has_no_likelihoods() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    images, labels = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    found = evaluate(model, images, labels, eps=0.1, only=["random"], queries=20, checks=False)
    assert {record.log_likelihood for record in found.records} == {None}
