"""Check that an attack has converged: twice the effort breaks no more images."""

from dataclasses import replace

import torch
from torch import Tensor

from evaluation.attacks.rng import spawn
from evaluation.checks.check import Finding, check
from evaluation.checks.context import Subject
from evaluation.results.statistics import clopper_pearson

FEW = 3
"""Fewer images may always fall: 1 of 16 is below its own 95 % interval when it falls."""
TOO_FEW = f"too few images: {FEW - 1} may always fall"


@check("steps doubled")
def steps_doubled(subject: Subject, attacked: Tensor) -> Finding:
    """Twice the steps lower the robust accuracy by no more than its interval.

    `attacked` are images of an attack with the subject's steps. The longer attack works on what
    they leave standing.
    """
    if len(subject.images) < FEW:
        return None, TOO_FEW
    once = subject.right(attacked)
    standing = (once > 0).nonzero()[:, 0]
    twice = once.clone()
    if len(standing):
        longer = replace(subject.only(standing), steps=2 * subject.steps)
        twice[standing] = longer.right(longer.attack()).minimum(once[standing])
    passed, allowed = settled(once, twice)
    detail = (
        f"{once.mean():.1%} of {len(once)} images withstand {subject.steps} steps, "
        f"{twice.mean():.1%} twice as many ({allowed:.1%} allowed)"
    )
    return passed, detail, "raise steps (--suite.steps) until doubling it changes nothing"


@check("draws doubled")
def draws_doubled(subject: Subject) -> Finding:
    """Twice the draws lower the robust accuracy by no more than its interval.

    Reported beside it: how far gradients of independent sets of draws agree. Where that is by
    chance, a step knows nothing, and only many of them do.
    """
    if subject.draws == 1:
        return None, "draws=1: the frozen draw is known to the attacker"
    logits = subject.victim.logits(subject.images, seeds=subject.seeds)
    if bool((logits[:, :1] == logits).all()):
        return None, "the model says the same in every draw"
    if len(subject.images) < FEW:
        return None, TOO_FEW
    cosine = agreement(subject)
    doubled = replace(subject, draws=2 * subject.draws)
    once, twice = (doubled.right(each.attack()) for each in (subject, doubled))
    passed, allowed = settled(once, twice)
    chance = subject.images.numel() ** -0.5
    detail = (
        f"{once.mean():.1%} of {len(once)} images withstand {subject.draws} draws a step, "
        f"{twice.mean():.1%} twice as many ({allowed:.1%} allowed); gradients of independent "
        f"draws have a mean cosine of {cosine:.2f} (random ones of 0 +- {chance:.2f})"
    )
    return passed, detail, "raise draws (--suite.eot-samples) until doubling it changes nothing"


def agreement(subject: Subject) -> float:
    """Mean cosine between gradients of two independent sets of draws, at the images."""
    first, second = (
        subject.victim.gradient(subject.images, subject.labels, seeds=spawn(subject.seeds, path))[1]
        for path in (0, 1)
    )
    cosines = torch.cosine_similarity(first.flatten(1), second.flatten(1))
    return cosines.mean().item()


def settled(once: Tensor, twice: Tensor) -> tuple[bool, float]:
    """True if the mean over images stays in its 95 % interval or loses fewer than `FEW` images;
    and the least mean that passes."""
    low = clopper_pearson(int(once.sum().floor()), len(once))[0]
    allowed = min(low, (once.mean() - (FEW - 1) / len(once)).clamp_min(0).item())
    return twice.mean().item() >= allowed - 1e-9, allowed
