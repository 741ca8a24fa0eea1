"""The runner over several budgets: the images that it keeps are those of the records."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from evaluation.arguments import given_target
from evaluation.config import Options
from evaluation.entries import Entry
from evaluation.report.examples import saved
from evaluation.report.load import load
from evaluation.runner import Runner
from evaluation.schedule import complete
from evaluation.suite_config import SuiteConfig
from rdc.noise import Noise
from rdc.runs.exclusive import exclusive
from tests.support.records import record


class Noisy(nn.Module):
    """Class 1 where the mean of an image exceeds one half, but for noise."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = Noise("frozen", seed=4)

    def forward(self, images: Tensor) -> Tensor:
        draws = self.noise.normal(images, 1).mean((1, 2, 3, 4))
        logits = 10 * (images.mean((1, 2, 3)) - 0.5) + 8 * draws
        return torch.stack([torch.zeros_like(logits), logits], 1)


MODEL = Noisy()


def shifted(by: Mapping[float, float], draws: int = 1) -> Entry:
    """An attack that adds to every pixel what `by` has for its budget."""

    def attack(victim, images: Tensor, labels: Tensor, *, eps: float, **options) -> Tensor:
        return images + by[eps]

    return Entry(MODEL, attack, 1, 1, draws=draws)


def runner(entries: dict[str, Entry], eps: tuple[float, ...], out: Path | None = None) -> Runner:
    images = torch.full((2, 1, 4, 4), 0.2)
    target = given_target(MODEL, images, [0, 0], transfer=None, name=None, class_names=())
    suite = SuiteConfig(eot_samples=3)
    options = Options(eps=eps, check_images=0, suite=suite, eval_draws=9)
    return Runner(target, options, out=out, entries=entries)


def test_an_image_of_a_smaller_budget_is_shown_with_its_own_record(tmp_path: Path) -> None:
    """Here the smaller budget does more harm to the mean over draws; the report finds it."""
    entries = {
        "exact": shifted({0.4: 0.32, 0.5: 0.32}), "mean": shifted({0.4: 0.36, 0.5: 0.1}, draws=3)
    }  # fmt: skip
    complete([runner(entries, (0.4, 0.5), tmp_path / "run")])
    (run,), _ = load([tmp_path / "run"])
    shown = [(each.record.attack, each.record.eps) for each in saved(run, 0.5)]
    assert shown == [("mean", 0.4)] * 2


def test_another_start_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    """Both would claim a part of the work, and neither could summarize."""
    found, out = runner({"exact": shifted({0.4: 0.4})}, (0.4,), tmp_path / "run"), tmp_path / "run"
    with exclusive(out), pytest.raises(ValueError, match="in use by another start"):
        complete([found], out=out)
    assert len(complete([found], out=out)) == 1


def test_what_fell_is_carried_with_the_record_that_its_kept_image_is_about() -> None:
    """Not with one of a still smaller budget, where the image did not fall and none was carried."""
    entries = {"exact": shifted({}), "mean": shifted({}, draws=3)}
    found = runner(entries, (0.1, 0.2, 0.3))
    answers = [
        (0.0, "none", 0, [0, 0]), (0.1, "exact", 0, [0, 0]), (0.1, "mean", 0, [0, 1]),
        (0.2, "exact", 1, [0, 0]), (0.2, "mean", 0, [0, 0]),
    ]  # fmt: skip
    found.history.add(record(image, *each, label=0) for each in answers for image in (0, 1))
    assert found.carried(found.units[1]) == found.carried(found.units[2]) == {}
    assert {image: (r.attack, r.eps) for image, r in found.carried(found.units[3]).items()} == {
        0: ("exact", 0.2), 1: ("exact", 0.2)
    }  # fmt: skip
