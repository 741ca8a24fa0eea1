"""EDM preconditioning and the two methods, for both kinds of network."""

from types import SimpleNamespace

import pytest
import torch

from purification import DiffusionPurifier
from rdc import (
    AmortizedDiffusionClassifier,
    Denoiser,
    DenoiserConfig,
    DenoiserLike,
    DiffusionClassifier,
    ImageClassifier,
    LikelihoodMaximizer,
    NoisedDenoiser,
    OptimalDenoiser,
    RobustDiffusionClassifier,
    UNetConfig,
)
from rdc.images import to_pixels
from tests.support.denoisers import TINY, random_denoiser

X = torch.linspace(-1, 1, 128, dtype=torch.float64).reshape(2, 1, 8, 8)


def test_preconditioning_is_edms() -> None:
    """Karras et al. 2022, table 1, written out for one image."""
    denoiser, s, d = random_denoiser(), 0.7, 0.5
    c_skip, c_out = d**2 / (s**2 + d**2), s * d / (s**2 + d**2) ** 0.5
    c_in, c_noise = 1 / (s**2 + d**2) ** 0.5, torch.tensor([s]).double().log() / 4
    raw = denoiser.network(c_in * X[:1], c_noise, outputs="unconditional")
    got = denoiser.denoise(X[:1], torch.tensor(s))
    torch.testing.assert_close(got, c_skip * X[:1] + c_out * raw)


def test_no_noise_returns_the_image() -> None:
    denoised = random_denoiser().denoise_classes(X, torch.tensor(1e-6))
    torch.testing.assert_close(denoised, X[:, None].expand(-1, 3, -1, -1, -1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("conditioning", ["multihead", "label"])
def test_scalar_and_vector_sigma_agree(conditioning: str) -> None:
    denoiser = random_denoiser(conditioning=conditioning)
    sigma = torch.tensor([0.3, 2.0], dtype=torch.float64)
    together = denoiser.denoise_classes(X, sigma)
    single = [denoiser.denoise_classes(X[i : i + 1], sigma[i]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(single))
    torch.testing.assert_close(
        denoiser.denoise(X, torch.tensor(0.3)), denoiser.denoise(X, sigma[0])
    )


def test_label_network_answers_class_by_class() -> None:
    denoiser, sigma = random_denoiser(conditioning="label"), torch.tensor(0.5)
    got = denoiser.denoise_classes(X, sigma)
    for y in range(3):
        labels = torch.full((2,), y)
        torch.testing.assert_close(got[:, y], denoiser(X, sigma, labels=labels))


@pytest.mark.parametrize(("conditioning", "rows"), [("multihead", 2), ("label", 6)])
def test_multihead_costs_one_trunk_pass(conditioning: str, rows: int) -> None:
    """Rows that go through the first convolution for two images of three classes."""
    denoiser, seen = random_denoiser(conditioning=conditioning), []
    denoiser.network.stem.register_forward_hook(lambda module, x, y: seen.append(len(y)))
    denoiser.denoise_classes(X, torch.tensor(0.5))
    assert seen == [rows] == [2 * denoiser.rows_per_image]


def test_both_denoisers_satisfy_the_protocol() -> None:
    assert isinstance(random_denoiser(), DenoiserLike)
    assert isinstance(OptimalDenoiser(X, torch.tensor([0, 1])), DenoiserLike)
    assert random_denoiser().image_shape == (1, 8, 8)


@pytest.mark.parametrize(
    "bad",
    [
        {"sigma_data": 0.0},
        {"class_names": ("one", "two")},
        {"class_names": ("a", "b", "a")},
        {"preconditioning": "vp"},
    ],
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        DenoiserConfig(TINY, **bad)


def test_half_precision_images_keep_their_type() -> None:
    denoiser = Denoiser(DenoiserConfig(TINY)).bfloat16()
    assert denoiser.denoise(X.bfloat16(), torch.tensor(0.5)).dtype == torch.bfloat16


def test_images_of_another_precision_than_the_weights_are_refused() -> None:
    denoiser = random_denoiser(torch.float32)
    message = r"^images: torch\.float64, but .* of torch\.float32; give images\.to\(torch\.float32"
    for autocast in (False, True):  # which leaves float64 as it is
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for model in (RobustDiffusionClassifier(denoiser), LikelihoodMaximizer(denoiser)):
                with pytest.raises(ValueError, match=message):
                    model((X + 1) / 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert denoiser.denoise(X.bfloat16(), torch.tensor(0.5)).dtype == torch.bfloat16


@pytest.mark.slow
def test_a_compiled_denoiser_checks_precision_too() -> None:
    denoiser = random_denoiser()
    denoiser.compile(backend="eager", fullgraph=True)
    assert denoiser.denoise(X, 0.5).dtype == torch.float64


CLASSES = "num_classes, class_names, rows_per_image, denoise_classes"


@pytest.mark.parametrize(
    ("build", "missing"),
    [
        (LikelihoodMaximizer, "image_shape, denoise"),
        (RobustDiffusionClassifier, "image_shape, denoise"),
        (DiffusionClassifier, f"image_shape, {CLASSES}"),
        (lambda network: NoisedDenoiser(network, 0.1), f"image_shape, {CLASSES}, denoise"),
    ],
)
def test_a_network_that_is_no_denoiser_is_refused(build, missing: str) -> None:
    """A network that predicts noise has other arguments; it is refused before it is called."""
    with pytest.raises(ValueError, match=f"^denoiser: Linear has no {missing}; wrap"):
        build(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("build", "right"),
    [
        (DiffusionClassifier, "ClassifierConfig"),
        (AmortizedDiffusionClassifier, "ClassifierConfig"),
        (LikelihoodMaximizer, "MaximizationConfig"),
        (RobustDiffusionClassifier, "RDCConfig"),
        (DiffusionPurifier, "PurifierConfig"),
    ],
)
def test_settings_of_something_else_are_refused(build, right: str) -> None:
    with pytest.raises(TypeError, match=f"^config: a DenoiserConfig must be a {right}"):
        build(random_denoiser(), DenoiserConfig())
    for network in (Denoiser, ImageClassifier):
        with pytest.raises(TypeError, match=rf"^config: a UNetConfig must be a {network.__name__}"):
            network(UNetConfig())  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [[1, 8, 8], (8, 8), 8])
@pytest.mark.parametrize("build", [LikelihoodMaximizer, DiffusionClassifier, DiffusionPurifier])
def test_an_image_shape_that_no_image_has_is_refused(build, shape: object) -> None:
    """A list would not equal the shape of any image."""
    parts = {name: None for name in ("denoise", *CLASSES.split(", "))}
    with pytest.raises(ValueError, match=r"^denoiser: image_shape=.* must be a tuple of three"):
        build(SimpleNamespace(image_shape=shape, **parts))


def test_image_shape_and_denoise_suffice_to_maximize() -> None:
    whole = random_denoiser()
    part = SimpleNamespace(image_shape=whole.image_shape, denoise=whole.denoise)
    images = to_pixels(X)
    assert torch.equal(LikelihoodMaximizer(part)(images), LikelihoodMaximizer(whole)(images))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^denoiser: SimpleNamespace has no {CLASSES}; wrap"):
        DiffusionClassifier(part)  # type: ignore[arg-type]
