"""The purifier: its steps written out, its exact gradient, its draws, its memory, its refusals."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.memory import peak_bytes
from purification import (
    DiffusionPurifier,
    OneShotDenoiser,
    PurifierConfig,
    TorchsdePurifier,
)
from purification.guidance import GDMP, Moment
from purification.processes import Point, discrete_points
from rdc import LikelihoodMaximizer, OptimalDenoiser
from rdc.gradients import State
from rdc.images import to_pixels, to_x
from tests.support.denoisers import Scaling
from tests.support.oracle import central_difference, some_images, two_classes
from tests.support.tiny import tiny_denoiser

PROCESSES = {
    "sde": PurifierConfig("sde"),
    "ode": PurifierConfig("ode"),
    "ddpm": PurifierConfig("ddpm"),
    "ddpm-large-clipped": PurifierConfig("ddpm", variance="large", clip=True),
    "ddim": PurifierConfig("ddim"),
    "ddim-ancestral": PurifierConfig("ddim", eta=0.7),
    "heun": PurifierConfig("heun"),
    "heun-churned": PurifierConfig("heun", churn=3.0),
}
names = pytest.mark.parametrize("name", PROCESSES)


def mixture() -> OptimalDenoiser:
    """Four Gaussians on 1x2x2 images, float64; works in inference mode."""
    x = 1.6 * some_images(4, seed=5) - 0.8
    return OptimalDenoiser(x, torch.tensor([0, 0, 1, 1]), bandwidth=0.3)


def gradient(function: Callable[[Tensor], Tensor], images: Tensor, v: Tensor) -> Tensor:
    x = images.clone().requires_grad_()
    return torch.autograd.grad((function(x) * v).sum(), x)[0]


def direction(images: Tensor) -> Tensor:
    return (some_images(len(images), tuple(images.shape[1:]), seed=11) - 0.5).to(images)


def by_hand(purifier: DiffusionPurifier, images: Tensor, *, coarse: int | None = None) -> Tensor:
    """All rounds written out with the draws of the module; `coarse`: in that many steps."""
    config, steps = purifier.config, len(purifier.process)
    process = replace(config, steps=coarse).build() if coarse else purifier.process
    x = to_x(images)
    draws = config.rounds * (1 + (steps if process.draws else 0))
    drawn = purifier.noise.normal(x, draws)

    def denoised(y: Tensor, point) -> Tensor:
        return purifier.denoiser.denoise(y / point.scale, point.sigma)

    for number in range(config.rounds):
        start = process.points[0]
        x = start.scale * x + start.deviation * drawn[:, number]
        for k in range(len(process)):
            row = config.rounds + number * steps + k * steps // len(process)
            noise = drawn[:, row] if process.draws else torch.zeros_like(x)
            x = process.step(k, x, noise, denoised)
    return to_pixels(x)


@names
@pytest.mark.parametrize("rounds", [1, 3])
def test_a_purification_is_its_steps(name: str, rounds: int) -> None:
    config = replace(PROCESSES[name], steps=5, rounds=rounds)
    purifier = DiffusionPurifier(mixture(), config)
    images = some_images(3)
    assert torch.equal(purifier(images), by_hand(purifier, images))
    states = purifier.trajectory(images)
    assert len(states) == 1 + rounds * (1 + 5)
    assert torch.equal(states[0], to_x(images))
    assert torch.equal(to_pixels(states[-1]), purifier(images))


@pytest.mark.slow
@names
@pytest.mark.parametrize("steps", [1, 2, 37])
def test_exact_gradient_is_full_back_propagation_bit_for_bit(name: str, steps: int) -> None:
    denoiser = tiny_denoiser() if steps < 10 else mixture()
    dtype = torch.float32 if steps < 10 else torch.float64
    images = some_images(2, denoiser.image_shape, dtype=dtype)
    purifier = DiffusionPurifier(denoiser, replace(PROCESSES[name], steps=steps))
    v = direction(images)
    plain = gradient(lambda x: to_pixels(purifier.trajectory(x)[-1]), images, v)
    assert plain.abs().max() > 0
    assert torch.equal(gradient(purifier, images, v), plain)


@pytest.mark.slow
def test_exact_gradient_of_a_network_in_20_steps() -> None:
    denoiser = tiny_denoiser()
    images = some_images(1, denoiser.image_shape, dtype=torch.float32)
    purifier = DiffusionPurifier(denoiser, PurifierConfig("sde", steps=20))
    plain = gradient(lambda x: to_pixels(purifier.trajectory(x)[-1]), images, direction(images))
    assert torch.equal(gradient(purifier, images, direction(images)), plain)


@names
def test_exact_gradient_equals_finite_differences(name: str) -> None:
    images, config = some_images(2), replace(PROCESSES[name], steps=4, rounds=2, clip=False)
    purifier = DiffusionPurifier(two_classes(), config)
    v = direction(images)

    def value(x: Tensor) -> Tensor:
        return (purifier(x) * v.flip(0)).sum()

    got = (gradient(purifier, images, v.flip(0)) * v).sum()
    torch.testing.assert_close(got, central_difference(value, images, v), rtol=1e-7, atol=0)


@names
def test_gradcheck(name: str) -> None:
    config = replace(PROCESSES[name], steps=3, clip=False)
    purifier = DiffusionPurifier(mixture(), config)
    assert torch.autograd.gradcheck(purifier, some_images(1).requires_grad_())


@pytest.mark.slow
@names
def test_frozen_noise_treats_an_image_alike_alone_and_in_a_batch(name: str) -> None:
    images = some_images(4, (1, 8, 8), dtype=torch.float32)
    purifier = DiffusionPurifier(tiny_denoiser(), replace(PROCESSES[name], steps=4))
    alone = torch.cat([purifier(image[None]) for image in images])
    torch.testing.assert_close(purifier(images), alone, rtol=0, atol=2e-5)


def test_fresh_noise_does_not_depend_on_the_batch() -> None:
    images, config = some_images(5), PurifierConfig(steps=3, rounds=2)
    whole = DiffusionPurifier(mixture(), config, noise="fresh", seed=4)(images)
    purifier = DiffusionPurifier(mixture(), config, noise="fresh", seed=4)
    parts = torch.cat([purifier(part) for part in images.split([2, 3])])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-12)
    assert not torch.allclose(purifier(images), parts)


@pytest.mark.parametrize("noise", ["frozen", "fresh"])
def test_a_seed_is_a_result(noise) -> None:
    images, config = some_images(2), PurifierConfig(steps=3)
    before = torch.get_rng_state()

    def purified(seed: int) -> Tensor:
        return DiffusionPurifier(mixture(), config, noise=noise, seed=seed)(images)

    assert torch.equal(purified(3), purified(3))
    assert not torch.allclose(purified(3), purified(4))
    assert torch.equal(before, torch.get_rng_state())


def test_bpda_has_the_value_and_the_identity() -> None:
    images, config = some_images(2), PurifierConfig(steps=3)
    exact = DiffusionPurifier(mixture(), config)
    bpda = DiffusionPurifier(mixture(), config, gradient="bpda")
    v = direction(images)
    assert torch.equal(bpda(images), exact(images))
    torch.testing.assert_close(gradient(bpda, images, v), v)
    assert not torch.allclose(gradient(exact, images, v), v)


@pytest.mark.parametrize("name", ["sde", "ddpm", "ddim", "heun"])
@pytest.mark.parametrize("coarse", [2, 3])
def test_surrogate_is_the_derivative_of_fewer_steps(name: str, coarse: int) -> None:
    """The value is that of all steps; the few steps take the draws of the times that they visit."""
    images = some_images(2)
    config = replace(PROCESSES[name], steps=8, rounds=2, surrogate_steps=coarse)
    exact = DiffusionPurifier(mixture(), config)
    surrogate = DiffusionPurifier(mixture(), config, gradient="surrogate")
    v = direction(images)
    leaf = images.clone().requires_grad_()
    assert torch.equal(surrogate(leaf), exact(images))
    got = gradient(surrogate, images, v)
    expected = gradient(lambda x: by_hand(exact, x, coarse=coarse), images, v)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    assert not torch.allclose(got, gradient(exact, images, v), rtol=1e-3)


def test_surrogate_of_more_steps_than_there_are_is_exact() -> None:
    images, config = some_images(2), PurifierConfig("ddpm", t_star=0.01)
    exact = DiffusionPurifier(mixture(), config)
    surrogate = DiffusionPurifier(mixture(), config, gradient="surrogate")
    v = direction(images)
    torch.testing.assert_close(gradient(surrogate, images, v), gradient(exact, images, v))


class Detached(GDMP):
    """GDMP whose increments are constants."""

    def increment(self, x: Tensor, moment: Moment, context: State, memory: State) -> Tensor:
        return super().increment(x, moment, context, memory).detach()


def test_detached_guidance_is_a_guidance_of_constants() -> None:
    images, config = some_images(2), PurifierConfig(steps=4, rounds=2)

    def purifier(term: GDMP, mode) -> DiffusionPurifier:
        return DiffusionPurifier(mixture(), config, guidance=[(300.0, term)], gradient=mode)

    detached, exact = purifier(GDMP(), "detached_guidance"), purifier(GDMP(), "exact")
    v = direction(images)
    assert torch.equal(detached(images), exact(images))
    got = gradient(detached, images, v)
    expected = gradient(purifier(Detached(), "exact"), images, v)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    assert not torch.allclose(got, gradient(exact, images, v), rtol=1e-3)


@pytest.mark.slow
def test_memory_grows_by_one_state_per_step() -> None:
    """The peak over forward and backward, 10 to 1000 steps, in bytes of autograd's tensors."""
    images = some_images(2, (3, 4, 4), dtype=torch.float32)
    state = images.numel() * 4

    def peak(steps: int, rounds: int = 1) -> int:
        config = PurifierConfig("sde", steps=steps, rounds=rounds)
        return peak_bytes(DiffusionPurifier(Scaling(4), config), images)

    peaks = [peak(steps) for steps in (10, 100, 1000)]
    assert [(b - a) / state for a, b in pairwise(peaks)] == [90, 900]
    assert (peak(10, rounds=3) - peak(10)) / state == 22


def test_memory_of_a_guided_purifier_grows_by_one_state_per_step() -> None:
    images = some_images(2, (3, 4, 4), dtype=torch.float32)

    def peak(steps: int) -> int:
        config = PurifierConfig("sde", steps=steps)
        return peak_bytes(DiffusionPurifier(Scaling(4), config, guidance=[(1.0, GDMP())]), images)

    assert (peak(60) - peak(20)) / (images.numel() * 4) == 40


@pytest.mark.slow
@given(st.integers(1, 1000), st.data())
@settings(max_examples=60, deadline=None)
def test_discrete_times_strictly_decrease(first: int, data) -> None:
    """Every t* and respacing runs from the last time of t* to the first, then to the image."""
    steps = data.draw(st.integers(1, first))
    points = discrete_points(first / 1000, steps)
    times = [round(1000 * point.t) for point in points]
    assert len(times) == steps + 1
    assert times[0] == first and times[-1] == 0
    assert steps == 1 or times[-2] == 1
    assert all(a > b for a, b in pairwise(times))
    assert points[-1].sigma == 0 and points[-1].scale == 1


def test_every_small_respacing() -> None:
    for first in range(1, 41):
        for steps in range(1, first + 1):
            times = [point.t for point in discrete_points(first / 1000, steps)]
            assert all(a > b for a, b in pairwise(times)), (first, steps)


@pytest.mark.slow
@given(st.integers(1, 1000), st.sampled_from(["sde", "ode", "heun"]), st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_continuous_times_strictly_decrease(first: int, process, steps: int) -> None:
    try:
        points = PurifierConfig(process, t_star=first / 1000, steps=steps).build().points
    except ValueError as error:
        assert "steps=" in str(error) and steps >= 100 * first - 2
        return
    assert len(points) == steps + 1
    assert all(a.t > b.t for a, b in pairwise(points))
    assert points[0].t == pytest.approx(first / 1000)


@pytest.mark.parametrize(("sigma", "where"), [(0.15, "4 of .* 1e-05"), (10, "1 of .* 0.075")])
def test_nan_names_the_step(sigma: float, where: str) -> None:
    """The denoiser is asked at sigma 0.339, 0.255, 0.174 and 0.094, and breaks below `sigma`."""
    config = PurifierConfig("sde", steps=4, rounds=3)
    purifier = DiffusionPurifier(Scaling(4, broken_below=sigma), config)
    with pytest.raises(FloatingPointError, match=f"after step {where}"):
        purifier(some_images(2, (3, 4, 4)))


def test_nan_in_the_given_images_is_said() -> None:
    images = some_images(2, (3, 4, 4))
    images[1, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="images: NaN or infinity in the pixels"):
        DiffusionPurifier(Scaling(4), PurifierConfig(steps=2))(images)


@pytest.mark.parametrize(
    "bad",
    [{"process": "dpm"}, {"t_star": 0}, {"t_star": 1.1}, {"t_star": 1e-4}, {"t_star": -0.1},
     {"t_star": float("nan")}, {"steps": 0}, {"steps": 10_000}, {"rounds": 0}, {"eta": 1.5},
     {"churn": -1}, {"variance": "tiny"}, {"surrogate_steps": 0}],
)  # fmt: skip
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"PurifierConfig: .*{next(iter(bad))}="):
        PurifierConfig(**bad)


@pytest.mark.parametrize(
    ("process", "options"),
    [("sde", {"eta": 1.0}), ("ddim", {"churn": 1.0}), ("heun", {"clip": True}),
     ("ode", {"variance": "large"})],
)  # fmt: skip
def test_settings_that_the_process_does_not_read_are_refused(process, options: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* for process='{process}'"):
        PurifierConfig(process, **options)


@pytest.mark.parametrize("process", ["ddpm", "ddim"])
def test_more_steps_than_times_are_refused(process) -> None:
    PurifierConfig(process, t_star=0.036, steps=36)
    with pytest.raises(ValueError, match="steps=37 must be None or from 1 to 36"):
        PurifierConfig(process, t_star=0.036, steps=37)


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="gradient='blind'"):
        DiffusionPurifier(mixture(), gradient="blind")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="noise='loud'"):
        DiffusionPurifier(mixture(), noise="loud")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "build",
    [DiffusionPurifier, TorchsdePurifier, lambda network: OneShotDenoiser(network, sigma=0.1)],
)
def test_a_network_that_is_no_denoiser_is_refused(build) -> None:
    with pytest.raises(ValueError, match=r"^denoiser: Linear has no image_shape, denoise; wrap"):
        build(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("channels", [1, 6])
@pytest.mark.parametrize(
    "build",
    [
        DiffusionPurifier,
        TorchsdePurifier,
        lambda network: OneShotDenoiser(network, sigma=0.1),
        LikelihoodMaximizer,
    ],
)
def test_an_estimate_of_another_shape_is_refused(build, channels: int) -> None:
    class Other(torch.nn.Module):
        image_shape = (3, 4, 4)

        def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            return x[:, :1].repeat(1, channels, 1, 1)

    with pytest.raises(ValueError, match=rf"^denoiser: denoise.* \(\d, {channels}, 4, 4\)"):
        build(Other())(torch.rand(2, 3, 4, 4))


@pytest.mark.parametrize(
    "guidance", [[GDMP()], (1.0, GDMP()), [(GDMP(), 1.0)], [("5", GDMP())], [(1.0, "gdmp")]]
)
def test_guidance_that_is_no_list_of_pairs_is_refused(guidance) -> None:
    with pytest.raises(TypeError, match=r"^guidance: .* must be a pair of a weight and a term"):
        DiffusionPurifier(mixture(), guidance=guidance)


@pytest.mark.slow
def test_other_sizes_are_resized_for_the_denoiser_and_back() -> None:
    """224 to 256 to 224, bilinear, and differentiated through both."""
    images = some_images(1, (3, 224, 224), dtype=torch.float32)
    config = PurifierConfig("ode", steps=2, resize=True)
    purifier = DiffusionPurifier(Scaling(256), config)

    def expected(x: Tensor) -> Tensor:
        x = F.interpolate(x, (256, 256), mode="bilinear", align_corners=False)
        return F.interpolate(by_hand(purifier, x), (224, 224), mode="bilinear", align_corners=False)

    assert purifier(images).shape == images.shape
    assert torch.equal(purifier(images), expected(images))
    v = direction(images)
    assert torch.equal(gradient(purifier, images, v), gradient(expected, images, v))


@pytest.mark.parametrize("t_star", [0.075, 0.1, 0.125, 0.15])
def test_discrete_noising_is_as_near_as_documented(t_star: float) -> None:
    """DiffPure's code takes DDPM's alpha-bar; we take the process that leads back."""
    ours, released = Point.at(t_star), Point.of_index(round(1000 * t_star) - 1)
    assert abs(ours.scale - released.scale) < 5e-4
    assert abs(ours.deviation - released.deviation) < 1.3e-3
    if t_star == 0.1:
        assert (round(ours.scale, 4), round(released.scale, 4)) == (0.9467, 0.9471)
        assert (round(ours.deviation, 4), round(released.deviation, 4)) == (0.3221, 0.3209)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 3), r"images: 3x3 pixels, but the denoiser takes 2x2; give resize=True"),
        ((3, 2, 2), r"images: shape \(2, 3, 2, 2\), but this model takes \(B, 1, 2, 2\)"),
        ((2, 2), r"images: shape \(2, 2, 2\), but this model takes \(B, 1, 2, 2\)"),
    ],
)
def test_images_of_another_shape_are_refused(shape, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionPurifier(mixture())(some_images(2, shape))


def test_images_are_floats() -> None:
    with pytest.raises(ValueError, match=r"images: dtype torch\.uint8"):
        DiffusionPurifier(mixture())(torch.zeros(2, 1, 2, 2, dtype=torch.uint8))


@names
def test_inference_mode_and_later_gradients(name: str) -> None:
    images = some_images(2)
    purifier = DiffusionPurifier(mixture(), replace(PROCESSES[name], steps=3))
    with torch.inference_mode():
        purified = purifier(images)
    assert torch.equal(purified, purifier(images))
    gradient(purifier, images, direction(images))  # with draws that inference mode made


@names
def test_default_device_has_no_influence(name: str) -> None:
    """ "meta" stands for any device: whatever is made on it by mistake cannot be computed with."""
    images, denoiser, config = some_images(2), mixture(), replace(PROCESSES[name], steps=3)
    expected = DiffusionPurifier(denoiser, config)(images)
    with torch.device("meta"):
        assert torch.equal(DiffusionPurifier(denoiser, config)(images), expected)
