"""APGD: its schedule and step sizes step by step, optima, restarts, targets, random models."""

import pytest
import torch
from torch import Tensor

from evaluation.attacks import apgd as apgd_module
from evaluation.attacks.apgd import Climb, apgd, checkpoints
from evaluation.attacks.eot import Expectation, Judgment, Model
from evaluation.attacks.losses import cross_entropy, dlr, margin, targeted_dlr, targeted_margin
from rdc.choices import Norm
from rdc.data import load
from rdc.networks.image_classifier import ImageClassifier
from rdc.norms import steepest
from tests.support.victims import IMAGES, LABELS, Linear, NoisyImages, NoisyLogits


def test_checkpoints_are_those_of_the_paper() -> None:
    """p: 0, .22, then steps shorter by .03 down to .06 (Croce & Hein 2020, section 3)."""
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(10) == [3, 5, 6, 7, 8, 9]
    assert checkpoints(1) == []


class Scripted(Expectation):
    """Says the losses that it is told to, with a gradient that always points the same way."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__(Linear())
        self.losses = iter(losses)

    def evaluate(self, images: Tensor, labels: Tensor, **_) -> Judgment:
        value = torch.tensor([next(self.losses)])
        return Judgment(value, torch.zeros(1), value)

    def gradient(self, images: Tensor, labels: Tensor, **_) -> tuple[Judgment, Tensor]:
        return self.evaluate(images, labels), torch.ones_like(images)


def step_sizes(losses: list[float]) -> list[float]:
    """The step size, in units of 2 eps, after each step of a run that sees `losses`."""
    image = torch.full((1, 1, 2, 2), 0.5)
    climb = Climb(
        Scripted(losses), image, torch.tensor([0]), [0], eps=0.25, norm="linf", loss=margin
    )
    sizes, reconsider = [], climb._reconsider

    def record(length: int) -> None:
        reconsider(length)
        sizes.append(climb.step_size.item() / 0.5)

    climb._reconsider = record  # type: ignore[method-assign]
    climb.run(len(losses) - 1)
    return sizes


def test_a_loss_that_rises_keeps_its_step() -> None:
    assert step_sizes([float(i) for i in range(101)]) == [1.0] * 8


def test_a_loss_that_stands_still_halves_its_step_at_every_checkpoint() -> None:
    assert step_sizes([0.0] * 101) == [0.5**n for n in range(1, 9)]


def test_condition_one_is_fewer_than_three_quarters_of_rising_steps() -> None:
    """The bound is 16.5 of the first 22 steps: 17 must rise."""

    def first(rising: int) -> float:
        losses = [0.0] + [-1.0 - i for i in range(22 - rising)]
        losses += [losses[-1] + 100 * (i + 1) for i in range(rising)]
        return step_sizes(losses + [losses[-1] + i for i in range(1, 79)])[0]

    assert first(17) == 1.0 and first(16) == 0.5


def test_condition_two_is_no_better_point_at_the_same_step_size() -> None:
    """Rising steps far below the best point: halved, unless the check before had halved."""
    up = [float(i) for i in range(23)]  # to the first checkpoint
    below = [-1000.0 + i for i in range(78)]
    assert step_sizes(up + below)[:4] == [1.0, 0.5, 0.5, 0.25]


def bumpy(images: Tensor) -> Tensor:
    """Two classes whose margin rises and falls many times within a ball, in no simple direction."""
    weight = torch.linspace(-2, 2, images[0].numel(), dtype=torch.float64)
    flat = images.flatten(1)
    value = (8 * flat).sin() @ weight + (flat.square() @ weight.flip(0) * 9).cos()
    return torch.stack([-value, value], 1)


def nearest(image: Tensor, x: Tensor, eps: float, norm: Norm) -> Tensor:
    """The closest point to x in ball and box; in L2, the change is shrunk until it fits, clipped to
    the box, by the factor that bisection finds."""
    if norm == "linf":
        return torch.minimum(torch.maximum(x, image - eps), image + eps).clamp(0, 1)
    whole = x.clamp(0, 1)
    if (whole - image).norm() <= eps:
        return whole
    low, high = 0.0, 1.0
    for _ in range(55):
        middle = (low + high) / 2
        fits = ((image + middle * (x - image)).clamp(0, 1) - image).norm() <= eps
        low, high = (middle, high) if fits else (low, middle)
    return (image + low * (x - image)).clamp(0, 1)


def plain(image: Tensor, start: Tensor, eps: float, steps: int, norm: Norm) -> list[Tensor]:
    """The points that algorithm 1 of the paper visits, transcribed for one image."""

    def f(x: Tensor) -> tuple[float, Tensor]:
        x = x.clone().requires_grad_()
        value = margin(bumpy(x), torch.tensor([0]))
        return value.item(), torch.autograd.grad(value.sum(), x)[0]

    def p(x: Tensor) -> Tensor:
        return nearest(image, x, eps, norm)

    size, x, before = 2 * eps, start, start
    value, g = f(x)
    top, top_value, top_g = x, value, g
    points, rises, last, halved, top_before = [x], 0, 0, False, value
    for k in range(1, steps + 1):
        z = p(x + size * (g.sign() if norm == "linf" else g / g.norm()))
        new = z if k == 1 else p(x + 0.75 * (z - x) + 0.25 * (x - before))
        before, x, old = x, new, value
        value, g = f(x)
        points.append(x)
        rises += value > old
        if value > top_value:
            top, top_value, top_g = x, value, g
        if k in checkpoints(steps):
            few = rises < 0.75 * (k - last)
            halved = few or (not halved and top_value == top_before)
            if halved:
                size, x, value, g = size / 2, top, top_value, top_g
            rises, last, top_before = 0, k, top_value
    return points


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 0.15)])
def test_visits_the_points_of_algorithm_one(norm: Norm, eps: float) -> None:
    """On a landscape where steps are halved, the run goes back and momentum carries it on."""
    image, label = IMAGES[:1], torch.tensor([0])
    for seed in range(2):
        victim = Recorded(bumpy)
        climb = Climb(victim, image, label, [seed], eps=eps, norm=norm, loss=margin)
        climb.run(60)
        expected = plain(image, victim.points[0], eps, 60, norm)
        torch.testing.assert_close(torch.cat(victim.points), torch.cat(expected))


def test_takes_no_gradient_that_no_step_follows() -> None:
    """No gradient at the last point; with several draws, at checkpoints that of the new ones."""
    image, label = IMAGES[:1], torch.tensor([0])
    for draws in (1, 2):
        victim = Recorded(NoisyImages(4, std=0.05), draws=draws)
        climb = Climb(victim, image, label, [0], eps=0.1, norm="linf", loss=margin)
        climb.run(10)
        assert sum(victim.differentiated) == 10
        assert not victim.differentiated[-1]
        assert len(victim.points) == 11 if draws == 1 else 17 <= len(victim.points) <= 29


@pytest.mark.slow
def test_from_the_same_starts_as_strong_as_the_original_in_l2(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random starts alone move a single run by several digits, so both get the same ones.

    The paths part at the first step: the original scales a change to the ball and then clips it to
    the box, which leaves part of the budget unused; here it is the closest point in both.
    """
    base = pytest.importorskip("pyautoattack.autopgd_base", reason="pyautoattack is missing")
    model = ImageClassifier.from_pretrained("digits-cnn").eval().requires_grad_(False)
    data, eps = load("digits", "test").subset(slice(24)), 0.75
    noise = torch.randn(data.images.shape, generator=torch.Generator().manual_seed(0))
    starts = (data.images + eps * steepest(noise, "l2")).clamp(0, 1)

    original = base.APGDAttack(model, n_iter=100, norm="L2", eps=eps, loss="dlr", device="cpu")
    original.init_hyperparam(data.images)
    with torch.random.fork_rng(devices=[]):
        _, standing, _, _ = original.attack_single_run(data.images, data.labels, x_init=starts)
    monkeypatch.setattr(apgd_module, "random_start", lambda *_: starts)
    victim = Expectation(model)
    climb = Climb(victim, data.images, data.labels, range(24), eps=eps, norm="l2", loss=dlr)
    left = model(climb.run(100)).argmax(1) == data.labels
    assert 0 < left.sum() <= standing.sum()


class Recorded(Expectation):
    """Remembers where it was asked, and which of these points were differentiated."""

    def __init__(self, model: Model, *, draws: int = 1) -> None:
        super().__init__(model, draws=draws)
        self.points: list[Tensor] = []
        self.differentiated: list[bool] = []

    def _means(self, images, labels, seeds, loss, targets, *, slope: bool) -> list[Tensor]:
        self.points.append(images)
        self.differentiated.append(slope)
        return super()._means(images, labels, seeds, loss, targets, slope=slope)


def test_a_worse_loss_can_be_the_misclassified_point_that_is_returned() -> None:
    """The cross-entropy steers the steps to bright images, which are classified correctly; what
    comes back are the dark starting points, which are not."""

    def model(images: Tensor) -> Tensor:
        light = images.flatten(1).mean(1)
        odds = torch.stack([torch.ones_like(light), 1.04 - 0.29 * light, 0.75 * light + 1e-9], 1)
        return odds.log()  # wrong below .138; the cross-entropy is the log of 2.04 + .46 light

    images = torch.full((40, 1, 1, 1), 0.2, dtype=torch.float64)
    labels = torch.zeros(40, dtype=torch.int64)
    assert (model(images).argmax(1) == labels).all()
    wrong = model(apgd(model, images, labels, eps=0.2, steps=10)).argmax(1) != labels
    assert 5 <= wrong.sum() <= 25


class Lucky(Expectation):
    """One point, the third, does great harm under the first draws, and under no others."""

    def __init__(self) -> None:
        super().__init__(Linear(), draws=2)
        self.points: list[Tensor] = []

    def gradient(self, images: Tensor, labels: Tensor, **_) -> tuple[Judgment, Tensor]:
        self.points.append(images)
        value = torch.tensor([100.0 if len(self.points) == 3 else float(len(self.points))])
        return Judgment(value, torch.zeros(1), value), torch.randn_like(images)

    def evaluate(self, images: Tensor, labels: Tensor, **_) -> Judgment:
        return Judgment(torch.zeros(1), torch.zeros(1), torch.zeros(1))


def test_nobody_stays_the_best_by_luck() -> None:
    victim = Lucky()
    image = torch.full((1, 1, 2, 2), 0.5)
    climb = Climb(victim, image, torch.tensor([0]), [0], eps=0.25, norm="linf", loss=margin)
    assert not torch.equal(climb.run(20), victim.points[2])


def test_aims_at_the_likeliest_classes_in_turn() -> None:
    """The class that is reached within eps is the last in the order of logits."""
    weight = torch.tensor([[0.0, 0.0], [0.0, 0.1], [0.0, 0.2], [9.0, 0.0]], dtype=torch.float64)
    bias = torch.tensor([3.0, 2.0, 1.5, -4.0], dtype=torch.float64)

    def model(images: Tensor) -> Tensor:
        return images.flatten(1) @ weight.T + bias

    image, label = torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64), torch.tensor([0])
    for loss in (targeted_dlr, targeted_margin):
        options = {"eps": 0.3, "loss": loss, "steps": 10}
        few = apgd(model, image, label, targets=2, **options)
        assert model(few).argmax(1) == label
        all_of_them = apgd(model, image, label, targets=9, **options)
        assert model(all_of_them).argmax(1) == 3


class Basins:
    """Two classes whose margin has a shallow basin on the left and a deep one on the right."""

    def __call__(self, images: Tensor) -> Tensor:
        x = images.flatten(1).mean(1)
        value = torch.maximum(-((x - 0.3) * 10).square() - 1, 1 - ((x - 0.75) * 10).square())
        return torch.stack([torch.zeros_like(value), value], 1)


def test_restarts_start_elsewhere() -> None:
    images = torch.full((30, 1, 1, 1), 0.5, dtype=torch.float64)
    labels = torch.zeros(30, dtype=torch.int64)
    counts = [
        int(Basins()(apgd(Basins(), images, labels, eps=0.3, steps=4, restarts=n)).argmax(1).sum())
        for n in (1, 10)
    ]
    assert counts[0] < counts[1] == 30


@pytest.mark.parametrize("loss", [cross_entropy, margin, dlr])
def test_noise_on_the_logits_hides_nothing(loss) -> None:
    """The optimum of a linear model behind noise is the same point, for every image: also for
    those that the noise made wrong before anybody attacked them."""
    model = NoisyLogits(std=0.5)
    clean = margin(Linear()(IMAGES), LABELS)
    slope = (model.weight[1] - model.weight[0]).sign().view(1, 1, 4, 4)
    toward = (1 - 2 * LABELS).double()[:, None, None, None]
    best = margin(Linear()(IMAGES + 0.05 * toward * slope), LABELS)
    victim = Expectation(model, draws=8)
    attacked = apgd(victim, IMAGES, LABELS, eps=0.05, loss=loss, steps=20)
    found = margin(Linear()(attacked), LABELS)
    assert ((found - clean) >= 0.99 * (best - clean)).all()


def test_a_random_climb_meets_new_draws_at_every_checkpoint() -> None:
    class Counted(NoisyLogits):
        met: set[int]

        def forward(self, images: Tensor) -> Tensor:
            self.met |= set(self.noise.seeds(len(images)))
            return super().forward(images)

    model = Counted(std=0.1)
    model.met = set()
    apgd(Expectation(model, draws=3), IMAGES[:2], LABELS[:2], eps=0.1, steps=100)
    # Two images, three draws: one set for each of nine stretches, and one for the selection.
    assert len(model.met) == 2 * 3 * 10


@pytest.mark.parametrize(("loss", "targets"), [(margin, 2), (cross_entropy, 1), (targeted_dlr, 0)])
def test_a_loss_of_the_other_kind_is_refused(loss, targets: int) -> None:
    with pytest.raises(ValueError, match=f"targets={targets}: {loss.__name__} aims at"):
        apgd(Linear(3), IMAGES, LABELS, eps=0.1, loss=loss, targets=targets)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_logits_may_have_another_precision_than_images(norm) -> None:
    """Networks in half precision have losses in float32."""
    model, images = Linear().float(), IMAGES.float()
    attacked = apgd(lambda x: model(x).double(), images, LABELS, eps=0.1, norm=norm, steps=5)
    assert attacked.dtype == torch.float32
    same = apgd(model, images, LABELS, eps=0.1, norm=norm, steps=5)
    torch.testing.assert_close(attacked, same, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"restarts": 0}, {"targets": -1}])
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        apgd(Linear(), IMAGES, LABELS, eps=0.1, **bad)
