"""Checks that the model is one function: the same input and seed give the same output."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from evaluation.attacks.eot import Expectation
from evaluation.attacks.losses import margin
from evaluation.checks.check import Finding, check
from evaluation.checks.context import Subject
from evaluation.target import copied

# Measured on packaged models and purifiers before them: 0 where a question is repeated, 3e-7 alone
# against in a batch. Noise that moves a gradient moves logits by more than 0.05.
SAME = 0.01
"""Largest difference of logits, over their range within an image, that counts as none."""
SAME_GRADIENT = 0.1
"""The same for gradients, over their length (measured: 2e-5)."""
ROWS = 64
"""Answers that are asked for twice: randomness once in 30 rows is seen with 98 %."""
ALONE = 4
"""Images that are asked about alone."""


@check("addressable randomness")
def addressable(subject: Subject) -> Finding:
    """Two calls with the same seeds agree.

    Randomness that neither frozen noise nor `rdc.noise.copies` reaches makes an attack's success a
    matter of retries, and its gradient that of another function than the one that is scored.
    """
    times = -(-ROWS // (len(subject.images) * subject.draws))
    rows = subject.images.repeat(times, 1, 1, 1)
    seeds = list(subject.seeds) * times
    first, second = (subject.victim.logits(rows, seeds=seeds).flatten(0, 1) for _ in range(2))
    apart = difference(first, second).max().item()
    other = (first.argmax(1) != second.argmax(1)).sum().item()
    detail = (
        f"of {len(first)} answers asked for twice with the same seeds {other} changed class, "
        f"and logits by at most {apart:.2g} of their range ({SAME:g} allowed)"
    )
    remedy = "build the defense with noise='frozen', or draw its noise from rdc.noise.Noise"
    return apart <= SAME, detail, remedy


@check("alone and in a batch")
def alone_and_in_a_batch(subject: Subject) -> Finding:
    """An image gets the same logits, and its loss the same gradient, alone and in any batch."""
    images = subject.images
    if subject.max_rows == 1 or len(images) == 1:
        return None, "there are no batches: max_rows=1, or one image"
    few = subject.few(ALONE)
    alone = Expectation(subject.model, max_rows=1)
    lonely = alone.logits(few.images, seeds=few.seeds)[:, 0]
    # All images also in another order, where they have other places and neighbors.
    together, turned = subject.logits(), subject.logits(images.flip(0)).flip(0)
    pairs = (lonely, together[: len(lonely)]), (turned, together)
    apart = max(difference(*pair).max().item() for pair in pairs)
    one = subject.few(1)
    _, gradient = alone.gradient(one.images, one.labels, seeds=one.seeds)
    bent = relative(subject.slope[1][:1], gradient).max().item()
    passed = apart <= SAME and bent <= SAME_GRADIENT
    detail = (
        f"alone and in batches logits differ by at most {apart:.2g} of their range ({SAME:g} "
        f"allowed), gradients by {bent:.2g} of their length ({SAME_GRADIENT:g} allowed)"
    )
    remedy = (
        "the score belongs to a batch and not to images: call model.eval(), or declare "
        "batch_coupled = True and evaluate with --max-rows 1"
    )
    return passed, detail, remedy


@check("the same with a gradient")
def with_a_gradient(subject: Subject) -> Finding:
    """The model says the same whether or not somebody asks for its gradient."""
    logits = subject.logits()
    gaps = gap(subject.slope[0].margin, margin(logits, subject.labels))
    apart = (gaps / span(logits)).max().item()
    detail = (
        f"margins with and without a gradient differ by at most {apart:.2g} of the logits' range "
        f"({SAME:g} allowed)"
    )
    remedy = (
        "attacks differentiate another function than the one that is scored: the forward pass must "
        "not depend on whether gradients are recorded"
    )
    return apart <= SAME, detail, remedy


@check("no memory")
def no_memory(subject: Subject, unused: nn.Module, before: Tensor, attacked: Tensor) -> Finding:
    """An attack leaves no trace in the model: `attacked` are the images of one on the model itself.

    Clean images get the logits `before` (B, K) that they got before the attack, and both they and
    the attacked ones those of `unused`, a copy that nobody has asked anything; where the model
    cannot be copied, it is the model itself.
    """
    questions = [(subject.images, before)]
    if unused is not subject.model:
        for images in (subject.images, attacked):
            # A copy of the copy: each question is the first one that it hears.
            questions.append((images, replace(subject, model=copied(unused)).logits(images)))
    apart, other = 0.0, 0
    for images, then in questions:
        now = subject.logits(images)
        apart = max(apart, difference(then, now).max().item())
        other += int((then.argmax(1) != now.argmax(1)).sum())
    detail = (
        f"after an attack {other} of {sum(len(then) for _, then in questions)} answers differ from "
        f"those before, logits by at most {apart:.2g} of their range ({SAME:g} allowed)"
    )
    if unused is subject.model:
        detail += "; attacked images were left out: the model cannot be copied by copy.deepcopy"
    remedy = (
        "the model remembers questions or draws from a generator: attack and score it without that "
        "state, and report apart what the state is worth"
    )
    return apart <= SAME, detail, remedy


def difference(first: Tensor, second: Tensor) -> Tensor:
    """The largest change of each row of logits (B, K), over their range: (B,)."""
    return gap(first, second).amax(1) / torch.maximum(span(first), span(second))


def gap(first: Tensor, second: Tensor) -> Tensor:
    """The distances of entries; 0 where both are the same infinity."""
    return (first - second).abs().masked_fill(first == second, 0)


def span(logits: Tensor) -> Tensor:
    """Largest minus smallest finite logit, at least the mean of that over the rows: (B,)."""
    found = logits.amax(1) - logits.masked_fill(logits.isinf(), torch.inf).amin(1)
    return found.clamp_min(max(found.mean().item(), torch.finfo(found.dtype).tiny))


def relative(first: Tensor, second: Tensor) -> Tensor:
    """The length of the difference of each image, over the larger length: (B,)."""
    a, b = first.flatten(1), second.flatten(1)
    length = torch.maximum(a.norm(dim=1), b.norm(dim=1))
    return (a - b).norm(dim=1) / length.clamp_min(torch.finfo(a.dtype).tiny)
