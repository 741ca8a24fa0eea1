"""The figures of the page's tables, row by row."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, NamedTuple

from evaluation.report.compare import SIGNIFICANT, Group, Pair, pairs
from evaluation.report.load import Run, flatten
from evaluation.results.abstention import mean_risk
from evaluation.results.calibration import calibration_error, reliability
from evaluation.results.metrics import WORST
from evaluation.results.records import CLEAN, Record


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
        names = [name for name in run.summary.accuracies[eps] if name != WORST]
        yield [attack_row(run, eps, name) for name in (*names, WORST)]


def attack_row(run: Run, eps: float, attack: str) -> AttackRow:
    """A row from the records; a worst case takes the time of all of its attacks."""
    rows = [r for r in run.records if r.eps == eps and attack in (WORST, r.attack)]
    seconds = sum(r.seconds for r in rows) / run.images
    return AttackRow(eps, attack, max(r.linf for r in rows), max(r.l2 for r in rows), seconds)


class ConfidenceRow(NamedTuple):
    """Figures in [0, 1] of the answers for all images within a budget."""

    eps: float
    accuracy: float
    confidence: float
    calibration_error: float
    mean_risk: float


def confidence_rows(run: Run) -> list[ConfidenceRow]:
    """Accuracy, mean confidence, calibration error and mean risk for every budget."""
    return [confidence_row(eps, answers) for eps, answers in run.answers.items()]


def confidence_row(eps: float, answers: list[Record]) -> ConfidenceRow:
    right = [answer.right for answer in answers]
    confidences = [answer.frozen_confidence for answer in answers]
    error = calibration_error(reliability(confidences, right))
    return ConfidenceRow(
        eps, fmean(right), fmean(confidences), error, mean_risk(confidences, right)
    )


@dataclass(frozen=True)
class PairTable:
    """The paired tests under one norm: by "first : second", and in that by budget."""

    norm: str
    budgets: list[float]
    rows: dict[str, dict[float, Pair]]

    @classmethod
    def of(cls, norm: str, found: list[Pair]) -> "PairTable":
        rows: dict[str, dict[float, Pair]] = {}
        for pair in found:
            names = f"{pair.first.defense} : {pair.second.defense}"
            rows.setdefault(names, {})[pair.eps] = pair
        return cls(norm, sorted({pair.eps for pair in found}), rows)


@dataclass(frozen=True)
class PairedTests:
    """All paired tests of a group."""

    tables: list[PairTable]

    @cached_property
    def every(self) -> list[Pair]:
        return [
            pair for table in self.tables for row in table.rows.values() for pair in row.values()
        ]

    @property
    def count(self) -> int:
        return len(self.every)

    @property
    def rows(self) -> int:
        return sum(len(table.rows) for table in self.tables)

    @property
    def limit(self) -> float:
        """The p-value below which a test counts, corrected for their number (Bonferroni)."""
        return SIGNIFICANT / self.count

    @property
    def significant(self) -> int:
        return sum(pair.p < self.limit for pair in self.every)

    @property
    def overlapping(self) -> int:
        """Tests that are not significant and whose two intervals overlap."""
        return sum(pair.overlap for pair in self.every if pair.p >= self.limit)


def paired_tests(group: Group) -> PairedTests:
    """Tests of every two defenses; without tables where no two sound runs share a norm."""
    found = {norm: pairs(group, norm) for norm in group.norms}
    return PairedTests([PairTable.of(norm, part) for norm, part in found.items() if part])


def attack_seconds(run: Run) -> float:
    """Mean seconds per image of all attacks under all budgets."""
    return sum(record.seconds for record in run.records if record.eps) / run.images


def settings(run: Run) -> dict[str, str]:
    """All settings by dotted name, values as JSON."""
    return {name: json.dumps(value) for name, value in flatten(run.summary.config)}


def origin(run: Run) -> dict[str, Any]:
    """Command, commit, data, weights and versions: what it takes to make the figures again."""
    found = run.summary.provenance
    commit = found["commit"] or "unknown"
    return {
        "command": found["command"],
        "commit": commit.removesuffix("+") + (" and changes" if commit.endswith("+") else ""),
        "data, SHA-256": found["data_fingerprint"],
        **{f"weights of {name}, SHA-256": sha for name, sha in run.summary.weights.items()},
        "python": found["python"],
        **found["packages"],
    }
