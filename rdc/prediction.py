"""`classify`: images of any kind to classes, with RDC."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.classifier import RobustDiffusionClassifier
from rdc.images import convert_images


@dataclass(frozen=True)
class Prediction:
    """The classes of B images.

    labels (B,) int64; probabilities and log_posterior (B, K); maximized (B, C, H, W) in [0, 1]: the
    images after likelihood maximization, which were classified.
    conversions: for each image, how it was made to fit the model's shape, or "".
    model: the packaged name, directory or hub id that was loaded, or "" for a model that was given.
    """

    labels: Tensor
    probabilities: Tensor
    log_posterior: Tensor
    maximized: Tensor
    class_names: tuple[str, ...]
    conversions: tuple[str, ...]
    model: str

    @property
    def names(self) -> list[str]:
        """The predicted classes by name, or by number where the model has no names."""
        return [self.class_names[i] if self.class_names else str(i) for i in self.labels.tolist()]


def classify(
    images: Any,
    model: str | Path | RobustDiffusionClassifier = "digits",
    *,
    batch_size: int = 64,
    resize: bool = False,
    device: str | torch.device | None = None,
) -> Prediction:
    """Classify images with RDC.

    images: a float tensor NCHW in [0, 1], a uint8 array (HW, NHW, HWC, NHWC), a PIL image, a path,
        or a list of these.
    model: a packaged name (`rdc.packaged_models()`), a directory, a hub id, or a
        `RobustDiffusionClassifier`.
    resize: convert images of every other shape to that of the model; without it only files and PIL
        images that are larger are (see `rdc.images.convert_images`). The prediction names changes.

    Raises:
        ValueError, TypeError, FileNotFoundError: an argument is wrong; raised before computing.
        FloatingPointError: the model's weights or settings overflow.
    """
    name = ""
    if not isinstance(model, RobustDiffusionClassifier):
        name, model = str(model), RobustDiffusionClassifier.from_pretrained(model)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    converted = convert_images(images, model.denoiser.image_shape, resize=resize)
    batch = converted.images
    model = model.to(device) if device is not None else model
    weights = next(_floats(model), batch)  # a denoiser without any takes images as given
    with torch.no_grad():
        parts = [_classify(model, part.to(weights)) for part in batch.split(batch_size)]
    log_posterior, maximized = (torch.cat(part) for part in zip(*parts, strict=True))
    if broken := int((~log_posterior.isfinite().all(1)).sum()):
        raise FloatingPointError(
            f"model: its posterior is NaN or infinite for {broken} of {len(batch)} images: its "
            "weights or settings overflow in its precision; give another model, or float64"
        )
    return Prediction(
        labels=log_posterior.argmax(1),
        probabilities=log_posterior.exp(),
        log_posterior=log_posterior,
        maximized=maximized,
        class_names=model.denoiser.class_names,
        conversions=converted.changes,
        model=name,
    )


def _floats(model: nn.Module) -> Iterator[Tensor]:
    """The tensors whose precision and device are the model's: weights, or else data in buffers."""
    yield from model.parameters()
    yield from (buffer for buffer in model.buffers() if buffer.is_floating_point())


def _classify(model: RobustDiffusionClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    maximized = model.purifier(images)
    return F.log_softmax(model.classifier(maximized), dim=1), maximized
