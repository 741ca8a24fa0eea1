"""One run: its checks, every attack under every protocol, pictures, cost and provenance."""

import json
from collections.abc import Mapping
from typing import Any

from evaluation.report.calibration import calibration, calibration_error
from evaluation.report.examples import EACH, Example, key, scale
from evaluation.report.figures import NORMS
from evaluation.report.load import Run, flatten, spoken
from evaluation.report.markup import Html, between, join, picture, table, tag
from evaluation.report.tables import figure, number, protocol_name, struck
from evaluation.results.metrics import WORST
from evaluation.results.records import CLEAN

STATES = {True: ("passed", "passed"), False: ("FAILED", "failed"), None: ("not applied", "open")}


def section(
    run: Run,
    place: int,
    *,
    shown: float,
    pictures: Mapping[str, bytes],
    kept: Mapping[str, list[Example]],
    opened: bool,
) -> Html:
    """Everything about a run, folded where many are; `pictures` by name, at the budget `shown`."""
    parts = [
        tag("p", facts(run)),
        warning(run),
        tag("h3", "Checks"),
        checks(run),
        tag("h3", "Attacks"),
        attacks(run),
        tag("h3", "Images"),
        grids(run, shown, pictures, kept),
        tag("h3", "Confusions and confidence"),
        answered(run, shown, pictures),
        tag("h3", "Cost and provenance"),
        cost(run),
        provenance(run),
    ]
    inside = tag("section", *parts, id=f"run-{place}")
    return tag("details", summary(run), inside, class_="run", open=True if opened else None)


def summary(run: Run) -> Html:
    """What a folded run shows: its name, its checks, and its accuracies under frozen noise."""
    said = [
        join(spoken(eps), ": ", struck(figure(run.share(eps)), run)) for eps in (0.0, *run.budgets)
    ]
    line = tag("small", "checks ", state(run), "; accuracy in %: ", between(", ", said))
    return tag("summary", tag("h3", run.name), " ", line)


def state(run: Run) -> Html:
    """The state of the checks in a word."""
    found = {"failed": STATES[False], "passed": STATES[True]}.get(run.state, (run.state, "open"))
    return tag("b", found[0], class_=found[1])


def facts(run: Run) -> Html:
    config = run.summary.config
    kind = config.get("defense", {}).get("kind", "?")
    return join(
        f"Defense {kind}, {NORMS.get(run.norm, run.norm)}, {config['data']}, {config['split']} "
        f"split, {run.images} images, {len(run.classes)} classes."
    )


def warning(run: Run) -> Html:
    if not run.failed:
        return Html("")
    names = ", ".join(run.broken)
    return tag("p", f"CHECKS FAILED: {names}. The figures of this run are struck through: they do "
                    "not show what the defense withstands.", class_="failed")  # fmt: skip


def checks(run: Run) -> Html:
    if not run.summary.checks:
        return tag("p", "No checks were run.", class_="open")
    items = []
    for check in sorted(run.summary.checks, key=lambda check: check.passed is not False):
        word, kind = STATES[check.passed]
        said = (tag("b", check.name), " ", tag("b", word, class_=kind), " ")
        items.append(tag("li", *said, tag("span", check.detail)))
    return tag("ul", *items, class_="checks")


def attacks(run: Run) -> Html:
    """Budgets and their attacks down, protocols across; what the records say of the change."""
    titles = (*map(protocol_name, run.protocols), "largest L∞", "largest L2", "s/image")
    head = tag("tr", tag("th", "budget"), tag("th", "attack"),
               *(tag("th", title, class_="number") for title in titles))  # fmt: skip
    bodies = [[attack_row(run, 0.0, CLEAN)]]
    for eps in run.budgets:
        names = [name for name in run.summary.accuracies[eps] if name != WORST]
        bodies.append([attack_row(run, eps, name) for name in (*names, WORST)])
    caption = (
        f"Accuracy in % [95 % interval] by protocol, n = {run.images} images in every cell. Worst: "
        "an image counts as the attack leaves it that harms it most, or as it is. On the right, "
        "the largest change of an image in the records, pixels in [0, 1], and the mean seconds "
        "that the attack took."
    )
    return table(head=[head], bodies=bodies, caption=caption)


def attack_row(run: Run, eps: float, attack: str) -> Html:
    rows = [r for r in run.records if r.eps == eps and attack in (WORST, r.attack)]
    linf, l2 = max(r.linf for r in rows), max(r.l2 for r in rows)
    # A worst case takes all of its attacks.
    seconds = sum(r.seconds for r in rows) / run.images
    facts = [f"{linf:.4f}", f"{l2:.4f}", f"{seconds:.3g}"] if eps else ["-"] * 3
    return tag(
        "tr",
        tag("td", spoken(eps), class_="attack"),
        tag("td", "-" if attack == CLEAN else attack, class_="attack"),
        *(number(run, eps, attack, protocol) for protocol in run.protocols),
        *(tag("td", fact, class_="number") for fact in facts),
        class_="worst" if attack == WORST else None,
    )


def grids(
    run: Run, shown: float, pictures: Mapping[str, bytes], kept: Mapping[str, list[Example]]
) -> Html:
    if not kept:
        return tag(
            "p", f"None: {run.folder / 'images'} holds none of {spoken(shown)}.", class_="open"
        )
    how = (
        f"At {spoken(shown)} the run kept what the most harmful attack made of each image. Shown "
        f"are the first that are answered wrongly and the first that are not, up to {EACH} of "
        "each. Below an image: label → answer under frozen noise, and its confidence. The "
        "difference is attacked - given."
    )
    figures = []
    for name, part in kept.items():
        image = picture(pictures[name], alt=f"{run.name}, {name}", width=460, kind="photo")
        words = f"Answer {name}. Difference: {key(part[0], scale(part))} on the [0, 1] scale."
        figures.append(tag("figure", image, tag("figcaption", words)))
    return join(tag("p", how, class_="soft"), tag("div", *figures, class_="figures"))


def answered(run: Run, shown: float, pictures: Mapping[str, bytes]) -> Html:
    """Confusion matrices and reliability diagrams, clean and attacked."""
    how = (
        f"Under frozen noise, n = {run.images} images each; attacked is the worst answer for an "
        f"image at {spoken(shown)}: of all attacks the most confident wrong one, or where all are "
        "right the least confident. Confusions: cells count images, errors are orange. "
        "Reliability: answers of similar confidence, ten bins; a point below the dotted line is "
        "overconfident, and its bar is the 95 % interval. ECE is the mean distance from the line, "
        "weighted by images; with few images it is never 0, even for a perfect defense."
    )
    figures = []
    for kind in ("confusion", "reliability"):
        for state, eps in (("clean", 0.0), ("attacked", shown)):
            png = pictures[f"{kind}-{state}"]
            image = picture(png, alt=f"{kind} of {run.name}, {state}", width=460, kind="chart")
            figures.append(tag("figure", image, tag("figcaption", said(run, kind, state, eps))))
    return join(tag("p", how, class_="soft"), tag("div", *figures, class_="figures"))


def said(run: Run, kind: str, state: str, eps: float) -> Html:
    found = run.answers[eps]
    right = sum(answer.right for answer in found)
    if kind == "confusion":
        figure = f"{right} of {len(found)} images right"
    else:
        sure = sum(answer.confidence for answer in found) / len(found)
        error = calibration_error(calibration(found))
        figure = (
            f"ECE {100 * error:.1f} %, mean confidence {100 * sure:.1f} %, accuracy "
            f"{100 * right / len(found):.1f} %"
        )
    return join(f"{state.capitalize()}: ", struck(figure, run), ".")


def cost(run: Run) -> Html:
    calls = run.summary.calls_per_image
    counted = ", ".join(f"{count:,} {name}" for name, count in calls.items()) or "not recorded"
    attacking = sum(record.seconds for record in run.records if record.attack != CLEAN)
    said = f"Attacking an image, all attacks and budgets together: {attacking / run.images:.3g} s"
    said += f" and at most these calls of networks: {counted}."
    said += f" Answering it: {run.summary.seconds_per_image:.3g} s."
    return tag("p", said)


def provenance(run: Run) -> Html:
    """Where the figures come from, enough to make them again."""
    found = run.summary.provenance
    commit = found["commit"] or "unknown"
    origin: dict[str, Any] = {
        "command": found["command"],
        "commit": commit.removesuffix("+") + (" and changes" if commit.endswith("+") else ""),
        "data, SHA-256": found["data_fingerprint"],
        **{f"weights of {n}, SHA-256": h for n, h in run.summary.weights.items()},
        "python": found["python"],
        **found["packages"],
    }
    settings = {name: json.dumps(value) for name, value in flatten(run.summary.config)}
    seeds = [f"{name} {value}" for name, value in settings.items() if name.endswith("seed")]
    return join(
        tag("p", "Seeds: ", between(", ", seeds), "."),
        facts_table(origin, "How to make these figures again"),
        tag(
            "details",
            tag("summary", "All settings"),
            facts_table(settings, "As given or by default"),
        ),
    )


def facts_table(facts: Mapping[str, Any], caption: str) -> Html:
    rows = [
        tag("tr", tag("th", name), tag("td", tag("code", value), class_="name"))
        for name, value in facts.items()
    ]
    return table(head=[], bodies=[rows], caption=caption)
