"""The packaged digits models do what their card says, and the demo measures it."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import rdc
from evaluation.demo import pgd_evaluation
from evaluation.gradient_modes import surrogates
from rdc.data import load
from rdc.hub.checkpoint import PACKAGED
from rdc.networks.image_classifier import ImageClassifier
from tests.support.launchers import printed, run

pytestmark = pytest.mark.slow

SOME = load("digits", "test").subset(slice(100))


@pytest.fixture(scope="module")
def model() -> rdc.RobustDiffusionClassifier:
    return rdc.RobustDiffusionClassifier.from_pretrained(
        "digits", second_order="central_difference"
    )


def test_splits_are_disjoint_and_fixed() -> None:
    sizes = {split: len(load("digits", split)) for split in ("train", "validation", "test")}
    assert sizes == {"train": 1097, "validation": 200, "test": 500}
    images = torch.cat([load("digits", split).images for split in ("train", "validation", "test")])
    assert images.min() >= 0 and images.max() == 1
    assert len(images.flatten(1).unique(dim=0)) == 1797


@pytest.mark.parametrize("bad", [("letters", "train"), ("digits", "holdout")])
def test_unknown_data_is_named(bad: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"digits|train"):
        load(*bad)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def prediction(model) -> rdc.Prediction:
    return rdc.classify(SOME.images, model, batch_size=50)


def test_clean_accuracy(prediction) -> None:
    assert (prediction.labels == SOME.labels).double().mean() >= 0.97
    assert prediction.class_names == SOME.class_names


def test_posterior_is_calibrated(prediction) -> None:
    """Mean confidence and accuracy agree: the fitted temperature travels with the model."""
    confidence = prediction.probabilities.amax(1).double().mean()
    accuracy = (prediction.labels == SOME.labels).double().mean()
    assert abs(confidence - accuracy) < 0.05


def test_rdc_survives_attacks_that_break_the_cnn(model) -> None:
    data = SOME.subset(slice(4))
    cnn = ImageClassifier.from_pretrained("digits-cnn")
    of_cnn, of_rdc = (pgd_evaluation(each, data, eps=(0.2,), steps=3) for each in (cnn, model))
    assert of_cnn.accuracy("linf", 0).mean == 1
    assert of_rdc.accuracy("linf", 0.2).mean >= of_cnn.accuracy("linf", 0.2).mean + 2 / 4


def test_surrogates_have_the_defenses_own_draws(model) -> None:
    """Otherwise the attacker would work on another function than the one that is scored."""
    images = load("digits", "test").images[:3]
    known = surrogates(model)
    for name in ("exact", "bpda"):
        assert torch.equal(known[name](images), model(images))
    assert torch.equal(known["classifier"](images), model.classifier(images))


def test_surrogates_keep_the_models_second_order_and_refuse_fresh_noise(model) -> None:
    """A cheaper derivative than the model's own would be a hidden approximation."""
    for second_order in ("double_backward", "central_difference"):
        own = rdc.RobustDiffusionClassifier(model.denoiser, model.config, second_order=second_order)
        exact = surrogates(own)["exact"]
        assert isinstance(exact, rdc.Defense)
        assert isinstance(exact.purifier, rdc.LikelihoodMaximizer)
        assert exact.purifier.second_order == second_order
    with pytest.raises(ValueError, match="noise='fresh'"):
        surrogates(rdc.RobustDiffusionClassifier(model.denoiser, model.config, noise="fresh"))


def test_packaged_digits_models_are_small_and_have_cards() -> None:
    assert "digits" in rdc.packaged_models()
    names = [name for name in rdc.packaged_models("config.json") if name.startswith("digits")]
    assert names == ["digits", "digits-cnn", "digits-trades"]
    files = [path for name in names for path in (PACKAGED / name).iterdir()]
    assert sum(path.stat().st_size for path in files) <= 3 * 2**20
    for name in names:
        assert "## Data" in (PACKAGED / name / "README.md").read_text()
        assert json.loads((PACKAGED / name / "training.json").read_text())["data_fingerprint"]


def test_demo_prints_its_table_and_draws_its_picture(tmp_path: Path) -> None:
    picture, numbers = tmp_path / "demo.png", tmp_path / "numbers.json"
    flags = ["--images", "1", "--steps", "1", "--eps", "0.1", "0.3", "--optimal"]
    files = ["--picture", picture, "--json", numbers]
    status = run(tmp_path / "printed", "evaluation.demo", *flags, *files)
    stdout, stderr = printed(tmp_path / "printed")
    assert status == 0, stderr
    for name in ("CNN", "diffusion classifier", "RDC", "optimal classifier", "optimal RDC"):
        assert re.search(rf"^{name} +[\d.]+ +[\d.]+ \[\d+, \d+\]", stdout, re.MULTILINE)
    with Image.open(picture) as image:
        assert image.size[0] > 500
    record = json.loads(numbers.read_text())
    assert record["command"].startswith("python -m evaluation.demo --images 1")
    attacks = record["results"]["RDC"]["eps"]["0.3"]
    assert set(attacks) == {"worst", "exact", "bpda", "classifier"}
    assert attacks["worst"]["accuracy"] <= min(a["accuracy"] for a in attacks.values())


def test_cheap_second_derivatives_are_exact_on_the_packaged_network(model) -> None:
    """The attacks' central difference in float32 against double backward in float64."""
    images = SOME.images[:3]

    def gradient(dtype: torch.dtype, second_order) -> torch.Tensor:
        options = {"second_order": second_order}
        rdc_model = rdc.RobustDiffusionClassifier.from_pretrained("digits", **options).to(dtype)
        x = images.to(dtype).requires_grad_()
        first, second = rdc_model(x).topk(2, dim=1).values.T
        return torch.autograd.grad((first - second).sum(), x)[0].flatten(1).double()

    exact = gradient(torch.float64, "double_backward")
    cheap = gradient(torch.float32, "central_difference")
    assert torch.cosine_similarity(exact, cheap).min() > 0.9999
