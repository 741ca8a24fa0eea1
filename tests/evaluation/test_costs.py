"""Costs of attacks: passes, and their time under a clock that the model itself advances."""

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from evaluation.batch import Batch
from evaluation.costs import Costs
from evaluation.entries import Entry
from evaluation.results.records import CLEAN
from evaluation.work_queue import Unit


class Clocked(nn.Module):
    """A model: passes take `start` seconds and `each` for an image, gradients twice that."""

    def __init__(self, clock: list[float], start: float, each: float) -> None:
        super().__init__()
        self.clock, self.start, self.each, self.calls = clock, start, each, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.advance(images)
        if torch.is_grad_enabled():
            images.register_hook(self.advance)
        return images.flatten(1)

    def advance(self, images: Tensor) -> None:
        self.clock[0] += self.start + self.each * len(images)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


BATCH = Batch(Unit(0.1, range(20)), list(range(20)), torch.zeros(20, 1, 2, 2),
              torch.zeros(20, dtype=torch.long), list(range(20)))  # fmt: skip


def test_attack_takes_its_passes_and_the_answers_that_judge_it(clock) -> None:
    model, surrogate = Clocked(clock, 0, 0.03), Clocked(clock, 0, 0.01)
    entry = Entry(surrogate, lambda *_: BATCH.images, gradients=10, forwards=2, draws=4)
    costs = Costs(model, {"a": entry, "b": replace(entry, stages=("b", "c"))}, judgments=3,
                  measured={})  # fmt: skip
    costs.measure([CLEAN, "a", "b"], BATCH, max_rows=64)
    assert costs.seconds(CLEAN) == pytest.approx(3 * 0.03)
    assert costs.seconds("a") == pytest.approx(4 * (10 * 0.02 + 2 * 0.01) + 3 * 0.03)
    assert costs.seconds("b") == pytest.approx(costs.seconds("a") + 3 * 0.03)
    assert [costs.passes(name) for name in (CLEAN, "a", "b")] == [3, 4 * 32 + 3, 4 * 32 + 6]
    assert costs.per_image(2) == {"gradients": 160, "forwards": 2 * (3 * 3 + 16)}


def test_time_of_a_batch_counts_where_it_is_cheaper_than_that_of_single_images(clock) -> None:
    model = Clocked(clock, 0.5, 0.01)
    costs = Costs(model, {}, judgments=1, measured={})
    costs.measure([CLEAN], BATCH, max_rows=64)
    assert costs.seconds(CLEAN) == pytest.approx(0.5 / 20 + 0.01)


def test_models_that_gain_nothing_by_batches_are_measured_on_few_images_and_once(clock) -> None:
    model = Clocked(clock, 0, 0.4)
    costs = Costs(model, {}, judgments=1, measured={})
    for _ in range(2):
        costs.measure([CLEAN], BATCH, max_rows=64)
    assert costs.seconds(CLEAN) == pytest.approx(0.4)
    assert model.calls == 3  # 1 image twice, then 4


def test_a_call_that_takes_long_is_not_tried_with_more_images(clock) -> None:
    model = Clocked(clock, 4, 0.5)
    costs = Costs(model, {}, judgments=1, measured={})
    costs.measure([CLEAN], BATCH, max_rows=64)
    assert costs.seconds(CLEAN) == pytest.approx(6 / 4)
    assert model.calls == 3
