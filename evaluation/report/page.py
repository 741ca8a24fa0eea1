"""The page: the state of all checks first, then what runs have in common, then every run."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from evaluation.report import figures
from evaluation.report.compare import Group, groups
from evaluation.report.details import section
from evaluation.report.examples import draw, examples
from evaluation.report.figures import NORMS
from evaluation.report.load import Run, load, spoken
from evaluation.report.markup import Html, picture, tag
from evaluation.report.tables import headline, paired, unequal

STYLE = Path(__file__).with_name("style.css")
PAGE = "index.html"


def default_out(folders: Sequence[Path]) -> Path:
    """`report` in the folder, or in the one that several share."""
    if not folders:
        raise ValueError("folders: none given; give a folder that evaluation.evaluate wrote")
    return Path(os.path.commonpath([folder.resolve() for folder in folders])) / "report"


def write(folders: Sequence[Path], out: Path, *, log: Callable[[str], None] | None = None) -> Path:
    """Report on finished evaluations; the path of the page, beside which its figures are PNG files.

    `folders` are results of `evaluation.evaluate` or hold several of them; `log` is told what a
    terminal should show, the state of the checks first. Raises FileNotFoundError or ValueError
    for folders that are missing, unfinished, damaged or written by another version.
    """
    runs, notes = load(folders)
    say = log or (lambda line: None)
    say(state(runs)[0])
    for line in (*notes, *overview(runs)):
        say(line)
    out.mkdir(parents=True, exist_ok=True)
    page = out / PAGE
    page.write_text(document(runs, notes, out), encoding="utf-8")
    say(f"wrote {page}")
    return page


def state(runs: Sequence[Run]) -> tuple[str, str]:
    """One line on the checks of all runs, and its class on the page."""
    failed = [f"{run.name}: {', '.join(run.broken)}" for run in runs if run.failed]
    silent = [run.name for run in runs if run.state == "not run"]
    passed = sum(run.state == "passed" for run in runs)
    ran = sum(check.passed is not None for run in runs for check in run.summary.checks)
    rest = sum(len(run.summary.checks) for run in runs) - ran
    if failed:
        others = f" Not run in {', '.join(silent)}." if silent else ""
        return f"CHECKS FAILED in {'; '.join(failed)}.{others}", "failed"
    if len(silent) == len(runs) > 1:
        return f"CHECKS NOT RUN in any of the {len(runs)} runs.", "open"
    if silent:
        others = f" Passed in {passed} of {len(runs)} runs." if passed else ""
        return f"CHECKS NOT RUN in {', '.join(silent)}.{others}", "open"
    count = "the run" if len(runs) == 1 else f"all {len(runs)} runs"
    left = f"; {rest} not applied" if rest else ""
    return f"All checks passed in {count} ({ran} checks{left}).", "passed"


def overview(runs: Sequence[Run]) -> list[str]:
    """A line per run for the terminal: clean and worst-case accuracy under frozen noise."""
    width = max(len(run.name) for run in runs)
    lines = ["accuracy in % [95 % interval], frozen noise, worst of the attacks"]
    for run in runs:
        said = []
        for eps in (0.0, *run.budgets):
            said.append(f"{spoken(eps)}: {run.share(eps)}")
        mark = "CHECKS FAILED  " if run.failed else ""
        lines.append(f"{run.name:<{width}}  {mark}{'  '.join(said)}  {run.images} images")
    return lines


def document(runs: Sequence[Run], notes: Sequence[str], out: Path) -> str:
    found = groups(runs)
    line, kind = state(runs)
    if len(found) > 1:
        sets = "; ".join(f"{group.title} ({counted(len(group.runs), 'run')})" for group in found)
        notes = [*notes, f"These runs saw {len(found)} different sets of images: {sets}. No table, "
                         "chart or test below puts two sets together."]  # fmt: skip
    body = [
        tag("p", line, class_=f"state {kind}"),
        tag("h1", title(runs)),
        *(tag("p", note, class_="open") for note in notes),
        *(together(group, number, out) for number, group in enumerate(found, 1)),
        tag("h2", "Runs" if len(runs) > 1 else "The run"),
        *(alone(run, number, out, opened=len(runs) == 1) for number, run in enumerate(runs, 1)),
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", ("CHECKS FAILED: " if kind == "failed" else "") + title(runs)),
        tag("style", Html(STYLE.read_text(encoding="utf-8"))),
    ]
    page = tag("html", tag("head", *head), tag("body", *body), lang="en")
    return f"<!doctype html>\n{page}\n"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def title(runs: Sequence[Run]) -> str:
    data = ", ".join(dict.fromkeys(str(run.summary.config["data"]) for run in runs))
    names = list(dict.fromkeys(run.defense for run in runs))
    return f"Robustness on {data}: " + (names[0] if len(names) == 1 else f"{len(names)} defenses")


def together(group: Group, number: int, out: Path) -> Html:
    """What runs on the same images say together."""
    charts = []
    for norm in group.norms:
        png = figures.accuracy(group.of(norm), group.defenses, norm)
        keep(out, f"accuracy-{number}-{norm}.png", png)
        name = NORMS.get(norm, norm)
        image = picture(png, alt=f"accuracy over the budget, {name}", width=460, kind="chart")
        charts.append(tag("figure", image))
    how = (
        "Higher is better. Bars are 95 % intervals; points of one budget are set a little apart. "
        "A curve that stays high at a budget where images look like another class asks for a "
        "stronger attack."
    )
    if any(run.failed for run in group.runs):
        how += " ✗, hollow points and a dotted line: a check of that run failed."
    return tag(
        "section",
        tag("h2", group.title),
        headline(group),
        tag("h3", "Accuracy over the budget"),
        tag("p", how, class_="soft"),
        tag("div", *charts, class_="figures"),
        paired(group),
        unequal(group.runs),
    )


def alone(run: Run, number: int, out: Path, *, opened: bool) -> Html:
    """One run, its pictures at the middle one of its budgets."""
    shown = run.budgets[len(run.budgets) // 2]
    kept = examples(run, shown)
    name = figures.short(run.name, 48) + (" (checks failed)" if run.failed else "")
    pictures = {}
    for where, eps in (("clean", 0.0), (f"attacked, {spoken(shown)}", shown)):
        found, kind = run.answers[eps], where.split(",")[0]
        title = f"{name}\n{where}"
        pictures[f"confusion-{kind}"] = figures.confusions(found, run.classes, title)
        pictures[f"reliability-{kind}"] = figures.reliability(found, title)
    for kind, part in kept.items():
        pictures[kind] = draw(part, run.classes, f"{name}\n{spoken(shown)}, answer {kind}")
    for kind, png in pictures.items():
        # Different names must not share a file, and a name may hold what a file's may not.
        keep(out, f"{quote(run.name, safe='')}-{kind}.png", png)
    return section(run, number, shown=shown, pictures=pictures, kept=kept, opened=opened)


def keep(out: Path, name: str, png: bytes) -> None:
    (out / name).write_bytes(png)
