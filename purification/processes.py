"""The ways back from noise to an image: tables over integer steps, and one rule for each.

All of them act on a VP state x = scale * (x0 + sigma * noise) and see the network only through its
estimate of x0, so that every process runs on every denoiser. Times and coefficients are computed
once, in float64, over integers: no step derives its time from a float (DiffPure's own code visits
some discrete times twice and others never that way).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from purification.config import END
from rdc import vp
from rdc.sampling import churned, edm_sigmas, heun_step


@dataclass(frozen=True)
class Point:
    """A time of the process: x = scale * (x0 + sigma * noise), `deviation` = scale * sigma."""

    t: float
    scale: float
    sigma: float

    @property
    def deviation(self) -> float:
        return self.scale * self.sigma

    @classmethod
    def at(cls, t: float) -> "Point":
        """The continuous VP process at time t in [0, 1]."""
        time = exact(t)
        return cls(t, vp.scale(time).item(), vp.sigma(time).item())

    @classmethod
    def of_index(cls, index: int) -> "Point":
        """DDPM's process after index + 1 discrete steps; index -1 is the image."""
        kept = (1 - vp.betas()[: index + 1]).prod().item()
        return cls((index + 1) / vp.TIMES, kept**0.5, (1 / kept - 1) ** 0.5)

    @classmethod
    def of_sigma(cls, sigma: float) -> "Point":
        """The continuous process at noise `sigma` in units of the unscaled image."""
        return cls.at(vp.time(exact(sigma)).item())

    def score(self, x: Tensor, denoised: Tensor) -> Tensor:
        """grad log p_t(x), by Tweedie's formula."""
        return (self.scale * denoised - x) / self.deviation**2

    def eps(self, x: Tensor, denoised: Tensor) -> Tensor:
        """The noise in x, as a noise-predicting network would name it."""
        return (x - self.scale * denoised) / self.deviation


def exact(value: float) -> Tensor:
    """A float64 scalar on the CPU, whatever torch's default device is."""
    return torch.tensor(value, dtype=torch.float64, device="cpu")


Denoised = Callable[[Tensor, Point], Tensor]
"""state x and its point -> E[x0 | x], guided where the method guides"""


class Process(ABC):
    """`points` from the noisiest to the cleanest; `step` goes from points[k] to points[k + 1].

    `draws` says whether a step uses its unit noise (B, C, H, W).
    """

    draws = True
    points: list[Point]

    def __len__(self) -> int:
        return len(self.points) - 1

    @abstractmethod
    def step(self, k: int, x: Tensor, noise: Tensor, denoised: Denoised) -> Tensor:
        """The state at points[k + 1], from x at points[k] and one unit draw (B, C, H, W)."""


class Sde(Process):
    """Reverse VP-SDE by Euler and Maruyama (Nie et al. 2022, eq. 6; Song et al. 2021, eq. 6).

    dx = [-beta x / 2 - beta score] dt + sqrt(beta) dw, backwards from t_star to 1e-5 in `steps`
    equal steps of DiffPure's grid: all of the same length but the last, which ends at 1e-5.
    """

    def __init__(self, t_star: float, steps: int) -> None:
        times = [t_star * (steps - k) / steps for k in range(steps)] + [END]
        self.points = [Point.at(t) for t in times]

    def _rates(self, k: int) -> tuple[float, float]:
        here, after = self.points[k].t, self.points[k + 1].t
        return vp.beta(exact(here)).item(), here - after

    def step(self, k: int, x: Tensor, noise: Tensor, denoised: Denoised) -> Tensor:
        beta, dt = self._rates(k)
        score = self.points[k].score(x, denoised(x, self.points[k]))
        return x + (x / 2 + score) * (beta * dt) + noise * (beta * dt) ** 0.5


class Ode(Sde):
    """Probability-flow ODE dx/dt = -beta (x + score) / 2 by Euler (Song et al. 2021, eq. 13)."""

    draws = False

    def step(self, k: int, x: Tensor, noise: Tensor, denoised: Denoised) -> Tensor:
        beta, dt = self._rates(k)
        score = self.points[k].score(x, denoised(x, self.points[k]))
        return x + (x + score) * (beta * dt / 2)


class Ddpm(Process):
    """Ancestral sampling over discrete times (Ho et al. 2020, algorithm 2, eq. 7).

    From time index `t_star` * 1000 - 1 down in `steps` respaced steps. `variance`: "small" is
    beta-tilde, the posterior's; "large" is beta, GDMP's on CIFAR-10. `clip` keeps x0 in [-1, 1].
    """

    def __init__(
        self,
        t_star: float,
        steps: int,
        *,
        variance: Literal["small", "large"] = "small",
        clip: bool = False,
    ) -> None:
        self.points = discrete_points(t_star, steps)
        self.variance, self.clip = variance, clip

    def coefficients(self, k: int) -> tuple[float, float, float]:
        """mean = a x0 + b x, and the deviation of the step."""
        here, after = self.points[k], self.points[k + 1]
        alpha = (here.scale / after.scale) ** 2
        gap = here.deviation**2
        a = after.scale * (1 - alpha) / gap
        b = alpha**0.5 * after.deviation**2 / gap
        large = self.variance == "large" and after.sigma > 0
        variance = 1 - alpha if large else (1 - alpha) * after.deviation**2 / gap
        return a, b, variance**0.5

    def step(self, k: int, x: Tensor, noise: Tensor, denoised: Denoised) -> Tensor:
        a, b, deviation = self.coefficients(k)
        x0 = denoised(x, self.points[k])
        if self.clip:
            x0 = x0.clamp(-1, 1)
        return a * x0 + b * x + deviation * noise


class Ddim(Process):
    """DDIM over discrete times (Song et al., ICLR 2021, eq. 12): eta 0 draws nothing, 1 is DDPM."""

    def __init__(self, t_star: float, steps: int, *, eta: float = 0.0) -> None:
        self.points = discrete_points(t_star, steps)
        self.eta = eta
        self.draws = eta > 0

    def step(self, k: int, x: Tensor, noise: Tensor, denoised: Denoised) -> Tensor:
        here, after = self.points[k], self.points[k + 1]
        alpha = (here.scale / after.scale) ** 2
        fresh = self.eta * (after.deviation / here.deviation) * (1 - alpha) ** 0.5
        x0 = denoised(x, here)
        kept = max(after.deviation**2 - fresh**2, 0.0) ** 0.5
        x = after.scale * x0 + kept * here.eps(x, x0)
        return x + fresh * noise if self.draws else x


class Heun(Process):
    """EDM's second-order sampler on the probability flow (Karras et al. 2022, algorithms 1 and 2).

    `churn` is S_churn: each step first raises the noise a little with a fresh draw. Two estimates
    per step, one for the last.
    """

    def __init__(self, t_star: float, steps: int, *, churn: float = 0.0) -> None:
        sigmas = edm_sigmas(steps, sigma_max=Point.at(t_star).sigma)
        self.points = [Point.of_sigma(sigma) for sigma in sigmas.tolist()]
        self.amount = min(churn / steps, 2**0.5 - 1)
        self.draws = churn > 0

    def step(self, k: int, x: Tensor, noise: Tensor, denoised: Denoised) -> Tensor:
        here, after = self.points[k], self.points[k + 1]
        unscaled, sigma = x / here.scale, here.sigma
        if self.draws:
            unscaled, sigma = churned(unscaled, sigma, self.amount, noise)

        def denoise(y: Tensor, level: float) -> Tensor:
            point = Point.of_sigma(level)
            return denoised(y * point.scale, point)

        return after.scale * heun_step(denoise, unscaled, sigma, after.sigma)


def discrete_points(t_star: float, steps: int) -> list[Point]:
    """Time indices from t_star * 1000 - 1 to 0, evenly in `steps`, and the image."""
    first = round(t_star * vp.TIMES) - 1
    indices = torch.linspace(first, 0, steps, dtype=torch.float64, device="cpu").round().int()
    return [Point.of_index(index) for index in (*indices.tolist(), -1)]
