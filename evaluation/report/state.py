"""The first lines of a report: the state of the checks, and the strength of the evaluation."""

from collections.abc import Iterable, Sequence

from evaluation.checks.check import asked
from evaluation.report.load import Run
from evaluation.suite_config import SIZES


def state(runs: Sequence[Run]) -> tuple[str, str]:
    """One line on the checks of all runs, and their state: "failed", "passed", or "open".

    Runs with corruptions, which are no attack and have no checks, are left out.
    """
    runs = [run for run in runs if run.norm != "corruption"]
    if not runs:
        return "No checks: corruptions are no attack.", "open"
    silent = [run.name for run in runs if run.state == "not run"]
    passed = sum(run.state == "passed" for run in runs)
    if failed := [f"{run.name}: {', '.join(run.broken)}" for run in runs if run.failed]:
        others = f" Not run in {', '.join(silent)}." if silent else ""
        return f"CHECKS FAILED in {'; '.join(failed)}.{others}", "failed"
    if len(silent) == len(runs) > 1:
        return f"CHECKS NOT RUN in any of the {len(runs)} runs.", "open"
    if silent:
        others = f" Passed in {passed} of {len(runs)} runs." if passed else ""
        return f"CHECKS NOT RUN in {', '.join(silent)}.{others}", "open"
    unasked = [run.name for run in runs if not asked(run.checks)]
    if len(unasked) == len(runs):
        return f"MODELS NOT CHECKED; checks of the records passed in {counts(runs)}.", "open"
    some = f" Models were checked in {len(runs) - len(unasked)} of them." if unasked else ""
    return f"All checks passed in {counts(runs)}.{some}", "passed"


def counts(runs: Sequence[Run]) -> str:
    """The numbers of runs and checks, such as "the run (4 checks; 1 not applied)"."""
    found = [check.passed is not None for run in runs for check in run.checks]
    where = "the run" if len(runs) == 1 else f"all {len(runs)} runs"
    left = f"; {len(found) - sum(found)} not applied" if not all(found) else ""
    return f"{where} ({sum(found)} checks{left})"


def strength(runs: Sequence[Run]) -> str:
    """The numbers of images and of attack steps, each beside what it is to be compared with."""
    shares = [run.accuracy(eps) for run in runs for eps in (0.0, *run.budgets)]
    widest = max(share.high - share.low for share in shares)
    images = f"{span(run.images for run in runs)} images"
    intervals = f"95 % intervals up to {100 * widest:.0f} points wide"
    suites = [run.config.get("suite") or {} for run in runs]
    steps = [suite["steps"] for suite in suites if suite.get("steps")]
    usual = f"AutoAttack: {SIZES['standard'].steps}"
    attacks = f"{span(steps)} steps per attack ({usual})" if steps else "attack steps not recorded"
    return f"Strength: {images} ({intervals}), {attacks}."


def span(values: Iterable[int]) -> str:
    """The least and the largest, such as "4 to 100", or the only one."""
    found = sorted(set(values))
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"
