"""The diffusion classifier against exact Bayes, RDC's gradient, and `classify`."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

import rdc
from rdc import ClassifierConfig, DiffusionClassifier
from rdc.data import load
from rdc.images import check_form, to_x
from rdc.noise import Noise
from tests.support.denoisers import SMALL, small_rdc
from tests.support.oracle import central_difference, some_images, two_classes
from tests.support.tiny import tiny_rdc


def log_odds(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 0] - logits[:, 1]


def exact_log_odds(oracle, images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Log posterior odds of the image at noise `sigma`, E_n log p(x + s n | 0) / p(x + s n | 1)."""
    noise = Noise("frozen", seed=99).normal(images, 40_000)
    noised = to_x(images)[:, None] + sigma * noise
    density = oracle.log_density(noised.flatten(0, 1), sigma)
    return log_odds(density.view(len(images), -1, 2).mean(1))


def test_posterior_is_bayes() -> None:
    """With the exact denoiser the logits are the log-likelihoods at the lowest level, in nats."""
    oracle, images = two_classes(), some_images(4)
    config = ClassifierConfig(levels=60, sigma_min=0.4, sigma_max=60, draws=300)
    got = log_odds(DiffusionClassifier(oracle, config)(images))
    torch.testing.assert_close(got, exact_log_odds(oracle, images, 0.4), rtol=0.02, atol=0.02)


def test_posterior_converges_in_draws_at_the_monte_carlo_rate() -> None:
    """Root mean square error of the log-odds over 300 seeds falls as draws^-1/2."""
    oracle, image = two_classes(), some_images(1)

    def spread(draws: int) -> float:
        config = ClassifierConfig(levels=10, sigma_min=0.4, sigma_max=20, draws=draws)
        classifier = DiffusionClassifier(oracle, config, noise="fresh", seed=draws)
        return log_odds(classifier(image.expand(300, -1, -1, -1))).std().item()

    slope = math.log(spread(1) / spread(16)) / math.log(16)
    assert slope == pytest.approx(0.5, abs=0.07)


def test_posterior_converges_in_levels_at_second_order() -> None:
    """One Gaussian per class: the expected errors are known, only the quadrature is left."""
    oracle, image = two_classes(components=1), some_images(1)
    x, total = to_x(image)[0], oracle.std**2 + 0.5**2
    distance = (x - oracle.means[:, 0]).square().sum((1, 2, 3))
    exact = ((distance[1] - distance[0]) / (2 * total)).item()

    def error(levels: int) -> float:
        sigmas, weights = (
            getattr(
                ClassifierConfig(levels=levels, sigma_min=0.5, sigma_max=3000).build_levels(), n
            )
            for n in ("sigmas", "weights")
        )
        share = (sigmas.square() / (sigmas.square() + oracle.std**2)).square()
        return abs(((distance[1] - distance[0]) * (share * weights).sum()).item() - exact)

    assert error(40) / error(80) == pytest.approx(4, rel=0.1)


def test_temperature_divides_the_losses() -> None:
    images = some_images(2)
    one = DiffusionClassifier(two_classes(), ClassifierConfig())(images)
    ten = DiffusionClassifier(two_classes(), ClassifierConfig(temperature=10))(images)
    torch.testing.assert_close(one, 10 * ten)


def test_sigma_data_enters_the_edm_weight() -> None:
    weights = [
        ClassifierConfig(weighting="edm", levels=1, sigma_data=d).build_levels().weights.item()
        for d in (0.5, 0.8)
    ]
    sigma = ClassifierConfig(levels=1).build_levels().sigmas.item()
    lambdas = [(sigma**2 + d**2) / (sigma * d) ** 2 for d in (0.5, 0.8)]
    assert weights[0] / weights[1] == pytest.approx(lambdas[0] / lambdas[1])


@pytest.mark.parametrize("noise", ["frozen", "fresh"])
def test_rdc_gradient_equals_finite_differences(noise) -> None:
    """Through maximization and classification, with the draws of the forward pass (float64)."""
    images = 0.3 + 0.4 * some_images(2, (1, 8, 8))
    v = some_images(2, (1, 8, 8), seed=5) - 0.5

    def value(x: torch.Tensor) -> torch.Tensor:
        return (small_rdc(noise=noise, seed=3)(x) * torch.tensor([1.0, -2.0, 0.5])).sum()

    x = images.clone().requires_grad_()
    (got,) = torch.autograd.grad(value(x), x)
    expected = central_difference(value, images, v, 1e-6)
    torch.testing.assert_close((got * v).sum(), expected, rtol=1e-5, atol=1e-8)


def test_modes_have_different_gradients() -> None:
    """Were they equal, one of the names would lie."""
    images = some_images(2, (1, 8, 8))

    def gradient(**options) -> torch.Tensor:
        x = images.clone().requires_grad_()
        return torch.autograd.grad(log_odds(small_rdc(**options)(x)).sum(), x)[0]

    exact, bpda = gradient(), gradient(gradient="bpda")
    assert (exact - bpda).norm() > 0.001 * exact.norm()
    close = gradient(second_order="central_difference")
    assert (exact - close).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_rdc_gives_the_same_logits_alone_and_in_a_batch(dtype, tolerance) -> None:
    model, images = small_rdc(dtype), some_images(5, (1, 8, 8), dtype=dtype)
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    scale = together.abs().max()
    torch.testing.assert_close(together / scale, alone / scale, rtol=0, atol=tolerance)


def test_rdc_is_a_purifier_and_a_classifier() -> None:
    model, images = small_rdc(), some_images(2, (1, 8, 8))
    assert torch.equal(model(images), model.classifier(model.purifier(images)))


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
    ],
)
def test_bad_input_is_named(arguments: dict, error, message: str) -> None:
    defaults = {"images": torch.zeros(1, 1, 8, 8), "model": small_rdc(torch.float32)}
    with pytest.raises(error, match=message):
        rdc.classify(**{**defaults, **arguments})


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), r"dtype torch\.uint8; .* \[0, 1\]"),
        (torch.zeros(1, 1, 16, 16), r"shape \(1, 1, 16, 16\), .* \(B, 1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8), r"shape \(1, 3, 8, 8\), .* \(B, 1, 8, 8\)"),
        (torch.zeros(1, 8, 8), r"shape \(1, 8, 8\), .* \(B, 1, 8, 8\)"),
    ],
)
def test_modules_have_a_door(images: torch.Tensor, message: str) -> None:
    """RDC refuses in its maximizer, and the diffusion classifier alone by itself."""
    model = small_rdc(torch.float32)
    for module in (model, model.classifier, model.purifier, model.purifier.loss):
        with pytest.raises(ValueError, match=f"^images: {message}"):
            module(images)


def test_modules_never_wait_for_values() -> None:
    """Reading values would slow every attack step on a GPU; "meta" tensors have no values."""
    for shape in ((2, 1, 8, 8), (0, 1, 8, 8)):
        images = torch.zeros(shape, device="meta")
        assert check_form(images, (1, 8, 8)) is images


@pytest.mark.parametrize("bad", [{"temperature": 0}, {"levels": 0}, {"sigma_min": 5}, {"draws": 0}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(bad))}|noise levels"):
        ClassifierConfig(**bad)


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


def test_antithetic_draws_share_their_level_and_vary_less() -> None:
    """Over 300 seeds and at equal cost; the mean stays."""
    oracle, image = two_classes(), some_images(1)

    def estimates(antithetic: bool) -> torch.Tensor:
        config = ClassifierConfig(
            levels=10, sigma_min=0.4, sigma_max=20, draws=4, antithetic=antithetic
        )
        classifier = DiffusionClassifier(oracle, config, noise="fresh")
        return log_odds(classifier(image.expand(300, -1, -1, -1)))

    pairs, plain = estimates(True), estimates(False)
    assert pairs.std() < 0.8 * plain.std()
    assert (pairs.mean() - plain.mean()).abs() < 4 * plain.std() / 300**0.5


@pytest.mark.parametrize(
    "bad",
    [{"antithetic": True}, {"levels": 0}, {"levels": 10**8}, {"draws": 10**8},
     {"levels": 9000, "draws": 9000},
     {"sigma_min": 0}, {"sigma_min": 1e-310}, {"sigma_min": math.nan}, {"sigma_min": 3.0},
     {"sigma_max": math.inf}, {"temperature": 1e-300}, {"temperature": math.inf},
     {"temperature": 0}, {"sigma_data": math.inf}, {"sigma_data": 1e-310}],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"ClassifierConfig: .*{next(iter(bad))}"):
        ClassifierConfig(**bad)
