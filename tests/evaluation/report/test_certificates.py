"""Certifications in a report: beside the attacks on the same defense, or refused by field."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.report.certificates import certifications
from evaluation.report.load import load
from evaluation.report.page import write
from tests.support.fake_runs import Fake, make
from tests.support.pages import read

DEFENSE = {
    "kind": "classifier", "model": "digits", "weight": None, "seed": 0, "sigma": None,
    "noisy_copies": 32,
}  # fmt: skip
FOUND: dict[str, Any] = {
    "config": {
        "defense": DEFENSE, "sigma": 0.25, "alpha": 0.001, "samples": 300, "method": "sequential",
        "data": "digits", "split": "test",
    },
    "data_fingerprint": "d1" * 32, "abstained": 0.1, "passes": 150.4, "seconds": 0.2, "images": 12,
    "rows": [
        {"radius": 0.25, "certified_accuracy": 0.5, "interval": [0.2, 0.8], "undecided": 0.1},
        {"radius": 0, "certified_accuracy": 0.75, "interval": [0.4, 0.95], "undecided": 0.0},
    ],
}  # fmt: skip


def certify(folder: Path, change: Callable[[dict], object] = lambda found: None) -> Path:
    """Write a finished certification."""
    folder.mkdir(parents=True)
    found = json.loads(json.dumps(FOUND))
    change(found)
    (folder / "certificates.json").write_text(json.dumps(found))
    (folder / "settings.json").write_text("{}")
    return folder


@pytest.mark.slow
def test_certified_accuracy_stands_beside_the_attack_on_the_same_defense(tmp_path: Path) -> None:
    make(tmp_path / "cnn-l2", Fake(norm="l2", eps=(0.1, 0.5), sigma=0.25))
    make(tmp_path / "cnn-linf", Fake(sigma=0.25))
    make(tmp_path / "cnn-more-noise", Fake(norm="l2", sigma=0.5))
    make(tmp_path / "cnn-not-smoothed", Fake(norm="l2"))
    certify(tmp_path / "cnn-certified")
    certify(tmp_path / "other", lambda found: found["config"]["defense"].update(seed=1))
    certify(tmp_path / "noisier", lambda found: found["config"].update(sigma=1.0))
    certify(tmp_path / "others", lambda found: found.update(data_fingerprint="e2" * 32))
    found = {each.name: each for each in certifications([tmp_path])}
    runs, notes = load([tmp_path])
    matched = {name: each.attacked(runs) for name, each in found.items()}
    assert {name: run.name if run else None for name, run in matched.items()} == {
        "cnn-certified": "cnn-l2", "other": None, "noisier": None, "others": None,
    }  # fmt: skip
    assert notes == [] and [*found["other"].accuracies] == [0.0, 0.25]
    page = write([tmp_path], tmp_path / "report")
    assert [file.name for file in page.parent.glob("certified-*.png")] == ["certified-1.png"]
    (section,) = [s for s in read(page).all("section") if s.all("h2") and
                  s.all("h2")[0].text == "Certified accuracy"]  # fmt: skip
    cells = [[cell.text for cell in row.all("td")][:4] for row in section.all("tr")[1:3]]
    assert cells == [
        ["0.25", "0.0", "75.0 [40, 95]", "0.0"], ["0.25", "0.25", "50.0 [20, 80]", "10.0"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("rows"), "rows is missing"),
        (lambda found: found["config"].update(sigma="x"), "config: sigma='x' must be"),
        (lambda found: found["rows"].clear(), "rows: none"),
        (lambda found: found["rows"][0].update(radius=-1), "rows: radius=-1 must be"),
        (lambda found: found["rows"][0].update(interval=[0.5]), "interval=.* must be two numbers"),
    ],
)
def test_damaged_certifications_are_refused(tmp_path: Path, change, message: str) -> None:
    certify(tmp_path / "run", change)
    with pytest.raises(ValueError, match=rf"certificates\.json is no cert.*{message}.*start eval"):
        certifications([tmp_path])


def test_certifications_alone_make_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only certifications"):
        load([certify(tmp_path / "run")])


def test_an_unfinished_certification_is_continued_by_its_own_program(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"sigma": 0.25, "inputs": {}}')
    with pytest.raises(ValueError, match=r"python -m evaluation.certify --out .* --sigma 0.25"):
        load([tmp_path])
