"""Models and images as a caller of `evaluation.evaluate` has them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from evaluation.attacks.validation import in_float32
from evaluation.config import GIVEN
from evaluation.factories import as_module
from evaluation.gradient_modes import noises
from evaluation.identity import identity
from evaluation.target import (
    Target,
    copied,
    device_of,
    first_answer,
    fit,
    fit_transfer,
    require_shape,
)
from rdc.config import short
from rdc.data import Dataset
from rdc.data.dataset import as_tensor, class_numbers
from rdc.runs.fingerprints import data_fingerprint, weights_hash

EMPTY = "images: an empty data set; give at least one image"


def given_target(
    model: nn.Module | Callable[[Tensor], Any],
    images: Any,
    labels: Any,
    *,
    transfer: nn.Module | Callable[[Tensor], Any] | None,
    name: str | None,
    class_names: tuple[str, ...],
) -> Target:
    """The target that a call of `evaluation.evaluate` describes.

    Raises:
        ValueError: names the argument that is wrong, what it is and what it should be.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("evaluate: inside torch.inference_mode(), where no attack has a gradient")
    module, other = ready(model, "model"), None if transfer is None else ready(transfer, "transfer")
    data = given_data(images, labels, class_names)
    require_shape(module, data, "model", "images")
    if not (class_names or isinstance(images, Dataset)):
        count = first_answer(module, data, "model").shape[1]
        highest = int(data.labels.max())
        if highest >= count:
            raise ValueError(
                f"labels: up to {highest}, but the model gives {count} logits; give numbers from 0 "
                f"to {count - 1}, or a model of all these classes"
            )
        names = classes_of(images) or tuple(map(str, range(count)))
        data = replace(data, class_names=names)
    given, data = data, fit(module, data, "model", "images")
    hashes = {"images": data_fingerprint(data), **identity(model, "model")}
    if other is not None and transfer is not None:
        fit_transfer(other, data, "transfer", "images")
        hashes |= identity(transfer, "transfer")
    unused = copied(module)
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= 100):
        raise ValueError(f"name={short(name)}: give a text of 1 to 100 characters")
    title = name or (type(model).__name__ if isinstance(model, nn.Module) else "model")
    return Target(
        module, data, given, lambda: copied(unused), other,
        settings={
            "defense": {"kind": "module", "name": title}, "transfer": other and GIVEN,
            "data": GIVEN, "split": GIVEN, "images": len(data),
        },
        inputs=hashes,
        weights={title: weights_hash(module)},
    )  # fmt: skip


def classes_of(images: Any) -> tuple[str, ...]:
    """The `classes` of a data set, also of one in a DataLoader or Subset; empty without them."""
    while not hasattr(images, "classes") and hasattr(images, "dataset"):
        images = images.dataset
    return tuple(map(str, getattr(images, "classes", ())))


def given_numbers(name: str, values: Any) -> tuple[float, ...]:
    """One or more numbers, or an array of them, of the argument `name`."""
    try:
        if values is None:
            raise TypeError("no number")
        return tuple(np.asarray(values, dtype=float).ravel().tolist())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={values!r}: give a number, or several") from error


def given_names(name: str, values: Any) -> tuple[str, ...]:
    """One or more texts of the argument `name`."""
    texts = [values] if isinstance(values, str) or not isinstance(values, Iterable) else [*values]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}={values!r}: give a text, or several")
    return tuple(texts)


@torch.no_grad()
def require_numbered_draws(model: nn.Module, data: Dataset) -> None:
    """Refuse a model that draws from something else than `rdc.noise.Noise`."""
    if noises(model):
        return
    asked, images = copied(model), data.subset(slice(1)).images.to(device_of(model))
    first, second = asked(images.clone()), asked(images.clone())
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
        raise ValueError(
            "draws: the model answers differently when it is called again, and has no "
            "rdc.noise.Noise, whose draws attacks could number and take means over; let it draw "
            "from such noise (docs/attacks.md)"
        )


def ready(model: nn.Module | Callable[[Tensor], Any], name: str) -> nn.Module:
    """The model as a module whose layers are in evaluation mode."""
    if isinstance(model, type):
        raise ValueError(f"{name}: the class {model.__name__}; give an object of it")
    if not callable(model):
        raise ValueError(f"{name}: {type(model).__name__}; give a torch.nn.Module or a function")
    module = as_module(model)
    moody = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    found = [type(part).__name__ for part in module.modules()
             if isinstance(part, moody) and part.training]  # fmt: skip
    if found:
        raise ValueError(f"{name}: its {found[0]} is in training mode; call {name}.eval() before")
    return module


def given_data(images: Any, labels: Any, class_names: tuple[str, ...]) -> Dataset:
    """Images and labels of whatever kind as a data set."""
    if isinstance(images, Dataset):
        if labels is not None:
            raise ValueError("labels: images is a rdc.data.Dataset, which has its own")
        if class_names:
            raise ValueError("class_names: images is a rdc.data.Dataset, which has its own")
        if not len(images):
            raise ValueError(EMPTY)
        return images
    if isinstance(images, Tensor | np.ndarray):
        if labels is None:
            raise ValueError("labels: none given; give one integer for each image")
        return Dataset.of(in_float32(as_tensor(images)), labels, class_names)
    if labels is not None:
        raise ValueError(
            f"labels: images is a {type(images).__name__}; give labels with a tensor or an array, "
            "or a Dataset of pairs (image, label)"
        )
    try:
        parts = [(torch.as_tensor(part), class_numbers(of)) for part, of in batches(images)]
    except (TypeError, RuntimeError) as error:  # of torch, which cannot make a batch of its items
        raise ValueError(
            f"images: {error}; give a data set whose images are tensors of one shape, such as by "
            "transform=torchvision.transforms.ToTensor()"
        ) from error
    if not parts:
        raise ValueError(EMPTY)
    every, of_every = (torch.cat(column) for column in zip(*parts, strict=True))
    return Dataset.of(in_float32(every), of_every, class_names)


def batches(images: Any) -> Iterable[tuple[Any, Any]]:
    """Pairs of images and labels, a batch each."""
    if not isinstance(images, DataLoader):
        indexed = hasattr(images, "__getitem__") and hasattr(images, "__len__")
        if not indexed or isinstance(images, Mapping | str):
            raise ValueError(
                f"images: {type(images).__name__}; give a tensor or an array with labels, a "
                "rdc.data.Dataset, or a torch Dataset or DataLoader of (image, label)"
            )
        images = DataLoader(images, batch_size=256)
    for batch in images:
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            kind = f"{type(batch).__name__} of {len(batch)}"
            raise ValueError(
                f"images: its batches are {kind}, and must be pairs of images and labels; give a "
                "data set of (image, label)"
            )
        yield batch[0], batch[1]
