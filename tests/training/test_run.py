"""Runs that are killed, stopped, refused and continued, and the options every trainer shares."""

import errno
import json
import os
import random
import re
import resource
import signal
import time
from dataclasses import replace
from functools import partialmethod
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from rdc import Denoiser
from rdc.data import Dataset, load
from rdc.runs.exclusive import exclusive
from tests.support.children import train_or_report
from tests.support.training_runs import NETWORK, assert_same_run, config, history, state
from training.checkpoint import Checkpoints
from training.config import TrainConfig, rate
from training.denoising import DenoiserTask
from training.run import Run
from training.samples import TITLE
from training.train import main

pytestmark = pytest.mark.slow

KILLS = 5


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate remembers the first precision for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    main(config(out))
    return out


def start(processes, settings: TrainConfig) -> BaseProcess:
    child = processes.Process(target=main, args=(settings,))
    child.start()
    return child


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"{pattern} did not appear in {folder}"
        time.sleep(0.005)


def test_stopped_run_continues_bit_for_bit(whole: Path, tmp_path: Path, monkeypatch) -> None:
    """Stopped between two measurements, five steps after a checkpoint was due."""
    save = Checkpoints.save

    def die_at_nine(self: Checkpoints, step: int) -> None:
        if step == 9:
            raise RuntimeError("power cut")
        save(self, step)

    out = tmp_path / "run"
    monkeypatch.setattr(Checkpoints, "save", die_at_nine)
    with pytest.raises(RuntimeError, match="power cut"):
        main(config(out))
    assert [path.name for path in sorted((out / "checkpoints").glob("step_*"))] == [
        "step_00000003", "step_00000006",
    ]  # fmt: skip
    monkeypatch.undo()
    main(config(out))
    assert_same_run(out, whole)


def test_sigkill_at_random_moments_loses_nothing(whole: Path, tmp_path: Path, processes) -> None:
    """A checkpoint after every step: many of the kills fall into its writing."""
    out, generator = tmp_path / "run", random.Random(os.getpid())
    settings = config(out, checkpoint_every=1)
    kills, partial = 0, 0
    while not (out / "training.json").exists():
        child = start(processes, settings)
        if kills == 0:  # the first one for sure before the end
            wait_for(out, "checkpoints/step_*")
        else:
            child.join(None if kills == KILLS else generator.uniform(0.2, 2.0))
        if child.is_alive():
            child.kill()
            child.join()
            kills += 1
            partial += bool(list(out.glob("checkpoints/.step_*.part")))
        else:
            assert child.exitcode == 0
    print(f"{kills} kills, {partial} of them while a checkpoint was written")
    assert kills > 0
    assert_same_run(out, whole)


def test_kill_while_a_checkpoint_is_written(whole: Path, tmp_path: Path, processes) -> None:
    out = tmp_path / "run"
    child = start(processes, config(out, checkpoint_every=1))
    wait_for(out, "checkpoints/.step_*.part/tensors.safetensors")
    child.kill()
    child.join()
    main(config(out))
    assert_same_run(out, whole)


def test_sigterm_saves_and_exits(whole: Path, tmp_path: Path, processes) -> None:
    out = tmp_path / "run"
    settings = config(out, checkpoint_every=1000)
    child = start(processes, settings)
    wait_for(out, "run.json")
    child.terminate()
    child.join()
    if child.exitcode == 128 + signal.SIGTERM:  # else it was faster than the signal
        assert len(list((out / "checkpoints").glob("step_*"))) == 1
        assert not (out / "training.json").exists()
    main(settings)
    assert_same_run(out, whole)


def test_full_disk_is_reported_and_the_last_checkpoint_survives(
    whole: Path, tmp_path: Path, processes
) -> None:
    """Files may no longer grow beyond 4 KiB, which no checkpoint fits in."""
    out, report = tmp_path / "run", tmp_path / "report.txt"
    child = processes.Process(
        target=train_or_report, args=(config(out, checkpoint_every=1), report)
    )
    child.start()
    wait_for(out, "checkpoints/step_00000001")
    limit = 4096
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (limit, limit))  # type: ignore[attr-defined]
    child.join()
    assert child.exitcode == 1
    assert re.search("could not be written .* last good one is .*step_0", report.read_text())
    assert list((out / "checkpoints").glob("step_*")) and not (out / "training.json").exists()
    main(config(out))
    assert_same_run(out, whole)


def test_full_disk_at_a_measurement_names_the_last_checkpoint(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DenoiserTask, "save", full)
    with pytest.raises(OSError, match=r"last good one is .*step_00000003.*--resume auto"):
        main(config(tmp_path / "run"))


def test_processes_may_be_more_than_held_out_images() -> None:
    accelerator = SimpleNamespace(process_index=3, num_processes=4, reduce=lambda each, _: each)
    task = SimpleNamespace(measured_rows=2, answers=lambda _, data: torch.ones(len(data), 1))
    run: Any = SimpleNamespace(accelerator=accelerator, task=task, shown=None)
    for count, mine in ((1, 0), (3, 0), (4, 1), (9, 2)):
        data = load("digits", "validation").subset(slice(count))
        assert Run._answers(run, data).sum() == mine


def test_finished_run_is_left_alone(whole: Path, capsys) -> None:
    before = (whole / "training.json").stat().st_mtime_ns
    main(config(whole))
    assert "nothing left to do" in capsys.readouterr().out
    assert (whole / "training.json").stat().st_mtime_ns == before


def test_folder_of_another_run_is_not_overwritten(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a run already.*--resume auto"):
        main(config(whole, resume="never"))


def test_a_second_start_in_the_folder_is_refused(tmp_path: Path) -> None:
    """Each would remove the checkpoints that the other is writing."""
    out = tmp_path / "run"
    with exclusive(out), pytest.raises(ValueError, match="in use by another start"):
        main(config(out))
    assert list(out.iterdir()) == []


def test_run_continues_under_its_own_settings_only(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"steps: 12 -> 24"):
        main(config(whole, steps=24))
    main(config(whole, checkpoint_every=5))


def test_accumulation_gives_the_same_network(tmp_path: Path) -> None:
    network = replace(NETWORK, dropout=0.0)
    runs = []
    for parts in (1, 4):
        runs.append(tmp_path / str(parts))
        main(config(runs[-1], accumulate=parts, network=network, steps=4, teacher="optimal"))
    whole, parts = state(runs[0]), state(runs[1])
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[name], rtol=2e-3, atol=1e-4, msg=name)
    for a, b in zip(history(runs[0]), history(runs[1]), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_best_average_is_saved(whole: Path) -> None:
    record = json.loads((whole / "training.json").read_text())
    scores = [tuple(entry.values())[1:] for entry in record["averages"]]
    assert len(scores) == 2
    best = record["averages"][scores.index(max(scores))]
    assert record["ema_half_life"] == best["ema_half_life"]
    track = [entry["ema_half_life"] for entry in record["averages"]].index(best["ema_half_life"])
    last = state(whole)
    for name, tensor in Denoiser.from_pretrained(whole).state_dict().items():
        assert torch.equal(tensor, last[f"average/{track}/{name}"])


def test_held_out_images_are_answered_once_for_each_average(tmp_path, monkeypatch, capsys) -> None:
    """The temperature is fitted to the same answers, and a bar counts their batches."""
    answered, answers = [], DenoiserTask.answers

    def counted(task: DenoiserTask, model: Denoiser, data: Dataset) -> torch.Tensor:
        answered.append(len(data))
        return answers(task, model, data)

    monkeypatch.setattr(DenoiserTask, "answers", counted)
    main(config(tmp_path / "run", steps=1, validate_every=1, ema_half_lives=(100.0, 200.0)))
    held_out = len(load("digits", "validation"))
    assert sum(answered) == config(tmp_path).validation_images + 2 * held_out
    shown = capsys.readouterr().err
    assert all(f"average of half-life {half_life}: 100%" in shown for half_life in (100, 200))


def test_run_folder_has_pictures_and_a_record(whole: Path) -> None:
    pictures = sorted((whole / "samples").iterdir())
    assert [path.name for path in pictures] == [f"step_{step:08d}.png" for step in (4, 8, 12)]
    with Image.open(pictures[-1]) as picture:
        assert picture.size == (10 * 9 * 8, 2 * 9 * 8 + TITLE)
    record = json.loads((whole / "training.json").read_text())
    assert record["seconds"] > 0 and record["command"] and record["data_fingerprint"]
    assert all(entry["images_per_second"] > 0 for entry in record["history"])


def test_bf16_run_saves_float32(tmp_path: Path) -> None:
    out = tmp_path / "run"
    main(config(out, steps=2, precision="bf16"))
    assert {weight.dtype for weight in Denoiser.from_pretrained(out).parameters()} == {
        torch.float32
    }


def test_compiled_run_is_the_run(tmp_path: Path, monkeypatch) -> None:
    """Graph capture and ahead-of-time gradients, without minutes of code generation."""
    compile = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(compile, backend="aot_eager"))
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    network = replace(NETWORK, dropout=0.0)
    for out in (plain, compiled):
        main(config(out, steps=3, network=network, compile=out == compiled))
    mine, theirs = state(plain), state(compiled)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=2e-3, atol=1e-4, msg=name)


def test_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(FloatingPointError, match="--learning-rate"):
        main(config(out, learning_rate=1e30, checkpoint_every=6))
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 15}, "--batch-size 15 must be divisible by the 2 parts"),
        ({"precision": "fp16"}, "--precision fp16 needs a GPU"),
        ({"tracker": "wandb"}, "--tracker wandb is not installed"),
    ],
)
def test_what_the_machine_cannot_do_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    if changes.get("tracker") == "wandb" and find_spec("wandb"):
        pytest.skip("wandb is installed here")
    with pytest.raises(ValueError, match=message):
        main(config(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"accumulate": 0}, "--accumulate 0"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0"),
        ({"ema_half_lives": ()}, "--ema-half-lives"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


def test_tensorboard_gets_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    main(config(tmp_path / "run", steps=4, tracker="tensorboard"))
    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*.0")
    assert b"validation_accuracy" in events.read_bytes()


def test_rate_warms_up_and_ends_at_zero(tmp_path: Path) -> None:
    settings = config(tmp_path, steps=100, warmup=10)
    rates = [rate(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1
    assert rates[100] == pytest.approx(0) and rates[10:] == sorted(rates[10:], reverse=True)
