"""Likelihood maximization: raise an image's likelihood under the unconditional diffusion model."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from rdc.backward import Room, activation_bytes
from rdc.choices import NoiseMode, require_choice
from rdc.classifier_config import MaximizationConfig
from rdc.config import require_type
from rdc.denoiser import PURIFYING, DenoiserLike, require_parts
from rdc.estimates import unconditional
from rdc.gradients import SecondOrder, by_row, gradient, shallow_copy, straight_through
from rdc.images import check_form, to_pixels, to_x
from rdc.likelihood import chunk_rows
from rdc.noise import Noise

GradientMode = Literal["exact", "bpda"]


class LikelihoodMaximizer(nn.Module):
    """Image in [0, 1] to image in [0, 1] of higher unconditional likelihood (Chen et al. 2024).

    Each step lowers the diffusion loss at one noise level and draw, in the error of the noise,

        min_x' E ||x' - D(x' + sigma n, sigma)||^2 / sigma^2,   ||x' - x||_inf <= budget,

    by m <- momentum m - g / mean|g|, x' <- clip(x' + step_size m) (algorithm 1, whose ||g||_1 is
    our mean|g| times the number of pixels). The released code's Adam minimizes the error in x'
    instead, without 1 / sigma^2.

    `gradient`: "exact" differentiates through every step, second order, and keeps the activations
    of all steps where these fit into `rdc.backward.activation_bytes`, else one image per step;
    "bpda" uses the identity. `second_order` says how "exact" multiplies with the Hessian; see
    `rdc.gradients.gradient`. Weights are constants: gradients flow to the image.
    Raises ValueError for images of another shape than the denoiser's, or that are not floats.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        config: MaximizationConfig | None = None,
        *,
        noise: NoiseMode = "frozen",
        seed: int = 0,
        gradient: GradientMode = "exact",
        second_order: SecondOrder = "double_backward",
    ) -> None:
        super().__init__()
        require_parts(denoiser, PURIFYING)
        require_choice("gradient", gradient, GradientMode)
        require_choice("second_order", second_order, SecondOrder)
        self.denoiser = denoiser
        self.config = config or MaximizationConfig()
        require_type(self.config, MaximizationConfig)
        self.noise = Noise(noise, seed=seed, stream=1)
        self.gradient: GradientMode = gradient
        self.second_order: SecondOrder = second_order

    def with_gradient(self, gradient: GradientMode) -> "LikelihoodMaximizer":
        """A copy with another derivative; the denoiser and the noise are shared."""
        require_choice("gradient", gradient, GradientMode)
        other = shallow_copy(self)
        other.gradient = gradient
        return other

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to the same."""
        x = to_x(check_form(images, self.denoiser.image_shape))
        noise, sigmas = self._draws(x)
        maximize = partial(self._maximize, noise=noise, sigmas=sigmas)
        return to_pixels(straight_through(maximize, x) if self.gradient == "bpda" else maximize(x))

    def loss(self, images: Tensor) -> Tensor:
        """The loss that the steps lower, as a mean over the draws of all of them: (B,)."""
        if not self.config.steps:
            raise ValueError(
                "steps=0: without a step of maximization there is nothing that it lowers"
            )
        x = to_x(check_form(images, self.denoiser.image_shape))
        noise, sigmas = self._draws(x)
        count = noise.shape[1]

        def losses(inputs: Tensor, rows: Tensor) -> Tensor:
            image = rows // count if len(noise) != 1 else 0
            drawn = (tensor[image, rows % count][:, None] for tensor in (noise, sigmas))
            return self._loss(inputs, *drawn)

        source = torch.arange(len(x), device=x.device).repeat_interleave(count)
        return by_row(losses, x, source, chunk=chunk_rows(x)).view(len(x), count).mean(1)

    def _draws(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Noise (B or 1, steps draws, C, H, W) and levels (B or 1, steps draws)."""
        config = self.config
        noise, uniform = self.noise.normal_and_uniform(x, config.steps * config.draws)
        with torch.inference_mode(False):  # whose tensors a denoiser's gradient could not save
            return noise, config.sigma_min + (config.sigma_max - config.sigma_min) * uniform

    def _maximize(self, x: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        steps, draws, budget = self.config.steps, self.config.draws, 2 * self.config.budget
        move = self._adam if self.config.rule == "adam" else self._momentum
        moved, state, room = x, (), Room(activation_bytes(x), steps)
        for number in range(1, steps + 1):
            own = slice((number - 1) * draws, number * draws)
            loss = partial(self._loss, noise=noise[:, own], sigma=sigmas[:, own])
            g = gradient(loss, moved, second_order=self.second_order, room=room)
            change, state = move(g, state, number)
            moved = moved + change
            # The released code (Adam) clips its last image alone; algorithm 1 clips each.
            if self.config.rule == "momentum" or number == steps:
                moved = (x + (moved - x).clamp(-budget, budget)).clamp(-1, 1)
        return moved

    def _loss(self, x: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Loss of each image (B,) over its draws: noise (B or 1, draws, ...), sigma alike."""
        batch, draws = len(x), noise.shape[1]
        noise = noise.expand(batch, *noise.shape[1:]).flatten(0, 1)
        sigma = sigma.expand(batch, draws).flatten()
        clean = x.repeat_interleave(draws, dim=0)
        noised = clean + sigma[:, None, None, None] * noise
        denoised = unconditional(self.denoiser, noised, sigma)
        error = (denoised - clean).square().flatten(1).mean(1)
        if self.config.rule == "momentum":
            error = error / sigma.square()
        return error.view(batch, draws).mean(1)

    def _momentum(self, g: Tensor, state: tuple, number: int) -> tuple[Tensor, tuple]:
        tiny = torch.finfo(g.dtype).tiny
        direction = -g / g.abs().mean((1, 2, 3), keepdim=True).clamp_min(tiny)
        m = direction if not state else self.config.momentum * state[0] + direction
        return 2 * self.config.step_size * m, (m,)

    def _adam(self, g: Tensor, state: tuple, number: int) -> tuple[Tensor, tuple]:
        beta1, beta2, epsilon = 0.9, 0.999, 1e-8
        m, v = state or (torch.zeros_like(g), torch.zeros_like(g))
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g.square()
        root = (v / (1 - beta2**number) + torch.finfo(g.dtype).tiny).sqrt()
        return -2 * self.config.step_size * m / (1 - beta1**number) / (root + epsilon), (m, v)
