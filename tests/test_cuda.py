"""The same numbers on a GPU as on the CPU; skipped where there is none."""

import pytest
import torch
from oracle import some_images
from test_classifier import SMALL
from test_likelihood import random_denoiser

from rdc import Noise, RobustDiffusionClassifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def logits_and_gradient(device: str, second_order) -> tuple[torch.Tensor, torch.Tensor]:
    """RDC in float64, attention included."""
    model = RobustDiffusionClassifier(random_denoiser(), SMALL, second_order=second_order)
    images = some_images(3, (1, 8, 8)).to(device).requires_grad_()
    logits = model.to(device)(images)
    (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    return logits.detach().cpu(), gradient.cpu()


@pytest.mark.parametrize("second_order", ["double_backward", "central_difference"])
def test_rdc_and_its_gradient_agree_with_the_cpu(second_order) -> None:
    for here, there in zip(
        logits_and_gradient("cuda", second_order),
        logits_and_gradient("cpu", second_order),
        strict=True,
    ):
        torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-9)


def test_draws_are_the_same_on_every_device() -> None:
    images = some_images(2, (1, 8, 8))
    for mode in ("frozen", "fresh"):
        here, there = (Noise(mode).normal(images.to(d), 3) for d in ("cpu", "cuda"))
        assert torch.equal(here, there.cpu())
