"""What is written when all records of a run are there: checks, then `summary.json`."""

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.attacks.rng import spawn
from evaluation.checks import Check, from_records, headline
from evaluation.checks import run as run_checks
from evaluation.defenses import networks, weights
from evaluation.results.metrics import CLEAN, summarize
from evaluation.runner import Runner
from evaluation.suites import black_box
from rdc.runs.provenance import provenance

CHECKS = "checks.json"


def finish(runner: Runner) -> dict[str, Any]:
    """Write `summary.json` from the records of all processes, and return what it says."""
    config, records = runner.config, list(runner.records.read())
    checks = [*of_model(runner), *of_records(runner)]
    names = networks(config.defense)
    figures = summarize(records, norm=config.norm)
    answering = [record["seconds"] for record in records if record["attack"] == CLEAN]
    summary = {
        "config": asdict(config),
        **provenance(runner.data),
        "weights": weights(names),
        "calls_per_image": runner.cost,
        "seconds_per_image": statistics.median(answering),
        "class_names": list(runner.data.class_names),
        "norm": figures["norm"],
        "accuracy": figures["accuracy"],
        "checks": [asdict(check) for check in checks],
        "text": f"{headline(checks)}\n\n{figures['text']}",
    }  # fmt: skip
    write(summary, config.out / "summary.json")
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
        write([asdict(check) for check in found], kept)
    return [Check(**check) for check in json.loads(kept.read_text(encoding="utf-8"))]


def of_records(runner: Runner) -> list[Check]:
    """Checks on what all attacks have found."""
    records = list(runner.records.read())
    attacks = {record["attack"] for record in records if record["eps"]}
    return from_records(
        records, black_box={name for name in attacks if black_box(name)}, norm=runner.config.norm
    )


def write(content: Any, file: Path) -> None:
    """As JSON, there in full or not at all."""
    part = file.with_name(f".{file.name}")
    part.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    part.replace(file)
