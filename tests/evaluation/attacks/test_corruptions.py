"""Common corruptions by hand, and by strength."""

import pytest
import torch

from evaluation.attacks.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from rdc.data import load

COLOR = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
DIGITS = load("digits", "test").images[:3]
every = pytest.mark.parametrize("kind", CORRUPTIONS)


@every
@pytest.mark.parametrize("images", [COLOR, DIGITS])
def test_each_strength_changes_more_than_the_one_before(kind, images) -> None:
    """JPEG is lossless on no image; blur of 0.4 pixels hardly shows."""
    found = [corrupt(images, kind=kind, strength=s) for s in range(1, 6)]
    changes = [(changed - images).square().mean().item() for changed in found]
    assert all(changed.min() >= 0 and changed.max() <= 1 for changed in found)
    assert 0 < changes[0] < changes[2] < changes[4]


@every
def test_an_image_is_corrupted_alike_alone_and_in_a_batch(kind) -> None:
    together = corrupt(COLOR, kind=kind, strength=3, seeds=[5, 6, 7])
    alone = corrupt(COLOR[1:2], kind=kind, strength=3, seeds=[6])
    torch.testing.assert_close(alone, together[1:2])
    assert torch.equal(together, corrupt(COLOR, kind=kind, strength=3, seeds=[5, 6, 7]))


def test_by_hand() -> None:
    image = torch.tensor([0.2, 0.4, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4).clone()
    image[:, :, 0, 0] = 1.0
    bright = corrupt(image, kind="brightness", strength=4)  # 0.4 becomes 0.6
    torch.testing.assert_close(bright[0, :, 1, 1], torch.tensor([0.3, 0.6, 0.0]))
    flat = corrupt(image, kind="contrast", strength=5)
    mean = image.mean((2, 3), keepdim=True)
    torch.testing.assert_close(flat, mean + 0.15 * (image - mean))
    gray = torch.full((2, 1, 64, 64), 0.5)
    noisy = corrupt(gray, kind="noise", strength=3)
    assert abs(noisy.std().item() - STRENGTHS["noise"][2]) < 0.002
    assert not torch.equal(noisy[0], noisy[1])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"kind": "fog", "strength": 1}, "kind='fog'"),
        ({"kind": "jpeg", "strength": 6}, "strength=6"),
    ],
)
def test_unknown_corruptions_are_refused(bad: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(COLOR, **bad)


@every
@pytest.mark.parametrize(
    ("images", "seeds", "message"),
    [
        ((255 * COLOR).to(torch.uint8), None, "images: .* floating point"),
        (255 * COLOR, None, r"images: .* must lie in \[0, 1\]"),
        (COLOR[0], None, "images: shape"),
        (COLOR, [0], "seeds: 1 of them for 3 images"),
    ],
)
def test_images_and_seeds_are_those_of_attacks(kind, images, seeds, message: str) -> None:
    """Bytes would be clipped to black and white, and a single seed would serve all images."""
    with pytest.raises(ValueError, match=message):
        corrupt(images, kind=kind, strength=3, seeds=seeds)
