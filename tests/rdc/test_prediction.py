"""`classify`: every kind of image, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image

import rdc
from rdc.data import load
from tests.support.denoisers import SMALL, small_rdc
from tests.support.oracle import some_images, two_classes
from tests.support.tiny import tiny_rdc


def test_classify_takes_every_kind_of_image() -> None:
    """One image as tensor, array, PIL image and list gives one prediction."""
    model = small_rdc(torch.float32)
    array = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    tensor = torch.from_numpy(array)[None, None].float() / 255
    expected = rdc.classify(tensor, model)
    for images in (array, Image.fromarray(array), [array, tensor[0]][:1]):
        torch.testing.assert_close(
            rdc.classify(images, model).log_posterior, expected.log_posterior
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_classify_takes_every_float(dtype) -> None:
    """The model's precision, not the image's, is what counts."""
    model, images = small_rdc(torch.float32), torch.full((1, 1, 8, 8), 0.5)
    prediction = rdc.classify(images.to(dtype), model)
    assert torch.equal(prediction.log_posterior, rdc.classify(images, model).log_posterior)


def test_prediction_is_consistent() -> None:
    model, images = small_rdc(torch.float32), some_images(5, (1, 8, 8), dtype=torch.float32)
    prediction = rdc.classify(images, model, batch_size=2)
    assert prediction.log_posterior.shape == (5, 3)
    assert prediction.maximized.shape == images.shape
    torch.testing.assert_close(prediction.probabilities.sum(1), torch.ones(5))
    torch.testing.assert_close(prediction.probabilities.log(), prediction.log_posterior)
    assert torch.equal(prediction.labels, prediction.probabilities.argmax(1))
    assert prediction.names == [str(label) for label in prediction.labels.tolist()]
    torch.testing.assert_close(prediction.maximized, model.purifier(images))


def test_classify_works_with_denoisers_that_are_no_modules() -> None:
    """Any object with the two methods is accepted."""
    model = rdc.RobustDiffusionClassifier(two_classes(), SMALL)
    assert rdc.classify(some_images(2), model).labels.shape == (2,)
    with pytest.raises(TypeError, match="only a Denoiser can be saved"):
        model.save_pretrained("nowhere")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_classify_takes_every_float_without_parameters(dtype) -> None:
    """A denoiser that has only buffers computes in the type of its buffers."""
    points = 2 * some_images(4, dtype=torch.float32) - 1
    denoiser = rdc.OptimalDenoiser(points, torch.tensor([0, 1, 0, 1]))
    model = rdc.RobustDiffusionClassifier(denoiser, SMALL)
    images = torch.full((1, 1, 2, 2), 0.5)
    prediction = rdc.classify(images.to(dtype), model)
    assert torch.equal(prediction.log_posterior, rdc.classify(images, model).log_posterior)


def test_classify_leaves_no_graph_and_no_global_randomness() -> None:
    model, images = small_rdc(torch.float32), some_images(1, (1, 8, 8), dtype=torch.float32)
    before = torch.get_rng_state()
    with torch.inference_mode():
        prediction = rdc.classify(images, model)
    assert not prediction.log_posterior.requires_grad
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "digit"}, FileNotFoundError, "packaged models: .*digits"),
        ({"images": torch.full((1, 1, 8, 8), 2.0)}, ValueError, "expected \\[0, 1\\]"),
        ({"images": torch.full((1, 1, 8, 8), torch.nan)}, ValueError, "NaN"),
        ({"images": torch.zeros(1, 3, 8, 8)}, ValueError, "shape"),
        ({"images": []}, ValueError, "empty list"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"model": torch.nn.Identity()}, TypeError, "model: Identity; give a name"),
    ],
)
def test_bad_input_is_named(arguments: dict, error, message: str) -> None:
    defaults = {"images": torch.zeros(1, 1, 8, 8), "model": small_rdc(torch.float32)}
    with pytest.raises(error, match=message):
        rdc.classify(**{**defaults, **arguments})


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["frozen", "fresh"])
def test_default_device_and_precision_have_no_influence(noise) -> None:
    """ "meta" stands for any device: whatever is made on it by mistake cannot be computed with."""
    images = load("digits", "test").images[:2]

    def answer() -> torch.Tensor:
        assert torch.equal(load("digits", "test").images[:2], images)
        model = rdc.RobustDiffusionClassifier.from_pretrained("digits", noise=noise)
        return rdc.classify(images, model).log_posterior

    expected = answer()
    with torch.device("meta"):
        assert torch.equal(answer(), expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(answer(), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_posterior_that_overflows_is_refused() -> None:
    """Its largest entry would be class 0, whatever the image."""
    model = tiny_rdc()
    for weights in model.parameters():
        weights.mul_(1e30)
    with pytest.raises(FloatingPointError, match=r"model: its posterior .* 2 of 2 images"):
        rdc.classify(torch.rand(2, 1, 8, 8), model)
