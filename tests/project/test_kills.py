"""Programs killed at random moments: the continued result is that of an uninterrupted run.

The long run, of which the tests of each program have a short one: `python -m pytest
tests/project/test_kills.py --kills 12 -s` kills each of the five programs 12 times.
"""

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from evaluation.config import EvaluateConfig
from evaluation.suite_config import SuiteConfig
from rdc.commands.main import main
from tests.support import training_runs
from tests.support.children import evaluate_noisy, purify_in_few_steps
from tests.support.fake_runs import Fake, make
from tests.support.pictures import noise, save
from tests.support.tiny import tiny_rdc
from training.train import main as train

pytestmark = pytest.mark.slow

TIMES = {"seconds", "seconds_per_image", "command", "out"}
"""Keys whose values differ between two runs that are the same."""


@dataclass(frozen=True)
class Program:
    """A program that goes on in its folder when it is run again."""

    call: Callable[[Path], tuple[Callable, Any]]
    """folder to function and argument"""
    assert_same: Callable[[Path, Path], None]


def files(out: Path) -> dict[str, bytes]:
    found = (file for file in out.rglob("*") if file.is_file())
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in found}


def assert_same_files(out: Path, whole: Path) -> None:
    """The same files byte for byte, but for settings, logs and what `rdc.runs.atomic` may leave."""
    ends = (".json", "0.jsonl", ".lock", ".part")
    mine, theirs = (
        {name: content for name, content in files(each).items() if not name.endswith(ends)}
        for each in (out, whole)
    )
    assert mine == theirs and len(mine) > 0


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def assert_same_evaluation(out: Path, whole: Path) -> None:
    """The same records, attacked images and summary, but for times."""

    def content(folder: Path) -> tuple:
        lines = (folder / "records-000.jsonl").read_text().splitlines()
        records = {json.dumps(without_times(json.loads(line)), sort_keys=True) for line in lines}
        summary = without_times(json.loads((folder / "summary.json").read_text()))
        summary["checks"] = [(check["name"], check["passed"]) for check in summary["checks"]]
        images = {k: v for k, v in files(folder).items() if k.startswith("images/")}
        return records, images, summary

    assert content(out) == content(whole)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 1x8x8 images, a dozen of them, and the folders of two evaluations."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_rdc().save_pretrained(folder / "model")
    save(folder / "images", {f"{number:02d}.png": noise(number, 8, 8) for number in range(12)})
    make(folder / "runs" / "classifier-linf", Fake())
    make(folder / "runs" / "diffpure-l2", Fake("diffpure", "l2", (1.0,), draws=7, halved=1.5))
    return folder


@pytest.fixture(params=["train", "evaluate", "purify", "classify", "report"])
def program(request: pytest.FixtureRequest, inputs: Path) -> Program:
    model = ["--model", str(inputs / "model"), "--batch-size", "1"]
    images, runs = str(inputs / "images"), str(inputs / "runs")
    suite = SuiteConfig(steps=1, queries=2, eot_samples=2, only=("*exact/apgd-margin", "square"))
    return {
        "train": Program(
            lambda out: (train, training_runs.config(out, checkpoint_every=1)),
            training_runs.assert_same_run,
        ),
        "evaluate": Program(
            lambda out: (
                evaluate_noisy,
                EvaluateConfig(out=out, images=8, batch_size=1, suite=suite, eval_draws=2),
            ),
            assert_same_evaluation,
        ),
        "purify": Program(
            lambda out: (purify_in_few_steps, [images, str(out), *model]), assert_same_files
        ),
        "classify": Program(
            lambda out: (main, ["classify", images, "--out", str(out), *model]), assert_same_files
        ),
        "report": Program(
            lambda out: (main, ["report", runs, "--out", str(out)]), assert_same_files
        ),
    }[request.param]


def test_kills_at_random_moments_lose_nothing(
    program: Program, processes: ForkServerContext, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    wanted = int(request.config.getoption("--kills") or 0)
    if not wanted:
        pytest.skip("needs --kills N")

    def start(out: Path) -> Any:
        function, argument = program.call(out)
        child = processes.Process(target=function, args=(argument,))
        child.start()
        return child

    def finish(out: Path) -> None:
        child = start(out)
        child.join()
        assert child.exitcode == 0

    finish(tmp_path / "warm")  # so that the time below is that of the work
    before = time.monotonic()
    finish(tmp_path / "whole")
    seconds = time.monotonic() - before
    kills, runs, generator = 0, 0, random.Random(os.getpid())
    while kills < wanted:
        out = tmp_path / f"run{runs}"
        child = start(out)
        child.join(generator.uniform(0, seconds))
        if child.is_alive():
            child.kill()
            child.join()
            kills += 1
        else:
            assert child.exitcode == 0
            program.assert_same(out, tmp_path / "whole")
            runs += 1
    finish(tmp_path / f"run{runs}")
    program.assert_same(tmp_path / f"run{runs}", tmp_path / "whole")
    print(f"{kills} kills in {runs + 1} runs of {seconds:.1f} s each")
