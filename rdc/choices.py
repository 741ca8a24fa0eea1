"""Names that settings choose among, and limits of their numbers.

This module and those named `*config.py` import no torch, so that command lines are read at once.
"""

from typing import Any, Literal, get_args

NoiseMode = Literal["frozen", "fresh"]
Spacing = Literal["uniform", "log", "lognormal", "vp"]
Weighting = Literal["elbo", "edm", "published", "epsilon"]
Norm = Literal["linf", "l2"]
"""Norms of budgets on images in [0, 1]."""
Split = Literal["train", "validation", "test", "all"]
Format = Literal["edm", "score-sde", "guided-diffusion", "classifier"]
"""Code that wrote a published file of weights."""

LOWEST_SIGMA, HIGHEST_SIGMA = 1e-5, 1e5
"""Noise levels of configurations; beyond them weights and errors overflow in float32."""
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-6, 1e6
MOST_DRAWS = 100_000
"""Draws of one image; configurations that ask for more are refused, whatever asks for them."""
MAX_SHARD_SIZE = "5GB"
"""Largest file of weights, the Hugging Face hub's own."""


def require_choice(name: str, value: Any, choices: Any) -> None:
    """Refuse a value of the argument `name` that is none of the names of a `Literal`."""
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r} must be one of {get_args(choices)}")
