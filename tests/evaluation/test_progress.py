"""The estimate of the time that is left, under a clock of its own."""

import copy
import time

import pytest
import torch
from torch import nn

from evaluation.progress import Progress, Task, duration


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def task(attack: str, cost: float, unit: str = "a") -> Task:
    return Task("run", unit, attack, cost, cost)


def test_similar_tasks_tell_how_long_the_others_take(clock) -> None:
    tasks = [task("exact/a", 10), task("exact/b", 30), task("bpda/a", 10), task("exact/a", 10, "b")]
    progress = Progress(tasks)
    assert progress.seconds_left() == 60
    with progress.task(tasks[0]):
        clock[0] += 5
    # Half a second for each pass, as far as anybody knows.
    assert progress.seconds_left() == 15 + 5 + 5
    with progress.task(tasks[2]):
        clock[0] += 1
    assert progress.seconds_left() == 15 + 5
    with progress.task(tasks[1]):
        clock[0] += 3
    assert progress.seconds_left() == 5
    progress.drop(tasks[3])
    assert progress.seconds_left() == 0


def test_calls_of_the_model_count_within_a_task(clock) -> None:
    model, images = nn.Identity(), torch.zeros(2, 1)
    tasks = [task("none", 2), task("exact/a", 60)]
    progress = Progress(tasks)
    with torch.no_grad(), progress.task(tasks[0], model):
        model(images)
        clock[0] += 1
    # Answers to clean images say nothing about attacks.
    assert progress.seconds_left() == 60
    with progress.task(tasks[1], model):
        for _ in range(5):
            model(images)
            clock[0] += 2
        # A gradient counts for three: half is done.
        assert progress.counted == 30 and progress.seconds_left() == pytest.approx(10)
    model(images)
    assert progress.counted == 30


def test_processes_share_the_time(clock) -> None:
    tasks = [task("a/a", 1), task("a/a", 4, "b")]
    progress = Progress(tasks, workers=2)
    with progress.task(tasks[0]):
        clock[0] += 3
    assert progress.seconds_left() == 6


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_without_work_tells_what_it_waits_for(capsys, workers: int) -> None:
    progress = Progress([], show=True, workers=workers)
    progress.wait_for_others()
    progress.close()
    assert ("waiting for the other processes" in capsys.readouterr().err) == (workers > 1)


def test_a_task_that_fails_leaves_no_hook() -> None:
    model = nn.Identity()
    with pytest.raises(KeyError), Progress([]).task(task("a", 1), model):
        raise KeyError
    assert not model._forward_hooks


def test_model_can_be_copied_while_it_is_counted() -> None:
    """The check of a model's memory asks copies of it."""
    model, progress = nn.Identity(), Progress([])
    with progress.task(task("a", 1), model):
        copy.deepcopy(model)(torch.zeros(2, 1))
        assert progress.counted == 6


def test_durations_in_words() -> None:
    assert [duration(s) for s in (0.4, 99, 125, 3600, 12_000)] == [
        "0 s", "99 s", "2 min", "60 min", "3 h 20 min"
    ]  # fmt: skip
