"""Sanity checks at a budget near zero and at one that allows every image."""

from dataclasses import replace

from scipy.special import bdtrc
from torch import Tensor

from evaluation.checks.check import Finding, check
from evaluation.checks.context import Subject
from rdc.norms import size

NOTHING = 1e-6
"""Below the rounding of an 8-bit or float16 image; robust accuracy falls by 1e-5 over it."""
LOOK = 2
"""Steps that are tried first: they are enough for every honest model that was measured."""
SURE = 0.01
"""Level of the tests here: a fair outcome is flagged once in 100 runs at most."""
ROUNDING = 1e-5
"""Relative error of a float32 norm of 150,000 pixels."""


@check("no budget")
def no_budget(subject: Subject) -> Finding:
    """An attack that may change next to nothing leaves answers and accuracy as they are."""
    attacked = replace(subject, eps=NOTHING, steps=1).attack()
    before, after = subject.right_before, subject.right(attacked)
    changed = int((before != after).sum())
    detail = (
        f"within eps {NOTHING:g} an attack changes the answers to {changed} of {len(before)} "
        f"images (accuracy {before.mean():.1%} before, {after.mean():.1%} after)"
    )
    remedy = (
        "images that move by less than float32 rounding cannot change their class: look for "
        "randomness, memory, or a cliff in the preprocessing"
    )
    return not changed, detail, remedy


@check("any budget")
def any_budget(subject: Subject) -> Finding:
    """Accuracy is at most chance where the budget lets every image become the same gray.

    That is eps 0.5 in linf and sqrt(d) / 2 in l2. Fails where a fair guesser would be right as
    often with a probability below `SURE` (exact binomial).
    """
    if subject.norm == "stadv":
        return None, "no displacement turns every image into the same one"
    eps = 0.5 if subject.norm == "linf" else subject.images[0].numel() ** 0.5 / 2
    classes = subject.logits(subject.images[:1]).shape[1]
    total = len(subject.images)
    if bdtrc(total - 1, total, 1 / classes) >= SURE:
        return None, f"too few images: a guesser of {classes} classes could be right on all {total}"
    standing = (subject.right_before > 0.5).nonzero()[:, 0]
    for steps in (LOOK, subject.steps):
        if len(standing):
            left = replace(subject.only(standing), eps=eps, steps=steps)
            standing = standing[left.right(left.attack()) > 0.5]
    count = len(standing)
    passed = bool(bdtrc(count - 1, total, 1 / classes) >= SURE)
    detail = (
        f"at eps {eps:g}, where every image can become the same gray, {count} of {total} withstand "
        f"the attack; chance is {total / classes:.1f}"
    )
    remedy = "the attack is broken or the gradients are: no number of this run counts"
    return passed, detail, remedy


@check("inside the budget")
def inside(subject: Subject, attacked: Tensor) -> Finding:
    """Attacked images are in the box [0, 1] and, where the threat is a ball, in it."""
    outside = max(0.0, -attacked.min().item(), attacked.max().item() - 1)
    detail = f"attacked images leave [0, 1] by {outside:.2g}"
    passed = outside <= ROUNDING and bool(attacked.isfinite().all())
    if subject.norm in ("linf", "l2"):
        far = size(attacked.double() - subject.images, subject.norm).max().item()
        passed = passed and far <= limit(subject.eps)
        detail += f" and are at most {far:.6g} away in {subject.norm} (eps {subject.eps:g})"
    remedy = "project after every step: what is outside is no attack of this budget"
    return passed, detail, remedy


def limit(eps: float) -> float:
    """The largest distance accepted for budget `eps`, above it by float32's rounding."""
    return eps * (1 + ROUNDING) + ROUNDING / 10
