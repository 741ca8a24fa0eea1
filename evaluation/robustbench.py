"""Results in the words of RobustBench (Croce et al., NeurIPS 2021), to lay beside its files.

Its leaderboards are for deterministic defenses without optimization at inference, on fixed images
and budgets. Nothing here is a rank.
"""

from typing import Any

import torch
from torch import Tensor, nn

from evaluation.budget import written
from evaluation.summary import CLEAN, FROZEN, WORST
from evaluation.surrogates import noises
from rdc import Denoiser, ImageClassifier, LikelihoodMaximizer

THREATS = {"linf": "Linf", "l2": "L2"}


def model_infos(
    model: nn.Module,
    images: Tensor,
    accuracy: dict[str, Any],
    *,
    name: str,
    dataset: str,
    norm: str,
    eps: tuple[float, ...],
    standard: bool,
) -> list[dict[str, Any]]:
    """One entry per eps with the fields of a model_info file; none for other threats.

    Accuracies are those of the frozen draw, in percent. `standard` says that they are of
    AutoAttack's ensemble: only then they are `autoattack_acc`, and `external` otherwise. `images`
    (B, C, H, W) are some on which to count the passes of an answer.
    """
    if norm not in THREATS:
        return []
    excluded = reasons(model)
    found = []
    for budget in eps:
        clean, worst = accuracy["0"][CLEAN][FROZEN], accuracy[f"{budget:g}"][WORST][FROZEN]
        figure = percent(worst)
        found.append(
            {
                "name": name,
                "dataset": dataset,
                "threat_model": THREATS[norm],
                "eps": written(budget),
                "clean_acc": percent(clean),
                "reported": figure,
                "autoattack_acc" if standard else "external": figure,
                "architecture": " + ".join(architectures(model)),
                "number_forward_passes": forward_passes(model, images),
                "unreliable": bool(excluded),
                "footnote": footnote(excluded, worst["images"], standard),
            }
        )
    return found


def percent(share: dict[str, float]) -> str:
    return f"{100 * share['accuracy']:.2f}"


def reasons(model: nn.Module) -> list[str]:
    """Why RobustBench would not list a defense."""
    found = ["draws noise (frozen here, and known to the attacker)"] if noises(model) else []
    if any(isinstance(part, LikelihoodMaximizer) for part in model.modules()):
        found.append("optimizes its input at inference")
    return found


def footnote(excluded: list[str], images: int, standard: bool) -> str:
    attacks = "AutoAttack's ensemble" if standard else "the worst of several attacks per image"
    base = f"Measured on {images} images under {attacks}; no entry of a leaderboard."
    if not excluded:
        return base
    return f"{base} RobustBench excludes such defenses: this one {' and '.join(excluded)}."


def architectures(model: nn.Module) -> list[str]:
    """The networks of a defense, each once."""
    found = []
    for part in model.modules():
        if isinstance(part, ImageClassifier):
            found.append(part.config.architecture)
        elif isinstance(part, Denoiser):
            found.append(type(part.network).__name__)
    return list(dict.fromkeys(found)) or [type(model).__name__]


@torch.no_grad()
def forward_passes(model: nn.Module, images: Tensor) -> int:
    """Passes of networks that an answer takes, all networks of the defense together."""
    rows = 0

    def count(module: nn.Module, arguments: tuple) -> None:
        nonlocal rows
        rows += len(arguments[0])

    parts = [part for part in model.modules() if isinstance(part, ImageClassifier | Denoiser)]
    hooks = [part.network.register_forward_pre_hook(count) for part in parts]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return rows // len(images)
