"""Defenses from factories, and models that do not fit the data."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluation.defense_config import DefenseConfig
from evaluation.defenses import build, hashes
from evaluation.factories import from_factory
from evaluation.target import fit, fit_transfer
from rdc import ClassifierConfig, Defense, Denoiser, ImageClassifier
from rdc.classifier import build_classifier
from rdc.data import Dataset, load
from rdc.networks.image_classifier import ImageClassifierConfig
from tests.support.factories import FACTORY
from tests.support.tiny import NETWORK, tiny_denoiser

DATA = load("digits", "test").subset(slice(3))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(FACTORY)
    return tmp_path / "models.py"


def test_a_factory_is_a_defense_or_the_classifier_behind_a_purifier(file: Path) -> None:
    own = DefenseConfig("module", factory=f"{file}:cnn")
    named = DefenseConfig("classifier")
    with torch.no_grad():
        logits = [build(each, data="digits")(DATA.images) for each in (own, named)]
    assert torch.equal(*logits)
    behind = build(DefenseConfig("diffpure", classifier=f"{file}:cnn", steps=1), data="digits")
    assert isinstance(behind, Defense) and isinstance(behind.classifier, ImageClassifier)
    assert from_factory(f"{file}:function")(DATA.images).shape == (3, 10)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.module:f", "No module named 'no'.*give package.module:function"),
        ("no/such/file.py:f", r"no/such/file\.py does not exist"),
        ("{file}:missing", r"models\.py has no function missing"),
        ("{file}:of_path", "missing a required argument: 'path'; give a function without arg"),
        ("{file}:nothing", "returned int; return a torch.nn.Module"),
    ],
)
def test_factories_that_are_none_are_named(file: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_factory(name.format(file=file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "rdc", "steps": 20}, "steps=20 must be None for kind='rdc': purifiers have it"),
        ({"kind": "diffusion", "weight": 0.0}, "weight=0.0 must be None for kind='diffusion'"),
        ({"kind": "classifier", "copies": 4}, "copies=4 must be at least 1, and 1 for kind='cl"),
        ({"seed": -1}, "seed=-1 must be 0 or more"),
    ],
)
def test_settings_that_a_kind_does_not_use_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DefenseConfig(**options)


@pytest.mark.parametrize("options", [{"kind": "module"}, {"kind": "rdc", "factory": "a:b"},
                                     {"kind": "module", "factory": "models.py"}])  # fmt: skip
def test_a_factory_belongs_to_kind_module(options: dict) -> None:
    with pytest.raises(ValueError, match="factory"):
        DefenseConfig(**options)


def test_hashes_are_of_all_that_a_defense_is_made_from(file: Path) -> None:
    names = hashes(DefenseConfig("agdm"), "digits-cnn", data="digits").keys()
    models = ("digits", "digits-cnn", "digits-trades")
    assert names == {
        "rdc.json of digits",
        *(f"{kind} of {model}" for kind in ("weights", "config.json") for model in models),
    }
    assert "training images" in hashes(DefenseConfig("contrastive"), None, data="digits")
    own = hashes(DefenseConfig("module", factory=f"{file}:cnn"), None, data="digits")
    assert own.keys() == {f"weights of {file}:cnn", f"models.py of {file}:cnn"}


def classifier(size: int = 8, classes: int = 10, names: tuple[str, ...] = ()) -> ImageClassifier:
    with torch.random.fork_rng(devices=[]):
        config = ImageClassifierConfig("cnn-4", size, 1, classes, class_names=names)
        return ImageClassifier(config).eval()


DIGITS = tuple(map(str, range(10)))
OTHERS = tuple("abcdefghij")
NAMED = Dataset(DATA.pixels, DATA.labels, OTHERS[::-1])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (classifier(16), r"--x takes images .*\(1, 16, 16\), but those of --y are \(1, 8, 8\)"),
        (classifier(classes=4), r"--x: gives 4 logits, but --y has 10 classes \('0', "),
        (classifier(names=OTHERS), "--x, --y: data: other classes"),
        (
            Defense(torch.nn.Identity(), classifier(names=OTHERS)),
            r"--x \(classifier\), --y: .* other",
        ),
    ],
)
def test_models_of_other_images_or_classes_are_refused(model, message: str) -> None:
    data = Dataset(DATA.pixels, DATA.labels, tuple("klmnopqrst")) if "other" in message else DATA
    with pytest.raises(ValueError, match=message):
        fit(model, data, "--x", "--y")


def test_classes_in_another_order_are_matched_by_name() -> None:
    found = fit(classifier(names=OTHERS), NAMED, "--x", "--y")
    assert found.class_names == OTHERS and found.labels.tolist() == (9 - DATA.labels).tolist()
    assert "labels reordered" in found.notes[0]
    with pytest.raises(ValueError, match="--x: its classes are in another order"):
        fit_transfer(classifier(names=OTHERS), NAMED, "--x", "--y")


@pytest.mark.parametrize("estimator", ["losses", "posterior"])
def test_classes_of_a_diffusion_classifier_are_those_of_its_denoiser(estimator) -> None:
    conditioning = "classifier" if estimator == "posterior" else "multihead"
    denoiser = tiny_denoiser(replace(NETWORK, conditioning=conditioning), classes=("a", "b", "c"))
    model = build_classifier(denoiser, ClassifierConfig(levels=2, estimator=estimator))
    data = Dataset(DATA.pixels[:2], torch.tensor([0, 1]), ("c", "a", "b"))
    assert fit(model, data, "--x", "--y").labels.tolist() == [2, 0]


def test_a_purifiers_denoiser_may_know_other_classes() -> None:
    denoiser = Denoiser.from_pretrained("digits")
    assert denoiser.class_names
    fit(build(DefenseConfig("diffpure", steps=1), data="digits"), DATA, "--x", "--y")
    fit(classifier(names=DIGITS), DATA, "--x", "--y")
