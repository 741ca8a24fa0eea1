"""Short runs of `training.train`, and their comparison."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from rdc import ClassifierConfig, RDCConfig, UNetConfig
from training.config import TrainConfig
from training.objective_config import ObjectiveConfig

NETWORK = UNetConfig(
    image_size=8, channels=1, width=8, width_multipliers=(1,), blocks_per_level=1,
    attention_resolutions=(), dropout=0.2,
)  # fmt: skip


def config(out: Path, **changes) -> TrainConfig:
    """A dozen steps with dropout, accumulation, two averages and learned uncertainty.

    The classifier of its measurements has a single noise level.
    """
    settings = {
        "steps": 12, "batch_size": 16, "accumulate": 2, "warmup": 2, "validate_every": 4,
        "validation_images": 20, "checkpoint_every": 3, "ema_half_lives": (64.0, 256.0),
        "network": NETWORK, "objective": ObjectiveConfig(uncertainty=True), "resume": "auto",
        "rdc": RDCConfig(ClassifierConfig(levels=1)),
    }  # fmt: skip
    return TrainConfig(out=out, **{**settings, **changes})


def state(out: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint and of the saved model, by name."""
    found = {f"saved.{k}": v for k, v in load_file(out / "model.safetensors").items()}
    last = sorted((out / "checkpoints").glob("step_*"))[-1]
    return found | load_file(last / "tensors.safetensors")


def history(out: Path) -> list[dict]:
    """The figures of the measurements, without the speed."""
    entries = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [{k: v for k, v in e.items() if k != "images_per_second"} for e in entries]


def assert_same_run(out: Path, other: Path) -> None:
    """Bit for bit: weights, averages, optimizer, history."""
    mine, theirs = state(out), state(other)
    assert mine.keys() == theirs.keys() and len(mine) > 50
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert history(out) == history(other) and len(history(out)) == 3
