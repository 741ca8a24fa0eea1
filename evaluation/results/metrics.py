"""From records to figures: every attack alone, and per image the worst of all."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from evaluation.results.protocols import majority, one_shot, worst
from evaluation.results.statistics import clopper_pearson
from rdc.runs.run_log import Record

CLEAN, WORST = "none", "worst"
"""Names among those of attacks: the images as they are; the worst of all attacks per image."""
FROZEN = "frozen"
UNSEEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fresh": one_shot,
    "majority": majority,
    "worst draw": worst,
}
"""Protocols for draws that no attack has seen, by name."""
PROTOCOLS = (FROZEN, *UNSEEN)

Scores = dict[float, dict[str, dict[str, Tensor]]]


def scores(records: Iterable[Record]) -> Scores:
    """What each image scores (N,), in [0, 1], by budget, attack and protocol.

    Images are in the order of their numbers, attacks in that of the records. Eps 0 has "none";
    every other budget has its attacks and "worst", per image the minimum over them, over those of
    smaller budgets, and over the image as it is: all that is within the budget. Draws are averaged
    within an image and never counted as images; that the minimum is over means of a few draws makes
    it too low rather than too high.
    """
    rows: dict[tuple[float, str], dict[int, Record]] = {}
    for record in records:
        rows.setdefault((record["eps"], record["attack"]), {})[record["image"]] = record
    if (0.0, CLEAN) not in rows:
        raise ValueError(
            "records: none of images as they are; the run has not finished: start it again"
        )
    found: Scores = {}
    for eps, attack in sorted(rows, key=lambda key: key[0]):
        by_image = rows[eps, attack]
        if by_image.keys() != rows[0.0, CLEAN].keys():
            raise ValueError(
                f"records: eps {eps:g}, {attack}: {len(by_image)} of {len(rows[0.0, CLEAN])} "
                "images; the run has not finished: start it again"
            )
        found.setdefault(eps, {})[attack] = score([by_image[image] for image in sorted(by_image)])
    least = found[0.0][CLEAN]
    for eps in sorted(found.keys() - {0.0}):
        attacks = found[eps].values()
        least = {
            protocol: torch.stack([values, *(attack[protocol] for attack in attacks)]).amin(0)
            for protocol, values in least.items()
        }
        found[eps][WORST] = least
    return found


def score(rows: list[Record]) -> dict[str, Tensor]:
    """What the image of each row scores (N,) under the protocols that its draws allow."""
    labels = torch.tensor([row["label"] for row in rows])
    frozen = torch.tensor([row["frozen"] for row in rows])
    found = {FROZEN: (frozen == labels).double()}
    predicted = torch.tensor([row["predictions"] for row in rows])
    if predicted.numel():
        found |= {name: judge(predicted, labels).double() for name, judge in UNSEEN.items()}
    return found


def summarize(records: Iterable[Record], *, norm: str) -> dict[str, Any]:
    """Accuracies by budget, attack and protocol, with 95 % intervals over images; and a table."""
    accuracy = {
        f"{eps:g}": {
            attack: {protocol: share(values) for protocol, values in by.items()}
            for attack, by in attacks.items()
        }
        for eps, attacks in scores(records).items()
    }
    return {"norm": norm, "accuracy": accuracy, "text": text(accuracy, norm)}


def share(values: Tensor) -> dict[str, float]:
    """Mean and interval; an image that is right in some draws counts for that part."""
    count, mean = len(values), values.mean().item()
    low = clopper_pearson(int(values.sum().floor()), count)[0]
    high = clopper_pearson(int(values.sum().ceil()), count)[1]
    return {"accuracy": mean, "low": low, "high": high, "images": count}


def text(accuracy: dict[str, Any], norm: str) -> str:
    """A table for the terminal: protocols across, budgets and attacks down."""
    rows = {
        "clean" if attack == CLEAN else f"eps {eps}  {attack}": figures
        for eps, attacks in accuracy.items()
        for attack, figures in attacks.items()
    }
    width = max(map(len, rows)) + 2
    protocols = list(rows["clean"])
    lines = [f"accuracy in % [95 % interval], {norm}"]
    lines += [" " * width + "".join(f"{name:>20}" for name in protocols)]
    lines += [
        f"{label:<{width}}" + "".join(f"{cell(figures[name]):>20}" for name in protocols)
        for label, figures in rows.items()
    ]
    return "\n".join(lines)


def cell(figure: dict[str, float]) -> str:
    """A share in percent with its interval: 61.0 [51, 71]."""
    low, high = 100 * figure["low"], 100 * figure["high"]
    return f"{100 * figure['accuracy']:.1f} [{low:.0f}, {high:.0f}]"
