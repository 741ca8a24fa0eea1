"""A model for others: its weights as small as they may be, and a card that says what is known."""

from pathlib import Path
from typing import Any

import torch

from rdc.classifier import RDCConfig, RobustDiffusionClassifier
from rdc.commands.info import open_model
from rdc.config import from_json, read_json
from rdc.denoiser import Denoiser
from rdc.hub.checkpoint import RDC_SETTINGS, TRAINING
from rdc.hub.model_card import CARD, Facts, accuracy, add_training, weights, with_sections
from rdc.hub.weights import MAX_SHARD_SIZE, weights_sha256
from rdc.runs.atomic import write_atomically

SUMMARY = "summary.json"


def export(
    model: str | Path,
    out: Path,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    evaluation: Path | None = None,
) -> None:
    """Write a model into the folder `out`, which must be new or empty.

    `model`: a packaged name, a directory (also a training run's) or a hub id. Its settings, its
        training record and its card, whoever wrote it, come along.
    `dtype`, `max_shard_size`: of the weights, see `rdc.hub.weights.write_model`.
    `evaluation`: the runner's folder or summary.json about `model`; its figures go into the card.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={str(out)!r} must be a new or an empty folder")
    network, folder = open_model(model)
    source = weights_sha256(folder)
    sections = {}
    if evaluation is not None:  # before anything is written: it may be about another model
        sections["Accuracy"] = accuracy(read_summary(evaluation), [source])
    saved: Any = network
    if isinstance(network, Denoiser) and (folder / RDC_SETTINGS).is_file():
        saved = RobustDiffusionClassifier(network, from_json(RDCConfig, folder / RDC_SETTINGS))
    facts = Facts(sources=(source,))
    saved.save_pretrained(out, facts=facts, dtype=dtype, max_shard_size=max_shard_size)
    if (folder / CARD).is_file():
        write_atomically(out / CARD, (folder / CARD).read_bytes())
    if (folder / TRAINING).is_file():
        write_atomically(out / TRAINING, (folder / TRAINING).read_bytes())
        add_training(out, read_json(out / TRAINING))
    sections["Weights"] = weights(out, [source])
    card = (out / CARD).read_text(encoding="utf-8")
    write_atomically(out / CARD, with_sections(card, sections))


def read_summary(evaluation: Path) -> dict[str, Any]:
    """The summary.json of an evaluation's folder, or the file itself."""
    file = evaluation / SUMMARY if evaluation.is_dir() else evaluation
    if not file.is_file():
        raise FileNotFoundError(
            f"evaluation={str(evaluation)!r}: {file} does not exist; give the --out of a finished "
            "evaluation"
        )
    return read_json(file)
