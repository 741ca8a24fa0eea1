"""Classifiers that DiffPure and RobustBench use: state dictionaries of WRN and ResNet.

The names inside are timm's, ours, or those of the two implementations that most CIFAR weights come
from: xternalz's wide ResNet, which RobustBench and TRADES share, and kuangliu's ResNet.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rdc.converters.weights import Published, Rule, convert_weights, plain_tensors
from rdc.hub.building import OwnGenerator
from rdc.networks.image_classifier import ImageClassifier, ImageClassifierConfig

# What stands for what in the published names, one after the other.
WIDE_RESNET = {
    r"^conv1\.": "stem.", r"^bn1\.": "norm.", r"^fc\.": "head.", r"^block1\.layer\.": "groups.0.",
    r"^block2\.layer\.": "groups.1.", r"^block3\.layer\.": "groups.2.", r"\.bn(?=\d)": ".norm",
    r"\.convShortcut\.": ".shortcut.",
}  # fmt: skip
RESNET = {r"\.shortcut\.": ".downsample.", r"^linear\.": "fc."}


@dataclass(frozen=True)
class ClassifierFacts:
    """What a classifier's file does not say; the fields are those of `ImageClassifierConfig`."""

    architecture: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int = 32
    stem: Literal["small", "original"] = "small"


def convert(document: Any, facts: ClassifierFacts) -> Published:
    """An `ImageClassifier` of a state dictionary, or of a checkpoint that has one in it."""
    tensors = _renamed(_without_prefix(_state(document)), facts.architecture)
    channels, classes = _sizes(tensors, facts.architecture)
    config = ImageClassifierConfig(
        facts.architecture, facts.image_size, channels, classes, facts.mean, facts.std, facts.stem
    )
    with OwnGenerator():
        network = ImageClassifier(config).network
    # Files from before PyTorch 0.4.1 lack the counts, which evaluation does not use.
    counts = {name: value for name, value in network.state_dict().items() if name.endswith(COUNT)}
    tensors = counts | tensors
    rules = [Rule(name, (name,)) for name in network.state_dict()]
    weights = convert_weights(rules, tensors, network, "network.")
    note = "The file does not name its license, its data or its normalization: see its source."
    return Published(facts.architecture, config, weights, "other", (note,))


COUNT = ".num_batches_tracked"


def _state(document: Any) -> dict[str, Tensor]:
    """The one state dictionary in a checkpoint, or the document itself."""
    entries = document if isinstance(document, dict) else {}
    if any(isinstance(value, Tensor) for value in entries.values()):
        return plain_tensors(entries)
    states = [
        name
        for name, value in entries.items()
        if isinstance(value, dict) and value and all(isinstance(t, Tensor) for t in value.values())
    ]
    if len(states) != 1:
        raise ValueError(f"it must be a state dictionary, or have one entry that is: {states}")
    return plain_tensors(entries[states[0]])


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what all names start with, as "module." of DataParallel and "model." of wrappers."""
    first = next(iter(tensors))
    while "." in first and all(name.startswith(first.split(".")[0] + ".") for name in tensors):
        tensors = {name.split(".", 1)[1]: tensor for name, tensor in tensors.items()}
        first = next(iter(tensors))
    return tensors


def _renamed(tensors: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    if architecture.startswith("wrn-") and "block1.layer.0.bn1.weight" in tensors:
        # TRADES's code makes a fourth group that its forward pass does not use.
        used = {name: t for name, t in tensors.items() if not name.startswith("sub_block1.")}
        return {_rename(name, WIDE_RESNET): tensor for name, tensor in used.items()}
    if "linear.weight" in tensors:
        return {_rename(name, RESNET): tensor for name, tensor in tensors.items()}
    return tensors


def _rename(name: str, names: dict[str, str]) -> str:
    for published, ours in names.items():
        name = re.sub(published, ours, name)
    return name


def _sizes(tensors: dict[str, Tensor], architecture: str) -> tuple[int, int]:
    """Channels and classes, from the shapes of the first and the last layer."""
    names = [f"{name}.weight" for name in _ends(architecture)]
    first, last = (tensors.get(name, torch.empty(0)) for name in names)
    if first.ndim < 2 or last.ndim < 2:
        raise ValueError(
            f"it has no layers {' and '.join(names)}, as {architecture} does; it starts with "
            f"{', '.join([*tensors][:3])}"
        )
    return first.shape[1], len(last)


def _ends(architecture: str) -> tuple[str, str]:
    """Names of the layer that sees the image and of the one that gives the logits."""
    if re.fullmatch(r"wrn-\d+-\d+", architecture):
        return "stem", "head"
    import timm

    if not timm.is_model(architecture):
        raise ValueError(f"architecture={architecture!r} must be wrn-<depth>-<widen> or timm's")
    settings = timm.get_pretrained_cfg(architecture)
    first, last = getattr(settings, "first_conv", None), getattr(settings, "classifier", None)
    if not isinstance(first, str) or not isinstance(last, str):
        raise ValueError(f"architecture={architecture!r} has more than one first or last layer")
    return first, last
