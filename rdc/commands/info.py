"""What lies in a model's folder, and what can be done with it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rdc.classifier import RDCConfig
from rdc.config import from_json, read_json
from rdc.denoiser import Denoiser
from rdc.hub.checkpoint import CONFIG, RDC_SETTINGS, locate
from rdc.hub.model_card import describe
from rdc.hub.weights import sha256, weight_files
from rdc.networks.image_classifier import ImageClassifier

Kind = type[Denoiser] | type[ImageClassifier]


def open_model(model: str | Path) -> tuple[Denoiser | ImageClassifier, Path]:
    """The network of a packaged model, directory or hub id, whatever it is, and its folder."""
    settings = locate(model, CONFIG)
    kind: Kind = Denoiser if "network" in read_json(settings) else ImageClassifier
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
    """The commands that take the model."""
    if isinstance(network, ImageClassifier):
        return [
            f"python -m evaluation.evaluate --defense.kind classifier --defense.classifier {model}",
            f"python -m purification IN OUT --model DENOISER --method agdm --auxiliary {model}",
        ]
    found = [f"python -m purification IN OUT --model {model}"]
    if network.num_classes:
        found.append(f"python -m training.train --teacher {model}")
    if classifies:
        found += [
            f"python -m rdc classify IMAGE_OR_FOLDER --model {model}",
            f"python -m evaluation.evaluate --defense.kind rdc --defense.model {model}",
        ]
    return found
