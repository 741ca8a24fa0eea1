"""Preparation and validation of the arguments of every attack."""

from collections.abc import Callable, Sequence
from functools import wraps
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evaluation.attacks.eot import Expectation
from evaluation.suite_config import Threat
from rdc.choices import Norm, require_choice

F = TypeVar("F", bound=Callable)

ROUNDING = 1e-5
"""Largest distance from [0, 1] that counts as rounding; such pixels are moved inside."""


def prepared(attack: F) -> F:
    """Decorator of every attack `attack(model, images, labels, ...)`.

    The attack gets images that are detached, in at least float32, and in [0, 1] where only rounding
    left it. It records no graph of its own, also under `torch.inference_mode`, and returns images
    of that precision: rounded to 16 bits they could leave the budget. A model of 16 bits is still
    called with the precision of the images given. ValueError for batch normalization in training
    mode, under which the answer for an image depends on its batch, and attacks change the model.
    """

    @wraps(attack)
    def with_prepared(model: Any, images: Tensor, labels: Tensor, **options: Any) -> Any:
        for name, given in (("images", images), ("labels", labels)):
            if not isinstance(given, Tensor):
                raise ValueError(f"{name}: {type(given).__name__}; give a torch.Tensor")
        victim = Expectation.of(model)
        refuse_training_mode(victim.model)
        if images.dtype in (torch.half, torch.bfloat16):
            victim = victim.having(precision=images.dtype)
        # Models are differentiated under `enable_grad`, which does nothing in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            return attack(victim, in_float32(images), labels.clone(), **options)

    return with_prepared  # type: ignore[return-value]


def in_float32(images: Tensor) -> Tensor:
    """A detached copy in at least float32; values within `ROUNDING` of [0, 1] are clamped."""
    images = images.detach()
    if not images.is_floating_point() or not images.numel():
        return images
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    inside = images.clamp(0, 1)
    return inside if (images - inside).abs().max() <= ROUNDING else images


def refuse_training_mode(model: object) -> None:
    """ValueError where `model` has a batch normalization in training mode."""
    if not isinstance(model, nn.Module):
        return
    for name, part in model.named_modules():
        if isinstance(part, _BatchNorm) and part.training:
            raise ValueError(
                f"model: {name or 'its batch normalization'} is in training mode, in which an "
                "answer depends on the batch and every call changes the model; call model.eval()"
            )


def checked(
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    seeds: Sequence[int] | None = None,
    step_size: float | None = None,
    **counts: int,
) -> list[int]:
    """The images' seeds, by default 0 to B - 1; ValueError for what no attack can use.

    `counts` are the attack's numbers of steps, restarts and the like, each at least 1; `step_size`
    is None where the attack chooses it.
    """
    check_images(images)
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels: shape {tuple(labels.shape)} and {labels.dtype} must be ({len(images)},) and "
            "int64: one class per image"
        )
    if labels.device != images.device:
        raise ValueError(
            f"labels: on {labels.device}, but images on {images.device}; give "
            "labels.to(images.device)"
        )
    if labels.min() < 0:
        raise ValueError(f"labels: {labels.min()} is no class; they count from 0")
    require_choice("norm", norm, Norm)
    check_budget(eps, norm, images.shape[1:])
    for name, count in counts.items():
        if isinstance(count, float) or count < 1:
            raise ValueError(f"{name}={count} must be a whole number, at least 1")
    if step_size is not None and not step_size > 0:
        raise ValueError(f"step_size={step_size} must be positive: steps go up the loss")
    return numbers_of(images, seeds)


def check_budget(eps: float, threat: Threat, shape: Sequence[int]) -> None:
    """ValueError for what is no budget of a threat to images of `shape` (C, H, W)."""
    most = prod(shape) ** 0.5 if threat == "l2" else 1
    unit = (
        "displacements, of half the image's side" if threat == "stadv"
        else f"the size of the box in {threat}: it is on the [0, 1] scale of images"
    )  # fmt: skip
    if not 0 <= eps <= most:
        raise ValueError(f"eps={eps} must be in [0, {most:g}], {unit}")


def check_images(images: Tensor) -> None:
    """ValueError for all but one or more images (B, C, H, W) of floats in [0, 1]."""
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise ValueError(
            f"images: shape {tuple(images.shape)} and {images.dtype} must be (B, C, H, W), B at "
            "least 1, and floating point"
        )
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images: values from {images.min():g} to {images.max():g} must lie in [0, 1]; "
            "normalize inside the model"
        )


def numbers_of(images: Tensor, seeds: Sequence[int] | None) -> list[int]:
    """The images' seeds, by default 0 to B - 1; ValueError unless there is one for each."""
    if seeds is None:
        return list(range(len(images)))
    if len(seeds) != len(images):
        raise ValueError(f"seeds: {len(seeds)} of them for {len(images)} images; give one each")
    if min(seeds) < 0:
        raise ValueError(f"seeds: {min(seeds)} must be 0 or more")
    return [int(seed) for seed in seeds]
