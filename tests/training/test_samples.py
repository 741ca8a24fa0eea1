"""Pictures of samples: names above columns, and few enough of them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.tiny import tiny_denoiser
from training.run import picture_is_due
from training.samples import TITLE, sample_grid, save_samples


def test_columns_have_names(tmp_path: Path) -> None:
    """Three classes of 8x8 images in cells of 9 times 8 pixels; dark letters above each."""
    denoiser = tiny_denoiser()
    save_samples(denoiser, tmp_path / "x", sigmas=(0.1, 1.0), seed=0)
    with Image.open(tmp_path / "x") as picture:
        assert picture.size == (3 * 72, 2 * 72 + TITLE) and picture.format == "PNG"
        title = picture.convert("L").crop((0, 0, 3 * 72, TITLE))
    for column in range(3):
        letters = title.crop((72 * column, 0, 72 * column + 72, TITLE))
        assert letters.getextrema()[0] < 100, denoiser.class_names[column]  # type: ignore


def test_pictures_of_a_run_can_be_compared() -> None:
    denoiser = tiny_denoiser()
    first, second = (sample_grid(denoiser, sigmas=(0.1, 1.0), seed=3) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (1, 2 * 9, 3 * 9)


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [(20_000, 500, [2500, 5000, 10_000, 20_000]), (12, 4, [4, 8, 12]), (3, 5, [3])],
)
def test_a_run_has_four_pictures_at_most(steps: int, every: int, expected: list[int]) -> None:
    measured = [*range(every, steps, every), steps]
    pairs = zip([0, *measured], measured, strict=False)
    assert [step for before, step in pairs if picture_is_due(before, step, steps)] == expected
