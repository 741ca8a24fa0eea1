"""Checks and summary of a run whose records are complete."""

import statistics
from dataclasses import asdict
from pathlib import Path

from evaluation.attacks.rng import spawn
from evaluation.checks import from_records
from evaluation.checks import run as run_checks
from evaluation.costs import GRADIENT
from evaluation.progress import Progress, Task
from evaluation.results.card import measurement
from evaluation.results.metrics import accuracies
from evaluation.results.records import CLEAN
from evaluation.results.summary import SUMMARY, Summary
from evaluation.runner import Runner
from evaluation.suites import black_box
from rdc.hub.model_card import MEASUREMENT
from rdc.runs.atomic import write_json
from rdc.runs.provenance import provenance


def finish(runner: Runner, *, measured: bool) -> Summary:
    """Make the summary of all records and checks; written where the journal is.

    `measured`: whether this start measured anything. If not, an earlier summary's command, commit
    and versions are kept.

    Raises:
        ValueError: records are missing.
    """
    finished = runner.out / SUMMARY if runner.out and not measured else None
    target, records, norm = runner.target, runner.journal.records(), runner.options.norm
    checks = runner.journal.checks() or []
    without = {record.attack for record in records if record.eps and black_box(record.attack)}
    answering = [record.seconds for record in records if record.attack == CLEAN]
    summary = Summary(
        config={**runner.settings, "out": runner.out and str(runner.out)},
        provenance=provenance(target.given, finished=finished),
        weights=target.weights,
        class_names=target.data.class_names,
        norm=norm,
        accuracies=accuracies(records),
        checks=(*checks, *from_records(records, black_box=without, norm=norm)),
        calls_per_image=runner.costs.per_image(len(runner.options.eps)),
        seconds_per_image=statistics.median(answering),
    )
    if runner.out is not None:
        write_summary(summary, runner.out)
    return summary


def write_summary(summary: Summary, folder: Path) -> None:
    """Write `summary.json`, and the figures for a model card."""
    write_json(folder / MEASUREMENT, asdict(measurement(summary)))
    write_json(folder / SUMMARY, summary.to_json())


def make_checks(runner: Runner, progress: Progress) -> None:
    """Check the model on the first images at the largest budget, unless that was done before."""
    if not misses_checks(runner):
        return
    options, count = runner.options, checked_images(runner)
    model = runner.target.fresh()
    with progress.task(checks_task(runner), model):
        found = run_checks(
            model, *runner.target.part(range(count)), norm=options.norm, eps=max(options.eps),
            steps=runner.sizes.steps, draws=runner.sizes.eot_samples, max_rows=runner.max_rows,
            seeds=[spawn([options.seed], row)[0] for row in range(count)],
        )  # fmt: skip
    runner.journal.keep_checks(found)


def misses_checks(runner: Runner) -> bool:
    """True where the settings want checks of the model that no start has made."""
    return checked_images(runner) > 0 and runner.journal.checks() is None


def checked_images(runner: Runner) -> int:
    return min(runner.options.check_images, len(runner.target.data))


def checks_task(runner: Runner) -> Task:
    """The checks with their cost, which `evaluation.checks.run` tells."""
    draws = runner.sizes.eot_samples
    gradients, forwards = 3 * runner.sizes.steps + 15, 80
    passes = (GRADIENT * gradients + forwards) * (2 * draws if draws > 1 else 1)
    passes *= checked_images(runner)
    seconds = passes * runner.costs.pass_seconds(runner.target.model)
    return Task(runner.name, "first images", "checks", float(passes), seconds)
