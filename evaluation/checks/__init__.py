"""Automatic checks of an evaluation: signs that robustness is an attack that failed.

`run` asks a model and a few images, `from_records` what an evaluation has written; `headline` is
the line that belongs on top of every report.
"""

from evaluation.checks.check import Check, headline
from evaluation.checks.model_checks import run
from evaluation.checks.record_checks import from_records

__all__ = ["Check", "from_records", "headline", "run"]
