"""Gaussian data with any covariance: its denoiser, and what a purifier must make of an image.

A purifier of Gaussian data is an affine map of the image and of its draws, so that its law follows
from the map, which is found by pushing unit vectors through it: no Monte Carlo.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from purification import DiffusionPurifier
from purification.processes import Point
from rdc.images import to_pixels, to_x

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.20, 0.06], [0.06, 0.05]], dtype=torch.float64)
SHAPE = (1, 1, 2)
X_IN = torch.tensor([0.7, 0.4], dtype=torch.float64)


class GaussianDenoiser:
    """N(mean, covariance) pixels, mean (D,), covariance (D, D); counts its `calls`."""

    rows_per_image, num_classes = 1, 1
    class_names: tuple[str, ...] = ()

    def __init__(
        self, mean: Tensor = MEAN, covariance: Tensor = COVARIANCE, shape: Any = SHAPE
    ) -> None:
        self.mean, self.covariance, self.image_shape = mean, covariance, shape
        self.calls = 0

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        self.calls += 1
        noise = torch.as_tensor(sigma, dtype=x.dtype).square() * torch.eye(len(self.mean)).to(x)
        gain = torch.linalg.solve(self.covariance + noise, self.covariance).T
        return (self.mean + (x.flatten(1) - self.mean) @ gain.T).view_as(x)

    def denoise_classes(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self.denoise(x, sigma)[:, None]


class Given:
    """Stands in for `Noise`: its draws are given, (B, count, C, H, W)."""

    def __init__(self, draws: Tensor) -> None:
        self.draws = draws

    def normal(self, like: Tensor, count: int) -> Tensor:
        assert self.draws.shape == (len(like), count, *like.shape[1:])
        return self.draws


@dataclass(frozen=True)
class Law:
    """x = offset + of_image x_in + N(0, covariance), on the scale of [-1, 1]."""

    offset: Tensor
    of_image: Tensor
    covariance: Tensor

    def mean(self, x_in: Tensor = X_IN) -> Tensor:
        return self.offset + self.of_image @ x_in

    def error(self, other: "Law") -> float:
        """The largest difference of their means at X_IN, their slopes and their covariances."""
        differences = (
            self.mean() - other.mean(),
            self.of_image - other.of_image,
            self.covariance - other.covariance,
        )
        return max(float(difference.abs().max()) for difference in differences)


def law(purifier: DiffusionPurifier) -> Law:
    """The law of what an affine purifier makes of an image, exactly."""
    shape = purifier.denoiser.image_shape
    steps = purifier.config.rounds * len(purifier.process)
    counts = [purifier.config.rounds + (steps if purifier.process.draws else 0)]
    counts += [steps if term.draws else 0 for term in purifier._guides()]
    size = prod(shape)
    total = size * (1 + sum(counts))
    rows = torch.cat([torch.zeros(1, total), torch.eye(total)]).double()
    x, *draws = rows.split([size, *(size * count for count in counts)], 1)
    given: list[Any] = [
        Given(part.reshape(len(rows), count, *shape))
        for part, count in zip(draws, counts, strict=True)
    ]
    purifier.noise, purifier.own_noise = given[0], given[1:]
    with torch.no_grad():
        reached = to_x(purifier(to_pixels(x.view(-1, *shape)))).flatten(1)
    columns = (reached[1:] - reached[0]).T
    of_draws = columns[:, size:]
    return Law(reached[0], columns[:, :size], of_draws @ of_draws.T)


def state_moments(point: Point) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the VP states at a time."""
    noise = point.deviation**2 * torch.eye(len(MEAN)).double()
    return point.scale * MEAN, point.scale**2 * COVARIANCE + noise


def of_input(far: Point, offset: Tensor, gain: Tensor, covariance: Tensor) -> Law:
    """The law given x_in of offset + gain x_far + N(0, covariance), x_far its noised state."""
    return Law(offset, far.scale * gain, far.deviation**2 * gain @ gain.T + covariance)


def posterior_law(far: Point, near: Point) -> Law:
    """Law of the reverse SDE's result: the forward process's own p(x_near | x_far)."""
    mean, covariance = state_moments(near)
    ratio = far.scale / near.scale
    gain = torch.linalg.solve(state_moments(far)[1], ratio * covariance).T
    rest = covariance - ratio * gain @ covariance
    return of_input(far, mean - ratio * gain @ mean, gain, rest)


def flow_law(far: Point, near: Point) -> Law:
    """Law of the probability flow's result: the flow maps the law of x_far to that of x_near."""
    (a, start), (b, end) = state_moments(far), state_moments(near)
    _, basis = torch.linalg.eigh(COVARIANCE)  # of both covariances
    ratio = (basis.T @ end @ basis).diagonal() / (basis.T @ start @ basis).diagonal()
    gain = basis @ ratio.sqrt().diag() @ basis.T
    return of_input(far, b - gain @ a, gain, torch.zeros_like(COVARIANCE))


def jacobian(purifier: DiffusionPurifier, images: Tensor) -> Tensor:
    """d purified / d image (D, D) of one image (1, C, H, W)."""
    size = images.numel()
    found = torch.autograd.functional.jacobian(purifier, images)
    assert isinstance(found, Tensor)
    return found.reshape(size, size)
