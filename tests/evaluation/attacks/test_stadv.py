"""StAdv: what a flow does to an image, its bound, and what it does to a network."""

import pytest
import torch
from torch import Tensor, nn

from evaluation.attacks.eot import Expectation
from evaluation.attacks.stadv import stadv, variation, warp
from rdc.data import load
from rdc.networks.image_classifier import ImageClassifier
from tests.support.oracle import some_images

IMAGES = some_images(4, (3, 6, 8))


@torch.no_grad()
def correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return model(images).argmax(1) == labels


def test_no_flow_is_the_identity() -> None:
    torch.testing.assert_close(warp(IMAGES, torch.zeros(4, 2, 6, 8).double()), IMAGES)


def test_a_flow_of_one_pixel_reads_the_neighbor() -> None:
    flow = torch.zeros(4, 2, 6, 8).double()
    flow[:, 0] = 2 / 8
    torch.testing.assert_close(warp(IMAGES, flow)[..., :-1], IMAGES[..., 1:])
    torch.testing.assert_close(warp(IMAGES, flow)[..., -1], IMAGES[..., -1])
    down = torch.zeros(4, 2, 6, 8).double()
    down[:, 1] = 2 / 6
    torch.testing.assert_close(warp(IMAGES, down)[:, :, :-1], IMAGES[:, :, 1:])


def test_variation_by_hand() -> None:
    """Constant flow has none; a shear of one pixel per row and none per column has half of 1."""
    assert variation(torch.ones(1, 2, 8, 8)).item() < 1e-6
    shear = torch.zeros(1, 2, 8, 8)
    shear[:, 0] = 2 / 8 * torch.arange(8.0)[:, None]
    torch.testing.assert_close(variation(shear), torch.tensor([0.5]), rtol=1e-5, atol=0)


def test_no_pixel_moves_further_than_the_bound() -> None:
    """On a ramp from left to right the change of a pixel says how far it moved."""
    ramp = ((torch.arange(8).double() + 0.5) / 8).expand(1, 1, 8, 8)

    def model(images: torch.Tensor) -> torch.Tensor:
        light = images.mean((1, 2, 3))
        return torch.stack([0.4 - light, light - 0.4], 1)

    attacked = stadv(model, ramp, torch.tensor([1]), eps=0.1)
    moved = (ramp - attacked) * 2  # half the side is 1
    assert moved.max() <= 0.1 + 1e-9
    torch.testing.assert_close(moved[..., 1:-1], torch.full((1, 1, 8, 6), 0.1).double())


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("axis", [2, 3])
def test_a_pixel_moves_toward_either_neighbor(side: int, axis: int) -> None:
    """Only one of them is bright; at no flow the slope is that of the other, or 0."""
    images = torch.zeros(1, 1, 8, 8)
    images.select(axis, 4 + side).fill_(1)

    def model(images: Tensor) -> Tensor:
        light = images.select(axis, 4).mean((1, 2))
        return torch.stack([0.1 - light, light - 0.1], 1)

    attacked = stadv(model, images, torch.tensor([0]), eps=0.1, steps=20)  # 0.1: 0.4 of a pixel
    assert attacked.select(axis, 4).mean() > 0.2


@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_the_scale_of_the_logits_does_not_matter(scale: float) -> None:
    data = load("digits", "test").subset(slice(4))
    model = ImageClassifier.from_pretrained("digits-cnn").double().eval()
    images = data.images.double()
    plain, scaled = (
        stadv(lambda x, s=s: s * model(x), images, data.labels, eps=0.1, steps=5)
        for s in (1, scale)
    )
    torch.testing.assert_close(plain, scaled, rtol=0, atol=1e-6)


def test_a_slope_that_wakes_up_is_followed() -> None:
    """A saturated model's gradients grow by 25 orders of magnitude; float32 has no such squares."""
    data = load("digits", "test").subset(slice(8))
    model, calls = ImageClassifier.from_pretrained("digits-cnn").eval(), []

    def waking(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return model(images) * (1e-25 if len(calls) < 4 else 1)

    attacked = stadv(waking, data.images, data.labels, eps=0.3, steps=30)
    assert correct(model, attacked, data.labels).sum() <= 2


def test_displacements_have_their_own_bound() -> None:
    with pytest.raises(ValueError, match="half the image's side"):
        stadv(lambda x: x, IMAGES, torch.zeros(4).long(), eps=1.5)


@pytest.mark.parametrize("bad", [{"step_size": 0.0}, {"step_size": -0.01}, {"smoothness": -0.1}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        stadv(lambda x: x.flatten(1), IMAGES, torch.zeros(4).long(), **bad)


def test_breaks_a_network_and_smooth_flows_break_less() -> None:
    cnn = ImageClassifier.from_pretrained("digits-cnn")
    data = load("digits", "test").subset(slice(40))
    accuracies = []
    for smoothness in (0.0, 100.0):
        attacked = stadv(
            Expectation(cnn), data.images, data.labels, eps=0.25, steps=40, smoothness=smoothness
        )
        assert attacked.min() >= 0 and attacked.max() <= 1
        accuracies.append(correct(cnn, attacked, data.labels).double().mean())
    assert correct(cnn, data.images, data.labels).double().mean() > 0.95
    assert accuracies[0] < 0.5 and accuracies[1] > accuracies[0]
