"""The demo on models and data that are not packaged."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from evaluation.config import DemoConfig
from evaluation.demo import columns, compared_with, main, models, pgd_evaluation
from rdc import (
    ClassifierConfig,
    Denoiser,
    ImageClassifier,
    ImageClassifierConfig,
    MaximizationConfig,
    RDCConfig,
    RobustDiffusionClassifier,
)
from rdc.data import load
from rdc.data.samples import CLASS_NAMES
from tests.support.pictures import noise, save
from tests.support.tiny import NETWORK, tiny_denoiser, tiny_rdc

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
    with pytest.raises(FileNotFoundError, match=r"model='letters'.*packaged models: .*'digits'"):
        main(replace(config, model="letters", cnn=None))


def test_an_impossible_picture_is_refused_before_any_work(config: DemoConfig, monkeypatch) -> None:
    monkeypatch.setattr("evaluation.demo.models", None)
    with pytest.raises(ValueError, match=r"picture=x\.txt cannot become a picture"):
        main(replace(config, picture=Path("x.txt")))


def test_models_of_other_images_are_refused(config: DemoConfig) -> None:
    with pytest.raises(ValueError, match=r"--model digits.*: 3 classes, but the model has 10"):
        main(replace(config, model="digits", cnn="digits-cnn"))
    with torch.random.fork_rng(devices=[]):
        larger = ImageClassifier(ImageClassifierConfig("cnn-8", 16, 1, 3))
    larger.save_pretrained(str(config.cnn))
    with pytest.raises(ValueError, match=r"--cnn .* takes images .*16, 16\), but those of --data"):
        main(config)


@pytest.mark.skipif(find_spec("foolbox") is None, reason="foolbox is not installed")
def test_a_classifier_of_noised_color_images_on_foolbox_images(tmp_path: Path) -> None:
    """Settings as those of the packaged model of CIFAR-10."""
    network = replace(
        NETWORK, image_size=32, channels=3, num_classes=10, patch=4, conditioning="classifier"
    )
    rdc = RobustDiffusionClassifier(
        tiny_denoiser(network, classes=CLASS_NAMES[::-1]),
        RDCConfig(ClassifierConfig(estimator="posterior"), MaximizationConfig(steps=1)),
    )
    rdc.save_pretrained(tmp_path / "rdc")
    with torch.random.fork_rng(devices=[]):
        cnn = ImageClassifier(ImageClassifierConfig("wrn-10-1", 32, 3, 10)).eval()
    cnn.requires_grad_(False).save_pretrained(tmp_path / "cnn")
    config = DemoConfig(
        model=str(tmp_path / "rdc"), cnn=str(tmp_path / "cnn"), data="cifar10-samples",
        images=2, steps=1, eps=(8 / 255,),
    )  # fmt: skip
    networks, data = models(config, load(config.data, "test").subset(slice(2)))
    assert [data.class_names[label] for label in data.labels] == ["cat", "ship"]
    assert data.class_names == CLASS_NAMES[::-1]
    found = {
        name: pgd_evaluation(model, data, name, eps=config.eps, steps=1)
        for name, model in networks.items()
    }
    drawn = columns(found, data, config)
    given = drawn["given"]
    assert torch.equal(given, data.images)
    changed = {name: (v - given).abs().amax().item() for name, v in drawn.items() if v.ndim == 4}
    assert changed["attacked: CNN"] <= 8 / 255 + 1e-6 and changed["attacked: RDC"] <= 8 / 255 + 1e-6
    assert changed["attacked: CNN,\nthen DiffPure"] > 8 / 255
    for name, title in {"CNN": "CNN: posterior", "RDC": "RDC: posterior"}.items():
        torch.testing.assert_close(drawn[title].sum(1), torch.ones(2))
        worst = found[name].accuracy("linf", 8 / 255).mean
        assert (drawn[title].argmax(1) == data.labels).double().mean().item() == worst


def test_what_a_packaged_model_is_compared_with() -> None:
    assert compared_with(DemoConfig()) == "digits-cnn"
    assert compared_with(DemoConfig(model="runs/mine")) == "digits-cnn"
    assert compared_with(DemoConfig(model="digits", cnn="digits-trades")) == "digits-trades"
