"""Checks on finished records: by hand, image by image."""

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.checks import Check, from_records
from evaluation.results.records import Record
from evaluation.suite_config import Threat
from tests.support import records as support

BLACK = {"square"}


def record(image: int, eps: float, attack: str, right: bool | Sequence[bool], **rest) -> Record:
    """Label 3; `right` of the frozen draw, or of several fresh ones."""
    fresh = [] if isinstance(right, bool) else [3 if answer else 5 for answer in right]
    frozen = fresh[0] if fresh else 3 if right else 5
    return support.record(image, eps, attack, frozen, fresh, label=3, **rest)


def records(right: Mapping[tuple[float, str], Sequence]) -> list[Record]:
    """One list of images per (eps, attack), and all clean images right."""
    count = len(next(iter(right.values())))
    every = {(0.0, "none"): [True] * count, **right}
    return [
        record(image, eps, attack, answer)
        for (eps, attack), answers in every.items()
        for image, answer in enumerate(answers)
    ]


def named(
    name: str, found: list[Record], *, norm: Threat = "linf", black_box: Set[str] = BLACK
) -> Check:
    checks = from_records(found, black_box=black_box, norm=norm)
    assert [check.name for check in checks] == [
        "accuracy falls with eps", "white box beats black box", "recorded inside the budget"
    ]  # fmt: skip
    json.dumps([asdict(check) for check in checks])
    return next(check for check in checks if check.name == name)


def standing(count: int, total: int = 20) -> list[bool]:
    return [image < count for image in range(total)]


@pytest.mark.parametrize(("counts", "passes"), [
    ((20, 12, 3), True),
    ((12, 12, 12), True),
    ((12, 13, 0), True),
    ((12, 14, 0), True),
    ((12, 15, 0), False),
    ((20, 3, 12), False),
])  # fmt: skip
def test_accuracy_falls_with_eps(counts, passes: bool) -> None:
    """Two of 20 images may be right again, as attacks miss some; three may not (0.7 %)."""
    found = records({(0.1 * (k + 1), "apgd"): standing(n) for k, n in enumerate(counts)})
    check = named("accuracy falls with eps", found)
    assert check.passed is passes
    assert "100.0% at 0, " in check.detail and ("more steps" in check.detail) is not passes


def test_accuracy_is_that_of_the_worst_attack_and_of_the_clean_image() -> None:
    clean = standing(5)
    right = {(0, "none"): clean, (0.1, "apgd"): [True] * 20, (0.2, "apgd"): [True] * 20}
    assert (
        "25.0% at 0, 25.0% at 0.1, 25.0% at 0.2"
        in named("accuracy falls with eps", records(right)).detail
    )
    right = {(0.1, "a"): standing(8), (0.2, "a"): standing(20), (0.2, "b"): standing(6)}
    check = named("accuracy falls with eps", records(right))
    assert check.passed and "40.0% at 0.1, 30.0% at 0.2" in check.detail


def test_one_budget_cannot_fall() -> None:
    check = named("accuracy falls with eps", records({(0.1, "apgd"): standing(3)}))
    assert check.passed is None and "0.1" in check.detail


def draws(right: int, total: int = 20) -> list[bool]:
    return [draw < right for draw in range(total)]


def test_fresh_draws_may_differ_by_chance() -> None:
    """Shares of 20 draws: up and down by three is noise, up by three on every image is not."""
    smaller = [draws(10)] * 40
    noisy = [draws(13 if image % 2 else 7) for image in range(40)]
    found = records({(0.1, "apgd"): smaller, (0.2, "apgd"): noisy, (0, "none"): [draws(20)] * 40})
    assert named("accuracy falls with eps", found).passed
    higher = [draws(13)] * 40
    found = records({(0.1, "apgd"): smaller, (0.2, "apgd"): higher, (0, "none"): [draws(20)] * 40})
    assert named("accuracy falls with eps", found).passed is False


@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=2, max_size=4))
def test_nested_budgets_always_pass(rows: list[list[bool]]) -> None:
    """Images that a smaller budget breaks are broken at every larger one."""
    standing, right = [True] * 12, {}
    for number, row in enumerate(rows):
        standing = [a and b for a, b in zip(standing, row, strict=True)]
        right[(number + 1.0, "apgd")] = standing
    assert named("accuracy falls with eps", records(right)).passed


@pytest.mark.parametrize(("only_black", "passes"), [(0, True), (1, True), (2, True), (3, False)])
def test_white_box_beats_black_box(only_black: int, passes: bool) -> None:
    """Square may break two of 16 that APGD leaves standing, whatever the two have in common."""
    white = standing(12, 16)
    black = [image >= only_black and image < 14 for image in range(16)]
    check = named(
        "white box beats black box",
        records({(0.1, "exact/apgd-ce"): white, (0.1, "square"): black}),
    )
    assert check.passed is passes and f"{only_black} of 16 images" in check.detail


def test_white_box_attacks_count_together_and_budgets_apart() -> None:
    half, other = standing(10), [not answer for answer in standing(10)]
    right = {(0.1, "a"): half, (0.1, "b"): other, (0.1, "square"): [False] * 20}
    assert named("white box beats black box", records(right)).passed
    right |= {(0.2, "a"): [True] * 20, (0.2, "square"): standing(16)}
    check = named("white box beats black box", records(right))
    assert check.passed is False and "(eps 0.2)" in check.detail


def test_the_frozen_draw_is_looked_at_by_itself() -> None:
    """The frozen draw decides alone: four unseen draws can never differ significantly."""
    rows = records({(0, "none"): [draws(4, 4)] * 20, (0.1, "a"): [draws(4, 4)] * 20,
                    (0.1, "square"): [draws(4, 4)] * 20})  # fmt: skip
    assert named("white box beats black box", rows).passed
    rows = [replace(row, frozen=5) if row.attack == "square" else row for row in rows]
    check = named("white box beats black box", rows)
    assert check.passed is False and "20 of 20 images (eps 0.1)" in check.detail


def test_wrong_clean_images_are_no_merit_of_black_boxes() -> None:
    right = {(0, "none"): [False] * 20, (0.1, "a"): [True] * 20, (0.1, "square"): [False] * 20}
    assert named("white box beats black box", records(right)).passed


def test_kinds_of_attacks_that_are_missing_cannot_be_compared() -> None:
    found = records({(0.1, "apgd"): standing(3)})
    for black_box in (BLACK, set(), {"apgd"}):
        check = named("white box beats black box", found, black_box=black_box)
        assert check.passed is None and "apgd" in check.detail


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_recorded_inside_the_budget(norm: Threat) -> None:
    name = "recorded inside the budget"
    found = records({(0.1, "apgd"): standing(3)})
    assert named(name, found, norm=norm).passed
    found.append(record(20, 0.1, "apgd", True, **{norm: 0.1 + 5e-7}))
    assert named(name, found, norm=norm).passed
    found.append(record(21, 0.1, "apgd", True, **{norm: 0.1001}))
    check = named(name, found, norm=norm)
    assert check.passed is False and "1 of 42" in check.detail
    assert named(name, found, norm="stadv").passed is None
