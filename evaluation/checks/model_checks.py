"""All checks that a model and a few images can answer."""

from collections.abc import Sequence

from torch import Tensor, nn

from evaluation.attacks.eot import Expectation
from evaluation.attacks.validation import checked
from evaluation.checks.budgets import any_budget, inside, no_budget
from evaluation.checks.check import Check
from evaluation.checks.consistency import (
    addressable,
    alone_and_in_a_batch,
    no_memory,
    with_a_gradient,
)
from evaluation.checks.context import Subject
from evaluation.checks.doubling import draws_doubled, steps_doubled
from evaluation.checks.gradients import dead_gradients, finite_differences, loss_rises
from evaluation.checks.planted import planted
from evaluation.suite_config import Threat
from evaluation.target import copied


def run(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Threat,
    eps: float,
    steps: int = 10,
    draws: int = 1,
    max_rows: int = 256,
    seeds: Sequence[int] | None = None,
) -> list[Check]:
    """Every check on `model`, [0, 1] images (B, C, H, W) to logits; 8 to 16 images are enough.

    `norm`, `eps`, `steps` of APGD (or stadv), `draws`, `max_rows` and `seeds` as in the evaluation.
    Costs about 3 `steps` + 15 gradients and 80 calls of all images; several draws twice that, and
    times the draws. Run it before anything else has asked the model: its memory must be empty.
    None for corruptions, which are no attack.
    """
    if norm == "corruption":  # no attack that could be broken
        return []
    # Refuses batches that couple, and 0 of either.
    Expectation(model, draws=draws, max_rows=max_rows)
    ball = "linf" if norm == "stadv" else norm
    seeds = checked(images, labels, eps=eps, norm=ball, seeds=seeds, steps=steps)
    subject = Subject(model, images, labels, norm, eps, steps, draws, max_rows, seeds)
    try:
        unused, before, attacked = copied(model), subject.logits(), subject.attack()
    except (ValueError, FloatingPointError) as error:
        return [Check("an attack runs", False, str(error)), dead_gradients(subject)]
    return [
        no_memory(subject, unused, before, attacked),
        addressable(subject),
        alone_and_in_a_batch(subject),
        with_a_gradient(subject),
        finite_differences(subject),
        dead_gradients(subject),
        loss_rises(subject),
        no_budget(subject),
        any_budget(subject),
        inside(subject, attacked),
        planted(subject),
        steps_doubled(subject, attacked),
        draws_doubled(subject),
    ]
