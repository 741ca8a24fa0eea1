"""The page: the state of all checks, comparisons of runs on the same images, and every run."""

import base64
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from evaluation.eps import eps_title
from evaluation.report import confidence_figures, figures, tables
from evaluation.report.certificates import Certified, certifications
from evaluation.report.compare import SIGNIFICANT, Group, differences, groups, paired_tests
from evaluation.report.examples import EACH, draw, examples, key, scale
from evaluation.report.load import NORMS, Run, load
from evaluation.report.state import state, strength
from evaluation.results.metrics import WORST
from evaluation.results.protocols import PROTOCOLS
from evaluation.results.records import CLEAN
from rdc.runs.atomic import write_atomically
from rdc.text import printable

TEMPLATE = "page.html.jinja"
PAGE = "index.html"
MOST_TESTS = 40
"""Paired tests that are not folded."""


def default_out(folders: Sequence[Path]) -> Path:
    """`report` in the folder, or in the one that several share."""
    return Path(os.path.commonpath([folder.resolve() for folder in folders])) / "report"


def write(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    log: Callable[[str], object] = lambda line: None,
) -> Path:
    """Report on finished evaluations; return the path of the page, beside which its figures lie.

    `folders` are results of `evaluation.evaluate` or hold several of them. `out` is by default
    `default_out`. `log` receives printable lines for a terminal, the state of the checks first.

    Raises:
        FileNotFoundError, ValueError: a folder is missing, unfinished, damaged or written by
            another version; the file and the remedy are named.
    """
    (runs, notes), proven = load(folders), certifications(folders)
    for line in (state(runs)[0], strength(runs), *notes, *overview(runs)):
        log(printable(line))
    out = out or default_out(folders)
    out.mkdir(parents=True, exist_ok=True)
    page = out / PAGE
    write_atomically(page, document(runs, notes, proven, out))
    log(printable(f"wrote {page}"))
    return page


def overview(runs: Sequence[Run]) -> list[str]:
    """A line per run for the terminal: clean and worst-case accuracy under frozen noise."""
    width = max(len(run.name) for run in runs)
    lines = ["accuracy in % [95 % interval], frozen noise, worst of the attacks"]
    for run in runs:
        said = "  ".join(f"{eps_title(eps)}: {run.accuracy(eps)}" for eps in (0.0, *run.budgets))
        mark = "CHECKS FAILED  " if run.failed else ""
        lines.append(f"{run.name:<{width}}  {mark}{said}  {run.images} images")
    return lines


@dataclass(frozen=True)
class Picture:
    """A figure on the page; `kind` "chart" may be shown in other colors, "photo" may not."""

    png: bytes
    alt: str
    kind: str = "chart"
    caption: str = ""
    figure: str = ""
    """a figure of the run at the end of the caption, struck through where its checks failed"""

    @property
    def url(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


class RunPage(NamedTuple):
    """A run and its pictures, which show the budget `shown`."""

    run: Run
    number: int
    shown: float
    photos: list[Picture]
    charts: list[Picture]


def document(
    runs: Sequence[Run], notes: Sequence[str], proven: Sequence[Certified], out: Path
) -> str:
    """The page as HTML; its figures are also written to `out`."""
    found = groups(runs)
    line, kind = state(runs)
    return environment().get_template(TEMPLATE).render(
        runs=runs, line=line, state=kind, title=title(runs), notes=[*notes, *apart(found)],
        groups=[(group, list(charts(group, i, out))) for i, group in enumerate(found, 1)],
        certified=proven, bounds=list(bounds(proven, runs, out)),
        pages=[run_page(run, number, out) for number, run in enumerate(runs, 1)],
    )  # fmt: skip


def environment() -> Environment:
    """Templates whose values are printable, escaped, and never missing."""
    found = Environment(
        loader=PackageLoader("evaluation.report", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=shown,
    )  # fmt: skip
    found.filters |= {"eps_title": eps_title, "percent": lambda share: f"{100 * share:.1f}"}
    found.globals |= {
        "CLEAN": CLEAN, "EACH": EACH, "MOST_TESTS": MOST_TESTS, "NORMS": NORMS,
        "PROTOCOLS": PROTOCOLS, "SIGNIFICANT": SIGNIFICANT, "WORST": WORST,
        "differences": differences, "paired_tests": paired_tests, "strength": strength,
        "tables": tables,
    }  # fmt: skip
    return found


def shown(value: Any) -> Any:
    """A value of the template as printable text; markup of the template itself stays."""
    return value if isinstance(value, Markup) else printable(value)


def title(runs: Sequence[Run]) -> str:
    data = ", ".join(dict.fromkeys(str(run.config["data"]) for run in runs))
    names = list(dict.fromkeys(run.defense for run in runs))
    return f"Robustness on {data}: " + (names[0] if len(names) == 1 else f"{len(names)} defenses")


def apart(found: Sequence[Group]) -> list[str]:
    """A note where runs saw different images."""
    if len(found) == 1:
        return []
    sets = "; ".join(f"{group.title} ({len(group.runs)} runs)" for group in found)
    return [
        f"These runs saw {len(found)} different sets of images: {sets}. No table, chart or test "
        "below puts two sets together."
    ]


def charts(group: Group, number: int, out: Path) -> Iterator[Picture]:
    """Accuracy over the budget under each norm."""
    for norm in group.norms:
        png = figures.accuracy(group.of(norm), group.defenses, norm)
        write_atomically(out / f"accuracy-{number}-{norm}.png", png)
        yield Picture(png, f"accuracy over the budget, {NORMS[norm]}")


def bounds(proven: Sequence[Certified], runs: Sequence[Run], out: Path) -> Iterator[Picture]:
    """Certified accuracy beside attacked accuracy, for certifications that have a run."""
    for number, found in enumerate(proven, 1):
        if (run := found.attacked(runs)) is None:
            continue
        png = figures.certified(
            found.accuracies, {eps: run.accuracy(eps) for eps in (0.0, *run.budgets)},
            f"certified: {found.name}, sigma {found.config['sigma']:g}",
            f"attacked: {run.name}, {run.images} images",
        )  # fmt: skip
        write_atomically(out / f"certified-{number}.png", png)
        yield Picture(
            png, f"certified accuracy of {found.name} and attacked accuracy of {run.name}"
        )


def run_page(run: Run, number: int, out: Path) -> RunPage:
    """A run and its pictures at the middle one of its budgets."""
    eps = run.budgets[len(run.budgets) // 2]
    photos, drawn = dict(photographs(run, eps)), dict(run_charts(run, eps))
    for kind, picture in (photos | drawn).items():
        # Different names must not share a file, and a name may hold what a file's may not.
        write_atomically(out / f"{quote(run.name, safe='')}-{kind}.png", picture.png)
    return RunPage(run, number, eps, list(photos.values()), list(drawn.values()))


def photographs(run: Run, eps: float) -> Iterator[tuple[str, Picture]]:
    """Images that are answered wrongly, and rightly, by kind."""
    for kind, part in examples(run, eps).items():
        png = draw(part, run.class_names, heading(run), f"{eps_title(eps)}, answer {kind}")
        caption = f"Answer {kind}. Difference: {key(part[0], scale(part))} on the [0, 1] scale"
        yield kind, Picture(png, f"{run.name}, {kind}", "photo", caption)


def run_charts(run: Run, eps: float) -> Iterator[tuple[str, Picture]]:
    """Confusions, reliability and risk over coverage, clean and attacked, by kind."""
    curves = {}
    for name, budget in {"clean": 0.0, "attacked": eps}.items():
        found, where = run.answers[budget], f"attacked, {eps_title(eps)}" if budget else "clean"
        lines = heading(run), f"{where}, {run.images} images"
        right = f"{sum(r.right for r in found)} of {len(found)} images right"
        error = f"ECE {100 * tables.confidence_row(run, budget).calibration_error:.1f} %"
        drawn = {
            "confusion": (figures.confusions(found, run.class_names, *lines), right),
            "reliability": (confidence_figures.reliabilities(found, *lines), error),
        }
        for kind, (png, figure) in drawn.items():
            alt = f"{kind} of {run.name}, {name}"
            yield f"{kind}-{name}", Picture(png, alt, caption=name.capitalize(), figure=figure)
        curves[where] = found
    png = confidence_figures.risks(curves, heading(run))
    yield "risk", Picture(png, f"risk over coverage of {run.name}")


def heading(run: Run) -> str:
    """The first line of a figure's title."""
    return f"{run.name} (checks failed)" if run.failed else run.name
