"""DiffPure and its guided relatives: noise an image, then follow a diffusion model back."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import ceil, isfinite
from typing import Literal, SupportsFloat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purification.config import PurifierConfig
from purification.guidance.base import Guidance, Moment
from purification.processes import Point, Process
from rdc.choices import NoiseMode, require_choice
from rdc.config import require_type
from rdc.denoiser import PURIFYING, DenoiserLike, require_parts
from rdc.estimates import unconditional
from rdc.gradients import State, chain, shallow_copy, straight_through
from rdc.images import check_form, to_pixels, to_x
from rdc.noise import Noise

GradientMode = Literal["exact", "bpda", "detached_guidance", "surrogate"]


class DiffusionPurifier(nn.Module):
    """Images in [0, 1] to images, nearly in [0, 1] (not clamped: a clamp would hide gradients).

    Without guidance this is DiffPure (Nie et al., ICML 2022). `guidance` holds pairs of a weight
    and a term; their increments are added to the score, and a term of weight 0 is left out.

    `noise` "frozen" makes it a deterministic function of its image, "fresh" draws for every call;
    forward noise, reverse noise and each term have own streams: a term's draws change nothing else.
    Where images require gradients, these flow to the images alone, and weights are constants.
    `gradient`: "exact" is the true derivative, every step recomputed with its own draws, in memory
    that grows by one state per step. The named approximations of the literature: "bpda" takes the
    identity, "detached_guidance" leaves out how G depends on the image, "surrogate" differentiates
    a process of `config.surrogate_steps` steps.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        config: PurifierConfig | None = None,
        *,
        guidance: Sequence[tuple[float, Guidance]] = (),
        noise: NoiseMode = "frozen",
        seed: int = 0,
        gradient: GradientMode = "exact",
    ) -> None:
        super().__init__()
        require_parts(denoiser, PURIFYING)
        _require_fit(denoiser, guidance)
        self.denoiser = denoiser
        self.config = config or PurifierConfig()
        require_type(self.config, PurifierConfig)
        require_choice("gradient", gradient, GradientMode)
        self.gradient: GradientMode = gradient
        self.weights = [weight for weight, _ in guidance if weight != 0]
        self.terms = nn.ModuleList(term for weight, term in guidance if weight != 0)
        self.process = self.config.build()
        self.noise = Noise(noise, seed=seed, stream=2)
        self.own_noise = [Noise(noise, seed=seed, stream=3 + i) for i in range(len(self.terms))]

    @property
    def batch_coupled(self) -> bool:
        """True if a purified image depends on the other images of its batch."""
        return any(term.batch_coupled for term in self.terms)

    def with_gradient(self, gradient: GradientMode) -> "DiffusionPurifier":
        """A copy with another derivative; the networks and the noise are shared."""
        require_choice("gradient", gradient, GradientMode)
        other = shallow_copy(self)
        other.gradient = gradient
        return other

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to the same shape."""
        x = self._enter(images)
        draws = self._draw(x)
        purified = self._purify(x, draws)
        if not torch.isfinite(purified).all():
            raise FloatingPointError(self._where_it_broke(x, draws))
        return resized(to_pixels(purified), images.shape[2:])

    def trajectory(self, images: Tensor) -> list[Tensor]:
        """All states of a purification (B, C, H, W) on the scale of [-1, 1]: the given images, and
        for every round the noised ones and those after each step."""
        x = self._enter(images)
        return self._states(x, self._draw(x))

    def _enter(self, images: Tensor) -> Tensor:
        return entered(images, self.denoiser.image_shape, resize=self.config.resize)

    def _draw(self, x: Tensor) -> "_Draws":
        """All draws of one purification, before its first step."""
        rounds, steps = self.config.rounds, self.config.rounds * len(self.process)
        drawn = self.noise.normal(x, rounds + (steps if self.process.draws else 0))
        own = [
            noise.normal(x, steps) if term.draws else None
            for term, noise in zip(self._guides(), self.own_noise, strict=True)
        ]
        return _Draws(drawn[:, :rounds], drawn[:, rounds:], own)

    def _purify(self, x: Tensor, draws: "_Draws") -> Tensor:
        if self.gradient == "bpda":
            return straight_through(lambda y: self._follow(y, draws, self.process), x)
        if self.gradient == "surrogate" and torch.is_grad_enabled() and x.requires_grad:
            steps = min(self.config.surrogate_steps, len(self.process))
            coarse = self._follow(x, draws, replace(self.config, steps=steps).build())
            value = self._follow(x.detach(), draws, self.process)
            return value + (coarse - coarse.detach())
        return self._follow(x, draws, self.process)

    def _follow(self, x: Tensor, draws: "_Draws", process: Process) -> Tensor:
        """The end of all rounds; its backward pass keeps one state per step."""
        walk = _Walk(self, process, draws, x)
        return chain(walk.step, len(walk), walk.state, walk.context)[0]

    def _states(self, x: Tensor, draws: "_Draws") -> list[Tensor]:
        walk = _Walk(self, self.process, draws, x)
        states = [walk.state]
        for k in range(len(walk)):
            states.append(walk.step(k, states[-1], walk.context))
        return [state[0] for state in states]

    def _where_it_broke(self, x: Tensor, draws: "_Draws") -> str:
        if not torch.isfinite(x).all():
            return "images: NaN or infinity in the pixels; give numbers in [0, 1]"
        with torch.no_grad():
            states = self._states(x, draws)
        first = next((k for k, y in enumerate(states) if not torch.isfinite(y).all()), len(states))
        number, k = divmod(first - 1, len(self.process) + 1)
        t = self.process.points[min(k, len(self.process))].t
        return (
            f"NaN or infinity in the state after step {k} of round {number + 1} (t = {t:.4g}); the "
            "denoiser or a guidance term broke there: lower the guidance weight, or check the "
            "weights and the precision"
        )

    def _guides(self) -> list[Guidance]:
        return list(self.terms)  # type: ignore[arg-type]


def _require_fit(denoiser: DenoiserLike, guidance: Sequence[tuple[float, Guidance]]) -> None:
    """Compare the guides' image shapes, as far as they name them, with the denoiser's."""
    for pair in guidance:
        weight, term = pair if isinstance(pair, tuple | list) and len(pair) == 2 else (None, None)
        if not (isinstance(weight, SupportsFloat) and isinstance(term, Guidance)):
            raise TypeError(
                f"guidance: {pair!r} must be a pair of a weight and a term, as in "
                "guidance=[(5.0, GDMP())]"
            )
        if not isfinite(weight):
            raise ValueError(
                f"guidance: the weight {weight} of {type(term).__name__} is not finite"
            )
        for network in term.children():
            shape = getattr(network, "image_shape", None)
            if shape is not None and tuple(shape) != tuple(denoiser.image_shape):
                raise ValueError(
                    f"guidance: the network of {type(term).__name__} takes images {tuple(shape)}, "
                    f"but the denoiser takes {tuple(denoiser.image_shape)} (channels, height, "
                    "width); give a network for the denoiser's images"
                )


@dataclass(frozen=True)
class _Draws:
    """Unit draws (B or 1, count, C, H, W): forward one per round, the others one per step."""

    forward: Tensor
    reverse: Tensor
    own: list[Tensor | None]


class _Walk:
    """The steps of all rounds as a chain: its first `state`, its `context`, and `step`.

    A round is one step that noises the image and one for each step of the process. The state is
    the image, then what the terms remember; the context is what they know.
    """

    def __init__(self, purifier: DiffusionPurifier, process: Process, draws: _Draws, x: Tensor):
        self.purifier, self.process, self.draws = purifier, process, draws
        self.terms = purifier._guides()
        contexts = [term.start(x) for term in self.terms]
        memories = [term.begin(x) for term in self.terms]
        self.sizes = [len(context) for context in contexts], [len(memory) for memory in memories]
        self.state: State = (x, *flat(memories))
        self.context: State = flat(contexts)

    def __len__(self) -> int:
        return self.purifier.config.rounds * (len(self.process) + 1)

    def step(self, k: int, state: State, context: State) -> State:
        number, k = divmod(k, len(self.process) + 1)
        if k == 0:
            return self._noise(number, state[0])
        k -= 1
        x, contexts = state[0], split(context, self.sizes[0])
        memories = split(state[1:], self.sizes[1])
        point = self.process.points[k]
        position = self._position(k)
        own = [None if draws is None else self._drawn(draws, number, k) for draws in self.draws.own]
        moments = [Moment(position, point, noise) for noise in own]
        known = list(zip(self.terms, moments, contexts, memories, strict=True))

        def denoised(y: Tensor, at: Point) -> Tensor:
            estimate = unconditional(self.purifier.denoiser, y / at.scale, at.sigma)
            if not known:
                return estimate
            # x0' = x0 + (deviation^2 / scale) G is score' = score + G, by Tweedie's formula.
            return estimate + at.deviation**2 / at.scale * self._increment(y, at, known)

        noise = self._drawn(self.draws.reverse, number, k)
        after = self.process.step(k, x, noise, denoised)
        memories = [term.advance(x, moment, c, m) for term, moment, c, m in known]
        return (after, *flat(memories))

    def _position(self, k: int) -> int:
        """The last of DiffPure's steps that step k takes, or takes a part of."""
        return ceil((k + 1) * self.purifier.config.times / len(self.process)) - 1

    def _noise(self, number: int, x: Tensor) -> State:
        start = self.process.points[0]
        if self.purifier.config.forward_noise:
            x = start.scale * x + start.deviation * self.draws.forward[:, number]
        return (x, *flat([term.begin(x) for term in self.terms]))

    def _increment(self, x: Tensor, at: Point, known: list) -> Tensor:
        """The weighted sum of all terms' G."""
        weights, detached = self.purifier.weights, self.purifier.gradient == "detached_guidance"
        with torch.no_grad() if detached else nullcontext():
            x = x.detach() if detached else x
            total = torch.zeros_like(x)
            for weight, (term, moment, context, memory) in zip(weights, known, strict=True):
                moment = replace(moment, point=at)
                total = total + weight * term.increment(x, moment, context, memory)
        return total

    def _drawn(self, draws: Tensor, number: int, k: int) -> Tensor:
        """The draw of a step; a shorter process takes those of the times that it visits."""
        steps = len(self.purifier.process)
        row = number * steps + k * steps // len(self.process)
        return draws[:, row] if draws.shape[1] else draws[:, :0].sum(1)


def flat(groups: Sequence[State]) -> State:
    return tuple(tensor for group in groups for tensor in group)


def split(tensors: State, sizes: list[int]) -> list[State]:
    """The groups whose `flat` is `tensors`."""
    groups, start = [], 0
    for size in sizes:
        groups.append(tensors[start : start + size])
        start += size
    return groups


def entered(images: Tensor, shape: tuple[int, int, int], *, resize: bool) -> Tensor:
    """Images (B, C, H, W) in [0, 1] as the denoiser takes them: (B, *shape) in [-1, 1].

    Raises:
        ValueError: other channels, no floats, or another size without `resize`.
    """
    channels, *size = shape
    if not resize and images.ndim == 4 and list(images.shape[2:]) != size:
        raise ValueError(
            f"images: {images.shape[2]}x{images.shape[3]} pixels, but the denoiser takes "
            f"{size[0]}x{size[1]}; give resize=True to resize them for it and back, or a denoiser "
            "for their size"
        )
    height, width = images.shape[2:] if images.ndim == 4 else size
    return to_x(resized(check_form(images, (channels, height, width)), size))


def resized(images: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, without antialiasing, as DiffPure resizes ImageNet's 224 pixels to 256."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return F.interpolate(images, tuple(size), mode="bilinear", align_corners=False)
