"""Evaluation of any model on any images: `evaluation.evaluate`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evaluation.arguments import given_names, given_numbers, given_target, require_numbered_draws
from evaluation.config import Options
from evaluation.evaluation import Evaluation
from evaluation.runner import Runner
from evaluation.schedule import complete
from evaluation.suite_config import Kind, SuiteConfig, Threat

Model = nn.Module | Callable[[Tensor], Tensor]


def evaluate(
    model: Model,
    images: Any,
    labels: Any = None,
    *,
    eps: float | Sequence[float],
    norm: Threat = "linf",
    attack: Kind = "adaptive",
    steps: int | None = None,
    targets: int | None = None,
    queries: int | None = None,
    draws: int | None = None,
    only: str | Sequence[str] = (),
    every_attack: bool = False,
    eval_draws: int = 20,
    transfer: Model | None = None,
    name: str | None = None,
    class_names: Sequence[str] = (),
    out: str | Path | None = None,
    checks: bool = True,
    batch_size: int = 50,
    max_rows: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Attack a model, and measure how accurate it stays.

    Args:
        model: a module, or a function, from float images (B, C, H, W) in [0, 1] to logits (B, K).
        images: a tensor or array (N, C, H, W) or (N, H, W, C), of floats in [0, 1] or uint8 in 0 to
            255, a `rdc.data.Dataset`, a torch `Dataset` of pairs (image, label), or a DataLoader of
            them.
        labels: integers (N,), with images that are a tensor or an array.
        eps: one or more budgets on the [0, 1] scale, such as 8 / 255.
        norm: "linf", "l2", or "stadv", whose budgets are displacements.
        attack: "adaptive" (every gradient, and attacks without one), "standard" (AutoAttack) or
            "stochastic" (AutoAttack on means over draws); see `evaluation.suites`.
        steps, targets, queries: of each attack; by default those of the suite.
        draws: random numbers over which attacks take means, for a model with `rdc.noise.Noise`; 1:
            attacks know its frozen draw.
        only: one or more patterns of names of attacks, such as "*/apgd-margin", for fewer of them.
        every_attack: whether every attack tries every image. Without it an image that is wrong is
            left out by later attacks: the same worst case in less time.
        eval_draws: draws that judge an image where `draws` is above 1.
        transfer: another model, on which images for a transfer attack are made.
        name: of the model in tables; by default the name of its class.
        class_names: of the K classes, in the order of the labels.
        out: folder that keeps all results as they come; a call that was killed continues there.
            Without one they stay in memory.
        checks: whether to run the automatic checks, on the first 8 images.
        batch_size: images per attack; max_rows: images in the model at once; seed: of all attacks.
        progress: whether to show a bar on stderr.

    Raises:
        ValueError: names the argument, what it is and what it should be.
    """
    if draws is not None and draws < 1:
        raise ValueError(f"draws={draws} must be at least 1")
    chosen = Options(
        attack=attack, norm=norm, eps=given_numbers("eps", eps),
        suite=SuiteConfig(
            steps=steps, targets=targets, queries=queries, eot_samples=draws,
            only=given_names("only", only), every_attack=every_attack,
        ),
        eval_draws=eval_draws, check_images=8 if checks else 0, batch_size=batch_size,
        max_rows=max_rows, seed=seed,
    )  # fmt: skip
    target = given_target(
        model, images, labels, transfer=transfer, name=name, class_names=tuple(class_names)
    )
    if attack == "stochastic" or (draws or 1) > 1:
        require_numbered_draws(target.model, target.data)
    folder = None if out is None else Path(out)
    runner = Runner(target, chosen, out=folder)
    (summary,) = complete([runner], out=folder, show=progress)
    return Evaluation(target.settings["defense"]["name"], summary, runner)
