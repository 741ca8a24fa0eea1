"""Target of an evaluation: a model, the images that it is asked about, and their identity."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.attacks.eot import UNJUDGEABLE, judgeable
from evaluation.config import EvaluateConfig
from evaluation.defenses import (
    build,
    classifier,
    default_transfer_model,
    hashes,
    networks,
    transfer_source,
    weights,
)
from evaluation.gradient_modes import surrogates
from rdc import AmortizedDiffusionClassifier, DiffusionClassifier, ImageClassifier
from rdc.data import Dataset, load
from rdc.runs.fingerprints import data_fingerprint


@dataclass(frozen=True)
class Target:
    """A model from [0, 1] images (B, C, H, W) to logits (B, K), and images with labels.

    `fresh` gives the model as new: one that has been attacked might remember it.
    `given`: the same images with the labels that they came with; the model may have its classes in
        another order. `transfer`: another model, on which images for a transfer attack are made.
    `settings`: what was asked for, by name: defense, transfer, data, split and number of images.
    `inputs`: hashes of data, weights and code, by description; `weights`: those of the weights.
    `surrogates`: see `evaluation.gradient_modes`; the same modules in all runs on this target.
    `pass_seconds`: see `evaluation.costs`, likewise.
    """

    model: nn.Module
    data: Dataset
    given: Dataset
    fresh: Callable[[], nn.Module]
    transfer: nn.Module | None
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    weights: Mapping[str, str]
    surrogates: Callable[[nn.Module], dict[str, nn.Module]] = field(
        default_factory=lambda: cache(surrogates)
    )
    pass_seconds: dict[tuple[nn.Module, bool], float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    def part(self, rows: range) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) on the device."""
        part = self.data.subset(slice(rows.start, rows.stop))
        return part.images.to(self.device), part.labels.to(self.device)


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's weights; the CPU where it has none."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def target_of(config: EvaluateConfig, device: torch.device) -> Target:
    """The target that the settings name.

    Raises:
        ValueError: data, defense and transfer model do not fit each other.
    """

    def placed(model: nn.Module) -> nn.Module:
        return model.to(device).eval()

    def fresh() -> nn.Module:
        return placed(build(config.defense, data=config.data))

    model = fresh()
    shape = shape_of(model) if config.resize else None
    data = load(config.data, config.split, shape=shape, resize=config.resize)
    given = data.subset(slice(config.images))
    name = config.transfer
    if config.attack == "adaptive" and config.norm != "corruption":
        name = name or default_transfer_model(config.defense, config.data)
    transfer = None
    if name:
        source = transfer_source(config.defense, name)
        transfer = placed(build(source, data=config.data) if source else classifier(name))
    data = fit(model, given, f"--defense.kind {config.defense.kind}", f"--data {config.data}")
    if transfer is not None and not config.transfer and shape_of(transfer) != data.shape:
        note = f"no transfer attack: {name} takes images {shape_of(transfer)}, not {data.shape}"
        name, transfer, data = None, None, replace(data, notes=(*data.notes, note))
    if transfer is not None:
        fit_transfer(transfer, data, f"--transfer {name}", f"--data {config.data}")
    return Target(
        model, data, given, fresh, transfer,
        settings={
            "defense": asdict(config.defense), "transfer": name, "data": config.data,
            "split": config.split, "images": len(data), "resize": config.resize,
        },
        inputs={
            f"images of {config.data}": data_fingerprint(data),
            **hashes(config.defense, name, data=config.data),
        },
        weights=weights(networks(config.defense)),
    )  # fmt: skip


def without_transfer(target: Target, config: EvaluateConfig) -> Target:
    """The target of the same settings without a transfer model; it shares the rest."""
    own = {f"images of {config.data}", *hashes(config.defense, None, data=config.data)}
    return replace(
        target,
        transfer=None,
        settings={**target.settings, "transfer": None},
        inputs={name: value for name, value in target.inputs.items() if name in own},
    )


def fit(model: nn.Module, data: Dataset, model_name: str, data_name: str) -> Dataset:
    """The data with the labels of the model, matched by the names of the classes.

    Raises:
        ValueError: shapes or classes differ, or the logits of the first image are not one number
            for every class.
    """
    require_shape(model, data, model_name, data_name)
    for path, part in model.named_modules():
        where = at(model_name, path)
        if names := class_names(part):
            try:
                data = data.of_classes(names)
            except ValueError as error:
                raise ValueError(f"{where}, {data_name}: {error}") from error
    logits, count = first_answer(model, data, model_name), len(data.class_names)
    if logits.shape[1] != count:
        raise ValueError(
            f"{model_name}: gives {logits.shape[1]} logits, but {data_name} has {count} classes "
            f"{listed(data.class_names)}; give a model of these classes"
        )
    if not judgeable(logits):
        raise ValueError(f"{model_name}: {UNJUDGEABLE}")
    return data


def require_shape(model: nn.Module, data: Dataset, model_name: str, data_name: str) -> None:
    """Refuse data of another shape than a part of the model names."""
    for path, part in model.named_modules():
        shape = getattr(part, "image_shape", None)
        if shape is not None and tuple(shape) != data.shape:
            raise ValueError(
                f"{at(model_name, path)} takes images (channels, height, width) {tuple(shape)}, "
                f"but those of {data_name} are {data.shape}; give a model and data of the same "
                "images"
            )


def at(model_name: str, path: str) -> str:
    """The name of a model, or of its part at a path."""
    return f"{model_name} ({path})" if path else model_name


def fit_transfer(model: nn.Module, data: Dataset, model_name: str, data_name: str) -> None:
    """Refuse a transfer model that does not `fit` the data as the defense does."""
    if fit(model, data, model_name, data_name).class_names != data.class_names:
        raise ValueError(
            f"{model_name}: its classes are in another order than those of the defense, "
            f"{listed(data.class_names)}; give one with the same order"
        )


def shape_of(model: nn.Module) -> tuple[int, int, int] | None:
    """(channels, height, width) of the images of a model's first part that names them."""
    shapes = (getattr(part, "image_shape", None) for part in model.modules())
    return next((tuple(shape) for shape in shapes if shape is not None), None)


def class_names(part: nn.Module) -> tuple[str, ...]:
    """Names of the classes that a part of a defense answers with; empty where it has none."""
    if isinstance(part, DiffusionClassifier | AmortizedDiffusionClassifier):
        return tuple(part.denoiser.class_names)
    return part.class_names if isinstance(part, ImageClassifier) else ()


def listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(map(repr, names[:10]))
    return f"({shown}{', ...' if len(names) > 10 else ''}; {len(names)} of them)"


ONE_LOGIT = "; for one logit z (1, 1) of two classes, torch.cat([torch.zeros_like(z), z], 1)"


@torch.no_grad()
def first_answer(model: nn.Module, data: Dataset, model_name: str) -> Tensor:
    """The model's logits (1, K) of the first image.

    Raises:
        ValueError: it gives something else.
    """
    # A copy is asked: a model that remembers images must not know this one.
    asked, images = copied(model), data.subset(slice(1)).images.to(device_of(model))
    try:
        logits = asked(images)
    except (RuntimeError, ValueError) as error:  # of torch, and of our own networks
        floats = {weight.dtype for weight in model.parameters() if weight.is_floating_point()}
        if not (others := floats - {images.dtype}):
            raise ValueError(
                f"{model_name}: fails on an image (channels, height, width) {data.shape}: {error}; "
                "give a model of such images, or images of the model's shape"
            ) from error
        raise ValueError(
            f"{model_name}: has weights of {', '.join(map(str, others))}, but images are "
            f"{images.dtype} ({error}); give a model of that type, such as model.float()"
        ) from error
    if not isinstance(logits, Tensor):
        raise ValueError(
            f"{model_name}: returns {type(logits).__name__}; it must return a tensor of logits "
            "(B, K)"
        )
    if logits.ndim != 2 or len(logits) != 1 or logits.shape[1] < 2:
        raise ValueError(
            f"{model_name}: returns shape {tuple(logits.shape)} for one image; it must return "
            "logits (1, K), of at least two classes" + (ONE_LOGIT if logits.numel() == 1 else "")
        )
    return logits


def copied(model: nn.Module) -> nn.Module:
    """A copy, or the model itself where it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError):  # tensors inside a graph, handles, locks
        return model
