"""The demo's picture: one row per image, and matplotlib's global state as it was."""

from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image

from evaluation.picture import draw
from rdc.data import Dataset


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_for_every_image(tmp_path: Path, caplog, channels: int) -> None:
    pixels = torch.zeros(2, channels, 8, 8, dtype=torch.uint8)
    data = Dataset(pixels, torch.tensor([0, 1]), ("a", "b\x1b[2J", "c"), 255)
    columns = {"given": data.images, "posterior": torch.eye(3)[:2], "purified": data.images - 1}
    before = dict(matplotlib.rcParams)
    draw(columns, data, title="title", path=tmp_path / "demo.png")
    assert dict(matplotlib.rcParams) == before
    assert not caplog.records  # matplotlib logs what it finds outside of [0, 1]
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.size == (int(80 * 2.1 * len(columns)), 80 * 2 * len(data))


def test_true_classes_are_green_and_wrong_winners_red(tmp_path: Path) -> None:
    """Bars to the right end have the color of their class."""
    data = Dataset(torch.zeros(2, 1, 8, 8), torch.tensor([1, 1]), ("a", "b"), peak=1)
    draw({"posterior": torch.eye(2)}, data, title="title", path=tmp_path / "demo.png")
    with Image.open(tmp_path / "demo.png") as picture:
        colors = [picture.convert("RGB").crop((0, top, 168, top + 160)).getcolors(2**16)
                  for top in (0, 160)]  # fmt: skip
    red, green = (214, 39, 40), (44, 160, 44)
    wrong, right = ({color: count for count, color in each or []} for each in colors)
    assert wrong.get(red, 0) > 1000 > wrong.get(green, 0)
    assert right.get(green, 0) > 1000 > right.get(red, 0)
