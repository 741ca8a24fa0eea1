"""Protocols on defenses whose randomness is known."""

from statistics import fmean

import pytest
import torch
from torch import Tensor, nn

from evaluation.answers import JUDGMENT, answers
from evaluation.attacks.eot import Expectation
from evaluation.attacks.rng import spawn
from evaluation.attacks.worst_case import SELECTION
from evaluation.results.protocols import PROTOCOLS, majority
from evaluation.results.records import Record
from rdc.noise import Noise
from tests.support.records import record

fresh, worst_draw = (PROTOCOLS[name].score for name in ("fresh", "worst draw"))


def drawn(label: int, *predictions: int) -> Record:
    return record(0, 0.1, "a", 0, predictions, label=label)


ROWS = [drawn(0, 0, 0, 0, 0), drawn(1, 1, 2, 2, 1), drawn(2, 2, 0, 1, 0)]


def test_protocols_on_a_table() -> None:
    assert [*map(fresh, ROWS)] == [1.0, 0.5, 0.25]
    assert [*map(worst_draw, ROWS)] == [1, 0, 0]
    assert [*map(majority, ROWS)] == [1, 1, 0]


def test_majority_of_equals_is_the_class_that_came_first() -> None:
    assert majority(drawn(2, 2, 1, 1, 2)) == 1
    assert majority(drawn(2, 1, 2, 2, 1)) == 0


class Coin(nn.Module):
    """Class 1 with probability 0.7, by a draw of its own for every row; 2.0 says how sure it is."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = Noise("frozen", seed=0)

    def forward(self, images: Tensor) -> Tensor:
        _, uniform = self.noise.normal_and_uniform(images, 1)
        heads = (uniform.expand(len(images), 1) < 0.7).to(images.dtype)
        return 5.0 + 2.0 * torch.cat([1 - heads, heads], dim=1)


def predictions(coin: Coin, images: Tensor, seeds, *, draws: int, max_rows: int = 256) -> Tensor:
    return answers(coin, images, seeds, draws=draws, max_rows=max_rows).classes


def test_draws_belong_to_images_and_not_to_batches() -> None:
    coin, images, seeds = Coin(), torch.zeros(40, 1, 2, 2), list(range(40))
    said = predictions(coin, images, seeds, draws=50)
    assert 0.66 < said.double().mean() < 0.74
    assert torch.equal(predictions(coin, images, seeds, draws=50, max_rows=7), said)
    assert torch.equal(predictions(coin, images[5:9], seeds[5:9], draws=50), said[5:9])
    shares = said.double().mean(1)
    assert shares.std() == pytest.approx((0.21 / 50) ** 0.5, rel=0.4)  # independent images


def test_confidence_is_the_probability_of_the_class_that_was_said() -> None:
    found = answers(Coin(), torch.zeros(3, 1, 2, 2), [0, 1, 2], draws=9)
    assert found.classes.unique().tolist() == [0, 1]
    torch.testing.assert_close(found.confidences, torch.full((3, 9), 1 / (1 + 2.718281828**-2)))


def test_judges_see_draws_that_no_attack_has_seen() -> None:
    coin, images, seeds = Coin(), torch.zeros(9, 1, 2, 2), list(range(9))
    judged = Expectation(coin, draws=30).logits(images, seeds=spawn(seeds, JUDGMENT))
    assert torch.equal(predictions(coin, images, seeds, draws=30), judged.argmax(2))
    for path in (0, 1, SELECTION):
        seen = Expectation(coin, draws=30).logits(images, seeds=spawn(seeds, path))
        assert not torch.equal(seen.argmax(2), judged.argmax(2))


def test_one_draw_is_the_frozen_one() -> None:
    coin, images = Coin(), torch.zeros(4, 1, 2, 2)
    frozen = coin(images).argmax(1)[:, None]
    assert torch.equal(predictions(coin, images, [5, 6, 7, 8], draws=1), frozen)


def test_worst_of_many_fails_clean_images_too() -> None:
    coin = Coin()
    said = predictions(coin, torch.zeros(200, 1, 2, 2), list(range(200)), draws=5)
    rows = [drawn(1, *row) for row in said.tolist()]
    assert fmean(map(worst_draw, rows)) == pytest.approx(0.7**5, abs=0.08)
    assert fmean(map(majority, rows)) == pytest.approx(0.837, abs=0.08)
