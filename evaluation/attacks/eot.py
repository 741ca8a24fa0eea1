"""Means over the draws of a random defense: losses, gradients and shares of wrong answers."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from evaluation.attacks.losses import Loss, margin
from rdc.defense import batch_coupled
from rdc.noise import using_draws

Model = Callable[[Tensor], Tensor]
UNJUDGEABLE = (
    "NaN in its logits, or infinity; nothing can be judged by them; -inf is allowed for classes of "
    "probability 0"
)


class Judgment(NamedTuple):
    """Means over the draws of a model for B images, each (B,)."""

    loss: Tensor
    """the loss that the attack raises"""
    wrong: Tensor
    """share of the draws, in [0, 1], that give another class than the label"""
    margin: Tensor
    """best wrong logit minus the right one"""

    def worse(self, other: "Judgment") -> Tensor:
        """Images with more wrong draws than `other`, or as many and a larger margin: (B,) bool."""
        tie = (self.wrong == other.wrong) & (self.margin > other.margin)
        return (self.wrong > other.wrong) | tie

    def where(self, mask: Tensor, other: "Judgment") -> "Judgment":
        """Select image by image: self where `mask` (B,) bool is True, `other` elsewhere."""
        return Judgment(*(torch.where(mask, a, b) for a, b in zip(self, other, strict=True)))


class Expectation:
    """Expectation over transformation (Athalye et al., ICML 2018), over all that a model draws.

    `model` maps [0, 1] images (B, C, H, W) to logits (B, K). With `draws` > 1 every answer is a
    mean over that many draws per image: the loss, its gradient, the share of wrong classes. Nothing
    is decided by a single draw. Images and draws fold into rows, of which `max_rows` go through the
    model at a time.

    Every call takes `seeds`, one per image, which number the draws: the same seeds give the same
    draws, so that two points are compared on common random numbers, and other seeds give other
    draws. They reach the frozen noise of our defenses through `rdc.noise.using_draws`, each image
    with draws of its own. A model with a generator of its own (fresh noise, dropout) is called as
    it is and draws anew each time.

    With `draws` = 1 the model is taken for a deterministic function: frozen noise is that of a
    plain call, known to the attacker, and `seeds` do nothing. With `stop_when_wrong`, attacks then
    leave an image alone as soon as its answer is wrong, in place of searching for a larger margin.

    `judges`: False for a model that is not the one to be fooled, as in a transfer attack: images
    that it gets wrong from the start are attacked all the same.
    """

    def __init__(
        self,
        model: Model,
        *,
        draws: int = 1,
        max_rows: int = 256,
        stop_when_wrong: bool = False,
        judges: bool = True,
    ) -> None:
        if draws < 1 or max_rows < 1:
            raise ValueError(f"draws={draws} and max_rows={max_rows} must be at least 1")
        if max_rows > 1 and isinstance(model, nn.Module) and batch_coupled(model):
            raise ValueError(
                f"max_rows={max_rows}: the model's answer for an image depends on the batch, but "
                "images are attacked one by one; pass max_rows=1, or use a defense "
                "without batch_coupled guidance"
            )
        self.model = model
        self.draws = draws
        self.max_rows = max_rows
        self.stop_when_wrong = stop_when_wrong
        self.judges = judges
        self.precision: torch.dtype | None = None
        """type of the images that the model gets; None: that of the points"""

    @classmethod
    def of(cls, model: "Model | Expectation") -> "Expectation":
        """An Expectation as it is; another model as a deterministic one."""
        return model if isinstance(model, cls) else cls(model)  # type: ignore[arg-type]

    def having(self, **changes: object) -> Self:
        """The same with other values of attributes, such as model=..."""
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def logits(self, images: Tensor, *, seeds: Sequence[int]) -> Tensor:
        """The logits of every draw (B, draws, K)."""
        found: list[list[Tensor]] = []
        for part, draws in self._blocks(len(images)):
            if draws.start == 0:
                found.append([])
            with torch.no_grad(), self._drawing(seeds[part], draws):
                found[-1].append(self._call(images[part], len(draws)))
        return torch.cat([torch.cat(parts).transpose(0, 1) for parts in found])

    def evaluate(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        seeds: Sequence[int],
        loss: Loss = margin,
        targets: Tensor | None = None,
    ) -> Judgment:
        """Loss, share of wrong draws and margin of each image, without a gradient."""
        return Judgment(*self._means(images, labels, seeds, loss, targets, slope=False))

    def gradient(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        seeds: Sequence[int],
        loss: Loss = margin,
        targets: Tensor | None = None,
    ) -> tuple[Judgment, Tensor]:
        """The same, and the gradient of the mean loss (B, C, H, W)."""
        *judged, slope = self._means(images, labels, seeds, loss, targets, slope=True)
        # The sum is cheap, and not finite where an entry is not.
        if not slope.sum().isfinite() and not slope.isfinite().all():
            raise FloatingPointError(
                "model: the gradient of its loss is NaN or infinite; an attack that goes on with "
                "it would only seem to fail; take log(0), roots of 0 and divisions by 0 out of the "
                "model, such as by log_softmax in place of log(softmax)"
            )
        return Judgment(*judged), slope

    def _means(self, images, labels, seeds, loss, targets, *, slope: bool) -> list[Tensor]:
        """Means over the draws of loss, wrong answers and margin, each (B,), and with `slope` of
        the loss's gradient (B, C, H, W)."""
        sums: list[list[Tensor]] = []
        for part, draws in self._blocks(len(images)):
            aims = [a[part] for a in (labels, targets) if a is not None]
            with self._drawing(seeds[part], draws):
                found = self._sums(images[part], aims, loss, len(draws), slope=slope)
            if draws.start == 0:
                sums.append(found)
            else:
                sums[-1] = [a + b for a, b in zip(sums[-1], found, strict=True)]
        if len(sums) == self.draws == 1:
            return sums[0]
        return [torch.cat(parts) / self.draws for parts in zip(*sums, strict=True)]

    def _sums(
        self, images: Tensor, aims: list[Tensor], loss: Loss, draws: int, *, slope: bool
    ) -> list[Tensor]:
        """The same as sums over the next draws; `aims` are labels and targets."""
        with torch.set_grad_enabled(slope):
            point = images.detach().requires_grad_(slope)
            logits = self._call(point, draws).flatten(0, 1)
            if (most := int(aims[0].max())) >= logits.shape[1]:
                raise ValueError(
                    f"labels: up to {most}, but the model has {logits.shape[1]} classes, from 0"
                )
            aims = aims if draws == 1 else [a.repeat(draws) for a in aims]
            values = one_each(loss(logits, *aims), logits, "loss")
            slopes = [_differentiate(values, point)] if slope else []
        values, logits = values.detach(), logits.detach()
        margins = values if loss is margin else margin(logits, aims[0])
        rows = [values, (logits.argmax(1) != aims[0]).to(values), margins.to(values)]
        if draws > 1:
            rows = [row.unflatten(0, (draws, -1)).sum(0) for row in rows]
        return rows + slopes

    def _blocks(self, count: int) -> Iterator[tuple[slice, range]]:
        """Images and draws that go through the model together: all draws of some images in turn."""
        for start in range(0, count, self.max_rows):
            part = slice(start, min(start + self.max_rows, count))
            together = max(1, self.max_rows // (part.stop - part.start))
            for first in range(0, self.draws, together):
                yield part, range(first, min(first + together, self.draws))

    def _drawing(self, seeds: Sequence[int], draws: range) -> AbstractContextManager[None]:
        """The context in which rows (draw, image) have the numbers of their draws."""
        if self.draws == 1:
            return nullcontext()
        return using_draws([(seed << 32) + draw + 1 for draw in draws for seed in seeds])

    def shown(self, points: Tensor) -> Tensor:
        """The images that the model gets for points (B, C, H, W)."""
        return points.to(self.precision or points.dtype)

    def _call(self, images: Tensor, draws: int) -> Tensor:
        """Logits (draws, B, K), at least float32."""
        shown = self.shown(images)
        # A copy, which the model may change in place.
        rows = shown.clone() if draws == 1 else shown.repeat(draws, 1, 1, 1)
        logits = self.model(rows)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"model: returns {type(logits).__name__}; it must return a tensor of logits (B, K)"
            )
        if logits.ndim != 2 or len(logits) != draws * len(images) or logits.shape[1] < 2:
            raise ValueError(
                f"model: logits of shape {tuple(logits.shape)} for {draws * len(images)} images; "
                "they must be (B, K) with K at least 2"
            )
        if not judgeable(logits):
            raise FloatingPointError(f"model: {UNJUDGEABLE}")
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.unflatten(0, (draws, len(images)))


def judgeable(logits: Tensor) -> bool:
    """True where each row's largest logit is finite; -inf for others is a probability of 0."""
    return bool(logits.amax(1).isfinite().all())


def one_each(values: Tensor, rows: Tensor, name: str) -> Tensor:
    """The values (B,) of rows (B, ...); ValueError for a mean over them, and for other shapes."""
    if values.shape != rows.shape[:1]:
        raise ValueError(
            f"{name}: values of shape {tuple(values.shape)} for {len(rows)} images; it must give "
            "(B,), one for each image, as losses of torch do with reduction='none'"
        )
    return values


def _differentiate(values: Tensor, point: Tensor) -> Tensor:
    gradient = None
    if values.requires_grad:
        (gradient,) = torch.autograd.grad(values.sum(), point, allow_unused=True)
    if gradient is None:
        raise ValueError(
            "model: autograd finds no way from its logits to the images; attack a surrogate that "
            "has one, or use square and random search (for `evaluate`: only=('square', 'random'))"
        )
    return gradient
