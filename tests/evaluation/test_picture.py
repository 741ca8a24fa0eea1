"""The demo's picture: one row per image, and matplotlib's global state as it was."""

from pathlib import Path

import matplotlib
import torch
from PIL import Image

from evaluation.picture import COLUMNS, draw
from rdc import ImageClassifier
from rdc.data import Dataset
from rdc.networks.image_classifier import ImageClassifierConfig
from tests.support.tiny import tiny_rdc


def test_a_row_for_every_image(tmp_path: Path) -> None:
    rdc = tiny_rdc()
    channels, side, _ = rdc.denoiser.image_shape
    with torch.random.fork_rng(devices=[]):
        cnn = ImageClassifier(ImageClassifierConfig("cnn-8", side, channels, 3)).eval()
    pixels = torch.zeros(2, channels, side, side, dtype=torch.uint8)
    data = Dataset(pixels, torch.tensor([0, 1]), ("a", "b\x1b[2J", "c"), 255)
    before = dict(matplotlib.rcParams)
    draw(cnn, rdc, data, data.images, data.images, title="title", path=tmp_path / "demo.png")
    assert dict(matplotlib.rcParams) == before
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.size == (int(80 * 2.1 * len(COLUMNS)), 80 * 2 * len(data))
