"""Text about a finished evaluation for the card of the model that it is about."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.checks.check import Check, failed
from evaluation.eps import written
from evaluation.results.metrics import WORST
from evaluation.results.protocols import PROTOCOLS
from evaluation.results.records import CLEAN
from evaluation.results.summary import Summary
from rdc.hub.model_card import Measurement

NORMS = {"linf": "L-infinity", "l2": "L2", "stadv": "displacements of pixels"}
STATES = {True: "passed", False: "FAILED", None: "not judged"}


def measurement(summary: Summary) -> Measurement:
    """The summary as `python -m rdc export --evaluation` puts it into a card."""
    return Measurement(tuple(summary.weights.values()), text(summary))


def text(summary: Summary) -> str:
    """Markdown: command, images, budgets, settings, checks, and a table of accuracies."""
    config, facts = summary.config, summary.provenance
    norm = NORMS.get(summary.norm, summary.norm)
    start = (
        f"by `{facts['command']}` at commit {facts['commit']}: {summary.images} images of the "
        f"{config['split']} split of `{Path(config['data']).name}`, attacked within {norm} budgets "
        f"on images in [0, 1], seed {config.get('seed')}."
    )
    settings = {
        "defense": _words(config["defense"]),
        "attacks": _words({"kind": config.get("attack"), **config.get("suite", {})}),
        "model calls per image": _words(summary.calls_per_image),
    }
    return "\n\n".join([start, _listed(settings), *_checks(summary.checks), *_table(summary)])


def _checks(checks: tuple[Check, ...]) -> list[str]:
    if not checks:
        return ["No checks of this measurement were recorded."]
    names = failed(checks)
    warning = (
        f"**Checks of this measurement failed ({', '.join(names)}): the accuracies under attack "
        "below are no evidence of robustness.**"
    )
    lines = {check.name: f"{STATES[check.passed]}. {check.detail}" for check in checks}
    return [*([warning] if names else []), "Checks of the measurement:", _listed(lines)]


def _table(summary: Summary) -> list[str]:
    """Accuracies by budget and attack, and what the columns mean."""
    names = summary.protocols
    rows = [
        f"| accuracy in % [95 % interval] | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for eps, attacks in sorted(summary.accuracies.items()):
        for attack, by in attacks.items():
            if eps or attack == CLEAN:
                cells = " | ".join(str(by[name]) for name in names)
                rows.append(f"| {_label(eps, attack)} | {cells} |")
    draws = summary.config.get("eval_draws")
    meanings = "; ".join(f"{n}: {PROTOCOLS[n].meaning.format(draws=draws)}" for n in names)
    robust = [] if summary.budgets else ["Robust accuracy: not measured."]
    return ["\n".join(rows), f"{meanings}.", *robust]


def _label(eps: float, attack: str) -> str:
    name = "worst of these, image by image" if attack == WORST else attack
    return f"eps {written(eps)}, {name}" if eps else "clean"


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _listed(values: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in values.items() if value)
