"""The packaged models of CIFAR-10 do what their cards say."""

import json

import pytest
import torch

import rdc
from rdc.data import load
from rdc.hub.checkpoint import PACKAGED


@pytest.fixture(scope="module")
def samples() -> rdc.data.Dataset:
    return load("cifar10-samples", "test")


@pytest.mark.slow
def test_cifar10_recognizes_most_sample_images(samples) -> None:
    """Its card says 70 to 75 %; 12 of 20 are 60 %."""
    prediction = rdc.classify(samples.images, "cifar10")
    assert prediction.class_names == samples.class_names
    assert (prediction.labels == samples.labels).sum() >= 12


@pytest.mark.parametrize(("name", "least"), [("cifar10-cnn", 15), ("cifar10-trades", 9)])
def test_image_classifiers_recognize_sample_images(samples, name: str, least: int) -> None:
    """Their cards say 87 and 62 % of the test images."""
    network = rdc.ImageClassifier.from_pretrained(name)
    assert network.class_names == samples.class_names
    assert (network(samples.images).argmax(1) == samples.labels).sum() >= least


def test_cifar10_denoises_samples_towards_the_image(samples) -> None:
    """At sigma 0.3 its estimate is nearer to the image than half of the noise is."""
    denoiser = rdc.Denoiser.from_pretrained("cifar10")
    x = 2 * samples.images - 1
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        denoised = denoiser.denoise(x + 0.3 * noise, torch.full((len(x),), 0.3))
    assert (denoised - x).square().mean().sqrt() < 0.15


def test_cifar10_files_are_small_and_name_their_data() -> None:
    folders = sorted(PACKAGED.glob("cifar10*"))
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    for folder in folders:
        assert "## Data" in (folder / "README.md").read_text()
        assert json.loads((folder / "training.json").read_text())["data_fingerprint"]
