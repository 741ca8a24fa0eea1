"""Estimates of any denoiser, refused in another shape than they must have: it might broadcast."""

from collections.abc import Sequence

from torch import Tensor

from rdc.denoiser import DenoiserLike, OneClassAtATime


def unconditional(denoiser: DenoiserLike, x: Tensor, sigma: Tensor | float) -> Tensor:
    """The estimate (B, C, H, W) of x that knows no class."""
    return _shaped(denoiser.denoise(x, sigma), x.shape, "denoise(x, sigma)")


def of_classes(denoiser: DenoiserLike, x: Tensor, sigma: Tensor | float) -> Tensor:
    """An estimate for every class (B, K, C, H, W)."""
    shape = (len(x), denoiser.num_classes, *x.shape[1:])
    return _shaped(denoiser.denoise_classes(x, sigma), shape, "denoise_classes(x, sigma)")


def of_class(denoiser: OneClassAtATime, x: Tensor, sigma: Tensor | float, labels: Tensor) -> Tensor:
    """The estimate (B, C, H, W) for one class of each image; `labels` (B,)."""
    found = denoiser.denoise_class(x, sigma, labels)
    return _shaped(found, x.shape, "denoise_class(x, sigma, labels)")


def _shaped(estimate: object, shape: Sequence[int], call: str) -> Tensor:
    found = tuple(estimate.shape) if isinstance(estimate, Tensor) else type(estimate).__name__
    if not isinstance(estimate, Tensor) or found != tuple(shape):
        raise ValueError(
            f"denoiser: {call} gives {found}; return a tensor of shape {tuple(shape)}, estimates "
            "of images alone, without a variance"
        )
    return estimate
