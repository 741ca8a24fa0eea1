"""`python -m rdc`: one row per image, a broken image costs only its own row, exit status 1."""

import hashlib
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

import rdc.hub.checkpoint
from evaluation.config import EvaluateConfig
from purification.purify_config import Purify
from rdc import Denoiser, ImageClassifier, ImageClassifierConfig
from rdc.commands.config import Classify
from rdc.commands.main import main
from rdc.prediction import classify
from tests.support.launchers import printed
from tests.support.launchers import run as run_module
from tests.support.tiny import NETWORK, tiny_denoiser, tiny_rdc
from training.config import TrainConfig

NAMES = ("zero", "one", "two")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "model"
    tiny_rdc().save_pretrained(directory)
    return directory


@pytest.fixture
def packaged(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is the only packaged one, "tiny"."""
    shutil.copytree(model, tmp_path / "pretrained" / "tiny")
    monkeypatch.setattr(rdc.hub.checkpoint, "PACKAGED", tmp_path / "pretrained")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four good images, one of them elsewhere, and a corrupt one in the middle."""
    (tmp_path / "images" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "d.jpg", "deep/e.png"):
        array = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / "images" / name)
    (tmp_path / "images" / "c.png").write_bytes(b"not an image")
    return tmp_path / "images"


def run(*args: object) -> int:
    return main([str(arg) for arg in args])


def json_rows(text: str) -> dict[str, dict]:
    rows = [json.loads(line) for line in text.splitlines()]
    return {Path(row["image"]).name: row for row in rows}


def test_table_has_a_row_for_each_image(model: Path, folder: Path, capsys) -> None:
    assert run("classify", folder, "--model", model) == 1
    out, err = capsys.readouterr()
    header, *rows = out.splitlines()
    assert header.split() == ["image", "class", "p", "second", "p"]
    assert [row.split()[0] for row in rows] == [
        str(folder / name) for name in ("a.png", "b.png", "c.png", "d.jpg", "deep/e.png")
    ]
    assert "c.png is not a readable image" in rows.pop(2)
    for row in rows:
        _, first, p, second, q = row.split()
        assert {first, second} < set(NAMES)
        assert 1 >= float(p) >= float(q) >= 0
    assert err.splitlines() == [
        f"model {model}, for 1x8x8 images", "1 of 5 images could not be classified",
    ]  # fmt: skip


def test_table_says_what_classify_says(model: Path, folder: Path, capsys) -> None:
    assert run("classify", folder / "a.png", "--model", model) == 0
    _, row = capsys.readouterr().out.splitlines()
    prediction = classify(folder / "a.png", model)
    _, first, p, _, q = row.split()
    assert first == prediction.names[0]
    top = prediction.probabilities[0].sort(descending=True).values.tolist()
    assert (float(p), float(q)) == pytest.approx(tuple(top[:2]), abs=5.1e-4)


def test_json_rows(model: Path, folder: Path, capsys) -> None:
    assert run("classify", folder, "--model", model, "--json") == 1
    rows = json_rows(capsys.readouterr().out)
    broken = rows.pop("c.png")
    assert set(broken) == {"image", "error"}
    assert "not a readable image" in broken["error"]
    files = [folder / name for name in ("a.png", "b.png", "d.jpg", "deep/e.png")]
    assert [row["image"] for row in rows.values()] == [str(file) for file in files]
    prediction = classify(files, model)
    for row, p, name in zip(
        rows.values(), prediction.probabilities.tolist(), prediction.names, strict=True
    ):
        assert row["class"] == name == max(row["probabilities"], key=row["probabilities"].get)
        assert tuple(row["probabilities"]) == NAMES
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=3e-6)
        assert list(row["probabilities"].values()) == pytest.approx(p, abs=1e-5)


@pytest.mark.slow
def test_images_are_told_apart(model: Path, folder: Path, capsys) -> None:
    """Guards the others: the tiny model does not answer everything alike."""
    run("classify", folder, "--model", model, "--json")
    rows = json_rows(capsys.readouterr().out)
    assert len({str(row.get("probabilities")) for row in rows.values()}) == 5


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batch_size_does_not_change_the_rows(model, folder, capsys, batch_size: int) -> None:
    run("classify", folder, "--model", model, "--json")
    whole = json_rows(capsys.readouterr().out)
    run("classify", folder, "--model", model, "--json", "--batch-size", batch_size)
    rows = json_rows(capsys.readouterr().out)
    assert list(rows) == list(whole)
    for name, row in rows.items():
        if name != "c.png":
            assert row["probabilities"] == pytest.approx(whole[name]["probabilities"], abs=1e-4)


@pytest.mark.slow
def test_images_of_another_shape_are_converted_where_asked_for(model, tmp_path, capsys) -> None:
    """Every row and the end of the table say so."""
    Image.fromarray(np.full((12, 10, 3), (9, 99, 9), np.uint8)).save(tmp_path / "photo.png")
    assert run("classify", tmp_path, "--model", model, "--json") == 1
    assert "photo.png is 3x12x10, but this model takes 1x8x8" in capsys.readouterr().out
    assert run("classify", tmp_path, "--model", model, "--json", "--resize") == 0
    out, err = capsys.readouterr()
    change = "3x12x10 converted to 1x8x8: to gray, resized, cropped at the center"
    assert json.loads(out)["converted"] == change
    assert "1 of 1 images were converted to 1x8x8" in err.splitlines()
    prediction = classify(tmp_path / "photo.png", str(model), resize=True)
    assert prediction.conversions == (change,) and prediction.model == str(model)
    out = tmp_path / "out"
    assert run("classify", tmp_path / "photo.png", "--model", model, "--resize", "--out", out) == 0
    assert json.loads((out / "predictions.jsonl").read_text())["converted"] == change
    assert run("classify", tmp_path / "photo.png", "--model", model, "--out", out) == 2
    assert "--resize: True -> False" in capsys.readouterr().err


def test_names_from_outside_cannot_control_the_terminal(model, tmp_path, capsys) -> None:
    """Names of classes and files that clear the screen, forge a line, or are not UTF-8."""
    shutil.copytree(model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["class_names"] = ["\x1b[2J", "a\nerror: b", "\u202ec"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "in").mkdir()
    names = ["\x1b[31m.png", "x\ny.png", b"caf\xe9.png".decode(errors="surrogateescape")]
    for name in names:
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "in" / "plain.png")
        (tmp_path / "in" / "plain.png").rename(tmp_path / "in" / name)
    (tmp_path / "in" / "\x1b[32m.png").write_bytes(b"not an image")
    assert run("classify", tmp_path / "in", "--model", tmp_path / "model") == 1
    assert run("classify", tmp_path / "\x1b[2J\n", "--model", tmp_path / "model") == 1
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert text.replace("\n", "").isprintable() and text.encode()
    assert len(captured.out.splitlines()) == (1 + 4) + (1 + 1)
    assert run("classify", tmp_path / "in", "--model", tmp_path / "model", "--json") == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {Path(row["image"]).name for row in rows} == {*names, "\x1b[32m.png"}


@pytest.mark.parametrize("batch_size", [0, -1])
def test_bad_batch_size_is_refused(model: Path, folder: Path, capsys, batch_size: int) -> None:
    assert run("classify", folder, "--model", model, "--batch-size", batch_size) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: --batch-size={batch_size} must be at least 1\n")


def test_missing_file_has_its_row(model: Path, tmp_path: Path, capsys) -> None:
    assert run("classify", tmp_path / "missing.png", "--model", model, "--json") == 1
    assert "missing.png does not exist" in json.loads(capsys.readouterr().out)["error"]


def test_empty_folder(model: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert run("classify", tmp_path / "empty", "--model", model) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: images: no image below the folder {tmp_path / 'empty'}")


@pytest.mark.usefixtures("packaged")
@pytest.mark.parametrize("command", ["classify", "info"])
def test_unknown_model_lists_the_packaged_ones(folder: Path, capsys, command: str) -> None:
    given = ["classify", folder, "--model"] if command == "classify" else ["info"]
    assert run(*given, "digit") == 2
    out, err = capsys.readouterr()
    assert out == ""
    name = "--model" if command == "classify" else "model"
    assert err.startswith(f"error: {name}='digit' is not a directory; packaged models: ['tiny'];")


def test_broken_model_is_an_error_not_a_traceback(model, folder, tmp_path, capsys) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    config["network"]["width"] = "8"
    (broken / "config.json").write_text(json.dumps(config))
    assert run("classify", folder, "--model", broken) == 2
    assert "config.json: network: width='8' must be int" in capsys.readouterr().err


@pytest.mark.usefixtures("packaged")
def test_info_lists_the_packaged_models(capsys) -> None:
    assert run("info") == 0
    head, row, *_ = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["model", "for", "images"]
    parameters = sum(weights.numel() for weights in tiny_rdc().parameters())
    assert row.split()[:3] == ["tiny", "RDC,", "purification"] and f" {parameters:,} " in row


def shown(capsys, *args: object) -> dict:
    assert run("info", *args) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("packaged")
def test_info_shows_the_settings_of_a_model(model: Path, capsys) -> None:
    found = shown(capsys, "tiny")
    assert found["denoiser"] == json.loads((model / "config.json").read_text())
    assert found["rdc"] == json.loads((model / "rdc.json").read_text())
    assert found["class_names"] == list(NAMES)


def test_info_of_a_model_for_rdc(model: Path, capsys) -> None:
    found = shown(capsys, model)
    parameters = sum(weights.numel() for weights in tiny_denoiser().parameters())
    facts = ("denoiser, rdc, edm", "1x8x8, 3 classes", f"{parameters:,}")
    assert (found["network"], found["images"], found["parameters"]) == facts
    for name in ("config.json", "model.safetensors", "rdc.json"):
        expected = hashlib.sha256((model / name).read_bytes()).hexdigest()
        assert found["files"].pop(name) == expected
    assert found["files"] == {}
    assert programs(found) == {
        "rdc classify", "purification", "training.train", "evaluation.evaluate",
    }  # fmt: skip


def programs(found: dict) -> set[str]:
    """The programs that accept the model, as the page of `rdc info` names them."""
    words = [command.removeprefix("python -m ").split() for command in found["commands"]]
    return {" ".join(w[:2]) if w[0] == "rdc" else w[0] for w in words}


@pytest.mark.parametrize("conditioning", ["label", "none"])
def test_info_of_a_denoiser(tmp_path: Path, capsys, conditioning: str) -> None:
    count = 3 if conditioning == "label" else 0
    network = replace(NETWORK, conditioning=conditioning, num_classes=count)
    config = replace(tiny_denoiser().config, network=network, class_names=())
    with torch.random.fork_rng(devices=[]):
        Denoiser(config).save_pretrained(tmp_path / "denoiser", max_shard_size="80KB")
    found = shown(capsys, tmp_path / "denoiser")
    assert found["images"] == f"1x8x8, {count or 'no'} classes"
    assert "rdc" not in found and found["class_names"] == []
    assert {"config.json", "model-00001-of-00005.safetensors"} < set(found["files"])
    taught = {"training.train"} if count else set()
    assert programs(found) == {"purification", *taught}


def test_info_of_a_classifier(tmp_path: Path, capsys) -> None:
    config = ImageClassifierConfig("cnn-4", 8, 1, 3)
    ImageClassifier(config).save_pretrained(tmp_path / "cnn")
    found = shown(capsys, tmp_path / "cnn")
    assert found["network"] == "classifier, cnn-4"
    assert found["classifier"] == json.loads((tmp_path / "cnn" / "config.json").read_text())
    assert programs(found) == {"purification", "evaluation.evaluate"}


def test_info_commands_are_taken_by_their_programs(model: Path, tmp_path: Path, capsys) -> None:
    cnn = tmp_path / "a folder" / "cnn"
    ImageClassifier(ImageClassifierConfig("cnn-4", 8, 1, 3)).save_pretrained(cnn)
    configs = {
        "evaluation.evaluate": EvaluateConfig, "purification": Purify, "rdc": Classify,
        "training.train": TrainConfig,
    }  # fmt: skip
    for saved in (model, cnn):
        for command in shown(capsys, saved)["commands"]:
            program, *words = shlex.split(command.removeprefix("python -m "))
            words = words[1:] if program == "rdc" else words
            parsed = tyro.cli(configs[program], args=words)
            assert str(saved) in repr(parsed)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_info_reads_as_strictly_as_loading_does(model, tmp_path, capsys, file: str) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / file).write_bytes((broken / file).read_bytes()[:-9])
    assert run("info", broken) == 2
    assert file in capsys.readouterr().err


def test_predictions_of_a_folder(model: Path, folder: Path, tmp_path: Path, capsys) -> None:
    """The same rows as on the screen, by names below the folder; a broken image is no failure."""
    run("classify", folder, "--model", model, "--json")
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    out = tmp_path / "out"
    assert run("classify", folder, "--model", model, "--out", out) == 0
    said = capsys.readouterr().out
    assert said == f"wrote {out / 'predictions.jsonl'}; 1 images could not be classified\n"
    lines = (out / "predictions.jsonl").read_text().splitlines()
    for line, row in zip(lines, printed, strict=True):
        assert json.loads(line) == row | {"image": str(Path(row["image"]).relative_to(folder))}


def test_seed_changes_the_noise(model: Path, folder: Path, capsys) -> None:
    answers = []
    for seed in (0, 0, 1):
        run("classify", folder / "a.png", "--model", model, "--json", "--seed", seed)
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


def test_other_settings_of_a_begun_folder(model: Path, folder: Path, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert run("classify", folder, "--model", model, "--out", out) == 0
    assert run("classify", folder, "--model", model, "--out", out, "--seed", 1) == 2
    assert "other settings: --seed: 0 -> 1" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_end_to_end(model: Path, folder: Path, tmp_path: Path) -> None:
    command = ["rdc", "classify", folder, "--model", model, "--json", "--batch-size", "2"]
    status = run_module(tmp_path / "printed", *command, cwd=folder)
    stdout, stderr = printed(tmp_path / "printed")
    assert status == 1, stderr
    rows = json_rows(stdout)
    assert [name for name, row in rows.items() if "error" in row] == ["c.png"]
    assert len(rows) == 5
    assert "1 of 5 images could not be classified" in stderr
    assert "Traceback" not in stderr
