"""Networks of diffusers: the estimates are its own scheduler's, and every method runs on them."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from purification import DiffusionPurifier, PurifierConfig
from rdc import (
    ClassifierConfig,
    Defense,
    DenoiserLike,
    DiffusersDenoiser,
    DiffusionClassifier,
    LikelihoodMaximizer,
    MaximizationConfig,
    RDCConfig,
    RobustDiffusionClassifier,
)
from rdc.denoiser import OneClassAtATime
from tests.support.optional import installed
from tests.support.tiny_diffusers import network, scheduler

pytestmark = pytest.mark.slow

TIMES = (0, 1, 30, 400, 999)


@pytest.fixture(autouse=True)
def _seed() -> None:
    installed("diffusers")
    torch.manual_seed(0)


def states(schedule: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images at TIMES as diffusers makes them, the same unscaled, and their noise levels."""
    times = torch.tensor(TIMES)
    clean = torch.rand(len(TIMES), 1, 8, 8) * 2 - 1
    state = schedule.add_noise(clean, torch.randn_like(clean), times)
    kept = schedule.alphas_cumprod[times].double()
    x = state / kept.sqrt().float().view(-1, 1, 1, 1)
    return state, x, ((1 - kept) / kept).sqrt().float()


def predicted_image(schedule: Any, answer: Tensor, time: int, state: Tensor) -> Tensor:
    """The clean image as diffusers itself estimates it."""
    generator = torch.Generator().manual_seed(0)  # of a step that is thrown away
    return schedule.step(answer, time, state, generator=generator).pred_original_sample


def assert_close(got: Tensor, expected: Tensor) -> None:
    """Assert equality to 1e-5, of 1 or of the largest absolute value if that is larger."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


# --- estimates ---

SCHEDULES: dict[str, dict[str, Any]] = {
    "linear": {},
    "scaled-linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "trained": {"trained_betas": [1e-4 * 1.007**i for i in range(1000)]},
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_estimates_are_those_of_the_scheduler(name: str, prediction: str) -> None:
    """Each image of a batch at its own level, and alone with the level as a number."""
    schedule = scheduler(**SCHEDULES[name], prediction_type=prediction)
    net = network()
    denoiser = DiffusersDenoiser(net, schedule)
    state, x, sigma = states(schedule)
    together = denoiser.denoise(x, sigma)
    for row, time in enumerate(TIMES):
        answer = net(state[row, None], time).sample
        expected = predicted_image(schedule, answer, time, state[row, None])
        assert_close(together[row, None], expected)
        assert_close(denoiser.denoise(x[row, None], float(sigma[row])), expected)


def test_a_learned_variance_is_left_out() -> None:
    net = network(out_channels=2)
    schedule = scheduler(variance_type="learned_range")
    state, x, sigma = states(schedule)
    expected = predicted_image(schedule, net(state[2, None], 30).sample, 30, state[2, None])
    assert_close(DiffusersDenoiser(net, schedule).denoise(x[2, None], float(sigma[2])), expected)


def told_times(denoiser: DiffusersDenoiser, sigma: Tensor) -> list[int]:
    """The times that the network is told at these levels."""
    told: list[Tensor] = []
    handle = denoiser.network.register_forward_pre_hook(lambda module, given: told.append(given[1]))
    denoiser.denoise(torch.zeros(len(sigma), 1, 8, 8), sigma)
    handle.remove()
    return told[0].tolist()


def test_times_are_the_nearest() -> None:
    denoiser = DiffusersDenoiser(network(), scheduler(num_train_timesteps=50))
    kept = scheduler(num_train_timesteps=50).alphas_cumprod.double()
    sigmas = ((1 - kept) / kept).sqrt()
    assert told_times(denoiser, sigmas.float()) == list(range(50))
    nearly_halfway = sigmas[:-1] + 0.49 * sigmas.diff()
    assert told_times(denoiser, nearly_halfway.float()) == list(range(49))
    past_halfway = sigmas[:-1] + 0.51 * sigmas.diff()
    assert told_times(denoiser, past_halfway.float()) == list(range(1, 50))
    assert told_times(denoiser, torch.tensor([1e-6, 1e6])) == [0, 49]


def test_a_time_without_signal_is_never_asked_for() -> None:
    schedule = scheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert schedule.alphas_cumprod[-1] == 0
    denoiser = DiffusersDenoiser(network(), schedule)
    assert told_times(denoiser, torch.tensor([1.0, 1e6]))[1] == 998
    state, x, sigma = states(schedule)
    answer = denoiser.network(state[3, None], 400).sample
    expected = predicted_image(schedule, answer, 400, state[3, None])
    assert_close(denoiser.denoise(x[3, None], float(sigma[3])), expected)


# --- classes ---


@pytest.mark.parametrize(
    ("null_label", "labels"), [(None, [0, 1, 2, 3]), (3, [0, 1, 2]), (0, [1, 2, 3])]
)
def test_classes(null_label: int | None, labels: list[int]) -> None:
    schedule, net = scheduler(), network(classes=4)
    denoiser = DiffusersDenoiser(net, schedule, null_label=null_label)
    assert (denoiser.num_classes, denoiser.rows_per_image) == (len(labels), len(labels))
    state, x, sigma = states(schedule)
    got = denoiser.denoise_classes(x[1:4], sigma[1:4])
    assert got.shape == (3, len(labels), 1, 8, 8)

    def expected(row: int, label: int) -> Tensor:
        answer = net(state[row, None], TIMES[row], class_labels=torch.tensor([label])).sample
        return predicted_image(schedule, answer, TIMES[row], state[row, None])[0]

    for row in range(3):
        for index, label in enumerate(labels):
            assert_close(got[row, index], expected(row + 1, label))
    assert (got[:, 0] - got[:, 1]).abs().amax((1, 2, 3)).min() > 1e-3
    picked = torch.tensor([2, 0, 1])
    one = denoiser.denoise_class(x[1:4], sigma[1:4], picked)
    assert_close(one, got[torch.arange(3), picked])
    if null_label is not None:
        assert_close(denoiser.denoise(x[1:2], sigma[1:2])[0], expected(1, null_label))


def test_without_a_null_label_there_is_no_unconditional_estimate() -> None:
    denoiser = DiffusersDenoiser(network(classes=4), scheduler())
    with pytest.raises(ValueError, match="null_label=None: the network was trained with classes"):
        denoiser.denoise(torch.zeros(1, 1, 8, 8), 1.0)


def test_without_classes_there_is_nothing_to_classify() -> None:
    denoiser = DiffusersDenoiser(network(), scheduler())
    assert (denoiser.num_classes, denoiser.rows_per_image) == (0, 1)
    with pytest.raises(ValueError, match="num_class_embeds=None and knows no classes"):
        DiffusionClassifier(denoiser)(torch.rand(1, 1, 8, 8))


# --- every method runs on it ---

FEW = ClassifierConfig(levels=2)
SHORT = MaximizationConfig(steps=2)


def rdc() -> Defense:
    denoiser = DiffusersDenoiser(network(classes=4), scheduler(), null_label=3)
    return RobustDiffusionClassifier(denoiser, RDCConfig(FEW, SHORT))


def two_networks() -> Defense:
    """Maximization on a network without classes, whose betas are others."""
    free = DiffusersDenoiser(network(), scheduler(beta_schedule="squaredcos_cap_v2"))
    known = DiffusersDenoiser(network(classes=3), scheduler())
    return Defense(LikelihoodMaximizer(free, SHORT), DiffusionClassifier(known, FEW))


def diffpure() -> Defense:
    purifier = DiffusionPurifier(
        DiffusersDenoiser(network(), scheduler()), PurifierConfig("sde", t_star=0.1, steps=3)
    )
    known = DiffusersDenoiser(network(classes=3), scheduler(prediction_type="v_prediction"))
    return Defense(purifier, DiffusionClassifier(known, FEW))


@pytest.mark.parametrize("build", [rdc, two_networks, diffpure])
def test_exact_gradients(build: Callable[[], Defense]) -> None:
    """Against a central difference in float64, through attention too."""
    defense = build().double()
    images = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    logits = defense(images)
    assert logits.shape == (2, 3)
    cotangent = torch.randn(2, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((logits * cotangent).sum(), images)
    direction = torch.randn_like(images)
    with torch.no_grad():
        ahead, behind = (defense(images + h * direction) for h in (1e-5, -1e-5))
    difference = ((ahead - behind) * cotangent).sum() / 2e-5
    assert torch.isclose((gradient * direction).sum(), difference, rtol=1e-5)


def test_it_is_a_denoiser() -> None:
    names = ("a", "b", "c")
    denoiser = DiffusersDenoiser(
        network(classes=4, sample_size=(8, 16), in_channels=3, out_channels=3),
        scheduler(),
        null_label=3,
        class_names=names,
    )
    assert isinstance(denoiser, DenoiserLike)
    assert isinstance(denoiser, OneClassAtATime)
    assert denoiser.image_shape == (3, 8, 16)
    assert denoiser.class_names == names
    assert denoiser.denoise(torch.zeros(2, 3, 8, 16), 1.0).shape == (2, 3, 8, 16)


# --- what cannot be read ---


@pytest.mark.parametrize(
    ("net", "schedule", "message"),
    [
        ({"time_embedding_type": "fourier"}, {}, "is told the noise level itself"),
        ({"class_embed_type": "timestep"}, {}, "class_embed_type='timestep' must be None"),
        ({"sample_size": None}, {}, "sample_size=None does not say how large"),
        ({"out_channels": 2}, {}, "out_channels=2 must be in_channels=1"),
        ({}, {"variance_type": "learned"}, "out_channels=1 must be in_channels=1, or twice"),
        ({}, {"prediction_type": "flow"}, "prediction_type='flow' must be one of"),
        ({}, {"trained_betas": [0.1, -0.2, 0.1]}, "noise levels do not rise"),
    ],
)
def test_what_cannot_be_read(net: dict, schedule: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusersDenoiser(network(**net), scheduler(**schedule))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"null_label": 4}, "null_label=4 must be one of the network's 4 class embeddings"),
        ({"null_label": -1}, "null_label=-1 must be one of"),
        ({"class_names": ("a", "b")}, "must be empty, or 4 different names"),
        ({"class_names": "abcd"}, "class_names='abcd' must be empty, or 4 different names"),
        ({"null_label": 0, "class_names": ("a", "b", "b")}, "or 3 different names"),
        ({"null_label": 0, "class_names": ("a", "b", "c", "c")}, "or 3 different names"),
    ],
)
def test_options_must_fit_the_classes(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusersDenoiser(network(classes=4), scheduler(), **options)


def test_other_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="a Linear must be a UNet2DModel of diffusers"):
        DiffusersDenoiser(torch.nn.Linear(1, 1), scheduler())


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    net, schedule = network(), scheduler()
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match="pip install diffusers"):
        DiffusersDenoiser(net, schedule)
