"""Each method of guidance against its own formula."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from purification.guidance import AGDM, GDMP, ClassifierGuidance, ContrastiveGuidance, Moment
from purification.guidance.gdmp import ssim
from purification.processes import Point
from rdc.images import to_pixels, to_x
from tests.support.guides import BATCH, Flat, Smooth, given, moment, noised
from tests.support.oracle import MixtureDenoiser, some_images, two_classes


class Posterior(nn.Module):
    """The exact classifier of states at one time, as logits of images in [0, 1]."""

    def __init__(self, denoiser: MixtureDenoiser, point: Point) -> None:
        super().__init__()
        self.denoiser, self.point = denoiser, point

    def forward(self, images: Tensor) -> Tensor:
        return self.denoiser.log_density(to_x(images) / self.point.scale, self.point.sigma)


@pytest.mark.parametrize("t", [0.05, 0.2, 0.6])
def test_exact_classifier_turns_the_score_into_that_of_a_class(t: float) -> None:
    denoiser, point = two_classes(components=1), Point.at(t)
    x = 2 * some_images(4) - 1
    estimates = denoiser.denoise_classes(x / point.scale, point.sigma)
    score = point.score(x, denoiser.denoise(x / point.scale, point.sigma))
    for y in range(2):
        term = ClassifierGuidance(Posterior(denoiser, point), label="input")
        context = term.start(point.scale * denoiser.means[y].expand(4, -1, -1, -1))
        assert context[0].tolist() == [y] * 4
        guided = score + term.increment(x, Moment(0, point, None), context, ())
        torch.testing.assert_close(guided, point.score(x, estimates[:, y]), rtol=0, atol=1e-13)


def test_coup_takes_the_most_probable_class_of_the_state() -> None:
    network = Smooth()
    x = noised(6)
    coup = ClassifierGuidance(network)
    like_input = ClassifierGuidance(network, label="input")
    torch.testing.assert_close(
        coup.increment(x, moment(), (), ()),
        like_input.increment(x, moment(), like_input.start(x), ()),
    )
    y = network(to_pixels(to_x(given()))).argmax(1)
    assert torch.equal(like_input.start(to_x(given()))[0], y)


def test_agdm_is_its_formula() -> None:
    network = Smooth().eval()
    term = AGDM(network, distance_weight=0.7, class_weight=0.3)
    x_in, x = to_x(given()), noised(6)
    z, y = term.start(x_in)
    assert torch.equal(z, network(given())) and torch.equal(y, z.argmax(1))
    logits = network((x + 1) / 2)
    distance = ((z - logits) ** 2).sum(1)
    log_p = torch.stack([logits[i].log_softmax(0)[y[i]] for i in range(BATCH)])
    got = term.log_h(x, moment(), (z, y), ())
    torch.testing.assert_close(got, 0.3 * log_p - 0.7 * distance)


def test_agdm_divergence_is_from_the_given_image() -> None:
    network = Smooth().eval()
    term = AGDM(network, distance="kl", class_weight=0.0)
    p, q = (torch.distributions.Categorical(logits=network(to_pixels(x)))
            for x in (to_x(given()), noised(6)))  # fmt: skip
    expected = -torch.distributions.kl_divergence(p, q)
    got = term.log_h(noised(6), moment(), term.start(to_x(given())), ())
    torch.testing.assert_close(got, expected)


def test_agdm_features_and_their_gradient_through_the_given_image() -> None:
    network = Smooth().eval()
    term = AGDM(network, representation="features", class_weight=0.0)
    x_in = to_x(given()).requires_grad_()
    context = term.start(x_in)
    assert torch.equal(context[0], network.features(given()))
    (flowing,) = torch.autograd.grad(term.increment(noised(6), moment(), context, ()).sum(), x_in)
    assert flowing.abs().max() > 0


def test_gdmp_has_its_published_strength() -> None:
    """The strength on CIFAR-10 at time 35 is 2.4 (x_in,t - x), by the released formula."""
    point, noise = Point.of_index(35), torch.randn(1, 3, 32, 32, dtype=torch.float64)
    x_in, x = torch.zeros(1, 3, 32, 32).double(), torch.zeros(1, 3, 32, 32).double()
    got = 60000 * GDMP().increment(x, Moment(0, point, noise), (x_in,), ())
    torch.testing.assert_close(got, 2.4 * point.deviation * noise, rtol=0.05, atol=0)


def test_gdmp_strength_in_full() -> None:
    """scale(t) / batch * 2 / pixels * (target - x), for every way to set it."""
    x_in, x, here = to_x(given()), noised(6), moment()
    point, noise = here.point, here.noise
    assert noise is not None
    diffused = point.scale * x_in + point.deviation * noise
    m = 2 * (4 / 255) / 3
    scale = (1 - point.scale**2) ** 0.5 / (m * point.scale)
    for term, target, factor in (
        (GDMP(eps=4 / 255, reference_batch=7), diffused, scale / 7),
        (GDMP(eps=4 / 255, reference_batch="actual"), diffused, scale / BATCH),
        (GDMP(schedule="constant"), diffused, 1 / 100),
        (GDMP(schedule="constant", reference_batch=1, reference="clean"), x_in, 1.0),
    ):
        own = replace(here, noise=noise if term.draws else None)
        got = term.increment(x, own, (x_in,), ())
        torch.testing.assert_close(got, factor * 2 / 144 * (target - x))


def test_ssim_is_wangs_formula() -> None:
    """Window by window, with plain weighted sums."""
    x, y = to_x(some_images(2, (2, 12, 13))), to_x(some_images(2, (2, 12, 13), seed=2))
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    weight = torch.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weight = weight / weight.sum()
    for b in range(2):
        values = []
        for channel in range(2):
            for i in range(2):
                for j in range(3):
                    p = x[b, channel, i : i + 11, j : j + 11]
                    q = y[b, channel, i : i + 11, j : j + 11]
                    mp, mq = (weight * p).sum(), (weight * q).sum()
                    vp_, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
                    cov = (weight * (p - mp) * (q - mq)).sum()
                    c1, c2 = 0.02**2, 0.06**2
                    above = (2 * mp * mq + c1) * (2 * cov + c2)
                    values.append(above / ((mp**2 + mq**2 + c1) * (vp_ + vq + c2)))
        torch.testing.assert_close(ssim(x, y)[b], torch.stack(values).mean())
    torch.testing.assert_close(ssim(x, x), torch.ones(2).double())


def test_missing_network_is_named() -> None:
    terms: dict[Any, str] = {
        ClassifierGuidance: "classifier", AGDM: "network", ContrastiveGuidance: "classifier"
    }  # fmt: skip
    for term, argument in terms.items():
        with pytest.raises(ValueError, match=f"{argument}=None: guidance given without its net"):
            term(None)


@pytest.mark.parametrize(
    "bad",
    [{"distance": "l1"}, {"reference": "x"}, {"schedule": "x"}, {"eps": 0},
     {"reference_batch": 0}, {"reference_batch": "mean"}],
)  # fmt: skip
def test_bad_settings_of_gdmp_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"GDMP: {next(iter(bad))}="):
        GDMP(**bad)


@pytest.mark.parametrize(
    "bad",
    [{"distance": "l1"}, {"representation": "x"}, {"distance_weight": -1}, {"class_weight": -1},
     {"representation": "features", "distance": "kl"}],
)  # fmt: skip
def test_bad_settings_of_agdm_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=f"AGDM: {next(iter(bad))}="):
        AGDM(Smooth(), **bad)


def test_other_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"representation='features' must be .* has such a method"):
        AGDM(Flat(), representation="features")
    with pytest.raises(ValueError, match="label='true' must be"):
        ClassifierGuidance(Flat(), label="true")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images of 8x8 pixels are smaller"):
        ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))
