"""Learning curves: lines through the recorded figures, and runs without them."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from training import curves
from training.config import CurvesConfig
from training.curves import draw, main, read_history

ENTRY = {"step": 2, "images": 8, "flop": 80.0, "loss": 0.5, "validation_accuracy": 0.25}
ROBUST = ENTRY | {"validation_robust_accuracy": 0.125}


def test_lines_go_through_the_figures() -> None:
    """Accuracies in percent; a run without a figure has no line for it."""
    later = ROBUST | {"flop": 160.0, "loss": 0.4}
    figure = draw({"a": [ENTRY], "b": [ROBUST, later]}, "flop")
    loss, clean, robust = figure.axes
    assert [line.get_xydata().tolist() for line in loss.lines] == [  # type: ignore[union-attr]
        [[80, 0.5]], [[80, 0.5], [160, 0.4]],
    ]  # fmt: skip
    assert clean.lines[1].get_xydata().tolist() == [[80, 25], [160, 25]]  # type: ignore[union-attr]
    assert robust.lines[0].get_xydata().tolist() == [[80, 12.5], [160, 12.5]]  # type: ignore
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["a", "b"]  # type: ignore


def test_a_picture_is_written(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.jsonl").write_text(json.dumps(ENTRY) + "\n")
    main(CurvesConfig((tmp_path / "a", tmp_path / "b"), out=tmp_path / "x.png", over="images"))
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (1200, 480)


def test_runs_of_the_same_name_have_a_line_each(tmp_path: Path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(curves, "draw", lambda histories, _: drawn.append(histories) or Figure())
    runs = [tmp_path / folder / "run" for folder in "ab"]
    for number, run in enumerate(runs):
        run.mkdir(parents=True)
        (run / "history.jsonl").write_text(json.dumps(ENTRY | {"step": number}) + "\n")
    main(CurvesConfig(tuple(runs), out=tmp_path / "x.png"))
    assert drawn == [{str(run): read_history(run, "step") for run in runs}]


def test_runs_without_figures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"history\.jsonl does not exist"):
        read_history(tmp_path, "flop")
    (tmp_path / "history.jsonl").write_text('{"step": 1, "loss": 2}\n')
    assert read_history(tmp_path, "step") == [{"step": 1, "loss": 2}]
    with pytest.raises(ValueError, match="--over step"):
        read_history(tmp_path, "flop")
    for damaged, message in (('{"step": 1, "lo', "history.jsonl is not JSON"), ("", "is empty")):
        (tmp_path / "history.jsonl").write_text(damaged)
        with pytest.raises(ValueError, match=message):
            read_history(tmp_path, "step")
    with pytest.raises(ValueError, match="runs: none given"):
        main(CurvesConfig((), out=tmp_path / "x.png"))
    with pytest.raises(ValueError, match=r"out=.*x\.doc cannot become a picture"):
        main(CurvesConfig((tmp_path,), out=tmp_path / "x.doc"))


def test_the_format_is_that_of_the_name(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text(json.dumps(ENTRY) + "\n")
    main(CurvesConfig((tmp_path,), out=tmp_path / "x.pdf", over="step"))
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")
