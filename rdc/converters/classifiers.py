"""Classifiers that DiffPure and RobustBench use: state dictionaries of WRN and ResNet.

The names inside are timm's, ours, or those of the three implementations that most CIFAR weights
come from: xternalz's wide ResNet, which RobustBench and TRADES share, DeepMind's, which RobustBench
calls DMWideResNet, and kuangliu's ResNet.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rdc.converters.weights import Published, Rule, convert_weights, plain_tensors
from rdc.hub.building import skeleton
from rdc.networks.image_classifier import ImageClassifier, ImageClassifierConfig

# What stands for what in the published names, one after the other.
WIDE_RESNET = {
    r"^conv1\.": "stem.", r"^bn1\.": "norm.", r"^fc\.": "head.", r"^block1\.layer\.": "groups.0.",
    r"^block2\.layer\.": "groups.1.", r"^block3\.layer\.": "groups.2.", r"\.bn(?=\d)": ".norm",
    r"\.convShortcut\.": ".shortcut.",
}  # fmt: skip
DEEPMIND = {
    r"^init_conv\.": "stem.", r"^batchnorm\.": "norm.", r"^logits\.": "head.",
    r"^layer\.(\d)\.block\.": r"groups.\1.", r"\.batchnorm_0\.": ".norm1.",
    r"\.batchnorm_1\.": ".norm2.", r"\.conv_1\.": ".conv2.", r"\.conv_0\.": ".conv1.",
}  # fmt: skip
RESNET = {r"\.shortcut\.": ".downsample.", r"^linear\.": "fc."}


@dataclass(frozen=True)
class ClassifierFacts:
    """Settings that a classifier's file lacks; the fields are those of `ImageClassifierConfig`.

    Without `mean` and `std`, they are those of the file's own buffers, which it must have.
    """

    architecture: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    image_size: int = 32
    stem: Literal["small", "original"] = "small"
    entry: str | None = None
    """name of the state dictionary in a checkpoint; by default its averages, or the only one"""


def convert(document: Any, facts: ClassifierFacts) -> Published:
    """An `ImageClassifier` of a state dictionary, or of a checkpoint that has one in it."""
    state, chosen = _state(document, facts.entry)
    tensors, mean, std = _split_normalization(state, facts)
    tensors = _renamed(_without_prefix(tensors), facts.architecture)
    channels, classes = _sizes(tensors, facts.architecture)
    config = ImageClassifierConfig(
        facts.architecture, facts.image_size, channels, classes, mean, std, facts.stem
    )
    network = skeleton(lambda: ImageClassifier(config).network, "the file")
    names = network.state_dict()
    # Files from before PyTorch 0.4.1 lack the counts, which evaluation does not use.
    counts = {name: torch.zeros((), dtype=torch.long) for name in names if name.endswith(COUNT)}
    tensors = counts | tensors
    rules = [Rule(name, (name,)) for name in names]
    weights = convert_weights(rules, tensors, network)
    note = "The file does not name its license, its data or its normalization: see its source."
    notes = (note, chosen) if chosen else (note,)
    return Published(facts.architecture, config, weights, "other", notes)


COUNT = ".num_batches_tracked"
# Last parts of the names of the buffers with mean and standard deviation.
NORMALIZATION = (("mu", "sigma"), ("mean", "std"))
AVERAGES = re.compile(r"(?i)(^|_|\.)(ema|swa)($|_|\.)")


def _state(document: Any, entry: str | None) -> tuple[dict[str, Tensor], str | None]:
    """The state dictionary to convert, and the sentence that says which of several it is."""
    entries = document if isinstance(document, dict) else {}
    if entry is None and any(isinstance(value, Tensor) for value in entries.values()):
        return plain_tensors(entries), None
    states = [
        name
        for name, value in entries.items()
        if isinstance(value, dict) and value and all(isinstance(t, Tensor) for t in value.values())
    ]
    averages = [name for name in states if AVERAGES.search(str(name))]
    if entry is None and len(states) == 1:
        return plain_tensors(entries[states[0]]), None
    if entry is None and len(averages) == 1:
        entry = averages[0]
    if entry not in states:
        found = f"the state dictionaries {states}" if states else f"none among {[*entries][:5]}"
        remedy = "; choose one with --entry NAME" if states else ""
        raise ValueError(
            f"it must be a state dictionary, or have one entry that is, not entry={entry!r}: it "
            f"has {found}{remedy}"
        )
    return plain_tensors(entries[entry]), f"The weights are those of the entry {entry!r}."


def _split_normalization(
    tensors: dict[str, Tensor], facts: ClassifierFacts
) -> tuple[dict[str, Tensor], tuple[float, ...], tuple[float, ...]]:
    """The network's tensors, mean and std; buffers that normalize must hold those of `facts`."""
    if bool(facts.mean) != bool(facts.std):
        raise ValueError("mean and std belong together: give both, as --mean 0 --std 1, or none")
    for name, other in _normalizations(tensors):
        rest = {key: tensor for key, tensor in tensors.items() if key not in (name, other)}
        if facts.mean:
            _require_normalization(tensors[name], tensors[other], facts)
            return rest, facts.mean, facts.std
        mean, std = (tuple(tensors[key].flatten().tolist()) for key in (name, other))
        return rest, mean, std
    if not facts.mean:
        raise ValueError(
            "it has no buffers with the mean and the standard deviation that images are normalized "
            "with: give --mean and --std; --mean 0 --std 1 is for one that takes images as they are"
        )
    return tensors, facts.mean, facts.std


def _normalizations(tensors: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Names of a mean and of its standard deviation."""
    for first, second in NORMALIZATION:
        for name in tensors:
            other = name.removesuffix(first) + second
            if name.split(".")[-1] == first and other in tensors:
                if not (tensors[name].is_floating_point() and tensors[other].is_floating_point()):
                    raise ValueError(
                        f"{name} {tensors[name].dtype} and {other} {tensors[other].dtype} must be "
                        "floating-point numbers: mean and standard deviation"
                    )
                yield name, other


def _require_normalization(mean: Tensor, std: Tensor, facts: ClassifierFacts) -> None:
    """Raise ValueError unless the file's buffers are the given numbers, in their precision."""
    given = (facts.mean, facts.std)
    same = all(
        len(numbers) in (1, buffer.numel())
        and bool((buffer.flatten() == torch.tensor(numbers, dtype=buffer.dtype)).all())
        for buffer, numbers in zip((mean, std), given, strict=True)
    )
    if not same:
        texts = [" ".join(f"{v:.7g}" for v in t.flatten()[:3].tolist()) for t in (mean, std)]
        raise ValueError(
            f"it normalizes with other numbers than mean={facts.mean} and std={facts.std}: its "
            f"buffers are {texts[0]} and {texts[1]}; leave --mean and --std out to take those"
        )


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what all names start with, as "module." of DataParallel and "model." of wrappers."""
    first = next(iter(tensors))
    while "." in first and all(name.startswith(first.split(".")[0] + ".") for name in tensors):
        tensors = {name.split(".", 1)[1]: tensor for name, tensor in tensors.items()}
        first = next(iter(tensors))
    return tensors


def _renamed(tensors: dict[str, Tensor], architecture: str) -> dict[str, Tensor]:
    if "init_conv.weight" in tensors and "logits.weight" in tensors:
        if not architecture.startswith("dm-wrn-"):
            raise ValueError(
                "it is DeepMind's wide ResNet (RobustBench's DMWideResNet), which pads and "
                f"activates otherwise than {architecture}: give --architecture "
                "dm-wrn-<depth>-<widen>"
            )
        return {_rename(name, DEEPMIND): tensor for name, tensor in tensors.items()}
    if "wrn-" in architecture and "block1.layer.0.bn1.weight" in tensors:
        if not architecture.startswith("wrn-"):
            raise ValueError(
                f"it is xternalz's wide ResNet, which pads and activates otherwise than "
                f"{architecture}: give --architecture wrn-<depth>-<widen>"
            )
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
    if re.fullmatch(r"(dm-)?wrn-\d+-\d+", architecture):
        return "stem", "head"
    import timm

    if not timm.is_model(architecture):
        raise ValueError(
            f"architecture={architecture!r} must be wrn-<depth>-<widen>, dm-wrn-<depth>-<widen> or "
            "timm's"
        )
    settings = timm.get_pretrained_cfg(architecture)
    first, last = getattr(settings, "first_conv", None), getattr(settings, "classifier", None)
    if not isinstance(first, str) or not isinstance(last, str):
        raise ValueError(f"architecture={architecture!r} has more than one first or last layer")
    return first, last
