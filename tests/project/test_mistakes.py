"""Typical mistakes: every program answers with one line and status 2, and does no work."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdc.commands.main import main

EVALUATE = ["evaluate", "--out", "OUT", "--defense.kind", "classifier"]
CERTIFY = ["certify", "--out", "OUT", "--sigma", "0.25", "--defense.kind", "classifier"]
TRAIN = ["train", "--out", "OUT", "--steps", "1"]
CNN = ["train-classifier", "--out", "OUT", "--steps", "1"]

# Command line and a part of the answer. IN is a folder with one color photo of 12x10 pixels, EMPTY
# an empty folder, FULL a folder with a file, FILE a text file, OUT does not exist.
MISTAKES = {
    "command": (["evalute"], "did you mean evaluate?"),
    "mistyped flag": ([*EVALUATE, "--atack", "standard"], "did you mean --attack?"),
    "missing flag": (["evaluate"], "Missing from rdc evaluate: --out"),
    "not a number": ([*TRAIN, "--batch-size", "many"], "--batch-size: invalid literal"),
    "nested setting": ([*EVALUATE, "--suite.eot-samples", "0"], "--suite.eot-samples=0 must be"),
    "classify missing file": (["classify", "IN/none", "--out", "OUT"], "does not exist"),
    "classify empty folder": (["classify", "EMPTY"], "no image below the folder"),
    "classify model": (["classify", "IN", "--model", "digitz"], "--model='digitz' is not a"),
    "classify classifier as RDC": (["classify", "IN", "--model", "digits-cnn"], "rdc.json"),
    "classify batch size": (["classify", "IN", "--batch-size", "0"], "--batch-size=0 must be"),
    "info model": (["info", "nothing"], "is not a directory"),
    "convert missing": (["convert", "none.pkl", "--format", "edm", "--out", "OUT"], "not a file"),
    "convert other file": (["convert", "FILE", "--format", "edm", "--out", "OUT"], "is refused"),
    "convert without architecture": (
        ["convert", "FILE", "--format", "classifier", "--out", "OUT"],
        "--architecture is missing",
    ),
    "export into a full folder": (["export", "digits", "FULL"], "new or an empty folder"),
    "export another evaluation": (
        ["export", "digits", "OUT", "--evaluation", "EMPTY"], "--evaluation='EMPTY': EMPTY/"
    ),
    "purify missing": (["purify", "none.png", "OUT.png", "--model", "digits"], "does not exist"),
    "purify classifier as denoiser": (["purify", "IN", "OUT", "--model", "digits-cnn"], "network"),
    "purify preset": (
        ["purify", "IN", "OUT", "--model", "digits", "--preset", "mnist"], "--preset='mnist'"
    ),
    "purify without guide": (
        ["purify", "IN", "OUT", "--model", "digits", "--method", "agdm"], "--auxiliary=None"
    ),
    "purify guide of another method": (
        ["purify", "IN", "OUT", "--model", "digits", "--classifier", "digits-cnn"],
        "--classifier='digits-cnn' must be None for method='diffpure'",
    ),
    "convert setting of classifiers": (
        ["convert", "FILE", "--format", "edm", "--out", "OUT", "--entry", "ema"],
        "--entry='ema' must be None for format='edm'",
    ),
    "evaluate eps": ([*EVALUATE, "--eps", "8"], "eps"),
    "evaluate negative eps": ([*EVALUATE, "--eps", "-1"], "eps"),
    "evaluate data": ([*EVALUATE, "--data", "none"], "none"),
    "evaluate color data": ([*EVALUATE, "--data", "IN"], "IN"),
    "evaluate denoiser as classifier": (
        [*EVALUATE, "--defense.classifier", "digits"], "digits"
    ),
    "evaluate no images": ([*EVALUATE, "--images", "0"], "--images=0 must be at least 1"),
    "evaluate transfer": ([*EVALUATE, "--transfer", "nobody"], "'nobody' is not a directory"),
    "sweep reference": (["sweep", "--out", "OUT", "--reference", "cnn", "--defenses", "rdc"],
                        "--reference cnn"),
    "report empty folder": (["report", "EMPTY"], "EMPTY"),
    "report missing folder": (["report", "none"], "none is not a folder"),
    "certify samples": ([*CERTIFY, "--samples", "0"], "samples"),
    "certify sigma": (["certify", "--out", "OUT", "--sigma", "-1"], "sigma"),
    "certify data": ([*CERTIFY, "--data", "none"], "none"),
    "train data": ([*TRAIN, "--data", "none"], "none"),
    "train classes": ([*TRAIN, "--network.num-classes", "3"], "3"),
    "train batch size": ([*TRAIN, "--batch-size", "0"], "batch"),
    "train-classifier data": ([*CNN, "--data", "none"], "none"),
    "train-classifier architecture": ([*CNN, "--architecture", "resnet-99x"], "resnet-99x"),
    "calibrate model": (["calibrate", "--model", "none", "--out", "OUT"], "--model='none' is not"),
    "demo no images": (["demo", "--images", "0"], "--images=0 must be at least 1"),
    "train into a full folder": (["train", "--out", "FULL"], "FULL holds files but no run.json"),
    "evaluate into a full folder": (
        ["evaluate", "--out", "FULL", "--defense.kind", "classifier"], "FULL holds files but no"
    ),
    "certify into a full folder": (
        ["certify", "--out", "FULL", "--sigma", "0.25", "--defense.kind", "classifier"],
        "FULL holds files but no",
    ),
    "demo data": (["demo", "--data", "none"], "none"),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("IN", "EMPTY", "FULL"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.full((12, 10, 3), 99, np.uint8)).save(tmp_path / "IN" / "photo.png")
    (tmp_path / "FULL" / "notes.txt").write_text("mine")
    (tmp_path / "FILE").write_text("text")
    return tmp_path


def files(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_in_one_line(name: str, place: Path, capsys) -> None:
    arguments, answer = MISTAKES[name]
    before = files(place)
    assert main(arguments) == 2
    lines = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and answer in lines[0]
    assert files(place) == before
