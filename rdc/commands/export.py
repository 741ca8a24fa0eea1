"""Export of a model: its weights in a chosen precision and size of files, and its card."""

from pathlib import Path
from typing import Any

import torch

from rdc.choices import MAX_SHARD_SIZE
from rdc.classifier import RobustDiffusionClassifier
from rdc.classifier_config import RDCConfig
from rdc.commands.config import Export
from rdc.commands.info import open_model
from rdc.config import from_json
from rdc.denoiser import Denoiser
from rdc.hub.checkpoint import RDC_SETTINGS
from rdc.hub.model_card import (
    CARD,
    MEASUREMENT,
    Facts,
    Measurement,
    accuracy,
    weights,
    with_sections,
)
from rdc.hub.weights import TRAINING, weights_sha256
from rdc.runs.atomic import write_atomically
from rdc.runs.settings import require_new_folder


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
        training record and its card are copied.
    `dtype`, `max_shard_size`: of the weights, see `rdc.hub.weights.write_model`.
    `evaluation`: the folder of a finished evaluation of `model`; its figures go into the card.
    """
    require_new_folder(out)
    network, folder = open_model(model)
    source = weights_sha256(folder)
    sections = {}
    if evaluation is not None:  # before anything is written: it may be about another model
        sections["Accuracy"] = accuracy(read_measurement(evaluation), [source])
    saved: Any = network
    if isinstance(network, Denoiser) and (folder / RDC_SETTINGS).is_file():
        saved = RobustDiffusionClassifier(network, from_json(RDCConfig, folder / RDC_SETTINGS))
    facts = Facts(sources=(source,))
    saved.save_pretrained(out, facts=facts, dtype=dtype, max_shard_size=max_shard_size)
    for name in (CARD, TRAINING):
        if (folder / name).is_file():
            write_atomically(out / name, (folder / name).read_bytes())
    sections["Weights"] = weights(out, [source])
    card = (out / CARD).read_text(encoding="utf-8")
    write_atomically(out / CARD, with_sections(card, sections))


def read_measurement(evaluation: Path) -> Measurement:
    """The text for cards in an evaluation's folder, or the file itself."""
    file = evaluation / MEASUREMENT if evaluation.is_dir() else evaluation
    if not file.is_file():
        raise FileNotFoundError(
            f"evaluation={str(evaluation)!r}: {file} does not exist; give the --out of a finished "
            "evaluation, or start evaluation.evaluate again as before to write it"
        )
    return from_json(Measurement, file)


def main(command: Export) -> None:
    """Export, and list the files."""
    export(
        command.model,
        command.out,
        dtype=getattr(torch, command.dtype),
        max_shard_size=command.max_shard_size,
        evaluation=command.evaluation,
    )
    for file in sorted(command.out.iterdir()):
        print(f"{file.stat().st_size:>14,}  {file}")
