"""The demo on models and data that are not packaged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluation.demo import DemoConfig, compared_with, main
from rdc import Denoiser, ImageClassifier
from rdc.networks.image_classifier import ImageClassifierConfig
from tests.support.pictures import noise, save
from tests.support.tiny import tiny_rdc

pytestmark = pytest.mark.slow

NAMES = ("one", "two", "zero")


@pytest.fixture
def config(tmp_path: Path) -> DemoConfig:
    """A tiny RDC, a CNN and a folder of images, of the same classes."""
    model = tiny_rdc()
    assert isinstance(model.denoiser, Denoiser)
    model.denoiser.config = replace(model.denoiser.config, class_names=NAMES)
    model.save_pretrained(tmp_path / "rdc")
    with torch.random.fork_rng(devices=[]):
        cnn = ImageClassifier(ImageClassifierConfig("cnn-8", 8, 1, 3))
    cnn.save_pretrained(tmp_path / "cnn")
    images = {f"test/{name}/{i}.png": noise(i, 8, 8) for i in range(2) for name in NAMES}
    save(tmp_path / "data", images)
    return DemoConfig(
        model=str(tmp_path / "rdc"), cnn=str(tmp_path / "cnn"), data=str(tmp_path / "data"),
        images=4, steps=1, eps=(0.03,), picture=None, json=tmp_path / "demo.json",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch) -> None:
    """An empty home folder, in which decoded images are cached."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)


def test_any_model_on_its_data(config: DemoConfig, capsys) -> None:
    main(config)
    assert f"4 test images of {config.data}; PGD-1" in capsys.readouterr().out
    assert config.json is not None
    results = json.loads(config.json.read_text())["results"]
    assert list(results) == ["CNN", "diffusion classifier", "RDC"]
    assert all(row["eps"]["0.03"]["worst"]["images"] == 4 for row in results.values())


def test_a_model_that_is_not_there_is_named(config: DemoConfig) -> None:
    """CIFAR-10's is not packaged yet: the error says which ones are."""
    with pytest.raises(FileNotFoundError, match=r"model='cifar10'.*packaged models: \['digits'\]"):
        main(replace(config, model="cifar10", cnn=None))


def test_models_of_other_images_are_refused(config: DemoConfig) -> None:
    with pytest.raises(ValueError, match=r"--model digits.*: 3 classes, but the model has 10"):
        main(replace(config, model="digits", cnn="digits-cnn"))
    with torch.random.fork_rng(devices=[]):
        larger = ImageClassifier(ImageClassifierConfig("cnn-8", 16, 1, 3))
    larger.save_pretrained(str(config.cnn))
    with pytest.raises(ValueError, match=r"--cnn .* takes images .*16, 16\), but those of --data"):
        main(config)


def test_what_a_packaged_model_is_compared_with() -> None:
    assert compared_with(DemoConfig()) == "digits-cnn"
    assert compared_with(DemoConfig(model="runs/mine")) == "digits-cnn"
    assert compared_with(DemoConfig(model="digits", cnn="digits-trades")) == "digits-trades"
