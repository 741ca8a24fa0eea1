"""Figures of runs, each as the bytes of a PNG file; pyplot's global state is not touched."""

import io
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

from evaluation.eps import eps_title
from evaluation.report.load import NORMS, Run
from evaluation.results.metrics import Accuracy
from evaluation.results.records import Record
from evaluation.results.summary import Summary
from rdc.text import printable

WIDTH = 4.6
"""Inches: narrow enough that the type is legible on a phone, where the figure fills the screen."""
SIZE = 9
"""Points of the type."""
LONGEST = 200
"""Characters of a text that are looked at, more than a figure has room for."""
STYLE: Any = {
    "font.size": SIZE,
    "axes.titlesize": SIZE,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    # Names come from files; a dollar sign in one is not a formula.
    "text.parse_math": False,
}
# Okabe and Ito 2008, which color-blind readers tell apart; without yellow, too pale on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX*"
UNITS = {
    "linf": ": largest change, pixels in [0, 1]",
    "l2": ": norm of the change, pixels in [0, 1]",
    "stadv": ": displacement in half sides",
    "corruption": ": strength of the corruption, 1 to 5",
}
GRAY = "0.45"
DOTTED: Any = {"color": GRAY, "linewidth": 0.7, "linestyle": (0, (1, 2))}


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file, the same for the same figure."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=200, metadata={"Software": None})
    return out.getvalue()


def fitted(text: str, inches: float, size: float = SIZE) -> str:
    """`text`, printable, and cut to a width at a type size in points; "…" ends what is cut."""
    text = printable(text)[:LONGEST]
    if _inches(text, size) <= inches:
        return text
    counts = range(1, len(text))
    fit = bisect_right(counts, inches, key=lambda count: _inches(text[:count] + "…", size))
    return text[: max(1, fit)] + "…"


def _inches(text: str, size: float) -> float:
    with matplotlib.rc_context(STYLE):
        return TextPath((0, 0), text, size=size).get_extents().width / 72 if text.strip() else 0.0


def canvas(height: float, **margins: float) -> Figure:
    """An empty figure; margins in inches, so that type keeps its place at any height."""
    figure = Figure(figsize=(WIDTH, height))
    figure.subplots_adjust(
        left=margins["left"] / WIDTH, right=1 - margins["right"] / WIDTH,
        bottom=margins["bottom"] / height, top=1 - margins["top"] / height,
    )  # fmt: skip
    return figure


def put_title(axes: Axes, *lines: str) -> None:
    """A title that begins at the figure's left edge, each line cut to the figure's width."""
    box = axes.get_position()
    text = "\n".join(fitted(line, WIDTH - 0.2) for line in lines)
    axes.set_title(text, x=(0.1 / WIDTH - box.x0) / box.width)


def accuracy(runs: Sequence[Run], order: Sequence[str], norm: str) -> bytes:
    """Worst-case accuracy over the budget with 95 % intervals; `order` gives a defense its color
    in every panel.
    """
    with matplotlib.rc_context(STYLE):
        figure = canvas(3.3, left=0.55, right=1.2, bottom=0.45, top=0.4)
        axes = figure.add_subplot()
        largest = max(run.budgets[-1] for run in runs)
        for place, run in enumerate(runs):
            aside = (place - (len(runs) - 1) / 2) * min(0.02, 0.06 / len(runs)) * largest
            curve(axes, run, order.index(run.defense), aside)
        chance = 100 / len(runs[0].class_names)
        axes.axhline(chance, **DOTTED, zorder=1)
        axes.text(0, chance + 1, f"chance {chance:g} %", color=GRAY, fontsize=7.5, va="bottom")
        axes.set(ylim=(0, 101), xlim=(-0.04 * largest, 1.04 * largest), ylabel="accuracy in %")
        name_budgets(axes, sorted({eps for run in runs for eps in run.budgets}), norm)
        images = f"{runs[0].images} images"
        put_title(axes, f"{NORMS[norm]}, worst of the attacks, frozen noise, {images}")
        label_ends(axes, runs, order, largest)
        return png(figure)


def curve(axes: Axes, run: Summary, number: int, aside: float = 0.0, label: str = "") -> None:
    """The accuracies of one run, `aside` to the right of their budgets."""
    shares = [run.accuracy(eps) for eps in (0.0, *run.budgets)]
    x = np.array([0.0, *run.budgets]) + aside
    y, low, high = 100 * np.array([(share.mean, share.low, share.high) for share in shares]).T
    color = COLORS[number % len(COLORS)]
    axes.errorbar(
        x, y, yerr=[y - low, high - y], label=label,
        color=color, marker=MARKERS[number % len(MARKERS)],
        markersize=4.5, linewidth=1.2, elinewidth=0.8, capsize=1.5, clip_on=False,
        linestyle=":" if run.failed else "--" if number >= len(COLORS) else "-",
        markerfacecolor="white" if run.failed else color,
    )  # fmt: skip


def name_budgets(axes: Axes, budgets: Sequence[float], norm: str) -> None:
    """Ticks at the budgets, if they are few, and the name of their axis."""
    names = ["0", *(eps_title(eps).removeprefix("eps ") for eps in budgets)]
    pixels = len(budgets) <= 7 and all(name.endswith("/255") for name in names[1:])
    if len(budgets) <= 7:
        ticks = [name.removesuffix("/255") if pixels else name for name in names]
        axes.set_xticks([0, *budgets], ticks)
    axes.set_xlabel(("budget eps in 1/255" if pixels else "budget eps") + UNITS[norm])


def label_ends(axes: Axes, runs: Sequence[Run], order: Sequence[str], largest: float) -> None:
    """Names beside the last points, pushed apart where they would overlap."""
    ends = sorted(runs, key=lambda run: run.accuracy(run.budgets[-1]).mean)
    wanted = [100 * run.accuracy(run.budgets[-1]).mean for run in ends]
    heights = spread(wanted, gap=min(6.0, 100 / len(ends)))
    for run, end, y in zip(ends, wanted, heights, strict=True):
        color = COLORS[order.index(run.defense) % len(COLORS)]
        axes.annotate(
            fitted(f"✗ {run.defense}" if run.failed else run.defense, 1.0, 8),
            (run.budgets[-1] + 0.03 * largest, end), (1.09 * largest, y),
            color=color, fontsize=8, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 1,
                        "shrinkB": 0, "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights near the `wanted` ascending ones, at least `gap` apart and within 0 to 100."""
    placed: list[float] = []
    for y in wanted:
        placed.append(max(y, placed[-1] + gap) if placed else max(y, 0.0))
    ceiling = 100.0
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def certified(
    certified: Mapping[float, Accuracy], attacked: Mapping[float, Accuracy], *title: str
) -> bytes:
    """Bounds on the robust accuracy under L2: proven from below, attacked from above.

    Both by ascending radii or budgets, L2 norms on the [0, 1] scale. An accuracy that is proven at
    a radius holds within it, and what an attack reaches holds beyond its budget: both curves are
    steps. The gap between them is shaded as far as both reach.
    """
    proven, reached = (
        (np.array([*shares]), 100 * np.array([share.mean for share in shares.values()]))
        for shares in (certified, attacked)
    )
    with matplotlib.rc_context(STYLE):
        figure = canvas(3.5, left=0.55, right=0.15, bottom=0.45, top=0.6)
        axes = figure.add_subplot()
        fill_gap(axes, proven, reached)
        axes.step(*reached, where="post", color=COLORS[1], marker="o", markersize=4, clip_on=False,
                  label="attacked: at most")  # fmt: skip
        axes.step(*proven, where="pre", color=COLORS[0], marker="s", markersize=4, clip_on=False,
                  label="certified: at least")  # fmt: skip
        axes.set(ylim=(0, 101), ylabel="accuracy in %", xlim=(0, None))
        axes.set_xlabel("radius and budget eps" + UNITS["l2"])
        axes.legend(frameon=False, fontsize=8, loc="lower left")
        put_title(axes, *title)
        return png(figure)


def fill_gap(
    axes: Axes, proven: tuple[np.ndarray, np.ndarray], reached: tuple[np.ndarray, np.ndarray]
) -> None:
    """Shade the accuracies that are neither proven nor attacked, where both curves are known.

    A curve has radii (N,), ascending, and accuracies (N,) in %.
    """
    start, end = max(proven[0][0], reached[0][0]), min(proven[0][-1], reached[0][-1])
    x = np.unique([start, end, *proven[0], *reached[0]])
    x = x[(x >= start) & (x <= end)]
    # Between two neighbors both curves are constant.
    for left, right in pairwise(x):
        low = proven[1][np.searchsorted(proven[0], right)]
        high = reached[1][np.searchsorted(reached[0], left, side="right") - 1]
        axes.fill_between([left, right], low, high, color=GRAY, alpha=0.25, linewidth=0)


def confusion(answers: Sequence[Record], classes: int) -> np.ndarray:
    """Counts of images (classes, classes): the row is the label, the column the answer."""
    counts = np.zeros((classes, classes), dtype=int)
    for answer in answers:
        counts[answer.label, answer.frozen] += 1
    return counts


def confusions(answers: Sequence[Record], classes: Sequence[str], *title: str) -> bytes:
    """Counts of images, label by answer, errors in orange; up to 20 classes with numbers and
    names.
    """
    counts = confusion(answers, len(classes))
    named = len(classes) <= 20
    small = 8 if len(classes) <= 12 else 6
    names = [fitted(name, 0.65, small) for name in classes] if named else []
    room = 0.45 + max((_inches(name, small) for name in names), default=0.15)
    with matplotlib.rc_context(STYLE):
        figure = canvas(WIDTH + 0.4, left=room, right=0.1, bottom=room, top=0.5)
        axes = figure.add_subplot()
        diagonal = np.eye(len(classes), dtype=bool)
        for hues, other in (("Blues", ~diagonal), ("Oranges", diagonal)):
            shown = np.ma.masked_array(counts, other | (counts == 0))
            axes.imshow(shown, cmap=hues, vmin=-0.3 * counts.max(), vmax=1.8 * counts.max())
        put_title(axes, *title)
        axes.set(xlabel="answer", ylabel="label")
        axes.spines[:].set(visible=True, color="0.85")
        axes.tick_params(length=0)
        if named:
            turn = 90 if max(map(len, names)) > 2 else 0
            axes.set_xticks(range(len(classes)), names, fontsize=small, rotation=turn)
            axes.set_yticks(range(len(classes)), names, fontsize=small)
            for row, column in np.argwhere(counts):
                text = str(counts[row, column])
                axes.text(column, row, text, ha="center", va="center", fontsize=small)
        return png(figure)
