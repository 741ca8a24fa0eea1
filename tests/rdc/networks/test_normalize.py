"""Normalization in front of a user's network."""

from math import inf, nan

import pytest
import torch
from torch import nn

from rdc import Normalize
from tests.support.oracle import some_images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_channels_are_normalized() -> None:
    images = some_images(2, (3, 4, 4), dtype=torch.float32)
    found = Normalize(MEAN, STD)(images)
    for channel in range(3):
        expected = (images[:, channel] - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(found[:, channel], expected)
    assert torch.equal(Normalize(0.5, 0.25)(images), (images - 0.5) / 0.25)
    assert torch.equal(Normalize(0.5, STD)(images), Normalize((0.5, 0.5, 0.5), STD)(images))


def test_it_stands_in_front_of_a_network_and_follows_its_precision() -> None:
    linear = nn.Linear(48, 5)
    network = nn.Sequential(nn.Flatten(), linear)
    model = nn.Sequential(Normalize(MEAN, STD), network).double()
    assert list(model.state_dict()) == ["1.1.weight", "1.1.bias"]
    images = some_images(2, (3, 4, 4)).requires_grad_()
    logits = model(images)
    assert logits.shape == (2, 5) and logits.dtype == torch.float64
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    per_pixel = linear.weight.sum(0).unflatten(0, (3, 4, 4))
    scales = torch.tensor(STD).double().view(3, 1, 1)  # rounded to float32, as the module keeps it
    torch.testing.assert_close(gradient[0], per_pixel / scales)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (MEAN, 0.0, r"std=0\.0 must be positive"),
        (MEAN, (0.2, -0.2, 0.2), r"std=\(0\.2, -0\.2, 0\.2\) must be positive"),
        (MEAN, inf, "std=inf must be positive"),
        (nan, 0.5, "mean=nan must be finite"),
        ((), 0.5, r"mean=\(\) must be finite"),
        (MEAN, (0.2, 0.2), r"mean=\(.*\) and std=\(0\.2, 0\.2\) must have as many"),
    ],
)
def test_bad_constants_are_refused(mean, std, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Normalize(mean, std)


def test_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images: shape \(2, 1, 4, 4\), but .* 3 channels"):
        Normalize(MEAN, STD)(some_images(2, (1, 4, 4)))


def test_bytes_are_refused() -> None:
    """Their 255 would stand for 1.0, and be taken for 255.0."""
    with pytest.raises(ValueError, match=r"dtype torch.uint8; give float images"):
        Normalize(0.5, 0.5)(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
