"""The figures of the page's tables, row by row."""

import json
from collections.abc import Iterator
from statistics import fmean
from typing import Any, NamedTuple

from evaluation.report.load import Run, flatten, harm
from evaluation.results.abstention import auroc, mean_risk
from evaluation.results.calibration import calibration_error, reliability
from evaluation.results.metrics import WORST
from evaluation.results.records import CLEAN, worst


class AttackRow(NamedTuple):
    """An attack within a budget: largest norms of its changes, and its mean seconds per image."""

    eps: float
    attack: str
    linf: float
    l2: float
    seconds: float


def attack_rows(run: Run) -> Iterator[list[AttackRow]]:
    """The attacks of every budget and the worst of them, clean images first."""
    yield [attack_row(run, 0.0, CLEAN)]
    for eps in run.budgets:
        names = [name for name in run.accuracies[eps] if name != WORST]
        yield [attack_row(run, eps, name) for name in (*names, WORST)]


def attack_row(run: Run, eps: float, attack: str) -> AttackRow:
    """A row from the records; a worst case takes the time of all of its attacks."""
    rows = [r for r in run.records if r.eps == eps and attack in (WORST, r.attack)]
    seconds = sum(r.seconds for r in rows) / run.images
    return AttackRow(eps, attack, max(r.linf for r in rows), max(r.l2 for r in rows), seconds)


class ConfidenceRow(NamedTuple):
    """Figures in [0, 1] of the answers for all images within a budget.

    `detection`: AUROC of the log-likelihood that tells clean images from attacked ones; None for
    clean images, and where records have no likelihoods.
    """

    eps: float
    accuracy: float
    confidence: float
    calibration_error: float
    mean_risk: float
    detection: float | None


def confidence_rows(run: Run) -> list[ConfidenceRow]:
    return [confidence_row(run, eps) for eps in (0.0, *run.budgets)]


def confidence_row(run: Run, eps: float) -> ConfidenceRow:
    """A row from the worst answers for all images."""
    right = [answer.right for answer in run.answers[eps]]
    confidences = [answer.frozen_confidence for answer in run.answers[eps]]
    error = calibration_error(reliability(confidences, right))
    risk = mean_risk(confidences, right)
    return ConfidenceRow(eps, fmean(right), fmean(confidences), error, risk, detection(run, eps))


def detection(run: Run, eps: float) -> float | None:
    """AUROC of the log-likelihood: clean images against the worst attacked ones within a budget."""
    attacked = worst((r for r in run.records if 0 < r.eps <= eps), harm).values()
    clean = (record for record in run.records if not record.eps)
    scores = [[record.log_likelihood for record in part] for part in (clean, attacked)]
    known = [[score for score in part if score is not None] for part in scores]
    return auroc(*known) if known == scores and all(known) else None


def attack_seconds(run: Run) -> float:
    """Mean seconds per image of all attacks under all budgets."""
    return sum(record.seconds for record in run.records if record.eps) / run.images


def settings(run: Run) -> dict[str, str]:
    """All settings by dotted name, values as JSON."""
    return {name: json.dumps(value) for name, value in flatten(run.config)}


def origin(run: Run) -> dict[str, Any]:
    """Command, commit, data, weights and versions: what it takes to make the figures again."""
    found = run.provenance
    commit = found["commit"] or "unknown"
    return {
        "command": found["command"],
        "commit": commit.removesuffix("+") + (" and changes" if commit.endswith("+") else ""),
        "data, SHA-256": found["data_fingerprint"],
        **{f"weights of {name}, SHA-256": sha for name, sha in run.weights.items()},
        "python": found["python"],
        **found["packages"],
    }
