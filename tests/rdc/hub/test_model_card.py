"""Model cards say what is known, say what is not, and never replace what somebody wrote."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from rdc import Denoiser, ImageClassifier, ImageClassifierConfig, RobustDiffusionClassifier
from rdc.commands.export import export
from rdc.commands.main import main
from rdc.hub.model_card import (
    MEASUREMENT,
    Facts,
    Measurement,
    Training,
    accuracy,
    add_training,
    is_generated,
    with_sections,
)
from rdc.hub.weights import weight_files, weights_sha256
from rdc.runs.atomic import write_json
from tests.support.tiny import NETWORK, tiny_denoiser, tiny_rdc
from training.classifier import main as train
from training.config import ClassifierTrainConfig

CARD = "README.md"
SHA = "5b" * 32
TRAINING = Training(
    data="cifar10",
    data_fingerprint="d1" * 32,
    command="python -m training.train --out runs/mine --data /home/me/cifar10",
    commit="b605087",
    settings={"steps": 20000, "batch_size": 512, "seed": 3, "precision": None, "processes": 8},
    versions={"python": "3.12.1", "torch": "2.9.0"},
    figures={"validation_accuracy": "0.9123"},
)
MEASURED = Measurement((SHA,), "by `python -m evaluation.evaluate`: 40 images.\n\n| a |\n|---|")


def card(folder: Path) -> str:
    return (folder / CARD).read_text()


def front(text: str) -> Any:
    """The metadata that the hub reads."""
    return ModelCard(text).data


def section(text: str, title: str) -> str:
    found = re.search(rf"^## {title}\n\n(.*?)(?=^## |^<!--|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[1].strip()


def run(*args: object) -> int:
    return main([str(arg) for arg in args])


# --- what it says ---


def test_nothing_known_is_said_plainly(tmp_path: Path) -> None:
    tiny_denoiser().save_pretrained(tmp_path / "mine")
    text = card(tmp_path / "mine")
    data = front(text)
    assert (data.library_name, data.license) == ("rdc", "unknown")
    assert data.pipeline_tag == "unconditional-image-generation"
    assert "diffusion" in data.tags and data.get("datasets") is None
    assert "\n# mine\n" in text and "rdc.Denoiser.from_pretrained" in text
    assert section(text, "Data") == section(text, "Training") == "Not recorded."
    assert section(text, "License").startswith("Not stated.")
    measured = section(text, "Accuracy")
    assert measured.startswith("Clean accuracy: not measured. Robust accuracy: not measured.")
    parameters = sum(weights.numel() for weights in tiny_denoiser().parameters())
    rows = dict(re.findall(r"^\| (\w.*?) \| (.*) \|$", section(text, "Architecture"), re.MULTILINE))
    assert rows == {
        "network": "denoiser, rdc, edm",
        "images": "1x8x8, 3 classes",
        "parameters": f"{parameters:,}",
    }


def test_every_kind_of_model_has_its_task(tmp_path: Path) -> None:
    tiny_rdc().save_pretrained(tmp_path / "rdc")
    ImageClassifier(ImageClassifierConfig("cnn-4", 8, 1, 3)).save_pretrained(tmp_path / "cnn")
    rdc, cnn = card(tmp_path / "rdc"), card(tmp_path / "cnn")
    for text in (rdc, cnn):
        assert front(text).pipeline_tag == "image-classification"
    assert "adversarial-robustness" in front(rdc).tags
    assert "rdc.RobustDiffusionClassifier.from_pretrained" in rdc
    assert "RDC, classifier | levels 2, " in section(rdc, "Architecture")
    assert "network | classifier, cnn-4 |" in section(cnn, "Architecture")


def test_facts_are_told(tmp_path: Path) -> None:
    facts = Facts("cc-by-4.0", notes=("Mind the eyes.",), origin={"by": "me"})
    tiny_denoiser().save_pretrained(tmp_path, facts=facts)
    add_training(tmp_path, TRAINING)
    text = card(tmp_path)
    data = front(text)
    assert (data.license, data.datasets) == ("cc-by-4.0", ["cifar10"])
    assert is_generated(text)
    assert section(text, "License") == "`cc-by-4.0`"
    assert "- by: me\n\nMind the eyes.\n" in text
    assert "training split of `cifar10`" in section(text, "Data")
    assert TRAINING.data_fingerprint in section(text, "Data")
    trained = section(text, "Training")
    assert f"- command: `{TRAINING.command}`" in trained
    assert "- commit: b605087\n" in trained
    assert "- settings: steps 20000, batch_size 512, seed 3, processes 8\n" in trained
    assert trained.endswith("- on the validation split: validation_accuracy 0.9123")


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "F32"), ("bfloat16", "BF16")])
def test_weights_are_identified(tmp_path: Path, dtype: str, precision: str) -> None:
    tiny_denoiser().save_pretrained(tmp_path, dtype=getattr(torch, dtype), max_shard_size="80KB")
    weights = section(card(tmp_path), "Weights")
    size = sum(file.stat().st_size for file in weight_files(tmp_path))
    assert f"- precision: {precision}\n" in weights
    assert f"- files: {len(weight_files(tmp_path))}, {size:,} bytes\n" in weights
    assert f"`{weights_sha256(tmp_path)}`" in weights


# --- accuracy ---


def test_figures_of_other_weights_are_refused() -> None:
    text = accuracy(MEASURED, ["ab" * 32, SHA])
    assert text.startswith(f"Measured on the weights with SHA-256 `{SHA}`, by `python -m eval")
    assert text.endswith("40 images.\n\n| a |\n|---|")
    with pytest.raises(ValueError, match=rf"evaluation: .*{SHA}.*, and these have SHA-256 abab"):
        accuracy(MEASURED, ["ab" * 32])


# --- whose card it is ---


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("card")
    tiny_denoiser().save_pretrained(folder)
    return card(folder)


@given(position=st.floats(0, 1), inserted=st.sampled_from("aZ \n#-"))
def test_any_edit_makes_a_card_somebodys_own(generated: str, position, inserted: str) -> None:
    at = round(position * len(generated))
    assert is_generated(generated)
    assert not is_generated(generated[:at] + inserted + generated[at:])


def test_edited_cards_stay_and_others_are_renewed(tmp_path: Path) -> None:
    tiny_denoiser().save_pretrained(tmp_path)
    first = card(tmp_path)
    tiny_denoiser(seed=1).save_pretrained(tmp_path)
    second = card(tmp_path)
    assert second != first
    edited = second.replace("Not stated.", "CC0, I asked.")
    (tmp_path / CARD).write_text(edited)
    tiny_denoiser(seed=2).save_pretrained(tmp_path)
    add_training(tmp_path, TRAINING)
    assert card(tmp_path) == edited


def test_saved_again_the_same_weights_keep_their_training(tmp_path: Path) -> None:
    tiny_rdc().save_pretrained(tmp_path)
    add_training(tmp_path, TRAINING)
    first = card(tmp_path)
    model = RobustDiffusionClassifier.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert card(tmp_path) == first
    steps = replace(model.config.maximization, steps=7)
    other = RobustDiffusionClassifier(model.denoiser, replace(model.config, maximization=steps))
    other.save_pretrained(tmp_path)
    assert "steps 7" in section(card(tmp_path), "Architecture")
    assert section(card(tmp_path), "Training") == section(first, "Training")
    tiny_rdc(seed=1).save_pretrained(tmp_path)
    assert section(card(tmp_path), "Training") == section(card(tmp_path), "Data") == "Not recorded."
    assert front(card(tmp_path)).get("datasets") is None and is_generated(card(tmp_path))


def test_a_run_tells_its_card(tmp_path: Path) -> None:
    config = ClassifierTrainConfig(out=tmp_path / "run", steps=1, batch_size=4)
    train(config)
    text, record = card(tmp_path / "run"), json.loads((tmp_path / "run/training.json").read_text())
    assert record["data_fingerprint"] in section(text, "Data")
    assert "- settings: steps 1, batch_size 4, " in section(text, "Training")
    assert "validation_accuracy" in section(text, "Training")
    assert is_generated(text) and "\n# run\n" in text


def test_sections_are_replaced_or_added() -> None:
    page = "# T\n\n## A\n\nold\n\n### B\n\nolder\n\n## C\n\nc\n"
    assert with_sections(page, {"A": "new"}) == "# T\n\n## A\n\nnew\n\n## C\n\nc\n"
    assert with_sections(page, {"C": "new"}) == page.replace("c\n", "new\n")
    assert with_sections(page, {"D": "new"}) == page + "\n## D\n\nnew\n"
    assert with_sections(page, {"B": "new"}) == page + "\n## B\n\nnew\n"


# --- export ---


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of a finished run, with a measurement beside it."""
    tiny_rdc().save_pretrained(tmp_path / "run")
    add_training(tmp_path / "run", TRAINING)
    (tmp_path / "run" / "training.json").write_text("{}")
    (tmp_path / "run" / "checkpoints").mkdir()
    measured = replace(MEASURED, weights=(SHA, weights_sha256(tmp_path / "run")))
    write_json(tmp_path / "results" / MEASUREMENT, asdict(measured))
    return tmp_path / "run"


def test_export_writes_everything_for_others(trained: Path, tmp_path: Path, capsys) -> None:
    flags = ["--dtype", "bfloat16", "--max-shard-size", "80KB"]
    out = tmp_path / "out"
    assert run("export", trained, out, *flags, "--evaluation", tmp_path / "results") == 0
    printed = capsys.readouterr().out.splitlines()
    names = {path.name for path in out.iterdir()}
    assert {line.split("/")[-1] for line in printed} == names
    expected = {"config.json", "rdc.json", CARD, "training.json", "model.safetensors.index.json"}
    assert names - {file.name for file in weight_files(out)} == expected
    assert (out / "training.json").read_text() == "{}"
    for name in ("config.json", "rdc.json"):
        assert (out / name).read_text() == (trained / name).read_text()
    text = card(out)
    assert is_generated(text)
    assert "precision: BF16" in section(text, "Weights")
    assert weights_sha256(trained) in section(text, "Weights")
    assert weights_sha256(out) in section(text, "Weights")
    assert "- commit: b605087" in section(text, "Training")
    assert weights_sha256(trained) in section(text, "Accuracy")
    assert "40 images.\n\n| a |" in section(text, "Accuracy")
    exported = RobustDiffusionClassifier.from_pretrained(out)
    for name, weights in tiny_denoiser().state_dict().items():
        assert torch.equal(exported.state_dict()[f"denoiser.{name}"], weights.bfloat16().float())


def test_export_keeps_a_card_that_somebody_wrote(trained: Path, tmp_path: Path) -> None:
    """The card gets the figures asked for, and is not taken for a generated one afterwards."""
    (trained / CARD).write_text("# Mine\n\n## Training\n\nIt took long.\n")
    export(trained, tmp_path / "out", evaluation=tmp_path / "results" / MEASUREMENT)
    text = card(tmp_path / "out")
    assert text.startswith("# Mine\n\n## Training\n\nIt took long.\n\n## Accuracy\n\nMeasured on")
    assert "## Weights" in text and not is_generated(text)
    assert card(trained) == "# Mine\n\n## Training\n\nIt took long.\n"


def test_export_of_a_license_keeps_it(tmp_path: Path) -> None:
    ImageClassifier(ImageClassifierConfig("cnn-4", 8, 1, 3)).save_pretrained(
        tmp_path / "cnn", facts=Facts("cc-by-nc-sa-4.0", notes=("no commercial use",))
    )
    export(tmp_path / "cnn", tmp_path / "out", dtype=torch.bfloat16)
    assert front(card(tmp_path / "out")).license == "cc-by-nc-sa-4.0"
    assert "no commercial use" in card(tmp_path / "out")


def test_export_of_a_denoiser_without_classes(tmp_path: Path) -> None:
    network = replace(NETWORK, conditioning="none", num_classes=0)
    config = replace(tiny_denoiser().config, network=network, class_names=())
    with torch.random.fork_rng(devices=[]):
        Denoiser(config).save_pretrained(tmp_path / "in")
    export(tmp_path / "in", tmp_path / "out")
    assert "1x8x8, no classes" in section(card(tmp_path / "out"), "Architecture")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--evaluation": "nowhere"}, "nowhere does not exist; give the --out of a finished"),
        ({"--max-shard-size": "1KB"}, "max-shard-size='1KB' is too small"),
        ({"model": "nothing"}, "model='nothing' is not a directory"),
        ({"out": "run"}, "out='.*run' must be a new or an empty folder"),
    ],
)
def test_bad_exports_write_nothing(trained, tmp_path, capsys, monkeypatch, change, message) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"model": "./run", "out": "out"} | change
    flags = [word for key, value in given.items() if key[0] == "-" for word in (key, value)]
    before = sorted(tmp_path.rglob("*"))
    assert run("export", given["model"], given["out"], *flags) == 2
    assert re.search(message, capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before


def test_export_refuses_figures_of_another_model(trained: Path, tmp_path: Path) -> None:
    tiny_rdc(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="it is about the weights"):
        export(tmp_path / "other", tmp_path / "out", evaluation=tmp_path / "results")
    assert not (tmp_path / "out").exists()
