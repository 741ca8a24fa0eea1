"""Prediction with few passes where classes are many: those that have lost are not asked again."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from scipy.special import stdtrit
from torch import Tensor

from rdc.classifier import DiffusionClassifier
from rdc.denoiser import OneClassAtATime
from rdc.estimates import of_class
from rdc.images import check_form, to_x
from rdc.likelihood import chunk_rows, rows_per_image, squared_errors

FIRST, GROWTH = 8, 1.5
"""Losses of every class before the first look, and how many more there are at each later one."""


@dataclass(frozen=True)
class Elimination:
    """The classes of B images, found by elimination.

    labels (B,) int64. logits (B, K): those of the classifier up to a constant of each image;
    a class that was eliminated has the logit of the class that it lost to less their mean
    difference until then. passes (B,) int64: network rows, for the classifier levels x draws x K.
    """

    labels: Tensor
    logits: Tensor
    passes: Tensor


@torch.no_grad()
def predict_by_elimination(
    classifier: DiffusionClassifier, images: Tensor, *, alpha: float = 0.01
) -> Elimination:
    """Predict the classes that `classifier` gives to images (B, C, H, W), in fewer passes.

    The loss of a class is a sum of N terms, one for each noise level and draw. They are taken in a
    random order, the same for all classes, and after n = 8, 12, 18, ... of them a class is
    eliminated if its terms exceed those of the best class so far by

        mean difference > t(n - 1, 1 - a) s sqrt((1 / n) (1 - n / N)),   a = alpha / ((K - 1) L)

    with s the standard deviation of the differences and L comparisons before the last: the
    one-sided paired t-test for the mean of a finite population (Cochran 1977, section 2.8),
    corrected for all rivals and comparisons (Bonferroni). An answer then differs from the
    classifier's with probability `alpha` at most over random orders, as far as the t-test is right
    about means of n differences, which it is exactly for normal ones. The last comparison, with
    n = N, is the classifier's own. Related: the stages of Li et al., ICCV 2023, of fixed numbers.

    For prediction only: attacks and gradients must use the classifier itself. The order depends on
    the classifier's seed and the number of terms alone.

    Raises:
        ValueError: images that need a gradient, or fewer than 2 x 8 terms.
        TypeError: a denoiser that answers for all classes at once: nothing can be saved.
    """
    if not isinstance(classifier, DiffusionClassifier):
        raise TypeError(
            f"classifier: {type(classifier).__name__} is no DiffusionClassifier; of an RDC, give "
            "its `classifier` and the images that its `purifier` returns"
        )
    denoiser = cast(OneClassAtATime, classifier.denoiser)
    if rows_per_image(denoiser) == 1:
        raise TypeError(
            f"classifier: {type(denoiser).__name__} answers for all classes in one pass, so that "
            "elimination saves nothing; call the classifier itself"
        )
    if images.requires_grad:
        raise ValueError(
            "images: they need a gradient, and elimination has none; call the classifier itself, "
            "or give images.detach()"
        )
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must be between 0 and 1")
    terms = len(classifier.levels)
    if terms < 2 * FIRST:
        raise ValueError(
            f"classifier: {terms} levels x draws, too few to eliminate classes before the last; "
            f"call the classifier itself, or give {2 * FIRST} or more"
        )
    tournament = _Tournament(classifier, denoiser, to_x(check_form(images, denoiser.image_shape)))
    for count in tournament.looks:
        tournament.evaluate(count)
        tournament.eliminate(count, alpha)
    return tournament.result()


class _Tournament:
    """The losses of all images so far, their terms in the order of evaluation."""

    def __init__(
        self, classifier: DiffusionClassifier, denoiser: OneClassAtATime, x: Tensor
    ) -> None:
        self.denoiser, self.x = denoiser, x
        self.temperature = classifier.config.temperature
        total, classes = len(classifier.levels), denoiser.num_classes
        order = torch.randperm(
            total, generator=torch.Generator().manual_seed(classifier.noise.seed), device="cpu"
        )
        noise = classifier.noise.normal(x, total, antithetic=classifier.config.antithetic)
        self.noise = noise[:, order.to(x.device)]
        self.sigmas = classifier.levels.sigmas[order].to(x)
        self.weights = classifier.levels.weights[order].to(x.device)
        self.terms = torch.zeros(len(x), classes, total, dtype=torch.float64, device=x.device)
        self.alive = torch.ones(len(x), classes, dtype=torch.bool, device=x.device)
        self.behind: list[tuple[Tensor, Tensor, Tensor]] = []
        self.passes = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.done = 0
        self.looks = [FIRST]
        """numbers of terms after which classes are compared, the last with all of them"""
        while self.looks[-1] < total:
            self.looks.append(min(total, math.ceil(GROWTH * self.looks[-1])))

    def evaluate(self, count: int) -> None:
        """The terms up to `count` of the classes that are left, where they are two or more."""
        asked = self.alive & (self.alive.sum(1, keepdim=True) > 1)
        asked = asked[:, :, None].expand(-1, -1, count - self.done)
        for rows in asked.nonzero().split(chunk_rows(self.x)):
            image, label, term = rows.unbind(1)
            term = term + self.done
            clean, sigma = self.x[image], self.sigmas[term]
            drawn = self.noise[image if len(self.noise) != 1 else 0, term]
            noised = clean + sigma[:, None, None, None] * drawn
            denoised = of_class(self.denoiser, noised, sigma, label)
            errors = squared_errors(denoised, clean)
            self.terms[image, label, term] = errors.double() * self.weights[term]
        self.passes += asked.sum((1, 2))
        self.done = count

    def eliminate(self, count: int, alpha: float) -> None:
        """Compare the classes that are left with the best of them."""
        seen = self.terms[:, :, :count]
        best = seen.mean(2).masked_fill(~self.alive, torch.inf).argmin(1)
        difference = seen - seen[torch.arange(len(seen)), best][:, None]
        total, rivals = self.terms.shape[2], self.alive.shape[1] - 1
        tests = rivals * (len(self.looks) - 1)  # the last comparison cannot err
        quantile = stdtrit(count - 1, 1 - alpha / tests)
        error = difference.std(2) * math.sqrt((1 - count / total) / count)
        lost = self.alive & (difference.mean(2) > quantile * error)
        self.behind.append((lost, best, difference.mean(2) * total))
        self.alive &= ~lost

    def result(self) -> Elimination:
        """Logits from the last comparison back to the first: rivals may have lost later."""
        best = self.alive.int().argmax(1)
        total = self.terms.sum(2)
        losses = total - total.gather(1, best[:, None])
        for lost, rival, difference in reversed(self.behind):
            losses = torch.where(lost, losses.gather(1, rival[:, None]) + difference, losses)
        return Elimination(best, (-losses / self.temperature).to(self.x.dtype), self.passes)
