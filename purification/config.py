"""Settings of a diffusion purifier."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rdc.config import require, require_read

if TYPE_CHECKING:
    from purification.processes import Process

ProcessName = Literal["sde", "ode", "ddpm", "ddim", "heun"]

READ_BY: dict[str, tuple[ProcessName]] = {
    "eta": ("ddim",), "churn": ("heun",), "variance": ("ddpm",), "clip": ("ddpm",),
}  # fmt: skip
"""Fields of `PurifierConfig` that one process alone reads."""
END = 1e-5
"""VP time at which DiffPure's SDE and ODE stop"""
MOST_STEPS = 10_000


@dataclass(frozen=True)
class PurifierConfig:
    """Settings of the forward noising and of the reverse process.

    `t_star`: VP time in (0, 1] up to which it is noised; `steps` back: None takes DiffPure's steps
        of 1/1000, one for each of DDPM's times.
    `rounds`: repetitions of noising and return.
    `resize`: images of another size than the denoiser's are resized for it and back (bilinear), as
        DiffPure does on ImageNet; False refuses them.
    `forward_noise`: False takes the image as it is for the state at t_star, as COUP's released code
        does. True noises it by the continuous process, x = scale x0 + deviation n at t_star, where
        the reverse process begins. DiffPure's code noises with DDPM's discrete alpha-bar: at t_star
        = 0.1 scale 0.9471 for 0.9467 and deviation 0.3209 for 0.3221; for all its t_star up to 0.15
        the scales differ by less than 5e-4 and the deviations by less than 1.3e-3.
    `eta` belongs to "ddim" (0: deterministic, 1: ancestral), `churn` to "heun" (S_churn), and
    `variance` and `clip` to "ddpm"; see `purification.processes`. Other processes refuse them.
    `surrogate_steps`: steps per round of the backward pass in the gradient mode "surrogate", or
    `steps` where those are fewer.
    """

    process: ProcessName = "sde"
    t_star: float = 0.1
    steps: int | None = None
    rounds: int = 1
    forward_noise: bool = True
    eta: float = 0.0
    churn: float = 0.0
    variance: Literal["small", "large"] = "small"
    clip: bool = False
    surrogate_steps: int = 20
    resize: bool = False

    def __post_init__(self) -> None:
        times = self.times if 0 < self.t_star <= 1 else 0
        most = self._most_steps(times)
        require_read(self, "process", READ_BY)
        require(
            self,
            t_star=(times >= 1, "in (0, 1], at least 1/1000"),
            steps=(
                self.steps is None or 1 <= self.steps <= most,
                f"None or from 1 to {most}, the most that {self.process} can take up to t_star",
            ),
            rounds=(1 <= self.rounds <= 1000, "from 1 to 1000"),
            eta=(0 <= self.eta <= 1, "in [0, 1]"),
            churn=(0 <= self.churn <= 1e6, "from 0 to 1e6"),
            surrogate_steps=(1 <= self.surrogate_steps <= MOST_STEPS, f"from 1 to {MOST_STEPS}"),
        )

    @property
    def times(self) -> int:
        """DDPM's times up to t_star: DiffPure's steps."""
        return round(1000 * self.t_star)

    def _most_steps(self, times: int) -> int:
        if self.process in ("ddpm", "ddim"):
            return times
        # The last but one time of "sde" and "ode" must lie above the last.
        bounded = self.process in ("sde", "ode") and times >= 1
        return max(1, int(self.t_star / END) - 1) if bounded else MOST_STEPS

    def build(self) -> "Process":
        """The process of one round."""
        from purification.processes import Ddim, Ddpm, Heun, Ode, Sde  # imports torch

        steps = self.steps or self.times
        if self.process == "sde":
            return Sde(self.t_star, steps)
        if self.process == "ode":
            return Ode(self.t_star, steps)
        if self.process == "ddpm":
            return Ddpm(self.t_star, steps, variance=self.variance, clip=self.clip)
        if self.process == "ddim":
            return Ddim(self.t_star, steps, eta=self.eta)
        return Heun(self.t_star, steps, churn=self.churn)
