"""From records to figures: every attack alone, and per image the worst of all."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evaluation.protocols import majority, one_shot, worst
from evaluation.records import Record
from evaluation.statistics import clopper_pearson

PROTOCOLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "one shot": one_shot,
    "majority": majority,
    "worst draw": worst,
}


def summarize(records: list[Record], *, norm: str) -> dict[str, Any]:
    """Accuracies by budget, attack and protocol, with 95 % intervals over images; and a table.

    "worst" is the per-image minimum over the attacks of a budget and over the image as it is, which
    is within every budget. Draws are averaged within an image and never counted as images.
    """
    found = {(r["eps"], r["attack"], r["image"]): r for r in records}
    budgets = sorted({eps for eps, _, _ in found})
    clean = table(found, 0.0, "none")
    accuracy: dict[str, Any] = {}
    for eps in budgets:
        attacks = sorted({attack for budget, attack, _ in found if budget == eps})
        scores = {attack: table(found, eps, attack) for attack in attacks}
        worst_of_all = {
            protocol: torch.stack([clean[protocol], *(s[protocol] for s in scores.values())]).amin(
                0
            )
            for protocol in clean
        }
        accuracy[f"{eps:g}"] = {
            name: {protocol: share(values) for protocol, values in by.items()}
            for name, by in {**scores, "worst": worst_of_all}.items()
        }
    return {"norm": norm, "accuracy": accuracy, "text": text(accuracy, norm)}


def table(found: dict, eps: float, attack: str) -> dict[str, Tensor]:
    """The score of every image (N,) under each protocol that its draws allow."""
    rows = [r for (budget, name, _), r in sorted(found.items()) if (budget, name) == (eps, attack)]
    predicted = torch.tensor([row["predictions"] for row in rows])
    labels = torch.tensor([row["label"] for row in rows])
    names = list(PROTOCOLS) if predicted.shape[1] > 1 else ["one shot"]
    return {name: PROTOCOLS[name](predicted, labels).double() for name in names}


def share(values: Tensor) -> dict[str, float]:
    """Mean and interval; an image that is right in some draws counts for that part."""
    count, mean = len(values), values.mean().item()
    low = clopper_pearson(int(values.sum().floor()), count)[0]
    high = clopper_pearson(int(values.sum().ceil()), count)[1]
    return {"accuracy": mean, "low": low, "high": high, "images": count}


def text(accuracy: dict[str, Any], norm: str) -> str:
    """A table for the terminal: protocols across, budgets and attacks down."""
    protocols = list(next(iter(accuracy.values()))["worst"])
    lines = [f"accuracy in % [95 % interval], {norm}", f"{'':<34}" + "".join(
        f"{name:>20}" for name in protocols)]  # fmt: skip
    for eps, by in accuracy.items():
        for name, figures in by.items():
            if eps == "0" and name == "worst":
                continue
            label = "clean" if eps == "0" else f"eps {eps}  {name}"
            lines.append(f"{label:<34}" + "".join(f"{cell(figures[p]):>20}" for p in protocols))
    return "\n".join(lines)


def cell(figure: dict[str, float]) -> str:
    low, high = 100 * figure["low"], 100 * figure["high"]
    return f"{100 * figure['accuracy']:.1f} [{low:.0f}, {high:.0f}]"
