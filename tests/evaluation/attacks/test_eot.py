"""Expectation over transformation: means over draws that are given by seeds."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluation.attacks.apgd import apgd
from evaluation.attacks.eot import Expectation, Judgment
from evaluation.attacks.losses import cross_entropy, margin, targeted_margin
from purification import DiffusionPurifier, PurifierConfig
from rdc import Defense
from rdc.noise import using_draws
from tests.support.oracle import some_images
from tests.support.tiny import tiny_denoiser, tiny_rdc
from tests.support.victims import IMAGES, LABELS, Linear, NoisyImages, NoisyLogits

SEEDS = range(len(IMAGES))


def test_one_draw_is_the_plain_call() -> None:
    model = NoisyImages()
    victim = Expectation(model)
    assert torch.equal(victim.logits(IMAGES, seeds=SEEDS)[:, 0], model(IMAGES))
    assert Expectation.of(victim) is victim


def test_a_model_that_changes_its_images_in_place_changes_a_copy() -> None:
    network, images, options = Linear(3), IMAGES.clone(), {"seeds": SEEDS, "loss": margin}
    plain = Expectation(lambda x: network(x - 0.5))
    victim = Expectation(lambda x: network(x.sub_(0.5)))
    assert torch.equal(victim.logits(images, seeds=SEEDS), plain.logits(IMAGES, seeds=SEEDS))
    (judged, slope), (expected, true) = (
        each.gradient(images, LABELS, **options) for each in (victim, plain)
    )
    assert torch.equal(judged.loss, expected.loss) and torch.equal(slope, true)
    assert torch.equal(images, IMAGES)


def test_means_over_draws_are_those_of_the_calls_by_number() -> None:
    """Every image by itself, every draw by itself: the same logits, and their means."""
    model = NoisyImages(3)
    labels = model(IMAGES).argmax(1)
    victim = Expectation(model, draws=5, max_rows=7)
    logits = victim.logits(IMAGES, seeds=SEEDS)
    for i in (0, 13):
        for draw in range(5):
            with using_draws([(SEEDS[i] << 32) + draw + 1]):
                torch.testing.assert_close(logits[i, draw], model(IMAGES[i : i + 1])[0])
    judged = victim.evaluate(IMAGES, labels, seeds=SEEDS, loss=cross_entropy)
    losses = [cross_entropy(logits[:, draw], labels) for draw in range(5)]
    torch.testing.assert_close(judged.loss, torch.stack(losses).mean(0))
    wrong = (logits.argmax(2) != labels[:, None]).double().mean(1)
    torch.testing.assert_close(judged.wrong, wrong)
    margins = [margin(logits[:, draw], labels) for draw in range(5)]
    torch.testing.assert_close(judged.margin, torch.stack(margins).mean(0))


def test_images_share_no_draws_and_seeds_name_them() -> None:
    victim = Expectation(NoisyImages(), draws=3)
    same = IMAGES[:1].expand(2, -1, -1, -1)
    logits = victim.logits(same, seeds=[4, 9])
    assert len({tuple(row.tolist()) for row in logits.flatten(0, 1)}) == 6
    torch.testing.assert_close(logits[1:], victim.logits(same[1:], seeds=[9]))


@pytest.mark.parametrize("max_rows", [3, 37, 1000])
def test_chunks_change_nothing(max_rows: int) -> None:
    model = NoisyImages(4)
    labels, targets = model(IMAGES).topk(2, dim=1).indices.unbind(1)
    whole = Expectation(model, draws=6, max_rows=10**6)
    parts = Expectation(model, draws=6, max_rows=max_rows)
    for loss, aim in ((cross_entropy, None), (targeted_margin, targets)):
        options = {"seeds": SEEDS, "loss": loss, "targets": aim}
        (a, first), (b, second) = (v.gradient(IMAGES, labels, **options) for v in (whole, parts))
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)
        for one, other in zip(a, b, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
        for one, other in zip(b, parts.evaluate(IMAGES, labels, **options), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rdc", "purifier"])
def test_our_defenses_have_the_draws_of_their_numbers(name: str) -> None:
    """Maximization, diffusion classifier and purifier, forward and backward, in any chunks."""
    if name == "rdc":
        defense = tiny_rdc()
    else:
        purifier = DiffusionPurifier(tiny_denoiser(), PurifierConfig(steps=2))
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False))
        classifier[1].weight.data = torch.arange(192.0).sin().view(3, 64)
        defense = Defense(purifier, classifier)
    images = some_images(2, (1, 8, 8), dtype=torch.float32)
    labels = torch.tensor([0, 1])
    found = [
        Expectation(defense, draws=3, max_rows=max_rows).gradient(images, labels, seeds=[3, 4])
        for max_rows in (6, 4)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    total = torch.zeros_like(images)
    for i, seed in enumerate((3, 4)):
        for draw in range(3):
            image = images[i : i + 1].clone().requires_grad_()
            with using_draws([(seed << 32) + draw + 1]):
                value = margin(defense(image), labels[i : i + 1])
                total[i] += torch.autograd.grad(value.sum(), image)[0][0] / 3
    torch.testing.assert_close(found[0][1], total, rtol=1e-4, atol=1e-4)


def test_no_call_is_larger_than_a_chunk() -> None:
    rows = []

    def model(images: Tensor) -> Tensor:
        rows.append(len(images))
        return Linear()(images)

    for draws, max_rows in ((1, 6), (4, 6), (4, 50), (30, 6)):
        rows.clear()
        Expectation(model, draws=draws, max_rows=max_rows).evaluate(IMAGES, LABELS, seeds=SEEDS)
        assert max(rows) <= max_rows and sum(rows) == draws * 20


def test_gradient_is_that_of_the_expectation() -> None:
    """Cross-entropy of two classes under a Gaussian margin: E sigmoid(m + s n), by quadrature."""
    model = NoisyLogits(std=1.5)
    image, label = IMAGES[:1], LABELS[:1]
    right, wrong = model.weight[label], model.weight[1 - label]
    nodes = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = (-nodes.square() / 2).exp()
    gap = margin(Linear()(image), label)
    share = ((gap + 1.5 * nodes).sigmoid() * density).sum() / density.sum()
    expected = (share * (wrong - right)).view(1, 1, 4, 4)
    _, found = Expectation(model, draws=4000).gradient(image, label, seeds=[3], loss=cross_entropy)
    # One number multiplies the whole direction; its standard error is at most .5 / sqrt(4000).
    assert ((found - expected).norm() / (wrong - right).norm()) < 4 * 0.5 / 4000**0.5
    torch.testing.assert_close(found / found.norm(), expected / expected.norm())


def test_common_random_numbers_make_points_comparable() -> None:
    """Noise that would hide a difference cancels: the same seeds at both points."""
    model = NoisyLogits(std=100.0)
    victim = Expectation(model, draws=2)
    nearer = IMAGES + 1e-3 * (model.weight[0] - model.weight[1]).view(1, 4, 4)
    a, b = (victim.evaluate(x, LABELS, seeds=SEEDS).margin for x in (IMAGES, nearer))
    exact = [margin(Linear()(x), LABELS) for x in (IMAGES, nearer)]
    torch.testing.assert_close(b - a, exact[1] - exact[0])
    other = victim.evaluate(IMAGES, LABELS, seeds=range(50, 70)).margin
    assert (other - a).abs().min() > 1e-2


def test_a_model_with_a_generator_of_its_own_is_called_as_it_is() -> None:
    """Its draws are its own affair, and means over them are means."""
    victim = Expectation(nn.Sequential(nn.Dropout(0.5), Linear()).train(), draws=400)
    a, b = (victim.evaluate(IMAGES, LABELS, seeds=SEEDS) for _ in range(2))
    assert not torch.equal(a.margin, b.margin)
    # A pixel x becomes 0 or 2 x: its deviation is x, at most .65.
    spread = 0.65 * (Linear().weight[0] - Linear().weight[1]).norm()
    assert (a.margin - b.margin).abs().max() < 5 * spread * (2 / 400) ** 0.5
    fresh = Expectation(NoisyImages(noise="fresh"), draws=3)
    assert (
        fresh.logits(IMAGES, seeds=SEEDS)[:, 0] != fresh.logits(IMAGES, seeds=SEEDS)[:, 0]
    ).all()


def test_a_defense_that_votes_has_other_voters_in_every_draw() -> None:
    """Draws of a defense over copies are copies of copies; the plain call is the draw without."""
    defense = Defense(nn.Identity(), NoisyImages(), copies=3)
    victim = Expectation(defense, draws=4)
    logits = victim.logits(IMAGES, seeds=SEEDS)
    assert len({tuple(row.tolist()) for row in logits.flatten(0, 1)}) == 80
    assert torch.equal(Expectation(defense).logits(IMAGES, seeds=SEEDS)[:, 0], defense(IMAGES))
    with using_draws([0]):
        assert torch.equal(defense(IMAGES), Expectation(defense).logits(IMAGES, seeds=SEEDS)[:, 0])


def test_worse_is_more_wrong_draws_then_the_larger_margin() -> None:
    loss = torch.zeros(4)
    a = Judgment(loss, torch.tensor([0.5, 0.5, 0.5, 1.0]), torch.tensor([1.0, 2.0, 2.0, -5.0]))
    b = Judgment(loss, torch.tensor([0.5, 0.5, 0.4, 0.9]), torch.tensor([2.0, 1.0, 9.0, 9.0]))
    assert a.worse(b).tolist() == [False, True, True, True]
    assert b.worse(a).tolist() == [True, False, False, False]
    assert a.where(a.worse(b), b).wrong.tolist() == [0.5, 0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: x.flatten(1)[:, :1], "K at least 2"),
        (lambda x: x[0].flatten(1), "logits of shape"),
        (lambda x: (Linear()(x),), "model: returns tuple; it must return a tensor of logits"),
        (lambda x: torch.full((len(x), 2), torch.nan), "NaN in its logits"),
        (lambda x: torch.full((len(x), 2), torch.inf), "or infinity; nothing can be judged"),
        (lambda x: torch.full((len(x), 2), -torch.inf), "or infinity; nothing can be judged"),
        (lambda x: Linear()(x.detach()), "no way from its logits"),
        (lambda x: Linear()(x).sqrt().nan_to_num(), "NaN or infinite"),
    ],
)
def test_what_no_attack_can_judge_is_refused(model, message: str) -> None:
    with pytest.raises((ValueError, FloatingPointError), match=message):
        Expectation(model).gradient(0 * IMAGES + 0.5, LABELS, seeds=SEEDS)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("loss", [functional.cross_entropy, lambda z, y: z[:, :1]])
def test_a_loss_without_one_value_per_image_is_refused(loss, count: int) -> None:
    """The mean over a batch would be compared for all of its images at once."""
    with pytest.raises(ValueError, match=rf"loss: values of shape .* for {count} .*'none'"):
        apgd(Linear(), IMAGES[:count], LABELS[:count], eps=0.1, loss=loss)


class Coupled(Linear):
    batch_coupled = True


def test_batches_that_couple_are_refused_unless_rows_go_one_by_one() -> None:
    with pytest.raises(ValueError, match=r"max_rows=256.*max_rows=1"):
        Expectation(Coupled())
    Expectation(Coupled(), max_rows=1).evaluate(IMAGES, LABELS, seeds=SEEDS)


@pytest.mark.parametrize("bad", [{"draws": 0}, {"max_rows": 0}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Expectation(Linear(), **bad)


def test_low_precision_is_judged_in_float32() -> None:
    images = some_images(3, (1, 4, 4), dtype=torch.float32)
    half = Expectation(lambda x: Linear()(x.double()).bfloat16())
    judged = half.evaluate(images, LABELS[:3], seeds=range(3))
    assert judged.margin.dtype == torch.float32
