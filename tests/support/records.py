"""Records of made-up attacks."""

from collections.abc import Sequence
from typing import Any

from evaluation.results.records import Record


def record(
    image: int,
    eps: float,
    attack: str,
    frozen: int,
    predictions: Sequence[int] = (),
    *,
    label: int,
    **rest: Any,
) -> Record:
    """A record whose change fills its budget."""
    drawn = tuple(predictions)
    values = {
        "frozen_confidence": 0.5, "confidences": (0.5,) * len(drawn), "linf": eps, "l2": eps,
        "seconds": 0.0,
    }  # fmt: skip
    return Record(
        image=image, label=label, eps=eps, attack=attack, frozen=frozen, predictions=drawn,
        **{**values, **rest},
    )  # fmt: skip
