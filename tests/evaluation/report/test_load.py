"""Reading finished runs: names, worst answers, and folders that are refused."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import tyro
from safetensors.numpy import save

from evaluation.config import EvaluateConfig
from evaluation.eps import eps_title
from evaluation.report.__main__ import main
from evaluation.report.examples import saved
from evaluation.report.figures import confusion
from evaluation.report.load import load
from evaluation.report.page import write
from evaluation.results.records import Record
from rdc.commands.program import run_program
from tests.support.fake_runs import Fake, make


def test_worst_answer_of_an_image(tmp_path: Path) -> None:
    """The most confident wrong one, or where all are right the least confident."""
    (run,) = load([make(tmp_path / "run", Fake(images=3))])[0]

    def record(image: int, eps: float, frozen: int, confidence: float) -> Record:
        return Record(image, 1, eps, "none", frozen, confidence, (), (), eps, eps, 0.0)

    rows = [
        record(0, 0.0, 1, 0.99), record(0, 0.1, 1, 0.7), record(0, 0.1, 1, 0.8),
        record(1, 0.0, 1, 0.5), record(1, 0.1, 2, 0.6), record(1, 0.1, 3, 0.9),
        record(2, 0.0, 4, 0.4), record(2, 0.1, 1, 0.1), record(2, 0.2, 5, 1.0),
    ]  # fmt: skip
    answers = replace(run, records=rows).answers
    assert answers[0.0] == [rows[0], rows[3], rows[6]]
    assert answers[0.1] == [rows[1], rows[5], rows[6]]
    # What is within a budget is within a larger one.
    assert answers[0.2] == [rows[1], rows[5], rows[8]]
    counts = confusion(answers[0.1], 5)
    assert counts.sum() == 3 and counts[1].tolist() == [0, 1, 0, 1, 1]


def test_budgets_are_shown_as_people_write_them() -> None:
    assert [eps_title(eps) for eps in (0.0, 0.1, 8 / 255, 0.2, 1.0)] == [
        "clean", "eps 0.1", "eps 8/255", "eps 0.2", "eps 1",
    ]  # fmt: skip


def test_unfinished_run_says_how_to_finish_it(tmp_path: Path) -> None:
    """The command's settings are the run's; beside finished runs it is a note."""
    make(tmp_path / "all" / "sound", Fake())
    folder = tmp_path / "all" / "un finished"
    folder.mkdir()
    config = EvaluateConfig(out=folder, norm="l2", eps=(0.5, 1.0), images=7)
    (folder / "settings.json").write_text(json.dumps({**asdict(config), "out": None}, default=str))
    with pytest.raises(ValueError, match="is not finished") as caught:
        load([folder])
    command = shlex.split(str(caught.value).split("continue it: ")[1])
    assert command[:3] == ["python", "-m", "evaluation.evaluate"]
    assert tyro.cli(EvaluateConfig, args=command[3:]) == config
    assert "--batch-size" in command and "--defense.t-star" not in command
    runs, notes = load([tmp_path / "all"])
    assert [r.name for r in runs] == ["sound"] and len(notes) == 1
    assert "un finished" in notes[0]


def test_folders_of_other_programs_are_no_runs(tmp_path: Path) -> None:
    """`rdc classify` and the calibration keep settings too."""
    make(tmp_path / "all" / "sound", Fake())
    other = tmp_path / "all" / "classified"
    other.mkdir()
    (other / "settings.json").write_text('{"path": "images", "seed": 0, "inputs": {}}')
    runs, notes = load([tmp_path / "all"])
    assert [r.name for r in runs] == ["sound"] and not notes
    with pytest.raises(ValueError, match=r"no settings\.json of an evaluation"):
        load([other])


def doubled(summary: dict) -> None:
    """Change a summary to the same number of right answers among twice as many images."""
    share = summary["accuracy"]["0"]["none"]["frozen"]
    share |= {"images": 2 * share["images"], "accuracy": share["accuracy"] / 2}


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        summary = json.loads((folder / "summary.json").read_text())
        change(summary)
        (folder / "summary.json").write_text(json.dumps(summary))

    return damage


def edit_records(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "records-001.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()]
        change(records[-1])
        file.write_text("".join(json.dumps(record) + "\n" for record in records))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "is not a folder"),
        (lambda folder: (folder / "summary.json").write_text("{"), "is not JSON.*start eval"),
        (edit(lambda s: s.pop("checks")), "checks is missing"),
        (edit(lambda s: s["accuracy"]["0.1"]["worst"]["frozen"].update(accuracy=0)), "records say"),
        (edit(doubled), "of other images"),
        (edit(lambda s: s["class_names"].pop()), "names 9 classes, the records of image .* 9"),
        (lambda folder: (folder / "records-001.jsonl").unlink(), "12 images at eps 0.1, .* say 6"),
        (
            edit_records(lambda r: r.update(attack="\x1b[2J")),
            r"says 0 images at eps 0.2, .\\x1b\[2J., .* say 1",
        ),
        (edit_records(lambda r: r.update(frozen=10)), "have number 10"),
        (edit_records(lambda r: r.update(seconds="fast")), "records-001.*seconds='fast' must be"),
        (edit_records(lambda r: r.pop("label")), "records-001.*label is missing.*start again"),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, damage, message: str) -> None:
    folder = make(tmp_path / "run", Fake())
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nor does a folder in it"):
        load([tmp_path])
    with pytest.raises(ValueError, match="none given"):
        load([])
    (tmp_path / "settings.json").write_text("[]")
    with pytest.raises(ValueError, match=r"settings\.json must be a JSON object"):
        load([tmp_path])


def test_names_are_as_long_as_they_must_be(tmp_path: Path) -> None:
    for name in ("new/rdc-linf", "old/rdc-linf"):
        make(tmp_path / name, Fake("rdc"))
    runs, _ = load([tmp_path / "new", tmp_path / "old", tmp_path / "new" / "rdc-linf"])
    assert [(r.name, r.defense) for r in runs] == [
        ("new/rdc-linf", "new/rdc"), ("old/rdc-linf", "old/rdc"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not readable"),
        (b"\x08" + 7 * b"\0" + b'{"a":3}}', "is not readable"),
        (save({"images": np.zeros((8, 2, 8, 8))}, {"attacks": "[]"}), "shapes"),
        (save({"images": np.zeros((8, 1, 8, 8))}, {"attacks": "[1]"}), "not one per image"),
        (save({"images": np.zeros((8, 1, 8, 8))}), "is not readable"),
    ],
)
def test_damaged_images_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (run,) = load([make(tmp_path / "run", Fake())])[0]
    (run.folder / "images" / "eps0.1-00000.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"eps0\.1-00000.*{message}.*remove the folder"):
        list(saved(run, 0.1))
    shutil.rmtree(run.folder / "images")
    assert list(saved(run, 0.1)) == []


def test_errors_are_one_printable_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    missing = tmp_path / "a\x1b[2J\nfolder"
    assert run_program(main, [str(missing)]) == 2
    said = capsys.readouterr().err
    shown = f"{tmp_path}/a\\x1b[2J\\nfolder"
    assert said == f"error: folders: {shown} is not a folder; give what --out named\n"
