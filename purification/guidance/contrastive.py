"""Contrastive guidance: successive states of an image look alike, other images look different."""

from math import exp
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purification.guidance.base import Moment, Potential, frozen
from rdc.config import require
from rdc.gradients import State, gradient
from rdc.images import to_pixels
from rdc.networks.evaluating import evaluating

Negatives = Literal["bank", "batch"]
Pairs = Literal["diagonal", "all"]
Inputs = Literal["state", "pixels"]

FLOOR = 1e-6  # under which neither a negative nor a positive's share falls
BLOCKS = 3
LEARNING_RATE, BETA1, BETA2, EPSILON = 1e-2, 0.9, 0.999, 1e-8  # Adam's


class ContrastiveGuidance(Potential):
    """log h = -L / deviation(t), L the hard-negative loss of the states (Bai et al., ICML 2024).

    An image's positive pair is u = h(f(x before the last step)) and v = h(f(x)), f a network's
    logits and h a head; at the first step, u = v. The loss is that of `hard_negative_loss`, where u
    and v are anchors in turn. Weight: the paper's s, released as 500 with `tau` 1 and as 5000 with
    10, for a batch of 64 and `negatives` "batch".

    `classifier`: f, frozen here: evaluation mode, constant weights. `inputs`: the "state" x as
        released, although f knows images in [0, 1]; "pixels" is (x + 1) / 2.
    `negatives`: "bank" takes them from `bank`, logits (M, K) of training images that f saw as
        `inputs` says. h is the identity, L each image's own and not divided by a batch: a weight of
        about 500 / 64 is as strong. "batch" takes u and v of the other images, as published: the
        result depends on them, L is their mean, and one image alone is refused. h is trained along
        the way, one Adam step after each guided step, anew in every round from `seed`; it counts as
        a constant, so that this mode's gradient leaves out how images change h.
    `pairs`: "diagonal" takes the positive pair, the published loss; "all" is the released code,
        which takes each v of the batch as a positive of each image ("batch" only).
    `drift_min`, `drift_max`: guides the steps drift_min <= k < drift_max of a round, k counted in
        DiffPure's steps of 1/1000, so that fewer steps guide the same share (see `Moment`). The
        released code counts one network call before the first step: its 40 is 39 here.
    """

    bank: Tensor | None

    def __init__(
        self,
        classifier: nn.Module,
        *,
        negatives: Negatives = "bank",
        bank: Tensor | None = None,
        pairs: Pairs = "diagonal",
        inputs: Inputs = "state",
        tau: float = 1.0,
        tau_plus: float = 0.1,
        beta: float = 1.0,
        drift_min: int = 0,
        drift_max: int = 100_000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.classifier = frozen(classifier, "classifier")
        self.negatives: Negatives = negatives
        self.batch_coupled = negatives == "batch"
        self.pairs: Pairs = pairs
        self.inputs: Inputs = inputs
        self.tau, self.tau_plus, self.beta = tau, tau_plus, beta
        self.drift_min, self.drift_max = drift_min, drift_max
        self.seed = seed
        known = pairs in get_args(Pairs)
        require(
            self,
            negatives=(negatives in get_args(Negatives), f"one of {get_args(Negatives)}"),
            pairs=(known and (pairs == "diagonal" or self.batch_coupled),
                   "'diagonal', or 'all' with negatives='batch'"),
            inputs=(inputs in get_args(Inputs), f"one of {get_args(Inputs)}"),
            tau=(tau > 0 and 1 + beta < 88 * tau,
                 "positive, and more than (1 + beta) / 88, or exp((1 + beta) / tau) overflows"),
            tau_plus=(0 <= tau_plus < 1, "in [0, 1)"),
            beta=(beta >= 0, "0 or more"),
            drift_min=(0 <= drift_min < drift_max, "0 or more and less than drift_max"),
        )  # fmt: skip
        self.register_buffer("bank", None if self.batch_coupled else _checked(bank))

    def begin(self, x: Tensor) -> State:
        if not self.batch_coupled:
            return (x,)
        if len(x) < 2:
            count = "1 image" if len(x) else "0 images"
            raise ValueError(
                f"negatives='batch': a batch of {count} has no others to take negatives from; "
                "purify more at once, or give negatives='bank' with a bank"
            )
        weights = initial_head(self._logits(x[:1].detach()).shape[1], self.seed).to(x)
        count = torch.zeros((), dtype=x.dtype, device=x.device)
        return x, weights, torch.zeros_like(weights), torch.zeros_like(weights), count

    def increment(self, x: Tensor, moment: Moment, context: State, memory: State) -> Tensor:
        if not self._guides(moment):
            return torch.zeros_like(x)
        return super().increment(x, moment, context, memory)

    def log_h(self, x: Tensor, moment: Moment, context: State, memory: State) -> Tensor:
        u, v = self._logits(memory[0]), self._logits(x)
        if self.batch_coupled:
            weights = memory[1].detach()
            losses = self._batch_losses(head(u, weights), head(v, weights)) / len(x)
        else:
            losses = self._bank_losses(u, v)
        return -losses / moment.point.deviation

    def advance(self, x: Tensor, moment: Moment, context: State, memory: State) -> State:
        if not self.batch_coupled or not self._guides(moment):
            return x, *memory[1:]
        previous, now = memory[0].detach(), x.detach()

        def loss(weights: Tensor) -> Tensor:
            u, v = self._logits(previous), self._logits(now)
            return self._batch_losses(head(u, weights), head(v, weights)).mean()

        weights, *moments = (tensor.detach() for tensor in memory[1:])
        return x, *adam(weights, gradient(loss, weights), *moments)

    def _guides(self, moment: Moment) -> bool:
        return self.drift_min <= moment.k < self.drift_max

    def _logits(self, x: Tensor) -> Tensor:
        with evaluating(self.classifier):
            return self.classifier(x if self.inputs == "state" else to_pixels(x))

    def _bank_losses(self, u: Tensor, v: Tensor) -> Tensor:
        """(B,) for logits (B, K): each image against the bank."""
        assert self.bank is not None
        if u.shape[1] != self.bank.shape[1]:
            raise ValueError(
                f"bank: {self.bank.shape[1]} logits per image, but the classifier gives "
                f"{u.shape[1]}; make the bank with the same classifier"
            )
        anchors = F.normalize(torch.cat([u, v]), dim=1)
        u, v = anchors.chunk(2)
        positive = (u * v).sum(1, keepdim=True).repeat(2, 1)
        return self._of_images(positive, anchors @ self.bank.to(anchors).T)

    def _batch_losses(self, u: Tensor, v: Tensor) -> Tensor:
        """(B,) for features (B, K): each image against u and v of the others."""
        anchors = F.normalize(torch.cat([u, v]), dim=1)
        u, v = anchors.chunk(2)
        others = ~torch.eye(len(u), dtype=torch.bool, device=u.device).repeat(2, 2)
        negative = (anchors @ anchors.T)[others].view(len(anchors), -1)
        positive = u @ v.T if self.pairs == "all" else (u * v).sum(1, keepdim=True)
        return self._of_images(positive.repeat(2, 1), negative)

    def _of_images(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Mean loss of each image's two anchors (B,); the anchors are all u, and then all v."""
        losses = hard_negative_loss(
            positive, negative, tau=self.tau, tau_plus=self.tau_plus, beta=self.beta
        )
        return losses.mean(1).view(2, -1).mean(0)


def hard_negative_loss(
    positive: Tensor, negative: Tensor, *, tau: float, tau_plus: float, beta: float
) -> Tensor:
    """-log of each positive's share: (A, P) from cosines of A anchors, (A, P) and (A, N).

    p = exp(positive / tau) has the share p / (p + g) beside N negatives n = exp(negative / tau),
    weighted by n^beta, less the share tau_plus of them that is like the positive (Robinson et al.,
    ICLR 2021; Chuang et al., NeurIPS 2020):

        g = max((N weighted mean(n) - tau_plus N p) / (1 - tau_plus), N exp(-1 / tau)).
    """
    p = (positive / tau).exp()
    n = (negative / tau).exp().clamp_min(FLOOR)
    count, weights = n.shape[1], n**beta
    total = (weights * n).sum(1, keepdim=True) / weights.mean(1, keepdim=True)
    g = ((total - tau_plus * count * p) / (1 - tau_plus)).clamp_min(count * exp(-1 / tau))
    return -(p / (p + g)).clamp_min(FLOOR).log()


def initial_head(size: int, seed: int) -> Tensor:
    """Weights (3 blocks, 3 matrices, 2 K, K) for K = `size`, uniform as torch's linear layers."""
    generator = torch.Generator().manual_seed(seed)
    shape, on = (BLOCKS, 3, 2 * size, size), {"dtype": torch.float64, "device": "cpu"}
    weights = torch.rand(shape, generator=generator, **on)
    fan_in = torch.tensor([size, size, 2 * size], **on).view(3, 1, 1)
    return (2 * weights - 1) * fan_in.rsqrt()


def head(features: Tensor, weights: Tensor) -> Tensor:
    """h: blocks z + W3 (silu(W1 z) * W2 z) on (B, K), W3 kept transposed."""
    for w1, w2, w3 in weights:
        features = features + (F.silu(features @ w1.T) * (features @ w2.T)) @ w3
    return features


def adam(weights: Tensor, g: Tensor, m: Tensor, v: Tensor, count: Tensor) -> State:
    """The weights, both moments and the count of steps after one of Adam's."""
    count = count + 1
    m = BETA1 * m + (1 - BETA1) * g
    v = BETA2 * v + (1 - BETA2) * g.square()
    root = (v / (1 - BETA2**count)).sqrt() + EPSILON
    return weights - LEARNING_RATE * m / (1 - BETA1**count) / root, m, v, count


def _checked(bank: Tensor | None) -> Tensor:
    """Unit rows of a bank (M, K)."""
    given = None if bank is None else type(bank).__name__
    if isinstance(bank, Tensor):
        given = f"{bank.dtype} of shape {tuple(bank.shape)}"
        if bank.is_floating_point() and bank.ndim == 2 and len(bank) and bank.isfinite().all():
            return F.normalize(bank.detach(), dim=1)
    raise ValueError(
        f"bank={given}: negatives='bank' needs logits (M, K) of M training images, a tensor of "
        "finite floats; give them, or choose negatives='batch'"
    )
