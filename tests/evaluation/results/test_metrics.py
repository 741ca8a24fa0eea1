"""Figures from records by hand: protocols, worst cases, comparisons."""

from dataclasses import replace

import pytest

from evaluation.results.compare import best, comparison, results
from evaluation.results.metrics import Accuracy, accuracies, scores, table
from evaluation.results.protocols import EIGHT_BITS
from evaluation.results.protocols import PROTOCOLS as EVERY
from evaluation.results.records import Record
from evaluation.results.statistics import clopper_pearson
from tests.support import records


def record(image: int, eps: float, attack: str, frozen: int, *predictions: int) -> Record:
    """A record of an image whose label is its number plus one."""
    return records.record(image, eps, attack, frozen, predictions, label=image + 1)


PROTOCOLS = [name for name in EVERY if name != EIGHT_BITS]
"""Those of draws."""
ROWS = [
    record(0, 0.0, "none", 1, 1, 1),
    record(1, 0.0, "none", 2, 2, 0),
    record(0, 0.1, "b", 1, 1, 1),
    record(1, 0.1, "b", 0, 2, 2),
    record(0, 0.1, "a", 1, 1, 0),
    record(1, 0.1, "a", 2, 0, 0),
]


def means(rows: list[Record], eps: float, attack: str) -> dict[str, float]:
    figures = accuracies(rows)[eps][attack]
    return {protocol: figure.mean for protocol, figure in figures.items()}


def test_every_protocol_by_hand() -> None:
    """Two images, two draws, two attacks. Draws stay within their image."""
    assert means(ROWS, 0.0, "none") == dict(zip(PROTOCOLS, (1, 0.75, 1, 0.5), strict=True))
    assert means(ROWS, 0.1, "b") == dict(zip(PROTOCOLS, (0.5, 1, 1, 1), strict=True))
    assert means(ROWS, 0.1, "a") == dict(zip(PROTOCOLS, (1, 0.25, 0.5, 0), strict=True))


def test_worst_is_taken_per_image_and_protocol_and_counts_the_image_as_it_is() -> None:
    """Under "b" alone the second image's worst draw would be right; clean it is not."""
    worst = means(ROWS, 0.1, "worst")
    assert worst == dict(zip(PROTOCOLS, (0.5, 0.25, 0.5, 0), strict=True))
    alone = means([row for row in ROWS if row.attack != "a"], 0.1, "worst")
    assert alone == dict(zip(PROTOCOLS, (0.5, 0.75, 1, 0.5), strict=True))


def test_what_breaks_an_image_within_a_budget_breaks_it_within_a_larger_one() -> None:
    """At 0.2 "b" misses the second image, which it had at 0.1: the attack failed, not the image."""
    missed = [record(0, 0.2, "b", 0, 0, 1), record(1, 0.2, "b", 2, 2, 2)]
    assert means([*ROWS, *missed], 0.2, "b")["frozen"] == 0.5
    worst = means([*missed, *ROWS], 0.2, "worst")
    assert worst == dict(zip(PROTOCOLS, (0, 0.25, 0, 0), strict=True))


def test_order_of_records_and_repeated_ones_change_nothing() -> None:
    before = accuracies(ROWS)
    # A run that was killed while it wrote has some records twice.
    assert accuracies([*ROWS, *ROWS[2:4]]) == before
    assert accuracies(ROWS[::-1]) == before
    assert list(before[0.1]) == ["b", "a", "worst"]


def test_one_draw_has_one_protocol() -> None:
    rows = [replace(row, predictions=(), confidences=()) for row in ROWS]
    assert list(means(rows, 0.1, "worst")) == ["frozen"]
    text = table(accuracies(rows), "linf")
    assert "frozen" in text and "majority" not in text


def test_table_for_the_terminal() -> None:
    lines = table(accuracies(ROWS), "linf").splitlines()
    assert lines[0] == "accuracy in % [95 % interval], linf"
    assert lines[1].split() == ["frozen", "fresh", "majority", "worst", "draw"]
    assert [line[:14].strip() for line in lines[2:]] == [
        "clean", "eps 0.1  b", "eps 0.1  a", "eps 0.1  worst"
    ]  # fmt: skip
    assert "75.0 [1, 100]" in lines[2]
    assert len({len(line) for line in lines[1:]}) == 1


def test_interval_of_images_that_are_right_in_some_draws() -> None:
    figure = Accuracy.of([1.0, 1.0, 0.5, 0.0])
    assert figure.mean == 0.625 and figure.images == 4
    assert (figure.low, figure.high) == (clopper_pearson(2, 4)[0], clopper_pearson(3, 4)[1])


def test_comparison_by_hand() -> None:
    """Eight images; "a" survives on all, "b" on two, "c" as "b" but for one."""
    runs = []
    for name, right in (("a", 8), ("b", 2), ("c", 1)):
        rows = [record(i, 0.0, "none", i + 1) for i in range(8)]
        rows += [record(i, 8 / 255, "x", i + 1 if i < right else 0) for i in range(8)]
        runs.append((name, rows, "linf"))
    found = results(runs)
    assert list(found["a"]) == ["clean", "linf 8/255"]
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in comparison(found).splitlines()]
    lines = {tuple(c[:2]): c[2:] for c in cells if len(c) == 4}
    assert lines["b", "frozen"] == ["100.0 [63, 100]", "25.0 [3, 65]"]
    p = {c[0]: c[1:] for c in cells if len(c) == 3}
    assert p["b"] == ["1 (a)", "0.031 (a)"]  # six images, a fair coin each: 2 / 2^6
    assert p["a"] == ["1 (b)", "0.031 (b)"]
    assert p["c"] == ["1 (a)", "0.016 (a)"]
    assert "0.016 (c)" in comparison(found, reference="c")
    assert best({}) is None


def test_comparison_needs_the_same_images() -> None:
    runs = [
        (name, [record(i, 0.0, "none", 1) for i in range(count)], "l2")
        for name, count in (("a", 2), ("b", 3))
    ]
    with pytest.raises(ValueError, match=r"of \[2, 3\] images"):
        comparison(results(runs))


def test_unfinished_runs_have_no_scores() -> None:
    with pytest.raises(ValueError, match=r"eps 0\.1, a: 2 of 3 images"):
        scores([*ROWS, record(2, 0.0, "none", 3, 3, 3), record(2, 0.1, "b", 3, 3, 3)])


def test_records_without_clean_images_have_no_scores() -> None:
    for rows in ([], ROWS[2:]):
        with pytest.raises(ValueError, match="none of images as they are"):
            scores(rows)


def test_comparison_knows_its_reference() -> None:
    with pytest.raises(ValueError, match=r"reference='b': must be one of \['a'\]"):
        comparison(results([("a", ROWS, "linf")]), reference="b")


def test_scores_are_of_images_in_order() -> None:
    rows = [record(image, 0.0, "none", 1) for image in (2, 0, 1)]
    assert scores(rows)[0.0]["none"]["frozen"] == [1, 0, 0]
