"""Noisy copies of many images, answered by a classifier until each image has its certificate."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.attacks.eot import Expectation
from evaluation.attacks.rng import spawn
from evaluation.attacks.validation import refuse_training_mode
from evaluation.certification.bounds import MOST_AT_ONCE, probability_of, radius_of
from evaluation.certification.certificate import Certificate
from evaluation.certification.config import SmoothingConfig
from rdc.defense import batch_coupled


class Candidate:
    """An image on the way to its certificate: first a class is selected, then its radius tested.

    Noise comes from a generator of the image's own, one draw after another, so that a certificate
    depends neither on other images nor on how many go through the classifier at once.
    """

    def __init__(self, index: int, image: Tensor, label: int, config: SmoothingConfig) -> None:
        self.index = index
        self.label = label
        self.config = config
        self.test = config.build_test()
        self.passes = 0
        self.seconds = 0.0
        self._image = image.cpu()
        self._generator = torch.Generator().manual_seed(spawn([config.seed], index)[0])
        self._selection: list[int] = []
        self._selected: int | None = None

    def noisy_copy(self) -> Tensor:
        """The image with the next draw of its noise (C, H, W); not clipped."""
        noise = torch.randn(self._image.shape, generator=self._generator, dtype=self._image.dtype)
        return self._image + self.config.sigma * noise

    @property
    def next_samples(self) -> int:
        """Number of noised copies to classify next; 0 once the certificate is complete."""
        if self._selected is None:
            return min(MOST_AT_ONCE, self.config.selection_samples - len(self._selection))
        return self.test.next_samples

    def update(self, classes: np.ndarray, seconds: float) -> None:
        """Take the classes of the copies asked for."""
        self.passes += len(classes)
        self.seconds += seconds
        if self._selected is not None:
            self.test.update(classes == self._selected)
            return
        self._selection += classes.tolist()
        if len(self._selection) == self.config.selection_samples:
            self._selected = int(np.bincount(self._selection).argmax())

    def certificate(self) -> Certificate:
        """The certificate so far; the samples of the selection do not enter the radius."""
        assert self._selected is not None
        low, high = self.test.bounds
        radius, upper = (radius_of(bound, sigma=self.config.sigma) for bound in (low, high))
        for level in self.config.levels:  # exact where a radius was compared, not up to rounding
            probability = probability_of(level, sigma=self.config.sigma)
            radius = max(radius, level) if low >= probability else radius
            upper = min(upper, level) if high <= probability else upper
        return Certificate(
            image=self.index, label=self.label, selected=self._selected,
            radius=radius if low >= 0.5 else None, upper=upper if high < 1 else None,
            hits=self.test.hits, samples=self.test.samples,
            passes=self.passes, seconds=round(self.seconds, 6),
        )  # fmt: skip


def certificates(
    model: nn.Module,
    candidates: Iterable[Candidate],
    *,
    max_rows: int,
    most: int,
    device: torch.device,
    progress: Callable[[int], object],
) -> Iterator[Certificate]:
    """The certificate of each candidate, as soon as it is there.

    As many candidates as fill `max_rows` rows share a call, but no more than `most`. `progress` is
    told how many planned samples are drawn, or will not be needed.
    """
    waiting = iter(candidates)
    pool: list[Candidate] = []
    while True:
        while len(pool) < most and sum(each.next_samples for each in pool) < max_rows:
            if (candidate := next(waiting, None)) is None:
                break
            pool.append(candidate)
        if not pool:
            return
        progress(ask(model, pool, max_rows=max_rows, device=device))
        finished = [each for each in pool if not each.next_samples]
        pool = [each for each in pool if each.next_samples]
        progress(sum(each.config.planned_samples - each.passes for each in finished))
        yield from (each.certificate() for each in finished)


def ask(model: nn.Module, pool: Sequence[Candidate], *, max_rows: int, device: torch.device) -> int:
    """Classify the next copies of every candidate; their number."""
    started = time.perf_counter()
    counts = [each.next_samples for each in pool]
    rows = [each for each, count in zip(pool, counts, strict=True) for _ in range(count)]
    classes: list[int] = []
    for start in range(0, len(rows), max_rows):
        noisy = torch.stack([each.noisy_copy() for each in rows[start : start + max_rows]])
        classes += classify(model, noisy.to(device)).tolist()
    spent = (time.perf_counter() - started) / len(rows)
    parts = np.split(np.array(classes), np.cumsum(counts)[:-1])
    for each, part in zip(pool, parts, strict=True):
        each.update(part, spent * len(part))
    return len(rows)


def classify(model: nn.Module, images: Tensor) -> Tensor:
    """The classes (B,) of images (B, C, H, W); an error where the model gives no logits."""
    victim = Expectation(model, max_rows=len(images))
    return victim.logits(images, seeds=[0] * len(images))[:, 0].argmax(1)


def require_independent(model: nn.Module) -> None:
    """Refuse a model whose answers for the noisy copies of an image depend on each other."""
    if batch_coupled(model):
        raise ValueError(
            "model: its answer for an image depends on the other images of the batch, so that the "
            "noisy copies of an image are not independent; use a defense without batch_coupled "
            "guidance"
        )
    refuse_training_mode(model)
