"""The content of a model's folder, the commands that take the model, and the program `rdc info`."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rdc.classifier_config import RDCConfig
from rdc.commands.config import Info
from rdc.config import from_json, read_json
from rdc.denoiser import Denoiser
from rdc.hub.checkpoint import CONFIG, RDC_SETTINGS, locate, packaged_models
from rdc.hub.model_card import describe
from rdc.hub.weights import TRAINING, sha256, weight_files
from rdc.networks.image_classifier import ImageClassifier


def open_model(model: str | Path) -> tuple[Denoiser | ImageClassifier, Path]:
    """The network of a packaged model, directory or hub id, and its folder."""
    settings = locate(model, CONFIG)
    kind = Denoiser if "network" in read_json(settings) else ImageClassifier
    return kind.from_pretrained(settings.parent), settings.parent


def info(model: str | Path) -> dict[str, Any]:
    """Network, images, parameters, settings, files with their SHA-256, and what takes the model.

    Everything is read as strictly as for use: what is described here can be loaded.
    """
    network, folder = open_model(model)
    rdc = folder / RDC_SETTINGS
    classifies = rdc.is_file()
    kind = "denoiser" if isinstance(network, Denoiser) else "classifier"
    settings = [CONFIG, RDC_SETTINGS] if classifies else [CONFIG]
    files = [*(folder / name for name in settings), *weight_files(folder)]
    return {
        **describe(network),
        "class_names": list(network.class_names),
        kind: asdict(network.config),
        **({"rdc": asdict(from_json(RDCConfig, rdc))} if classifies else {}),
        "files": {file.name: sha256(file) for file in files},
        "commands": commands(str(model), network, classifies=classifies),
    }


def commands(model: str, network: Denoiser | ImageClassifier, *, classifies: bool) -> list[str]:
    """The commands that take the model, as a shell reads them."""
    model = shlex.quote(model)
    if isinstance(network, ImageClassifier):
        return [
            "python -m evaluation.evaluate --out OUT --data DATA --defense.kind classifier "
            f"--defense.classifier {model}",
            f"python -m purification IN OUT --model DENOISER --method agdm --auxiliary {model}",
        ]
    found = [f"python -m purification IN OUT --model {model}"]
    if network.num_classes:
        found.append(f"python -m training.train --out OUT --data DATA --teacher {model}")
    if classifies:
        found += [
            f"python -m rdc classify IMAGE_OR_FOLDER --model {model}",
            "python -m evaluation.evaluate --out OUT --data DATA --defense.kind rdc "
            f"--defense.model {model}",
        ]
    return found


def main(command: Info) -> None:
    """Print the table of packaged models, or one model's facts."""
    print(packaged_table() if command.model is None else json.dumps(info(command.model), indent=2))


def packaged_table() -> str:
    """A line for each packaged model: purpose, images, size, accuracy where it was trained."""
    rows = [("model", "for", "images", "parameters", "files", "validation accuracy in %")]
    for name in packaged_models(CONFIG):
        network, folder = open_model(name)
        facts = describe(network)
        size = sum(file.stat().st_size for file in weight_files(folder)) / 2**20
        rows.append(
            (name, purpose(network, folder), facts["images"], facts["parameters"],
             f"{size:.1f} MiB", validation_accuracy(folder))
        )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "", "rdc info MODEL prints settings, files and commands of one."])


def purpose(network: Denoiser | ImageClassifier, folder: Path) -> str:
    """The defenses that a model is made for."""
    if isinstance(network, ImageClassifier):
        return "classifier"
    return "RDC, purification" if (folder / RDC_SETTINGS).is_file() else "purification"


def validation_accuracy(folder: Path) -> str:
    """Accuracy in % at the end of training, and under the attack of the training if there was one.

    A dash where the training record says nothing.
    """
    if not (folder / TRAINING).is_file():
        return "-"
    record = read_json(folder / TRAINING)
    final = record if "validation_accuracy" in record else (record.get("history") or [{}])[-1]
    if "validation_accuracy" not in final:
        return "-"
    clean, robust = final["validation_accuracy"], final.get("validation_robust_accuracy")
    attacked = "" if robust is None else f", {100 * robust:.1f} under the training attack"
    return f"{100 * clean:.1f}{attacked}"
