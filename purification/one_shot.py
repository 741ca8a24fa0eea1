"""One-shot denoising of images whose noise level is known: denoised smoothing."""

from math import isfinite

from torch import Tensor, nn

from purification.purifier import entered, resized
from rdc.denoiser import PURIFYING, DenoiserLike, require_parts
from rdc.estimates import unconditional
from rdc.images import to_pixels


class OneShotDenoiser(nn.Module):
    """Images with Gaussian noise of standard deviation `sigma` to their denoised estimates.

        v -> (D(2 v - 1, 2 sigma) + 1) / 2

    on images v = clean + sigma n on the scale of [0, 1] (B, C, H, W), one unconditional pass. In
    front of any classifier it is denoised smoothing (Carlini et al., ICLR 2023; Salman et al.,
    NeurIPS 2020). The noise is already in the images and none is added: it is meant for randomized
    smoothing (`evaluation.certify`), and does nothing useful to images without noise. Images of
    another size than the denoiser's are resized for it and back (bilinear). Raises ValueError for
    images of other channels, or that are not floats.
    """

    def __init__(self, denoiser: DenoiserLike, *, sigma: float) -> None:
        super().__init__()
        require_parts(denoiser, PURIFYING)
        if not (sigma > 0 and isfinite(sigma)):
            raise ValueError(f"sigma={sigma} must be positive and finite")
        self.denoiser = denoiser
        self.sigma = sigma

    def forward(self, images: Tensor) -> Tensor:
        x = entered(images, self.denoiser.image_shape, resize=True)
        denoised = to_pixels(unconditional(self.denoiser, x, 2 * self.sigma))
        return resized(denoised, images.shape[2:])
