"""The runner: killed, continued, on two processes, short of memory; and what it leaves behind."""

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from evaluation.config import EvaluateConfig, Options
from evaluation.defense_config import DefenseConfig
from evaluation.defenses import build
from evaluation.evaluate import main, options
from evaluation.journal import FolderJournal
from evaluation.progress import Progress
from evaluation.runner import Runner, harm
from evaluation.suite_config import SuiteConfig
from evaluation.target import Target, target_of
from evaluation.work_queue import Unit
from rdc import Defense, ImageClassifier
from rdc.data import load
from tests.support.children import evaluate_noisy
from tests.support.launchers import printed, two
from tests.support.records import record

pytestmark = pytest.mark.slow

CLASSIFIER = DefenseConfig(kind="classifier")
SUITE = SuiteConfig(steps=3, targets=2, queries=6)
PURIFIED = DefenseConfig(kind="diffpure", t_star=0.2, steps=2)
ATTACKS = {
    "exact/apgd-ce", "exact/apgd-margin", "exact/apgd-t", "exact/low-frequency", "square", "random",
    "transfer/apgd-margin",
}  # fmt: skip


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


def summary(out: Path) -> dict[str, Any]:
    """Without what differs between two runs that are the same."""
    found = json.loads((out / "summary.json").read_text())
    found["config"].pop("out")
    # Details tell of errors at the rounding limit, which another process rounds otherwise.
    found["checks"] = [(check["name"], check["passed"]) for check in found["checks"]]
    return {k: v for k, v in found.items() if k not in ("seconds_per_image", "command")}


def images(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (out / "images").glob("*.safetensors")}


def assert_same_run(out: Path, other: Path) -> None:
    assert records(out) == records(other)
    assert images(out) == images(other)
    assert summary(out) == summary(other)


def runner_of(settings: EvaluateConfig, **place: Any) -> Runner:
    target = target_of(settings, torch.device("cpu"))
    return Runner(target, options(settings), out=settings.out, **place)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    main(config(out))
    return out


def test_every_image_and_attack_has_a_record(whole: Path) -> None:
    found = records(whole)
    assert len(found) == 10 * (1 + 2 * len(ATTACKS))
    assert {r["attack"] for r in found if r["eps"]} == ATTACKS
    labels = load("digits", "test").labels[:10].tolist()
    for r in found:
        assert r["label"] == labels[r["image"]] and r["linf"] <= r["eps"] + 1e-6
        # A classifier draws nothing: it is not judged again on draws that are all the same.
        assert r["predictions"] == r["confidences"] == []
        assert 0.1 <= r["frozen_confidence"] <= 1


def test_fallen_images_are_left_out_and_the_same_images_fall(whole: Path, tmp_path: Path) -> None:
    """Image by image, all attacks that were tried on all images leave the same ones right."""
    main(config(tmp_path / "all", suite=replace(SUITE, every_attack=True)))
    left: list[dict] = []
    for out in (whole, tmp_path / "all"):
        right: dict[tuple[float, int], bool] = {}
        for r in records(out):
            key = r["eps"], r["image"]
            right[key] = right.get(key, True) and r["frozen"] == r["label"]
        left.append(right)
    assert left[0] == left[1] and 3 < sum(left[0].values()) < 27
    tried = {(r["eps"], r["image"], r["attack"]): r for r in records(whole)}
    assert not any(r["broken_by"] for r in records(tmp_path / "all"))
    skipped = [r for r in tried.values() if r["broken_by"]]
    assert len(skipped) > len(tried) / 4
    for r in skipped:
        culprit = tried[r["broken_at"], r["image"], r["broken_by"]]
        assert culprit["broken_by"] is None and culprit["frozen"] == r["frozen"] != r["label"]
        assert culprit["eps"] <= r["eps"] and culprit["linf"] == r["linf"]
    fell = {key for key, wrong in left[0].items() if key[0] == 0.1 and not wrong}
    assert fell and {r["image"] for r in skipped if r["broken_at"] < r["eps"]} == {
        image for _, image in fell
    }


def test_saved_images_are_what_the_records_say(whole: Path) -> None:
    """The most harmful ones, with the names of the attacks that made them."""
    model = build(CLASSIFIER, data="digits")
    files = sorted((whole / "images").glob("eps0.2-*.safetensors"))
    assert [file.stem for file in files] == ["eps0.2-00000", "eps0.2-00004", "eps0.2-00008"]
    for file in files:
        tensors = load_file(file)
        first, answers = int(file.stem.split("-")[1]), model(tensors["images"]).argmax(1).tolist()
        assert set(tensors) == {"images"}
        with safe_open(file, "pt") as opened:
            culprits = json.loads(opened.metadata()["attacks"])
        for image, (answer, culprit) in enumerate(zip(answers, culprits, strict=True), first):
            of_image = {
                r["attack"]: r for r in records(whole) if (r["eps"], r["image"]) == (0.2, image)
            }
            assert of_image[culprit]["frozen"] == answer
            survived = all(r["frozen"] == r["label"] for r in of_image.values())
            assert survived == (answer == of_image[culprit]["label"])


def test_most_harmful_is_what_unseen_draws_and_then_the_frozen_one_get_wrong() -> None:
    drawn = {1: (1, [0, 0]), 2: (0, [0, 1]), 3: (1, [0, 1]), 0: (0, [0, 0])}
    rows = [record(0, 0.1, str(n), *said, label=1) for n, said in drawn.items()]
    assert [row.attack for row in sorted(rows, key=lambda row: -harm(row))] == ["0", "1", "2", "3"]
    assert [harm(record(0, 0.1, "a", frozen, label=1)) for frozen in (1, 0)] == [-1, 0]


def test_what_the_summary_holds(whole: Path) -> None:
    found = json.loads((whole / "summary.json").read_text())
    assert set(found["weights"]) == {"digits-cnn"}
    assert found["class_names"] == [str(digit) for digit in range(10)]
    assert found["seconds_per_image"] > 0
    names = {check["name"] for check in found["checks"]}
    assert {"finite differences", "white box beats black box"} <= names
    assert not [check for check in found["checks"] if check["passed"] is False]
    assert not [check for check in found["checks"] if "cannot be copied" in check["detail"]]
    assert found["text"].startswith("all ")
    assert set(found["accuracy"]["0.1"]) == {*ATTACKS, "worst"}
    assert set(found["accuracy"]["0"]) == {"none"}
    # What was left out is written down with the values that it had.
    assert found["config"]["transfer"] == "digits-trades"
    assert found["config"]["suite"] == {
        "steps": 3, "targets": 2, "queries": 6, "eot_samples": 1, "only": [],
        "every_attack": False, "round": False,
    }  # fmt: skip


def test_finished_run_is_summarized_again_and_changed_settings_are_refused(whole: Path) -> None:
    before = records(whole)
    main(config(whole))
    assert records(whole) == before
    with pytest.raises(ValueError, match="eps:"):
        main(config(whole, eps=(0.1,)))


def test_only_what_measures_is_named_in_the_summary(tmp_path: Path, monkeypatch) -> None:
    """A finished run that is started again stays the result of the commit that made it."""

    def commit_of(start: str, settings: EvaluateConfig) -> str:
        monkeypatch.setattr("rdc.runs.provenance.commit", lambda: start)
        main(settings)
        return json.loads((settings.out / "summary.json").read_text())["commit"]

    small = config(tmp_path / "run", images=2)
    assert [commit_of(start, small) for start in ("first", "second")] == ["first", "first"]
    (small.out / "checks.json").unlink()
    assert commit_of("third", small) == "third"
    (small.out / "summary.json").unlink()
    assert commit_of("fourth", small) == "fourth"


@pytest.mark.parametrize("content", ["3", "[3]", '[{"name": "x"}]'])
def test_damaged_checks_are_refused_by_the_name_of_their_file(tmp_path: Path, content) -> None:
    journal = FolderJournal(tmp_path, {}, inputs={})
    (tmp_path / "checks.json").write_text(content)
    with pytest.raises(ValueError, match=r"checks\.json(:| must)"):
        journal.checks()


def test_run_that_ends_before_or_after_writing_continues(
    whole: Path, tmp_path: Path, monkeypatch
) -> None:
    out, append = tmp_path / "run", FolderJournal.append
    for end in range(10):

        def stop(self: FolderJournal, found, end=end) -> None:
            if end % 2:
                append(self, found)
            raise KeyboardInterrupt

        monkeypatch.setattr(FolderJournal, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            main(config(out))
    monkeypatch.undo()
    main(config(out))
    assert_same_run(out, whole)


def test_ten_kills_at_random_moments_lose_nothing(tmp_path: Path, processes) -> None:
    """SIGKILL, up to two units after the start; draws, images and answers come out the same."""
    settings = {
        "suite": SuiteConfig(
            steps=1, queries=2, eot_samples=2, only=("*exact/apgd-margin", "square")
        ),
        "eval_draws": 2, "images": 16, "batch_size": 1,
    }  # fmt: skip
    out, generator = tmp_path / "run", random.Random(os.getpid())
    for _ in range(10):
        until = len(images(out)) + generator.randint(0, 2)
        child = processes.Process(target=evaluate_noisy, args=(config(out, **settings),))
        child.start()
        while len(images(out)) < until and child.is_alive():
            time.sleep(0.002)
        child.join(generator.uniform(0, 0.1))
        assert child.is_alive(), "it came to its end, or to an error"
        child.kill()
        child.join()
    assert 0 < len(images(out)) < 48 and not (out / "summary.json").exists()
    for each in (out, tmp_path / "whole"):
        evaluate_noisy(config(each, **settings))
        AcceleratorState._reset_state(reset_partial_state=True)
    assert_same_run(out, tmp_path / "whole")
    files = (out / "images").glob("*.safetensors")  # a killed write leaves a hidden .part
    assert all(set(load_file(file)) == {"images", "purified"} for file in files)


def test_two_processes_find_what_one_finds(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = [
        "--defense.kind", "classifier", "--images", "10", "--batch-size", "4",
        "--eps", "1/10", "0.2", "--suite.steps", "3", "--suite.targets", "2",
        "--suite.queries", "6", "--out", str(out),
    ]  # fmt: skip
    with two(tmp_path / "printed", "evaluation.evaluate", *flags) as children:
        pass
    assert [child.exitcode for child in children] == [0, 0], printed(tmp_path / "printed" / "0")
    assert_same_run(out, whole)


def test_random_defense_is_judged_on_its_frozen_draw_and_on_unseen_ones(tmp_path: Path) -> None:
    """Clean and attacked figures stand under the same protocols."""
    out = tmp_path / "run"
    suite = replace(SUITE, eot_samples=2, only=("*apgd-margin", "square"))
    main(
        config(
            out, defense=PURIFIED, suite=suite, eval_draws=6, images=4, eps=(0.1,), check_images=0
        )
    )
    assert all(len(r["predictions"]) == len(r["confidences"]) == 6 for r in records(out))
    model = build(PURIFIED, data="digits")
    assert isinstance(model, Defense)
    tensors = load_file(out / "images" / "eps0-00000.safetensors")
    clean = load("digits", "test").images[:4]
    torch.testing.assert_close(tensors["purified"], model.purifier(clean))
    said = model(clean).softmax(1).max(1)
    found = [r for r in records(out) if r["eps"] == 0]
    assert [r["frozen"] for r in found] == said.indices.tolist()
    confidences = torch.tensor([r["frozen_confidence"] for r in found])
    torch.testing.assert_close(confidences, said.values, atol=1e-4, rtol=0)
    figures = json.loads((out / "summary.json").read_text())["accuracy"]
    for eps, name in (("0", "none"), ("0.1", "worst")):
        by = {protocol: figure["accuracy"] for protocol, figure in figures[eps][name].items()}
        assert list(by) == ["frozen", "fresh", "majority", "worst draw", "8 bits"]
        assert by["worst draw"] <= by["fresh"] and by["worst draw"] <= by["majority"]
    names = {r["attack"] for r in records(out)}
    assert {"exact/apgd-margin", "mean/exact/apgd-margin"} < names


@pytest.mark.parametrize("attack", ["standard", "stochastic"])
def test_ensembles_leave_a_record_per_stage(tmp_path: Path, attack) -> None:
    out = tmp_path / "run"
    small = SuiteConfig(
        steps=2, targets=1, queries=4, eot_samples=2 if attack == "stochastic" else 1
    )
    changes = {"defense": PURIFIED, "attack": attack, "images": 3, "eps": (0.2,), "eval_draws": 2,
               "check_images": 0}  # fmt: skip
    main(config(out, suite=small, **changes))
    stages = {"apgd-ce", "+apgd-t", "+fab-t", "+square"}
    means = {"mean/apgd-ce", "mean/+apgd-margin", "mean/+apgd-t", "mean/+square"}
    found = json.loads((out / "summary.json").read_text())
    expected = stages | (means if attack == "stochastic" else set())
    assert set(found["accuracy"]["0.2"]) == expected | {"worst"}
    assert found["config"]["transfer"] is None


class Crowded(nn.Module):
    """A CNN with memory for `rows` images at once, with a `gradient` or without one."""

    def __init__(self, rows: int, *, gradient: bool) -> None:
        super().__init__()
        self.network = build(CLASSIFIER, data="digits")
        self.rows, self.gradient, self.refused = rows, gradient, 0

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.rows and torch.is_grad_enabled() == self.gradient:
            self.refused += 1
            raise torch.OutOfMemoryError("no room")
        return self.network(images)


def crowded(model: nn.Module, out: Path, **changes) -> Runner:
    data = load("digits", "test").subset(slice(10))
    target = Target(model, data, data, lambda: model, None, {"defense": {}}, {}, {})
    suite = replace(SUITE, only=("exact/apgd-margin",))
    return Runner(target, Options(suite=suite, batch_size=8, **changes), out=out)


@pytest.mark.parametrize(("eps", "gradient"), [(0.1, True), (0.0, False)], ids=["attack", "judge"])
def test_short_memory_halves_the_rows(tmp_path: Path, eps: float, gradient: bool) -> None:
    found = []
    for rows in (8, 3):
        out, model = tmp_path / str(rows), Crowded(rows, gradient=gradient)
        runner = crowded(model, out, max_rows=8)
        runner.run(Unit(eps, range(8)), Progress([]))
        assert (runner.max_rows, model.refused) == ((8, 0) if rows == 8 else (2, 2))
        found.append(records(out))
    for roomy, tight in zip(*found, strict=True):
        assert roomy.pop("frozen_confidence") == pytest.approx(tight.pop("frozen_confidence"))
        assert [roomy.pop(n) for n in ("linf", "l2")] == pytest.approx(
            [tight.pop(n) for n in ("linf", "l2")]
        )
        assert roomy == tight


def test_short_memory_while_purifying(tmp_path: Path) -> None:
    class Purifier(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if len(images) > 4:
                raise torch.OutOfMemoryError("no room")
            return images / 2

    model = Crowded(8, gradient=True)
    runner = crowded(model, tmp_path, max_rows=8)
    runner.target = replace(runner.target, model=Defense(Purifier(), model))
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    purified = runner.purified(images)
    assert purified is not None and torch.equal(purified, images / 2) and runner.max_rows == 4


def test_memory_for_not_even_one_image_is_an_error(tmp_path: Path) -> None:
    runner = crowded(Crowded(0, gradient=False), tmp_path)
    with pytest.raises(torch.OutOfMemoryError):
        runner.run(Unit(0.0, range(8)), Progress([]))
    assert runner.max_rows == 1


def test_a_stopped_run_says_what_it_kept_and_continues(
    whole: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """SIGTERM after the third attack."""
    out, append, appended = tmp_path / "run", FolderJournal.append, []

    def stop(self: FolderJournal, found) -> None:
        append(self, found)
        appended.append(found)
        if len(appended) == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FolderJournal, "append", stop)
    with pytest.raises(SystemExit) as caught:
        main(config(out))
    assert caught.value.code == 128 + signal.SIGTERM
    count = sum(map(len, appended))
    assert f"stopped by SIGTERM: {count} records are kept in {out}" in capsys.readouterr().err
    assert len(records(out)) == count < 10 * len(ATTACKS)
    monkeypatch.undo()
    main(config(out))
    assert_same_run(out, whole)


def test_other_weights_and_other_images_are_refused(tmp_path: Path) -> None:
    """Under the same names."""
    folder, out = tmp_path / "cnn", tmp_path / "run"
    ImageClassifier.from_pretrained("digits-cnn").save_pretrained(folder)
    defense = DefenseConfig(kind="classifier", classifier=str(folder))
    settings = {"defense": defense, "images": 2, "check_images": 0, "eps": (0.1,),
                "suite": replace(SUITE, only=("square",))}  # fmt: skip
    main(config(out, **settings))
    (out / "summary.json").unlink()
    (out / "records-000.jsonl").unlink()
    changed = ImageClassifier.from_pretrained("digits-cnn")
    with torch.no_grad():
        next(changed.parameters()).mul_(1.001)
    changed.save_pretrained(folder)
    with pytest.raises(ValueError, match=rf"weights of {folder}: its content has changed"):
        main(config(out, **settings))
    assert not (out / "records-000.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, "images=0 must be at least 1"),
        ({"eps": (8.0,)}, "eps=8: .* for 0 to 255 give 8/255"),
        ({"eval_draws": 1}, "eval_draws=1 must be at least 2; a single one is the frozen draw"),
        ({"eps": ()}, r"eps=\(\): give one"),
        ({"eps": (0.1, 0.1)}, "eps=0.1 0.1"),
        ({"eps": (8 / 255, 0.0313725)}, "eps=8/255"),
        ({"eps": (0.0,)}, "eps=0:"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)
