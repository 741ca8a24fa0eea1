"""Guidance terms: their derivatives, how they enter a step, and what they leave alone."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from purification import DiffusionPurifier, PurifierConfig
from purification.guidance import (
    AGDM,
    GDMP,
    ClassifierGuidance,
    ContrastiveGuidance,
    Guidance,
    Moment,
    Potential,
)
from purification.processes import Point
from rdc import Defense, ImageClassifier, ImageClassifierConfig, vp
from rdc.gradients import State
from rdc.images import to_pixels, to_x
from tests.support.gaussian import GaussianDenoiser
from tests.support.guides import (
    ALONE,
    BATCH,
    CONFIG,
    COUPLED,
    TERMS,
    Flat,
    Smooth,
    direction,
    given,
    moment,
    noised,
    purifier,
)
from tests.support.oracle import central_difference, some_images
from tests.support.tiny import tiny_denoiser

every_term = pytest.mark.parametrize("name", TERMS)


def known(term: Guidance) -> tuple[State, State]:
    """Context and memory of a term in the middle of a purification."""
    return term.start(to_x(given())), term.begin(noised(3))


class Silent(Guidance):
    """Asks for draws and does nothing."""

    draws = True

    def increment(self, x: Tensor, moment: Moment, context: State, memory: State) -> Tensor:
        assert moment.noise is not None
        return torch.zeros_like(x)


@every_term
def test_weight_zero_is_no_guidance(name: str) -> None:
    _, term = TERMS[name]()
    unguided = purifier()(given())
    assert torch.equal(purifier((0.0, term))(given()), unguided)
    assert not torch.equal(purifier(TERMS[name]())(given()), unguided)


def test_draws_of_a_term_change_nothing_else() -> None:
    """Neither unguided states, nor those of another term that draws, nor fresh noise."""
    for noise in ("frozen", "fresh"):
        for others in ([], [(3000.0, GDMP())]):
            alone = purifier(*others, noise=noise).trajectory(given())
            for beside in ([*others, (1.0, Silent())], [(0.0, Silent()), *others]):
                states = purifier(*beside, noise=noise).trajectory(given())
                assert all(map(torch.equal, states, alone))


def test_terms_draw_from_streams_of_their_own() -> None:
    guided = purifier((1.0, Silent()), (1.0, GDMP()))
    x = to_x(given())
    draws = [noise.normal(x, 1) for noise in (guided.noise, *guided.own_noise)]
    assert len({draw.sum().item() for draw in draws}) == 3


@every_term
def test_increment_is_the_derivative_of_log_h(name: str) -> None:
    _, term = TERMS[name]()
    assert isinstance(term, Potential)
    context, memory = known(term)
    v = direction()

    def log_h(x: Tensor) -> Tensor:
        value = term.log_h(x, moment(), context, memory)
        assert value.shape == (BATCH,)
        return value.sum()

    x = noised(4)
    expected = central_difference(log_h, x, v, 1e-6)
    got = (term.increment(x, moment(), context, memory) * v).sum()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    assert expected.abs() > 1e-5


@every_term
def test_increment_has_its_own_derivative(name: str) -> None:
    """The derivative is by the state and all that the term keeps of the image and past states."""
    _, term = TERMS[name]()
    v = direction()

    def value(x: Tensor) -> Tensor:
        context, memory = term.start(x.flip(0)), term.begin(x.roll(1, 0))
        return (term.increment(noised(4) + x, moment(), context, memory) * v).sum()

    x = (0.1 * noised(5)).requires_grad_()
    (got,) = torch.autograd.grad(value(x), x)
    expected = central_difference(value, x.detach(), v, 1e-5)
    torch.testing.assert_close((got * v).sum(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("name", [*ALONE, "gdmp-actual"])
def test_gradient_of_the_whole_purifier_is_exact(name: str, rounds: int) -> None:
    config = replace(CONFIG, rounds=rounds, process="sde" if rounds == 1 else "heun")
    guided = purifier(TERMS[name](), config=config)
    v = direction()

    def value(images: Tensor) -> Tensor:
        return (guided(images) * v.flip(0)).sum()

    x = given().requires_grad_()
    (got,) = torch.autograd.grad(value(x), x)
    with torch.no_grad():
        expected = central_difference(value, given(), v, 1e-5)
    torch.testing.assert_close((got * v).sum(), expected, rtol=1e-6, atol=1e-8)


def unnoised(name: str, **options) -> DiffusionPurifier:
    """A purifier without forward noise: terms get the first state itself as the given image."""
    return purifier(TERMS[name](), config=replace(CONFIG, forward_noise=False), **options)


@pytest.mark.slow
@every_term
def test_value_does_not_depend_on_who_wants_gradients(name: str) -> None:
    guided = unnoised(name)
    expected = guided(given())
    for gradient in ("exact", "bpda", "detached_guidance", "surrogate"):
        got = unnoised(name, gradient=gradient)(given().requires_grad_())
        torch.testing.assert_close(got.detach(), expected, rtol=0, atol=1e-12)
    for noising in (guided, purifier(TERMS[name]())):
        states = noising.trajectory(given().requires_grad_())
        for state, plain in zip(states, noising.trajectory(given()), strict=True):
            torch.testing.assert_close(state.detach(), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [*ALONE, "gdmp-actual"])
def test_gradient_is_exact_where_the_state_is_the_given_image(name: str) -> None:
    guided, v = unnoised(name), direction()

    def value(images: Tensor) -> Tensor:
        return (guided(images) * v.flip(0)).sum()

    x = given().requires_grad_()
    expected = central_difference(value, given(), v, 1e-5)
    for walked in (value, lambda y: (to_pixels(guided.trajectory(y)[-1]) * v.flip(0)).sum()):
        (got,) = torch.autograd.grad(walked(x), x)
        torch.testing.assert_close((got * v).sum(), expected, rtol=1e-6, atol=1e-8)


@every_term
def test_detached_guidance_and_straight_through_are_other_gradients(name: str) -> None:
    def gradient(mode) -> Tensor:
        x = given().requires_grad_()
        value = (purifier(TERMS[name](), gradient=mode)(x) * direction()).sum()
        return torch.autograd.grad(value, x)[0]

    exact, detached, straight = map(gradient, ("exact", "detached_guidance", "bpda"))
    assert (exact - detached).norm() > 1e-3 * exact.norm()
    assert (exact - straight).norm() > 0.1 * exact.norm()
    torch.testing.assert_close(straight, direction())


class Constant(Guidance):
    """The same G everywhere."""

    g = noised(12, 1)

    def increment(self, x: Tensor, moment: Moment, context: State, memory: State) -> Tensor:
        return self.g.expand_as(x)


def first_shift(config: PurifierConfig) -> tuple[Tensor, Point, Point]:
    """Shift of the first step by G = `Constant` with weight 2, and the step's two points."""
    guided = purifier((2.0, Constant()), config=config)
    states = guided.trajectory(given())[2] - purifier(config=config).trajectory(given())[2]
    return states, guided.process.points[0], guided.process.points[1]


@pytest.mark.parametrize(("process", "share"), [("sde", 1.0), ("ode", 0.5)])
def test_guidance_adds_to_the_drift(process, share: float) -> None:
    """+ beta G dt, and half of it on the probability flow."""
    shift, here, after = first_shift(replace(CONFIG, process=process))
    rate = vp.beta(torch.tensor(here.t, dtype=torch.float64)) * (here.t - after.t)
    torch.testing.assert_close(shift, (share * rate * 2 * Constant.g).expand_as(shift))


def test_score_eps_and_image_routes_agree() -> None:
    x, x0, g = noised(1), 2 * given() - 1, noised(2)
    for point in (Point.at(0.02), Point.at(0.4), Point.of_index(99)):
        guided = x0 + point.deviation**2 / point.scale * g
        torch.testing.assert_close(point.score(x, guided), point.score(x, x0) + g)
        torch.testing.assert_close(point.eps(x, guided), point.eps(x, x0) - point.deviation * g)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_takes_the_eps_route(eta: float) -> None:
    """eps' = eps - deviation G in DDIM's own formula (Dhariwal and Nichol 2021, algorithm 2)."""
    config = replace(CONFIG, process="ddim", eta=eta)
    shift, here, after = first_shift(config)
    fresh = eta * after.deviation / here.deviation * (1 - (here.scale / after.scale) ** 2) ** 0.5
    kept = (after.deviation**2 - fresh**2) ** 0.5
    eps = -here.deviation * 2 * Constant.g
    x0 = -here.deviation * eps / here.scale
    torch.testing.assert_close(shift, (after.scale * x0 + kept * eps).expand_as(shift))


def test_ddpm_shifts_its_mean_nearly_by_variance_times_g() -> None:
    """GDMP's own route: beta G to O(beta), beta-tilde G a few percent off and more near the end."""
    config = PurifierConfig("ddpm", t_star=0.1, steps=100)
    shift, here, after = first_shift(config)
    beta = 1 - (here.scale / after.scale) ** 2

    def off(variance: float) -> float:
        return float((shift / (variance * 2 * Constant.g) - 1).abs().max())

    assert off(beta) == pytest.approx(beta / 2, rel=0.01)
    assert off(beta) < 1.1e-3
    small = replace(config, t_star=0.01, steps=10)
    assert 0.015 < off(beta * (after.deviation / here.deviation) ** 2) < 0.03
    shift, here, after = first_shift(small)
    beta = 1 - (here.scale / after.scale) ** 2
    assert 0.1 < off(beta * (after.deviation / here.deviation) ** 2) < 0.25


def test_no_signature_takes_labels() -> None:
    assert list(inspect.signature(DiffusionPurifier.forward).parameters) == ["self", "images"]
    for term in (GDMP, ClassifierGuidance, AGDM, ContrastiveGuidance):
        assert list(inspect.signature(term.start).parameters) == ["self", "x_in"]
        assert list(inspect.signature(term.begin).parameters) == ["self", "x"]
        taken = {"self", "x", "moment", "context", "memory"}
        assert set(inspect.signature(term.increment).parameters) == taken
        constructor = set(inspect.signature(term.__init__).parameters)
        assert not constructor & {"y", "labels", "target"}


@pytest.mark.parametrize("name", ALONE)
def test_an_image_is_purified_alike_alone_and_in_a_batch(name: str) -> None:
    guided = purifier(ALONE[name]())
    assert not guided.batch_coupled
    alone = torch.cat([guided(image[None]) for image in given()])
    torch.testing.assert_close(guided(given()), alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_terms_say_so(name: str) -> None:
    guided = purifier(COUPLED[name]())
    assert guided.batch_coupled
    assert (guided(given())[:2] - guided(given()[:2])).abs().max() > 1e-5


@every_term
def test_order_of_images_does_not_matter(name: str) -> None:
    """Results are equal up to rounding, which differs in the head of contrastive "batch"."""
    guided = purifier(TERMS[name]())
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(guided(given()[order]), guided(given())[order], rtol=0, atol=1e-9)


def test_gdmp_is_the_same_in_a_batch_of_64() -> None:
    denoiser = GaussianDenoiser()
    images = some_images(64, (1, 1, 2))
    guided = DiffusionPurifier(denoiser, CONFIG, guidance=[(1000.0, GDMP(reference_batch=64))])
    alone = torch.cat([guided(image[None]) for image in images])
    torch.testing.assert_close(guided(images), alone, rtol=0, atol=1e-13)


@pytest.mark.slow
@every_term
def test_no_state_survives_a_call(name: str) -> None:
    guided = purifier(TERMS[name](), config=replace(CONFIG, rounds=2))
    for images in (given(), given().flip(3)):
        fresh = purifier(TERMS[name](), config=replace(CONFIG, rounds=2))
        assert torch.equal(guided(images), fresh(images))


@pytest.mark.parametrize(
    ("process", "calls"), [("sde", 4), ("ode", 4), ("ddpm", 4), ("ddim", 4), ("heun", 7)]
)
def test_denoiser_is_called_once_per_step(process, calls: int) -> None:
    """Heun's twice but for its last; the backward pass as often again."""
    denoiser = GaussianDenoiser()
    config = replace(CONFIG, process=process, rounds=2)
    guided = DiffusionPurifier(denoiser, config, guidance=[(1.0, GDMP())])
    purified = guided(some_images(2, (1, 1, 2)).requires_grad_())
    assert denoiser.calls == 2 * calls
    purified.sum().backward()
    assert denoiser.calls == 4 * calls


@every_term
def test_inference_mode_gives_the_same_image(name: str) -> None:
    guided = purifier(TERMS[name]())
    expected = guided(given())
    assert not expected.requires_grad
    with torch.inference_mode():
        assert torch.equal(guided(given()), expected)


@every_term
def test_default_device_has_no_influence(name: str) -> None:
    guided, images = purifier(TERMS[name]()), given()
    expected = guided(images)
    with torch.device("meta"):
        assert torch.equal(guided(images), expected)


@every_term
def test_networks_are_frozen_and_stay_in_evaluation_mode(name: str) -> None:
    guided = purifier(TERMS[name]())
    guided.train()
    assert not any(parameter.requires_grad for parameter in guided.parameters())
    assert torch.equal(guided(given()), guided(given()))


@pytest.mark.parametrize("name", [n for n in TERMS if not n.startswith("gdmp")])
def test_a_guide_that_is_also_the_classifier_may_be_in_training_mode(name: str) -> None:
    """The network guides without dropout, and classifies with it."""
    guided = purifier(TERMS[name]())
    (network,) = guided.terms[0].children()
    assert isinstance(network, Smooth)

    def both() -> tuple[Tensor, Tensor]:
        x = given().requires_grad_()
        value = guided(x)
        return value, torch.autograd.grad((value * direction()).sum(), x)[0]

    expected = both()
    Defense(guided, network).train()
    assert all(map(torch.equal, both(), expected))
    assert network.training and network.drop.training


def test_flat_network_guides_nowhere() -> None:
    for term in (ClassifierGuidance(Flat()), AGDM(Flat())):
        g = term.increment(noised(4), moment(), *known(term))
        assert torch.equal(g, torch.zeros_like(g))


class Broken(Guidance):
    def increment(self, x: Tensor, moment: Moment, context: State, memory: State) -> Tensor:
        return x * float("nan")


def test_nan_of_a_term_is_named() -> None:
    with pytest.raises(FloatingPointError, match="after step 1 of round 1"):
        purifier((1.0, Broken()))(given())


def test_a_guide_for_other_images_is_refused() -> None:
    network = ImageClassifier(ImageClassifierConfig("cnn-4", 16, channels=3, num_classes=2))
    for term in (AGDM(network), ClassifierGuidance(network)):
        with pytest.raises(ValueError, match=rf"{type(term).__name__} takes images \(3, 16, 16\)"):
            DiffusionPurifier(tiny_denoiser(), guidance=[(1.0, term)])


def test_a_weight_is_finite() -> None:
    with pytest.raises(ValueError, match="guidance: the weight inf of GDMP is not finite"):
        DiffusionPurifier(tiny_denoiser(), guidance=[(float("inf"), GDMP())])
