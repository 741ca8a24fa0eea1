"""A picture of what a denoiser has learned: samples of every class, one column each."""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from rdc.denoiser import Denoiser
from rdc.images import to_pixels
from rdc.sampling import edm_sigmas, heun

ROWS, MOST_CLASSES, STEPS = 4, 10, 18


def save_samples(denoiser: Denoiser, path: Path, *, sigmas: tuple[float, float], seed: int) -> None:
    """Write `sample_grid` as a PNG, small images enlarged so that they can be seen."""
    grid = sample_grid(denoiser, sigmas=sigmas, seed=seed)
    pixels = rearrange((grid * 255).round().byte(), "c h w -> h w c").squeeze(2).cpu().numpy()
    image = Image.fromarray(pixels)
    zoom = max(1, 64 // denoiser.image_shape[2])
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (image.width * zoom, image.height * zoom)
    image.resize(size, Image.Resampling.NEAREST).save(path)


@torch.no_grad()
def sample_grid(denoiser: Denoiser, *, sigmas: tuple[float, float], seed: int) -> Tensor:
    """Four samples of each of the first ten classes: (C, 4 (H + 1), classes (W + 1)) in [0, 1].

    Heun's sampler between the noise levels `sigmas`; the same noise for all classes of a row and
    for all calls, so that the pictures of a run can be laid side by side.
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
