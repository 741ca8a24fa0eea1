"""Adversarial training: attacks against closed forms, losses against their own definitions."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from rdc import ImageClassifier, ImageClassifierConfig
from tests.support.oracle import central_difference, some_images
from training.adversarial import (
    classifier_losses,
    output_distance,
    perturb,
    random_noise,
    random_start,
)
from training.objective_config import ClassifierObjectiveConfig

SHAPE = (1, 4, 4)
PGD = ClassifierObjectiveConfig("pgd", eps=0.1)
TRADES = replace(PGD, kind="trades")
EVERY = [
    replace(config, label_smoothing=0.1)
    for config in (
        ClassifierObjectiveConfig(),
        PGD,
        replace(PGD, norm="l2"),
        TRADES,
        replace(TRADES, norm="l2"),
        replace(TRADES, distance="l2"),
    )
]
attacks = pytest.mark.parametrize("config", EVERY[1:])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear() -> nn.Sequential:
    """Two classes of 4x4 images, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()


def small() -> ImageClassifier:
    """A network with batch norm whose running statistics are those of its images, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = ImageClassifier(ImageClassifierConfig("cnn-3", 4, 1, 3)).double()
    with torch.no_grad():
        for seed in range(30):
            model(some_images(20, SHAPE, seed=seed))
    return model


def smooth() -> nn.Sequential:
    """Three classes of 4x4 images, without the flat pieces on which an ascent stands still."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def batch(count: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    return some_images(count, SHAPE), torch.arange(count) % classes


def attacked(
    model: nn.Module, images: Tensor, labels: Tensor, config: ClassifierObjectiveConfig
) -> Tensor:
    start = random_start(images, config, generator())
    return perturb(model, images, labels=labels, config=config, start=start)


def losses_of(
    model: nn.Module, images: Tensor, labels: Tensor, config: ClassifierObjectiveConfig, seed=0
) -> Tensor:
    return classifier_losses(model, images, labels, config, generator(seed))


def norms(change: Tensor, config: ClassifierObjectiveConfig) -> Tensor:
    order = math.inf if config.norm == "linf" else 2
    return torch.linalg.vector_norm(change.flatten(1), order, dim=1)


# --- the attack ---


@attacks
@settings(max_examples=10, deadline=None)
@given(eps=st.just(0.0) | st.floats(1e-12, 1), steps=st.integers(1, 4), step=st.floats(0.01, 3))
def test_points_stay_in_ball_and_box(config, eps: float, steps: int, step: float) -> None:
    config = replace(config, eps=eps, attack_steps=steps, relative_step=step)
    images, labels = batch()
    images[0], images[1] = 0, 1
    points = attacked(linear(), images, labels % 2, config)
    assert norms(points - images, config).max() <= eps + 1e-12
    assert points.min() >= 0 and points.max() <= 1


@attacks
def test_the_attack_climbs_higher_than_chance(config) -> None:
    """The attack's loss is above that of twenty random points on the ball's surface."""
    model, (images, labels) = smooth(), batch()
    clean = model(images)

    def climbed(points: Tensor) -> Tensor:
        if config.kind == "pgd":
            return cross_entropy(model(points), labels, reduction="none")
        return output_distance(clean, model(points), config.distance)

    highest = climbed(images)
    for seed in range(20):
        change = torch.randn(images.shape, generator=generator(seed), dtype=torch.float64)
        change = change.sign() if config.norm == "linf" else change
        change = config.eps * change / norms(change, config)[:, None, None, None]
        highest = torch.maximum(highest, climbed((images + change).clamp(0, 1)))
    assert climbed(attacked(model, images, labels, config)).mean() > highest.mean()


def test_against_a_linear_model_the_attack_is_the_optimum() -> None:
    """The cross-entropy falls with (w_y - w_other) x alone: go against it to the ball's end."""
    model, (images, labels) = linear(), batch(20, 2)
    weights = model.get_parameter("1.weight")
    against = (weights[1 - labels] - weights[labels]).view(-1, *SHAPE).detach()
    best = (images + PGD.eps * against.sign()).clamp(0, 1)
    assert torch.equal(attacked(model, images, labels, PGD), best)
    config = replace(PGD, norm="l2", attack_steps=100)
    best = images + config.eps * against / against.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(attacked(model, images, labels, config), best)


@pytest.mark.slow
@attacks
def test_an_image_is_attacked_alike_alone_and_in_a_batch(config) -> None:
    """Given the same start and noise."""
    model, (images, labels) = small(), batch()
    starts = random_start(images, config, generator())
    noise = random_noise(images, replace(config, noise=0.2), generator(1))

    def attacked_rows(rows: slice) -> Tensor:
        return perturb(
            model, images[rows], labels=labels[rows], config=config, start=starts[rows],
            noise=noise[rows],
        )  # fmt: skip

    alone = [attacked_rows(slice(i, i + 1)) for i in range(len(images))]
    torch.testing.assert_close(attacked_rows(slice(None)), torch.cat(alone))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@attacks
def test_the_attack_leaves_nothing_behind(config) -> None:
    """Running statistics, gradients and modes are as before, also of a part that was frozen."""
    model, (images, labels) = small(), batch()
    frozen = model.network.get_submodule("layers.1").eval()
    before = state(model)
    points = attacked(model, images, labels, config)
    assert not points.requires_grad and points.grad_fn is None
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(after, before[name]) for name, after in model.state_dict().items())
    assert all(weights.grad is None for weights in model.parameters())
    assert not frozen.training
    assert all(module.training for module in model.modules() if module is not frozen)


def test_modes_come_back_after_an_error_too() -> None:
    model, (images, labels) = small(), batch()
    with pytest.raises(RuntimeError):
        attacked(model, images[:, :, :2], labels, PGD)
    assert all(module.training for module in model.modules())


@attacks
def test_the_attack_works_where_gradients_are_off(config) -> None:
    model, (images, labels) = small(), batch()
    expected = attacked(model, images, labels, config)
    with torch.no_grad():
        assert torch.equal(attacked(model, images, labels, config), expected)


# --- the randomness ---


def test_starts_are_uniform_in_the_ball() -> None:
    """Radii of uniform points in d dimensions: the share within r eps is r^d."""
    images = torch.full((4000, 1, 2, 2), 0.5, dtype=torch.float64)
    for norm in ("linf", "l2"):
        config = replace(PGD, norm=norm)
        start = random_start(images, config, generator())
        share = (norms(start, config) / config.eps).sort().values ** 4
        assert share.max() <= 1 + 1e-9
        uniform = torch.arange(4000) / 4000
        assert (share - uniform).abs().max() < 1.63 / math.sqrt(4000)  # Kolmogorov-Smirnov, 1 %


def test_noise_has_a_uniform_deviation_for_each_image_and_is_not_clipped() -> None:
    images = torch.zeros(2000, 1, 8, 8)
    config = ClassifierObjectiveConfig(noise=0.5)
    noise = random_noise(images, config, generator())
    deviations = 2 * noise.flatten(1).std(1)  # on [-1, 1]
    assert deviations.mean() == pytest.approx(0.25, abs=0.01)
    assert deviations.quantile(0.1) == pytest.approx(0.05, abs=0.01)
    seen = []

    def record(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.zeros(len(images), 2)

    labels = torch.zeros(2000, dtype=torch.int64)
    model = nn.Identity()
    model.forward = record  # type: ignore[method-assign]
    losses_of(model, images, labels, config)
    assert torch.equal(seen[0], noise)


# --- the losses ---


def test_distances_by_hand() -> None:
    clean = torch.tensor([[math.log(3.0), 0.0], [1.0, 1.0]], dtype=torch.float64)
    perturbed = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert output_distance(clean, perturbed, "kl").tolist() == pytest.approx([kl, 0])
    assert output_distance(clean, perturbed, "l2").tolist() == pytest.approx([math.log(3) ** 2, 0])
    # The first argument's probabilities are the weights.
    other_way = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert output_distance(perturbed, clean, "kl").tolist() == pytest.approx([other_way, 0])


def by_definition(
    model: nn.Module, images: Tensor, points: Tensor, labels: Tensor, config
) -> Tensor:
    """The losses for given worst points, written out."""

    def entropy(logits: Tensor) -> Tensor:
        log_p = logits.log_softmax(1)
        own = -log_p.gather(1, labels[:, None])[:, 0]
        return 0.9 * own - 0.1 * log_p.mean(1)

    if config.kind != "trades":
        return entropy(model(images if config.kind == "standard" else points))
    logits = model(torch.cat([images, points]))
    clean, found = logits[: len(images)], logits[len(images) :]
    if config.distance == "l2":
        return entropy(clean) + 6 * ((clean - found) ** 2).sum(1)
    p, q = clean.softmax(1), found.softmax(1)
    return entropy(clean) + 6 * (p * (p / q).log()).sum(1)


@attacks
def test_the_noise_is_the_same_in_the_attack_and_in_the_loss(config) -> None:
    """Without it, all that the network sees lies in the ball: each image has one draw of noise."""
    model, (images, labels), seen = smooth(), batch(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0].split(len(images))))
    config = replace(config, noise=0.5)
    losses_of(model, images, labels, config)
    noise = random_noise(images, config, generator())
    assert len(seen) == {"pgd": 11, "trades": 13}[config.kind]
    assert noise.abs().max() > 0.2
    for inputs in seen:
        assert norms(inputs.detach() - noise - images, config).max() <= config.eps + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("config", EVERY)
def test_gradients_are_those_of_the_definition(config) -> None:
    """Against finite differences of the definition, the worst images held fixed, in training."""
    model, (images, labels) = small(), batch()
    points = attacked(model, images, labels, config)
    losses = losses_of(model, images, labels, config)
    torch.testing.assert_close(losses, by_definition(model, images, points, labels, config))

    for name in ("network.layers.0.weight", "network.layers.4.bias", "network.head.weight"):
        weights = model.get_parameter(name)
        (gradient,) = torch.autograd.grad(losses.mean(), weights, retain_graph=True)
        direction = torch.randn(weights.shape, generator=generator(3), dtype=torch.float64)

        def shifted(value: Tensor, name: str = name) -> Tensor:
            changed = dict(model.named_parameters()) | {name: value}

            def functional(images: Tensor) -> Tensor:
                return torch.func.functional_call(model, changed, images)

            return by_definition(functional, images, points, labels, config).mean()  # type: ignore

        with torch.no_grad():
            expected = central_difference(shifted, weights.detach(), direction, 1e-6)
        torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("config", EVERY)
def test_running_statistics_take_in_one_batch(config) -> None:
    model, (images, labels) = small(), batch()
    counter = model.network.get_buffer("layers.1.num_batches_tracked")
    before = int(counter)
    losses_of(model, images, labels, config).mean().backward()
    assert int(counter) == before + 1


@pytest.mark.slow
def test_adversarial_training_learns() -> None:
    """Two classes that differ by 0.3 in the mean can be told apart within 0.1 of each image."""
    labels = torch.arange(32) % 2
    images = 0.1 * some_images(32, SHAPE) + 0.3 * labels.double()[:, None, None, None] + 0.3
    for config in (PGD, TRADES):
        model = small()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for step in range(12):
            optimizer.zero_grad()
            losses_of(model, images, labels, config, step).mean().backward()
            optimizer.step()
        points = attacked(model.eval(), images, labels, PGD)
        assert (model(points).argmax(1) == labels).all()


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("config", EVERY)
def test_a_distributed_model_has_the_same_gradients(config, one_process) -> None:
    """Twice in turn, as the attack must not leave the wrapper waiting; then around the wrapper."""
    images, labels = batch()
    alone, inside = small(), small()
    wrapped = DistributedDataParallel(inside)
    for seed, attacked_module in enumerate((None, None, inside)):
        losses = classifier_losses(
            wrapped, images, labels, config, generator(seed), attacked=attacked_module
        )
        for model, loss in (
            (alone, losses_of(alone, images, labels, config, seed)),
            (wrapped, losses),
        ):
            model.zero_grad()
            loss.mean().backward()
        for a, b in zip(alone.parameters(), inside.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "fgsm"}, "kind='fgsm' must be one of"),
        ({"norm": "l1"}, r"norm='l1' must be one of \('linf', 'l2'\)"),
        ({"eps": 8}, r"eps=8 must be in \[0, 1\]"),
        ({"eps": -0.1, "norm": "l2"}, r"eps=-0.1 must be in \[0, inf\]"),
        ({"attack_steps": 0}, "attack_steps=0 must be at least 1"),
        ({"relative_step": 0.0}, "relative_step=0.0 must be positive"),
        ({"weight": -1.0}, "weight=-1.0 must be 0 or positive"),
        ({"distance": "l1"}, "distance='l1' must be one of"),
        ({"noise": -1.0}, "noise=-1.0 must be 0 or positive"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0 must be in \[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifierObjectiveConfig(**changes)
    assert ClassifierObjectiveConfig("pgd", norm="l2", eps=3.0).eps == 3
    with pytest.raises(ValueError, match="left at its default for kind='standard'"):
        ClassifierObjectiveConfig("standard", eps=0.1)
    with pytest.raises(ValueError, match="left at its default for kind='pgd'"):
        ClassifierObjectiveConfig("pgd", weight=3.0)
