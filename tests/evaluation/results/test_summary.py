"""Summaries as files hold them."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from evaluation.checks import Check
from evaluation.results.metrics import accuracies
from evaluation.results.summary import Summary
from tests.support.records import record

EPS = 8 / 255
ROWS = [
    *(record(image, 0.0, "none", 0, (0, 0), label=0) for image in range(3)),
    *(record(image, EPS, "a", image, (0, image), label=0) for image in range(3)),
]
SUMMARY = Summary(
    config={
        "eps": [EPS], "images": 3, "data": "digits", "split": "test", "defense": {"kind": "rdc"}
    },
    provenance={
        "command": "x", "commit": None, "data_fingerprint": "d1", "python": "3", "packages": {}
    },
    weights={"cnn": "ab"},
    class_names=("zero", "one"),
    norm="linf",
    accuracies=accuracies(ROWS),
    checks=(Check("a", True, "b"),),
    calls_per_image={"gradients": 3, "forwards": 4},
    seconds_per_image=0.5,
)  # fmt: skip


def test_a_summary_comes_back_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    file.write_text(json.dumps(SUMMARY.to_json()))
    found = Summary.read(file)
    assert found == SUMMARY
    assert found.accuracy(8 / 255).mean == pytest.approx(1 / 3)
    assert found.accuracy(8 / 255, "a", "fresh").mean == pytest.approx(2 / 3)
    assert (found.budgets, found.images) == ([8 / 255], 3)
    assert found.text.startswith("all 1 checks passed\n\naccuracy")


def test_budgets_of_six_digits_are_those_of_the_settings() -> None:
    old = SUMMARY.to_json()
    old["accuracy"] = {{"8/255": "0.0313725"}.get(k, k): v for k, v in old["accuracy"].items()}
    assert Summary.from_json(old) == SUMMARY


def test_any_value_of_a_field_is_a_summary_or_an_error_that_names_it() -> None:
    values = (None, True, -1, 2.5, float("nan"), 10**400, "x", [], {}, [None], {"x": None})
    for name, value in product(SUMMARY.to_json().keys() - {"text"}, values):
        try:
            found = Summary.from_json({**SUMMARY.to_json(), name: value})
        except ValueError as error:
            assert name in str(error)
        else:
            assert found.to_json()[name] == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("norm"), "norm is missing"),
        (lambda found: found.update(norm="l1"), "norm='l1' must be one of"),
        (lambda found: found["config"].pop("data"), "config: data is missing"),
        (lambda found: found["config"].update(defense={"kind": 3}), "defense: kind=3 must be text"),
        (lambda found: found["accuracy"].pop("0"), "worst case at eps 0"),
        (lambda found: found["accuracy"]["8/255"].pop("worst"), "worst case at eps 8/255"),
        (lambda found: found["accuracy"].update({"0.3": {}}), "'0.3' is no budget of config.eps"),
        (
            lambda found: found["accuracy"]["8/255"]["a"]["frozen"].update(low=float("nan")),
            r"eps 8/255, 'a', 'frozen': low=nan must be a number in \[0, 1\]",
        ),
        (lambda found: found["accuracy"]["8/255"]["a"].pop("fresh"), "'a' is of other images"),
        (lambda found: found["accuracy"]["0"]["none"].pop("frozen"), "give 'frozen'"),
        (lambda found: found.update(checks=[{"name": "a"}]), "checks: passed is missing"),
        (lambda found: found.update(accuracy=[]), r"accuracy=\[\] must be an object"),
    ],
)
def test_other_files_are_refused_by_name_and_field(tmp_path: Path, change, message: str) -> None:
    file, found = tmp_path / "summary.json", SUMMARY.to_json()
    change(found)
    file.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=rf"summary\.json is no summary.*{message}.*start eval"):
        Summary.read(file)


def test_the_clean_accuracy_has_one_name() -> None:
    with pytest.raises(KeyError):
        SUMMARY.accuracy(0.3)
    assert SUMMARY.accuracy(0.0) == SUMMARY.accuracy(0.0, "a")
    assert replace(SUMMARY, checks=()).text.startswith("checks were not run")
