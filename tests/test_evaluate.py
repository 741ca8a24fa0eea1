"""The runner: killed, continued, on two processes; and what its summary says."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from evaluation.defenses import KINDS, DefenseConfig, build
from evaluation.evaluate import EvaluateConfig, main
from evaluation.records import Records
from evaluation.suites import SuiteConfig, suite
from evaluation.summary import summarize
from rdc.data import load

ROOT = Path(__file__).parent.parent
CLASSIFIER = DefenseConfig(kind="classifier")
SUITE = SuiteConfig(steps=3, targets=2, queries=6)
PURIFIED = DefenseConfig(kind="diffpure", t_star=0.1, steps=2)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def config(out: Path, **changes) -> EvaluateConfig:
    settings = {"images": 10, "batch_size": 4, "eps": (0.1, 0.2), "suite": SUITE}
    return EvaluateConfig(out=out, **{"defense": CLASSIFIER, **settings, **changes})


def records(out: Path) -> list[dict]:
    """All of them in one order, without the time they took."""
    files = out.glob("records-*.jsonl")
    lines = [line for file in files for line in file.read_text().splitlines()]
    found = {(r["eps"], r["image"], r["attack"]): r for r in map(json.loads, lines)}
    return [{k: v for k, v in found[key].items() if k != "seconds"} for key in sorted(found)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    main(config(out))
    return out


def test_every_image_and_attack_has_a_record(whole: Path) -> None:
    found = records(whole)
    attacks = {"exact/apgd-ce", "exact/apgd-margin", "exact/apgd-t", "square"}
    assert len(found) == 10 * (1 + 2 * len(attacks))
    assert {r["attack"] for r in found if r["eps"]} == attacks
    labels = load("digits", "test").labels[:10].tolist()
    for r in found:
        assert r["label"] == labels[r["image"]] and r["linf"] <= r["eps"] + 1e-6
        assert len(r["predictions"]) == 1


def test_saved_images_are_what_the_records_say(whole: Path) -> None:
    model = build(CLASSIFIER, data="digits")
    survivors = {
        image: all(
            r["predictions"] == [r["label"]]
            for r in records(whole)
            if r["eps"] == 0.2 and r["image"] == image
        )
        for image in range(10)
    }
    for file in (whole / "images").glob("eps0.2-*.safetensors"):
        images = load_file(file)["images"]
        first = int(file.stem.split("-")[1])
        right = (
            model(images).argmax(1)
            == load("digits", "test").labels[first : first + 4][: len(images)]
        )
        assert right.tolist() == [survivors[first + i] for i in range(len(images))]


def test_killed_run_ends_with_the_same_records(whole: Path, tmp_path: Path, monkeypatch) -> None:
    """Killed ten times: before a unit is written down, and after."""
    out, append = tmp_path / "run", Records.append
    for kill in range(10):

        def die(self: Records, found, kill=kill) -> None:
            if kill % 2:
                append(self, found)
            raise KeyboardInterrupt

        monkeypatch.setattr(Records, "append", die)
        try:
            main(config(out))
        except KeyboardInterrupt:
            continue
        break
    monkeypatch.undo()
    main(config(out))
    assert records(out) == records(whole)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (out, whole)]
    assert summaries[0]["accuracy"] == summaries[1]["accuracy"]


def test_finished_run_is_summarized_again_and_changed_settings_are_refused(whole: Path) -> None:
    before = records(whole)
    main(config(whole))
    assert records(whole) == before
    with pytest.raises(ValueError, match="eps:"):
        main(config(whole, eps=(0.1,)))


def test_two_processes_find_what_one_finds(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = [
        "--defense.kind", "classifier", "--images", "10", "--batch-size", "4",
        "--eps", "0.1", "0.2", "--suite.steps", "3", "--suite.targets", "2",
        "--suite.queries", "6", "--out", str(out),
    ]  # fmt: skip
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port",
        "29613", "-m", "evaluation.evaluate", *flags,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(out.glob("records-*.jsonl"))) == 2
    assert records(out) == records(whole)


def test_random_defence_is_judged_by_unseen_draws(tmp_path: Path, capsys) -> None:
    """Clean and attacked figures stand under the same protocols."""
    out = tmp_path / "run"
    defense = replace(PURIFIED, t_star=0.2)
    main(
        config(out, defense=defense, suite=replace(SUITE, draws=2), judged=6, images=4, eps=(0.1,))
    )
    assert all(len(r["predictions"]) == 6 for r in records(out))
    text = capsys.readouterr().out
    for protocol in ("one shot", "majority", "worst draw"):
        assert protocol in text
    figures = json.loads((out / "summary.json").read_text())["accuracy"]
    for eps in ("0", "0.1"):
        by = {name: figure["accuracy"] for name, figure in figures[eps]["worst"].items()}
        assert by["worst draw"] <= by["one shot"] and by["worst draw"] <= by["majority"]


def test_adaptive_attacks_of_a_purifier() -> None:
    entries = suite(build(PURIFIED, data="digits"), "linf", SUITE)
    assert {name.split("/")[0] for name in entries} == {"exact", "bpda", "classifier", "square"}
    moved = suite(build(PURIFIED, data="digits"), "stadv", SUITE)
    assert set(moved) == {"exact/stadv", "bpda/stadv", "classifier/stadv"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_defence_can_be_built_by_name(kind) -> None:
    settings = DefenseConfig(kind=kind, t_star=0.1, steps=2, weight=1.0)
    if kind == "coup":
        settings = replace(settings, classifier="digits-trades")
    model = build(settings, data="digits")
    images = load("digits", "test").images[:2]
    assert model(images).shape == (2, 10)
    assert torch.equal(model(images), model(images))


def test_summary_by_hand() -> None:
    """Two images; the second falls to one attack. Draws stay within their image."""
    rows = [
        {"image": 0, "label": 1, "eps": 0.0, "attack": "none", "predictions": [1, 1]},
        {"image": 1, "label": 2, "eps": 0.0, "attack": "none", "predictions": [2, 0]},
        {"image": 0, "label": 1, "eps": 0.1, "attack": "a", "predictions": [1, 1]},
        {"image": 1, "label": 2, "eps": 0.1, "attack": "a", "predictions": [2, 2]},
        {"image": 0, "label": 1, "eps": 0.1, "attack": "b", "predictions": [1, 0]},
        {"image": 1, "label": 2, "eps": 0.1, "attack": "b", "predictions": [0, 0]},
    ]
    found = summarize(rows, norm="linf")["accuracy"]
    assert found["0"]["none"]["one shot"]["accuracy"] == 0.75
    assert found["0.1"]["a"]["one shot"]["accuracy"] == 1.0
    assert found["0.1"]["worst"]["one shot"]["accuracy"] == 0.25
    assert found["0.1"]["worst"]["worst draw"]["accuracy"] == 0.0
    assert found["0.1"]["worst"]["majority"]["accuracy"] == 0.5
    assert found["0.1"]["b"]["one shot"]["images"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, "--images 0"),
        ({"eps": ()}, "--eps"),
        ({"eps": (0.1, 0.1)}, "--eps"),
        ({"eps": (0.0,)}, "--eps"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)
