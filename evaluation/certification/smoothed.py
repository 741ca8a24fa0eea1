"""The smoothed classifier that certificates speak about, as a module."""

from collections.abc import Callable
from functools import partial
from math import ceil, log, log2

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.attacks.validation import check_images, in_float32
from evaluation.certification.bounds import predicted_class
from evaluation.certification.sampling import classify, require_independent
from evaluation.results.statistics import sign_test
from rdc.choices import NoiseMode
from rdc.noise import Noise, using_draws

STREAM = 100
"""Noise stream of the smoothing, apart from those inside a defense."""
AT_ONCE = 100
"""noisy copies of each image in one call of `predict`"""


class SmoothedClassifier(nn.Module):
    """g(v) = argmax_c P[f(v + sigma n) = c] (Cohen et al., ICML 2019), by `samples` noisy copies.

    `model` f maps images (B, C, H, W) to logits (B, K). Noise is added on [0, 1] and not clipped.
    `forward` gives the logarithm of the mean probability of the copies, which attacks can
    differentiate; `predict` the certified answer, by votes and with abstentions.
    `noise`: "fresh" for every call, or "frozen", which makes g a deterministic function for an
    attack. Only answers under fresh noise have the certificate's guarantee.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sigma: float,
        samples: int = 100,
        alpha: float = 0.001,
        noise: NoiseMode = "fresh",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not sigma > 0 or samples < 1:
            raise ValueError(f"sigma={sigma} must be positive, and samples={samples} at least 1")
        if not 0 < alpha < 1:
            raise ValueError(f"alpha={alpha} must be between 0 and 1: the probability of an error")
        self.model = model
        self.sigma = sigma
        self.samples = samples
        self.alpha = alpha
        self.noise = Noise(noise, seed=seed, stream=STREAM)

    def forward(self, images: Tensor) -> Tensor:
        """[0, 1] images (B, C, H, W) to logits (B, K)."""
        logits = self._of_copies(self.model, images, self.samples)
        return logits.log_softmax(2).logsumexp(1) - log(self.samples)

    @torch.no_grad()
    def predict(self, images: Tensor) -> list[int | None]:
        """The class of each image, or None where g abstains (PREDICT of Cohen et al. 2019).

        Raises RuntimeError for frozen noise, which an attacker can know, and ValueError for images
        outside [0, 1], for a model whose copies are not independent, such as one with a batch
        normalization in training mode, and where even equal votes of all samples would be an
        abstention.
        """
        check_images(in_float32(images))  # f sees what rounding left outside too
        require_independent(self)
        if sign_test(self.samples, 0) > self.alpha:
            least = ceil(1 - log2(self.alpha))
            raise ValueError(
                f"samples={self.samples} are too few for alpha={self.alpha}: every answer would be "
                f"an abstention; give samples={least} or more, or a larger alpha"
            )
        if self.noise.mode == "frozen":
            raise RuntimeError(
                "noise='frozen': an attacker can know this noise, and the guarantee is about fresh "
                "noise; make the SmoothedClassifier with noise='fresh'"
            )
        parts = [
            self._of_copies(
                partial(classify, self.model), images, min(AT_ONCE, self.samples - start)
            )
            for start in range(0, self.samples, AT_ONCE)
        ]
        votes = torch.cat(parts, 1).cpu().numpy()
        return [predicted_class(np.bincount(row, minlength=2), alpha=self.alpha) for row in votes]

    def _of_copies(self, answers: Callable[[Tensor], Tensor], images: Tensor, count: int) -> Tensor:
        """Answers for `count` noisy copies of each image, (B, count, ...)."""
        noisy = images[:, None] + self.sigma * self.noise.normal(images, count)
        # What f draws by itself is the same for all copies of an image.
        with using_draws([0] * count):
            found = answers(noisy.flatten(0, 1))
        return found.unflatten(0, (len(images), count))
