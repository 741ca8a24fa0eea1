"""Augmentation: what is moved, by how much, and that the network is told."""

from math import pi

import pytest
import torch
from torch import Tensor

from rdc.networks.unet import UNet
from rdc.networks.unet_config import UNetConfig
from training import augment
from training.augment import diagonal, flip, geometry, rotation, shift
from training.config import GEOMETRY


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 64, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=generator(1))


def test_flip_mirrors_about_half() -> None:
    given = images(400)
    flipped = flip(given, generator())
    same = (flipped == given).flatten(1).all(1)
    mirrored = (flipped == given.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 150 < same.sum() < 250


def test_shift_moves_the_middle_by_at_most_an_eighth() -> None:
    given = images()
    moved = shift(given, generator())
    offsets = set()
    for before, after in zip(given, moved, strict=True):
        found = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(before[:, 4 + dy : 12 + dy, 4 + dx : 12 + dx], after[:, 4:12, 4:12])
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) > 15


def test_geometry_leaves_alone_what_it_says_it_leaves_alone() -> None:
    given = images(200)
    changed, features = geometry(given, 0.12, generator())
    alone = (features == 0).all(1)
    assert features.shape == (200, GEOMETRY) and 40 < alone.sum() < 160
    assert torch.equal(changed[alone], given[alone])
    assert not (changed[~alone] == given[~alone]).flatten(1).all(1).any()
    untouched, nothing = geometry(given, 0.0, generator())
    assert torch.equal(untouched, given) and not nothing.any()


@pytest.mark.parametrize(
    ("name", "draw", "expected"),
    [
        ("mirror", {}, lambda x: x.flip(3)),
        ("quarter turn", {"angle": pi / 2}, lambda x: x.rot90(-1, (2, 3))),
        ("move right by a quarter", {"move": (2.0, 0.0)}, lambda x: x.roll(4, 3)),
        ("move down by a quarter", {"move": (0.0, 2.0)}, lambda x: x.roll(4, 2)),
    ],
)
def test_geometry_does_what_its_features_say(name, draw, expected, monkeypatch) -> None:
    """Exact movements of the pixel grid; borders are left out where pixels come in."""
    given = images(3)
    only(monkeypatch, mirror=name == "mirror", **draw)
    changed, _ = geometry(given, 1.0, generator())
    inside = (..., slice(5, 11), slice(5, 11))
    torch.testing.assert_close(changed[inside], expected(given)[inside], rtol=0, atol=1e-4)


def only(monkeypatch, *, mirror=False, zoom=0.0, angle=0.0, stretch=0.0, move=(0.0, 0.0)) -> None:
    """Replace geometry's draws: the order is mirror, zoom, angle, stretch, axis, two moves."""
    normals = iter([zoom, stretch, *move])
    # Each change has a draw that decides on it (0: it happens); two more are angles (0.5: none).
    uniforms = iter([0.0 if mirror else 1.0, 0.0, (angle / pi + 1) / 2, 0.0, 0.0, 0.5, 0.0, 0.0])
    for function, values in {"randn": normals, "rand": uniforms}.items():
        monkeypatch.setattr(
            augment.torch, function, lambda n, values=values, **_: torch.full((n,), next(values))
        )


@pytest.mark.parametrize(
    ("draw", "across", "down"),
    [({"zoom": 5.0}, 0.5, 0.5), ({"stretch": 5.0}, 0.5, 2.0)],
)
def test_zoom_and_stretch_are_about_the_center(draw, across, down, monkeypatch) -> None:
    """5 is a factor 2^(0.2 * 5) = 2: pixels are looked up at half the distance, or twice."""
    place = (torch.arange(32) - 15.5) / 64
    ramps = torch.stack([place.expand(32, 32), place[:, None].expand(32, 32)])[None]
    only(monkeypatch, **draw)
    changed, _ = geometry(ramps, 1.0, generator())
    inside = (..., slice(10, 22), slice(10, 22))
    expected = ramps * torch.tensor([across, down])[:, None, None]
    torch.testing.assert_close(changed[inside], expected[inside], rtol=0, atol=1e-5)


def test_matrices() -> None:
    angle = torch.tensor([0.3])
    torch.testing.assert_close(rotation(angle) @ rotation(-angle), torch.eye(2)[None])
    torch.testing.assert_close(
        rotation(torch.tensor([pi / 2])), torch.tensor([[[0, -1.0], [1, 0]]])
    )
    assert diagonal(angle, 2 * angle).tolist()[0][1][1] == pytest.approx(0.6)


def test_network_without_features_is_the_network_that_was_told_nothing_happened() -> None:
    network = UNet(UNetConfig(
        image_size=8, channels=1, width=8, width_multipliers=(1,), blocks_per_level=1,
        attention_resolutions=(), augment_features=GEOMETRY,
    ))  # fmt: skip
    for weights in network.parameters():
        torch.nn.init.normal_(weights, 0, 0.1)
    x, c_noise = torch.randn(2, 1, 8, 8), torch.zeros(2)
    silent = network(x, c_noise)
    assert torch.equal(network(x, c_noise, augment=torch.zeros(2, GEOMETRY)), silent)
    assert not torch.equal(network(x, c_noise, augment=torch.ones(2, GEOMETRY)), silent)
