"""Figures of the confidence in answers: reliability, and risk over coverage."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from evaluation.report.figures import COLORS, DOTTED, GRAY, STYLE, canvas, png, put_title
from evaluation.results.abstention import risk_coverage
from evaluation.results.calibration import Bin, reliability
from evaluation.results.records import Record


def reliabilities(answers: Sequence[Record], *title: str) -> bytes:
    """Accuracy over confidence in ten bins with 95 % intervals; below, the images of each bin."""
    bins = reliability(*confidences(answers))
    with matplotlib.rc_context(STYLE):
        figure = canvas(4.4, left=0.58, right=0.15, bottom=0.45, top=0.55)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 100], [0, 100], **DOTTED)
        upper.annotate("as sure as right", (12, 12), (20, 8), color=GRAY, fontsize=7.5, va="center")
        draw_bins(upper, [part for part in bins if part is not None])
        put_title(upper, *title)
        counts = [part.accuracy.images if part else 0 for part in bins]
        for middle, count in zip(range(5, 100, 10), counts, strict=True):
            lower.bar(middle, count, width=9, color="0.8")
            if count:
                lower.text(middle, count, str(count), ha="center", va="bottom", fontsize=7.5)
        lower.set(xlabel="confidence in %", ylabel="images", ylim=(0, 1.3 * max(counts)))
        lower.set_yticks([])
        lower.set_xticks(range(0, 101, 20))
        return png(figure)


def draw_bins(axes: Axes, bins: Sequence[Bin]) -> None:
    """A point and an interval for every bin."""
    found = [(part.confidence, part.accuracy) for part in bins]
    facts = [(confidence, each.mean, each.low, each.high) for confidence, each in found]
    x, y, low, high = 100 * np.array(facts).T
    axes.errorbar(
        x, y, yerr=[y - low, high - y], color=COLORS[0], marker="o", markersize=4.5,
        linewidth=0, elinewidth=0.8, capsize=1.5, clip_on=False,
    )  # fmt: skip
    axes.set(ylim=(0, 101), xlim=(0, 101), ylabel="accuracy in %")


def confidences(answers: Sequence[Record]) -> tuple[list[float], list[bool]]:
    """The confidence of each answer, and whether it is right."""
    return [a.frozen_confidence for a in answers], [a.right for a in answers]


def risks(answers: Mapping[str, Sequence[Record]], *title: str) -> bytes:
    """Risk over coverage, one curve for each name of `answers`."""
    with matplotlib.rc_context(STYLE):
        figure = canvas(3.3, left=0.55, right=0.15, bottom=0.45, top=0.4)
        axes = figure.add_subplot()
        for (name, found), color in zip(answers.items(), COLORS, strict=False):
            coverage, risk = risk_coverage(*confidences(found))
            axes.plot(100 * coverage, 100 * risk, color=color, label=name, clip_on=False)
        axes.set(xlim=(0, 100), ylim=(0, 101), ylabel="risk: wrong of the answered, in %")
        axes.set_xlabel("coverage: share of images answered, most confident first, in %")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
        put_title(axes, *title)
        return png(figure)
