"""DiffPure as published, solved by torchsde: to compare with, not to build on.

`DiffusionPurifier` takes the same steps, with exact gradients in bounded memory. This module is for
the published gradient, the adjoint method, whose error `benchmarks/adjoint.py` measures.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from purification.config import END
from purification.processes import exact
from purification.purifier import entered, resized
from rdc import vp
from rdc.choices import NoiseMode, require_choice
from rdc.denoiser import PURIFYING, DenoiserLike, require_parts
from rdc.estimates import unconditional
from rdc.gradients import straight_through
from rdc.images import to_pixels
from rdc.noise import Noise

GradientMode = Literal["adjoint", "exact", "bpda"]


class TorchsdePurifier(nn.Module):
    """Images in [0, 1] to images, nearly in [0, 1]: the reverse VP-SDE by Euler's rule in torchsde.

    An image is noised up to VP time `t_star` in (1e-5, 1] and led back to 1e-5 in steps of `dt`
    (Nie et al., ICML 2022, eq. 6). With `resize`, images of another size than the denoiser's are
    resized for it and back. "frozen" noise is one Brownian path for all images, "fresh" one for
    every image and call; no path depends on the other images of a batch or on a global generator.

    `gradient`: "adjoint" is the published one (Li et al., AISTATS 2020): the state and its
    cotangent are integrated back together, by Milstein's rule as torchsde chooses. The states of
    the forward pass are reconstructed, not kept: an approximation, poor where the score is stiff.
    "exact" differentiates the solver itself, keeping all activations; "bpda" takes the identity.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        t_star: float = 0.1,
        *,
        dt: float = 1e-3,
        noise: NoiseMode = "frozen",
        seed: int = 0,
        gradient: GradientMode = "adjoint",
        resize: bool = False,
    ) -> None:
        super().__init__()
        require_parts(denoiser, PURIFYING)
        if not END < t_star <= 1:
            raise ValueError(f"t_star={t_star!r} must be in ({END}, 1]")
        if not 1e-6 <= dt <= t_star:
            raise ValueError(f"dt={dt!r} must be at least 1e-6 and at most t_star={t_star!r}")
        require_choice("gradient", gradient, GradientMode)
        self.denoiser = denoiser
        self.t_star, self.dt, self.resize = t_star, dt, resize
        self.gradient: GradientMode = gradient
        self.noise = Noise(noise, seed=seed, stream=100)
        self.paths = Noise(noise, seed=seed, stream=101)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to the same shape."""
        x = entered(images, self.denoiser.image_shape, resize=self.resize)
        # 16 bits are too few for times: a step of 1/1000 from 0.9 would not move.
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        noise, seeds = self.noise.normal(x, 1)[:, 0], self.paths.seeds(len(x))
        if self.gradient == "bpda":
            x = straight_through(lambda y: self._follow(y, noise, seeds, images.dtype), x)
        else:
            x = self._follow(x, noise, seeds, images.dtype)
        return resized(to_pixels(x), images.shape[2:]).to(images.dtype)

    def _follow(self, x: Tensor, noise: Tensor, seeds: list[int], precision: torch.dtype) -> Tensor:
        # torchsde and its scipy take a second to import; only this needs them.
        import torchsde

        start = exact(self.t_star)
        noised = vp.scale(start).item() * x + vp.deviation(start).item() * noise
        state = noised.flatten(1)
        # Times have the precision of the state, as torchsde itself would make them.
        times = torch.tensor([1 - self.t_star, 1 - END], dtype=x.dtype, device=x.device)
        paths = BrownianPaths(seeds, state, times, self.dt)
        sde: Any = ReverseSde(self.denoiser, x.shape[1:], precision)
        settings: dict[str, Any] = {"bm": paths, "method": "euler", "dt": self.dt}
        if self.gradient == "adjoint":
            # Without weights in the adjoint state: they are constants.
            states = torchsde.sdeint_adjoint(sde, state, times, adjoint_params=(), **settings)
        else:
            states = torchsde.sdeint(sde, state, times, **settings)
        assert isinstance(states, Tensor)  # what else torchsde can return was not asked for
        return states[-1].unflatten(1, x.shape[1:])


class ReverseSde:
    """The reverse VP-SDE in torchsde's terms: time s = 1 - t, state (B, C*H*W).

    dx = beta (x / 2 + score) ds + sqrt(beta) dw (Song et al. 2021, eq. 6, with VP's rates).
    `precision` is that of the denoiser's weights; the state may have another.
    """

    noise_type, sde_type = "diagonal", "ito"

    def __init__(
        self, denoiser: DenoiserLike, shape: tuple[int, ...], precision: torch.dtype
    ) -> None:
        self.denoiser, self.shape, self.precision = denoiser, shape, precision

    def f(self, s: Tensor, state: Tensor) -> Tensor:
        """The drift (B, C*H*W)."""
        t = 1 - s
        x, scale = state.unflatten(1, self.shape), vp.scale(t)
        denoised = unconditional(self.denoiser, (x / scale).to(self.precision), vp.sigma(t)).to(x)
        score = (scale * denoised - x) / vp.deviation(t).square()
        return (vp.beta(t) * (x / 2 + score)).flatten(1)

    def g(self, s: Tensor, state: Tensor) -> Tensor:
        """The diffusion (B, C*H*W)."""
        return vp.beta(1 - s).sqrt().expand_as(state)


class BrownianPaths:
    """The Brownian motion of a batch: row i follows path i modulo the number of seeds.

    A path is a function of its seed and of the times that it is asked for, in their order.
    """

    levy_area_approximation = "none"

    def __init__(self, seeds: list[int], state: Tensor, times: Tensor, dt: float) -> None:
        import torchsde

        self.state = state
        self.paths = [
            # Drawn in float64 on the CPU, so that every device and precision sees the same.
            torchsde.BrownianInterval(
                float(times[0]), float(times[-1]), size=(1, state.shape[1]), dtype=torch.float64,
                device="cpu", entropy=seed, dt=dt,
            )
            for seed in seeds
        ]  # fmt: skip

    @property
    def shape(self) -> torch.Size:
        return self.state.shape

    def __call__(self, ta: Tensor, tb: Tensor, **_: bool) -> Tensor:
        """The increments from ta to tb (B, C*H*W)."""
        if not self.paths:  # fresh noise of no image
            return torch.zeros_like(self.state)
        drawn: Any = [path(ta, tb) for path in self.paths]
        return torch.cat(drawn).to(self.state).repeat(len(self.state) // len(drawn), 1)
