"""Budgets as people write them: 0.1, or 8/255."""

from fractions import Fraction
from typing import Annotated

import tyro


def budget(text: str) -> float:
    """A number from text such as 0.03 or 8/255; ValueError for anything else."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{text!r} is neither a number nor a fraction such as 8/255") from error


Budget = Annotated[
    float,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT|A/B",
        instance_from_str=lambda texts: budget(texts[0]),
        is_instance=lambda value: isinstance(value, int | float),
        str_from_instance=lambda value: [f"{value:g}"],
    ),
]
"""A float whose command line flag also takes a fraction."""


def written(eps: float) -> str:
    """0.1, or 8/255 where that says it better."""
    decimal, parts = f"{eps:g}", round(255 * eps)
    return f"{parts}/255" if float(decimal) != eps and parts / 255 == eps else decimal


def eps_title(eps: float) -> str:
    """Name of a budget: "clean", or as in "eps 8/255"."""
    return f"eps {written(eps)}" if eps else "clean"
