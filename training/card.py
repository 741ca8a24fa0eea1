"""Description of a finished training for the model's card."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rdc.hub.model_card import Training
from training.config import RunConfig

SHOWN = ("steps", "batch_size", "accumulate", "learning_rate", "weight_decay", "ema_half_life",
         "precision", "seed", "processes", "seconds")  # fmt: skip
"""Settings and facts that the card names, where the training has them."""


def described(
    config: RunConfig, record: Mapping[str, Any], figures: Mapping[str, float]
) -> Training:
    """The card's facts from the settings, the content of training.json and the last figures."""
    known = {**record, **asdict(config)}
    return Training(
        data=Path(config.data).name,
        data_fingerprint=record["data_fingerprint"],
        command=record["command"],
        commit=record["commit"],
        settings={name: known.get(name) for name in SHOWN},
        versions={"python": record["python"], **record["packages"]},
        figures={name: f"{value:.4g}" for name, value in figures.items()},
    )
