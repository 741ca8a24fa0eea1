"""What is written when all records of a run are there: checks, then `summary.json`."""

import json
import statistics
from dataclasses import asdict

from evaluation.attacks.rng import spawn
from evaluation.checks import Check, from_records
from evaluation.checks import run as run_checks
from evaluation.defenses import networks, weights
from evaluation.results.card import measurement
from evaluation.results.metrics import accuracies
from evaluation.results.records import CLEAN
from evaluation.results.summary import SUMMARY, Summary
from evaluation.runner import Runner
from evaluation.suites import black_box
from rdc.hub.model_card import MEASUREMENT
from rdc.runs.atomic import write_json
from rdc.runs.provenance import provenance

CHECKS = "checks.json"


def finish(runner: Runner) -> Summary:
    """Write `summary.json` from the records of all processes."""
    config, records = runner.config, runner.records()
    answering = [record.seconds for record in records if record.attack == CLEAN]
    summary = Summary(
        config=asdict(config),
        provenance=provenance(runner.data),
        weights=weights(networks(config.defense)),
        class_names=runner.data.class_names,
        norm=config.norm,
        accuracies=accuracies(records),
        checks=(*of_model(runner), *of_records(runner)),
        calls_per_image=runner.cost,
        seconds_per_image=statistics.median(answering),
    )
    write_json(config.out / MEASUREMENT, asdict(measurement(summary)))
    write_json(config.out / SUMMARY, summary.to_json())
    return summary


def of_model(runner: Runner) -> list[Check]:
    """Checks on the first images at the largest budget; kept, so that they are made once."""
    config, kept = runner.config, runner.config.out / CHECKS
    if not config.check_images:
        return []
    if not kept.exists():
        images, labels = runner.images_and_labels(range(min(config.check_images, len(runner.data))))
        found = run_checks(
            runner.fresh_model(), images, labels, norm=config.norm, eps=max(config.eps),
            steps=runner.sizes.steps, draws=runner.sizes.eot_samples, max_rows=runner.max_rows,
            seeds=[spawn([config.seed], row)[0] for row in range(len(images))],
        )  # fmt: skip
        write_json(kept, [asdict(check) for check in found])
    return [Check(**check) for check in json.loads(kept.read_text(encoding="utf-8"))]


def of_records(runner: Runner) -> list[Check]:
    """Checks on what all attacks have found."""
    records = runner.records()
    attacks = {record.attack for record in records if record.eps}
    return from_records(
        records, black_box={name for name in attacks if black_box(name)}, norm=runner.config.norm
    )
