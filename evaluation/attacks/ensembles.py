"""Ensembles of attacks: AutoAttack's for deterministic models, and one for random defenses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from evaluation.attacks.apgd import apgd
from evaluation.attacks.eot import Expectation, Model
from evaluation.attacks.fab import fab
from evaluation.attacks.losses import cross_entropy, margin, targeted_dlr
from evaluation.attacks.rng import pick
from evaluation.attacks.square import square
from evaluation.attacks.validation import checked, prepared
from evaluation.attacks.worst_case import Selection
from rdc.choices import Norm

Attack = Callable[..., Tensor]
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
"""Attacks of `standard`, in its order."""
STOCHASTIC = ("apgd-ce", "apgd-margin", "apgd-t", "square")
"""Attacks of `stochastic`, in its order."""


@dataclass(frozen=True)
class Attacked:
    """The most harmful images of an ensemble, and what each of its attacks did.

    `images` (B, C, H, W); `wrong` (B,) is the share of draws that misclassify them. `attacks` has
    that share (B,) for the images of each attack by name, "none" for the given ones; it is NaN
    where an image had fallen to an earlier attack. `stages` has the most harmful images after each
    attack; those of the last one are `images`.
    """

    images: Tensor
    wrong: Tensor
    attacks: dict[str, Tensor]
    stages: dict[str, Tensor]


@prepared
def standard(
    model: Model | Expectation,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    seeds: Sequence[int] | None = None,
) -> Attacked:
    """AutoAttack's standard version (Croce & Hein 2020) for deterministic models.

    APGD on the cross-entropy, targeted APGD on the DLR loss, targeted FAB, Square, with its
    settings; each one attacks the images that the ones before left standing. ValueError for a model
    that answers twice with different logits: a single draw must not decide.
    """
    seeds = checked(images, labels, eps=eps, norm=norm, seeds=seeds)
    victim = Expectation.of(model).having(stop_when_wrong=True)
    if victim.draws > 1 or _differs(victim, images, labels, seeds):
        raise ValueError(
            "model: it is random, and AutoAttack would judge it by single draws; use `stochastic` "
            "with Expectation(model, draws=...), or in `evaluate` attack='stochastic'"
        )
    attacks = named(STANDARD, steps=steps, targets=targets, queries=queries)
    return run(victim, images, labels, attacks, eps=eps, norm=norm, seeds=seeds)


@prepared
def stochastic(
    model: Expectation,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    steps: int = 100,
    targets: int = 9,
    queries: int = 5000,
    seeds: Sequence[int] | None = None,
) -> Attacked:
    """APGD on the cross-entropy, on the margin, targeted on the DLR loss, and Square, on means.

    For random defenses: `model` is an Expectation over several draws. Every attack works on the
    means of its own draws; all images that come out of them are judged by one set of draws that no
    attack has seen. An attacked image rests only when every one of those is wrong. The reported
    share is that of the most harmful of five candidates: for a number to publish, judge `images` on
    yet other draws.
    """
    seeds = checked(images, labels, eps=eps, norm=norm, seeds=seeds)
    if model.draws < 2:
        raise ValueError(
            "model: must be an Expectation of at least 2 draws, such as "
            "Expectation(model, draws=20); for a deterministic model use `standard`"
        )
    attacks = named(STOCHASTIC, steps=steps, targets=targets, queries=queries)
    return run(model, images, labels, attacks, eps=eps, norm=norm, seeds=seeds)


def named(names: Sequence[str], *, steps: int, targets: int, queries: int) -> dict[str, Attack]:
    """The attacks with these names."""
    attacks: dict[str, Attack] = {
        "apgd-ce": partial(apgd, loss=cross_entropy, steps=steps),
        "apgd-margin": partial(apgd, loss=margin, steps=steps),
        "apgd-t": partial(apgd, loss=targeted_dlr, targets=targets, steps=steps),
        "fab-t": partial(fab, targets=targets, steps=steps),
        "square": partial(square, queries=queries),
    }
    return {name: attacks[name] for name in names}


def run(
    victim: Expectation,
    images: Tensor,
    labels: Tensor,
    attacks: Mapping[str, Attack],
    *,
    eps: float,
    norm: Norm,
    seeds: Sequence[int],
) -> Attacked:
    """The worst over `attacks`, in their order, per image."""
    selection = Selection(victim, images, labels, seeds)
    wrong, stages = {"none": selection.judged.wrong.clone()}, {}
    for number, (name, attack) in enumerate(attacks.items(), start=1):

        def attacked(index: Tensor, seeds: list[int], attack: Attack = attack) -> Tensor:
            return attack(victim, images[index], labels[index], eps=eps, norm=norm, seeds=seeds)

        wrong[name] = selection.run(attacked, number)
        stages[name] = selection.images
    return Attacked(selection.images, selection.judged.wrong, wrong, stages)


def _differs(victim: Expectation, images: Tensor, labels: Tensor, seeds: Sequence[int]) -> bool:
    """True where some images get other logits the second time."""
    few = torch.arange(min(len(images), 32), device=images.device)
    twice = [
        victim.evaluate(images[few], labels[few], seeds=pick(seeds, few)).margin for _ in range(2)
    ]
    return not torch.allclose(*twice, rtol=1e-3, atol=1e-4)
