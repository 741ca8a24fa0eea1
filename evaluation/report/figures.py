"""Figures as PNG: accuracy over the budget, confusions, reliability. Without pyplot's state."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.report.calibration import Answer, calibration, calibration_error, confusion
from evaluation.report.load import Run, spoken

WIDTH = 4.6
"""Inches: narrow enough that the type is legible on a phone, where the figure fills the screen."""
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
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
NORMS = {"linf": "L-infinity", "l2": "L2", "stadv": "stAdv"}
UNITS = {
    "linf": ": largest change, pixels in [0, 1]",
    "l2": ": norm of the change, pixels in [0, 1]",
    "stadv": ": displacement in half sides",
}
GRAY = "0.45"


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file, the same for the same figure."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=200, metadata={"Software": None})
    return out.getvalue()


def short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def canvas(height: float, **margins: float) -> Figure:
    """An empty figure; margins in inches, so that type keeps its place at any height."""
    figure = Figure(figsize=(WIDTH, height))
    figure.subplots_adjust(
        left=margins["left"] / WIDTH, right=1 - margins["right"] / WIDTH,
        bottom=margins["bottom"] / height, top=1 - margins["top"] / height,
    )  # fmt: skip
    return figure


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
        chance = 100 / len(runs[0].classes)
        axes.axhline(chance, color=GRAY, linewidth=0.7, linestyle=(0, (1, 2)), zorder=1)
        axes.text(0, chance + 1, f"chance {chance:g} %", color=GRAY, fontsize=7.5, va="bottom")
        budgets = sorted({eps for run in runs for eps in run.budgets})
        names = ["0", *(spoken(eps).removeprefix("eps ") for eps in budgets)]
        pixels = len(budgets) <= 7 and all(name.endswith("/255") for name in names[1:])
        if len(budgets) <= 7:
            ticks = [name.removesuffix("/255") if pixels else name for name in names]
            axes.set_xticks([0, *budgets], ticks)
        axes.set(ylim=(0, 101), xlim=(-0.04 * largest, 1.04 * largest))
        axes.set_xlabel(("budget eps in 1/255" if pixels else "budget eps") + UNITS.get(norm, ""))
        axes.set_ylabel("accuracy in %")
        axes.set_title(
            f"{NORMS.get(norm, norm)}, worst of the attacks, frozen noise, {runs[0].images} images",
            x=-0.45 / (WIDTH - 1.75),
        )
        label_ends(axes, runs, order, largest)
        return png(figure)


def curve(axes: Axes, run: Run, number: int, aside: float) -> None:
    shares = [run.share(eps) for eps in (0.0, *run.budgets)]
    x = np.array([0.0, *run.budgets]) + aside
    y, low, high = 100 * np.array([(share.mean, share.low, share.high) for share in shares]).T
    color = COLORS[number % len(COLORS)]
    axes.errorbar(
        x, y, yerr=[y - low, high - y], color=color, marker=MARKERS[number % len(MARKERS)],
        markersize=4.5, linewidth=1.2, elinewidth=0.8, capsize=1.5, clip_on=False,
        linestyle=":" if run.failed else "--" if number >= len(COLORS) else "-",
        markerfacecolor="white" if run.failed else color,
    )  # fmt: skip


def label_ends(axes: Axes, runs: Sequence[Run], order: Sequence[str], largest: float) -> None:
    """Names beside the last points, pushed apart where they would overlap."""
    ends = sorted(runs, key=lambda run: run.share(run.budgets[-1]).mean)
    wanted = [100 * run.share(run.budgets[-1]).mean for run in ends]
    heights = spread(wanted, gap=min(6.0, 100 / len(ends)))
    for run, end, y in zip(ends, wanted, heights, strict=True):
        color = COLORS[order.index(run.defense) % len(COLORS)]
        x = run.budgets[-1]
        axes.annotate(
            short(run.defense, 15) if not run.failed else f"✗ {short(run.defense, 13)}",
            (x + 0.03 * largest, end), (1.09 * largest, y), color=color, fontsize=8, va="center",
            annotation_clip=False,
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


def confusions(found: Sequence[Answer], classes: Sequence[str], title: str) -> bytes:
    """Counts of images, label by answer, errors in orange; up to 20 classes with numbers and
    names.
    """
    counts = confusion(found, len(classes))
    named = len(classes) <= 20
    names = [short(name, 9) for name in classes]
    # A digit is about 0.07 inches wide at this size.
    room = 0.45 + 0.07 * max(map(len, names)) if named else 0.6
    with matplotlib.rc_context(STYLE):
        figure = canvas(WIDTH + 0.4, left=room, right=0.1, bottom=room, top=0.5)
        axes = figure.add_subplot()
        largest = max(1, int(counts.max()))
        diagonal = np.eye(len(classes), dtype=bool)
        for hues, other in (("Blues", ~diagonal), ("Oranges", diagonal)):
            shown = np.ma.masked_array(counts, other | (counts == 0))
            axes.imshow(shown, cmap=hues, vmin=-0.3 * largest, vmax=1.8 * largest)
        axes.set_title(f"{title}, {len(found)} images", x=0)
        axes.set(xlabel="answer", ylabel="label")
        axes.spines[:].set(visible=True, color="0.85")
        axes.tick_params(length=0)
        if named:
            small = 8 if len(classes) <= 12 else 6
            turn = 90 if max(map(len, names)) > 2 else 0
            axes.set_xticks(range(len(classes)), names, fontsize=small, rotation=turn)
            axes.set_yticks(range(len(classes)), names, fontsize=small)
            for row, column in np.argwhere(counts):
                text = str(counts[row, column])
                axes.text(column, row, text, ha="center", va="center", fontsize=small)
        return png(figure)


def reliability(found: Sequence[Answer], title: str) -> bytes:
    """Accuracy over confidence in ten bins with 95 % intervals; below, the images of each bin."""
    bins = calibration(found)
    full = [part for part in bins if part is not None]
    with matplotlib.rc_context(STYLE):
        figure = canvas(4.4, left=0.58, right=0.15, bottom=0.45, top=0.55)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 100], [0, 100], color=GRAY, linewidth=0.7, linestyle=(0, (1, 2)))
        upper.annotate("as sure as right", (12, 12), (20, 8), color=GRAY, fontsize=7.5, va="center")
        x = 100 * np.array([part.confidence for part in full])
        y = 100 * np.array([part.accuracy for part in full])
        low, high = (100 * np.array([getattr(p, end) for p in full]) for end in ("low", "high"))
        upper.errorbar(
            x, y, yerr=[y - low, high - y], color=COLORS[0], marker="o", markersize=4.5,
            linewidth=0, elinewidth=0.8, capsize=1.5, clip_on=False,
        )  # fmt: skip
        upper.set(ylim=(0, 101), xlim=(0, 101), ylabel="accuracy in %")
        error = 100 * calibration_error(bins)
        upper.set_title(f"{title}, ECE {error:.1f} %, {len(found)} images", x=-0.13)
        counts = [part.count if part else 0 for part in bins]
        for middle, count in zip(range(5, 100, 10), counts, strict=True):
            lower.bar(middle, count, width=9, color="0.8")
            if count:
                lower.text(middle, count, str(count), ha="center", va="bottom", fontsize=7.5)
        lower.set(xlabel="confidence in %", ylabel="images", ylim=(0, 1.3 * max(counts)))
        lower.set_yticks([])
        lower.set_xticks(range(0, 101, 20))
        return png(figure)
