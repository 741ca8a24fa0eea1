"""Figures: what is drawn are the given numbers, and no text is cut off."""

import io
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from evaluation.report.examples import Example, difference, draw, examples, scale
from evaluation.report.figures import (
    _inches,
    certified,
    confusions,
    curve,
    fill_gap,
    fitted,
    spread,
)
from evaluation.report.load import Run, load
from evaluation.results.metrics import Accuracy
from evaluation.results.records import Record
from tests.support.fake_runs import Fake, make


def run(folder: Path, fake: Fake) -> Run:
    return load([make(folder, fake)])[0][0]


def record(label: int, frozen: int, confidence: float = 0.5) -> Record:
    return Record(0, label, 0.0, "none", frozen, confidence, (), (), 0.0, 0.0, 0.0)


def test_curves_are_the_figures(tmp_path: Path) -> None:
    found = run(tmp_path / "run", Fake())
    axes = Figure().add_subplot()
    curve(axes, found, 0, 0.01)
    shares = [found.accuracy(eps) for eps in (0.0, 0.1, 0.2)]
    assert axes.lines[0].get_xdata() == pytest.approx([0.01, 0.11, 0.21])
    assert axes.lines[0].get_ydata() == pytest.approx([100 * s.mean for s in shares])
    caps = [line.get_ydata() for line in axes.lines[1:]]
    assert caps[0] == pytest.approx([100 * s.low for s in shares])
    assert caps[1] == pytest.approx([100 * s.high for s in shares])


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12).map(sorted))
def test_labels_do_not_touch(wanted: list[float]) -> None:
    placed = spread(wanted, gap=6)
    assert all(b - a >= 6 - 1e-9 for a, b in pairwise(placed))
    assert placed[0] >= 0 and placed[-1] <= 100
    if all(b - a >= 6 for a, b in pairwise(wanted)):
        assert placed == pytest.approx(wanted, abs=1e-9)


def test_many_classes_have_a_matrix_without_names() -> None:
    classes = [f"a class with a long name, {number}" for number in range(100)]
    assert confusions([record(99, 3)], classes, "title").startswith(b"\x89PNG")


def test_examples_are_images_of_their_records(tmp_path: Path) -> None:
    found = run(tmp_path / "rdc", Fake("rdc", purifies=True, images=20, eps=(0.1, 0.2)))
    kept = examples(found, 0.2)
    assert len(kept["wrong"]) == len(kept["right"]) == 3
    for name, part in kept.items():
        for example in part:
            assert example.record.eps == 0.2 and example.clean.eps == 0
            assert example.record.linf == pytest.approx(
                abs(example.attacked - example.given).max(), abs=1e-6
            )
            assert example.purified is not None and example.wrong == (name == "wrong")
    shutil.rmtree(found.folder / "images")
    assert examples(found, 0.2) == {}


def test_differences_of_gray_and_color_images() -> None:
    """Up is red or bright, down blue or dark, by how much of the largest change."""
    answer = record(0, 1)
    for channels, colors in ((1, ["#b2182b", "#ffffff", "#2166ac"]),
                             (3, ["#ffffff", "#808080", "#000000"])):  # fmt: skip
        given = np.full((channels, 1, 3), 0.5)
        example = Example(given, given + np.array([0.2, 0.0, -0.2]), None, answer, answer)
        assert scale([example]) == pytest.approx(0.2)
        assert [to_hex(c) for c in difference(example, 0.2)[0]] == colors
        assert draw([example], ["a name", "of another class"], "title").startswith(b"\x89PNG")


@settings(deadline=None, max_examples=25)
@given(st.text(), st.floats(0.3, 4))
def test_text_fits_its_width(text: str, inches: float) -> None:
    cut = fitted(text.encode("ascii", "ignore").decode(), inches)
    assert cut.isprintable() and (_inches(cut, 9) <= inches or len(cut) == 2)


def test_text_that_fits_is_whole() -> None:
    assert fitted("eps 8/255", 4) == "eps 8/255"
    assert fitted("W" * 80, 2).endswith("W…") and len(fitted("W" * 80, 2)) < len(
        fitted("i" * 80, 2)
    )
    assert fitted("a\nb\x1b", 4) == "a\\nb\\x1b"


def test_the_gap_between_certificate_and_attack() -> None:
    """Proven 60 % to radius 0.25, 40 % to 0.5; attacked 90 % from 0, 50 % from 0.3 on."""
    axes = Figure().add_subplot()
    proven = {0: 0.8, 0.25: 0.6, 0.5: 0.4}
    reached = {0: 0.9, 0.3: 0.5, 1.0: 0.1}
    curves = [
        (np.array([*shares]), 100 * np.array([*shares.values()])) for shares in (proven, reached)
    ]
    fill_gap(axes, *curves)
    boxes = [path.get_extents() for shape in axes.collections for path in shape.get_paths()]
    assert np.array([box.get_points().T.ravel() for box in boxes]) == pytest.approx(
        np.array([[0, 0.25, 60, 90], [0.25, 0.3, 40, 90], [0.3, 0.5, 40, 50]])
    )
    below, above = (
        {eps: Accuracy(share, 0, 1, 10) for eps, share in shares.items()}
        for shares in (proven, reached)
    )
    png = certified(below, above, "title")
    assert Image.open(io.BytesIO(png)).width == pytest.approx(920, abs=1)
