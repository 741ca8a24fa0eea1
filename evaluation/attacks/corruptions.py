"""Common corruptions (Hendrycks & Dietterich, ICLR 2019): noise, blur, JPEG, brightness, contrast.

Five strengths each, those of CIFAR-10-C. Sides of 32 pixels are what they are made for.
"""

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from evaluation.attacks.rng import generators, normal
from evaluation.attacks.validation import check_images, in_float32, numbers_of
from rdc.choices import require_choice

Corruption = Literal["noise", "blur", "jpeg", "brightness", "contrast"]
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
STRENGTHS: dict[Corruption, tuple[float, ...]] = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "jpeg": (80, 65, 58, 50, 40),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
}
"""Standard deviation of Gaussian noise in [0, 1]; that of a Gaussian kernel in pixels; JPEG
quality; what is added to the value of HSV; factor of the difference from each channel's mean."""


def corrupt(
    images: Tensor, *, kind: Corruption, strength: int, seeds: Sequence[int] | None = None
) -> Tensor:
    """Images (B, C, H, W) in [0, 1] under a corruption of `strength` 1 to 5.

    `seeds`, one per image, number the noise; by default 0 to B - 1.
    """
    require_choice("kind", kind, Corruption)
    if strength not in (1, 2, 3, 4, 5):
        raise ValueError(f"strength={strength} of a corruption must be 1, 2, 3, 4 or 5")
    check_images(in_float32(images))  # rounding beyond the box is clamped below
    sources = generators(numbers_of(images, seeds))
    amount, clean = STRENGTHS[kind][int(strength) - 1], images.detach()
    if kind == "noise":
        return (clean + amount * normal(sources, clean.shape[1:], clean)).clamp(0, 1)
    return BY_KIND[kind](clean, amount).clamp(0, 1)


def blurred(images: Tensor, std: float) -> Tensor:
    """Gaussian blur over height and width, mirrored at the border."""
    values = gaussian_filter(images.double().cpu().numpy(), (0, 0, std, std))
    return torch.from_numpy(values).to(images)


def compressed(images: Tensor, quality: float) -> Tensor:
    """JPEG by Pillow, of images rounded to 8 bits."""
    return torch.stack([_compressed(image, int(quality)) for image in images])


def _compressed(image: Tensor, quality: int) -> Tensor:
    levels = (255 * image).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    file = BytesIO()
    Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels).save(
        file, "JPEG", quality=quality
    )
    with Image.open(file) as read:
        pixels = np.asarray(read).reshape(levels.shape)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).to(image) / 255


def brightened(images: Tensor, amount: float) -> Tensor:
    """Largest channel raised by `amount`, at most to 1, at the same hue and saturation."""
    value = images.amax(1, keepdim=True)
    raised = (value + amount).clamp_max(1)
    return torch.where(value > 0, images * raised / value.clamp_min(1e-12), raised)


def contrasted(images: Tensor, factor: float) -> Tensor:
    """Difference from each channel's mean times `factor`."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + factor * (images - mean)


BY_KIND: dict[Corruption, Callable[[Tensor, float], Tensor]] = {
    "blur": blurred,
    "jpeg": compressed,
    "brightness": brightened,
    "contrast": contrasted,
}
