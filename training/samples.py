"""Picture of what a denoiser has learned: samples of every class, one column per class."""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rdc.denoiser import Denoiser
from rdc.images import to_pixels
from rdc.runs.atomic import replacing
from rdc.sampling import edm_sigmas, heun

ROWS, MOST_CLASSES, STEPS = 2, 10, 12
CELL, TITLE = 64, 16
"""Smallest width of a column and height of the line of class names, in pixels."""


def save_samples(denoiser: Denoiser, path: Path, *, sigmas: tuple[float, float], seed: int) -> None:
    """Write `sample_grid` below the names of the classes as a PNG, small images enlarged."""
    grid = sample_grid(denoiser, sigmas=sigmas, seed=seed)
    pixels = rearrange((grid * 255).round().byte(), "c h w -> h w c").squeeze(2).cpu().numpy()
    image = Image.fromarray(pixels)
    zoom = max(1, CELL // denoiser.image_shape[2])
    image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
    page = Image.new(image.mode, (image.width, image.height + TITLE), "white")
    page.paste(image, (0, TITLE))
    width = (denoiser.image_shape[2] + 1) * zoom
    names = denoiser.class_names[:MOST_CLASSES]
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(size=11)
    for column, name in enumerate(names):
        while draw.textlength(name, font) > width:
            name = name[:-1]
        draw.text((column * width, 1), name, fill="black", font=font)
    with replacing(path) as part:
        page.save(part, format="PNG")


@torch.no_grad()
def sample_grid(denoiser: Denoiser, *, sigmas: tuple[float, float], seed: int) -> Tensor:
    """Two samples of each of the first ten classes: (C, 2 (H + 1), classes (W + 1)) in [0, 1].

    Heun's sampler between the noise levels `sigmas`; the same noise for all classes of a row and
    for all calls, so that the pictures of a run can be compared.
    """
    low, high = sigmas
    device = next(denoiser.parameters()).device
    count = min(denoiser.num_classes, MOST_CLASSES)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(ROWS, 1, *denoiser.image_shape, generator=generator).to(device)
    start = high * noise.expand(-1, count, -1, -1, -1).flatten(0, 1)
    labels = torch.arange(count, device=device).repeat(ROWS)
    samples = heun(
        lambda x, sigma: denoiser.denoise_class(x, sigma, labels),
        start,
        edm_sigmas(STEPS, sigma_min=low, sigma_max=high),
    )
    images = F.pad(to_pixels(samples).clamp(0, 1), (0, 1, 0, 1), value=0.5)
    return rearrange(images, "(r k) c h w -> c (r h) (k w)", k=count)
