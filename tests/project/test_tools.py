"""Attack libraries take our defenses as they are, each by its own calling convention."""

import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.attacks.losses import cross_entropy
from evaluation.attacks.pgd import pgd
from purification import DiffusionPurifier, PurifierConfig
from rdc import (
    ClassifierConfig,
    Defense,
    Denoiser,
    ImageClassifier,
    MaximizationConfig,
    RDCConfig,
    RobustDiffusionClassifier,
)
from rdc.choices import NoiseMode
from rdc.data import load
from tests.support.optional import installed

pytestmark = pytest.mark.slow

DIGITS = load("digits", "test").subset(slice(40))
EPS = 0.2


@pytest.fixture(autouse=True)
def _unchanged() -> Iterator[None]:
    """The libraries draw from the global generators, and AutoAttack switches tracing off."""
    tracer, state = sys.gettrace(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)
        yield
    np.random.set_state(state)
    sys.settrace(tracer)


# --- the defenses ---


def cnn() -> nn.Module:
    return ImageClassifier.from_pretrained("digits-cnn")


def rdc(noise: NoiseMode = "frozen") -> nn.Module:
    """RDC with fewer levels and steps than the packaged settings, which are slower."""
    config = RDCConfig(
        ClassifierConfig(levels=4, sigma_min=0.7),
        MaximizationConfig(steps=3, budget=0.1, momentum=0, sigma_min=0.6, sigma_max=1.0),
    )
    denoiser = Denoiser.from_pretrained("digits")
    return RobustDiffusionClassifier(denoiser, config, noise=noise).eval()


def diffpure(noise: NoiseMode = "frozen") -> nn.Module:
    settings = PurifierConfig("sde", t_star=0.1, steps=5)
    purifier = DiffusionPurifier(Denoiser.from_pretrained("digits"), settings, noise=noise)
    return Defense(purifier, cnn()).eval()


# --- the libraries: (model, images, labels, eps, steps) -> attacked images ---


def autoattack(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    tool = installed("pyautoattack")
    attack = tool.AutoAttack(model, eps=eps, version="custom", attacks=["apgd-ce"], seed=0)
    attack.apgd.n_iter, attack.apgd.n_restarts = steps, 1
    return attack.run_standard_evaluation(images, labels, batch_size=len(images))[0]


def torchattacks(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int
) -> Tensor:
    attack = installed("torchattacks").PGD(model, eps=eps, alpha=2.5 * eps / steps, steps=steps)
    return attack(images, labels)


def foolbox(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    tool = installed("foolbox")
    attack = tool.attacks.LinfPGD(steps=steps, rel_stepsize=2.5 / steps)
    wrapped = tool.PyTorchModel(model, bounds=(0, 1))
    _, attacked, fooled = attack(wrapped, images, labels, epsilons=eps)
    assert torch.equal(~fooled, right(model, attacked, labels))
    return attacked


def art(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    tool = installed("art.estimators.classification").PyTorchClassifier
    wrapped = tool(
        model, nn.CrossEntropyLoss(), tuple(images.shape[1:]), nb_classes=10, clip_values=(0, 1)
    )
    attack = installed("art.attacks.evasion").ProjectedGradientDescent(
        wrapped, eps=eps, eps_step=2.5 * eps / steps, max_iter=steps, verbose=False
    )
    attacked = attack.generate(images.numpy(), labels.numpy())
    torch.testing.assert_close(
        torch.from_numpy(wrapped.predict(attacked)), logits(model, torch.from_numpy(attacked))
    )
    return torch.from_numpy(attacked)


TOOLS = (autoattack, torchattacks, foolbox, art)


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


def right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return logits(model, images).argmax(1) == labels


# --- the tests ---


@pytest.mark.parametrize("defense", [cnn, rdc, diffpure])
@pytest.mark.parametrize("tool", TOOLS)
def test_attacks_find_the_gradient(
    tool: Callable[..., Tensor], defense: Callable[[], nn.Module]
) -> None:
    """Images in ball and box that raise the loss, and a model that is as it was."""
    model, images, labels = defense(), DIGITS.images[:3], DIGITS.labels[:3]
    given, expected = images.clone(), logits(model, images)
    attacked = tool(model, images, labels, EPS, 2)
    assert (attacked.dtype, attacked.shape) == (torch.float32, images.shape)
    assert (attacked - images).abs().max() <= EPS + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    before, after = (F.cross_entropy(logits(model, x), labels).item() for x in (images, attacked))
    assert after > before + 0.5
    assert torch.equal(images, given)
    assert torch.equal(logits(model, images), expected)
    assert not model.training
    assert all(weights.grad is None for weights in model.parameters())


@pytest.mark.parametrize("tool", TOOLS)
def test_robust_accuracy_is_ours(tool: Callable[..., Tensor]) -> None:
    """The tool's count of right answers is within two of 40 of that of our PGD on its loss."""
    model, images, labels = cnn(), DIGITS.images, DIGITS.labels
    theirs = right(model, tool(model, images, labels, 0.1, 20), labels).sum().item()
    found = pgd(model, images, labels, eps=0.1, steps=20, loss=cross_entropy)
    ours = right(model, found, labels).sum().item()
    assert 10 < ours < 38
    assert abs(theirs - ours) <= 2


@pytest.mark.parametrize(
    ("defense", "said"),
    [
        (cnn, []),
        (diffpure, []),
        (rdc, ["dynamic"]),
        (lambda: diffpure("fresh"), ["randomized"]),
        (lambda: rdc("fresh"), ["randomized", "dynamic"]),
    ],
    ids=["cnn", "diffpure", "rdc", "diffpure-fresh", "rdc-fresh"],
)
def test_what_autoattack_says(
    defense: Callable[[], nn.Module], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """examples/README.md explains it."""
    tool: Any = installed("pyautoattack")
    counts = installed("pyautoattack.checks").funcs
    counts.update(dict.fromkeys(counts, 0))  # they are of the process, and never reset
    checks = tool.AutoAttack(defense(), eps=EPS, version="custom", attacks=[])
    with caplog.at_level(logging.WARNING, logger="auto-attack"):
        checks.run_standard_evaluation(DIGITS.images[:2], DIGITS.labels[:2])
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == len(said), warned
    for word, message in zip(said, warned, strict=True):
        assert f"it seems to be a {word} defense!" in message


def test_loaded_defenses_are_in_evaluation_mode() -> None:
    """foolbox warns about others."""
    assert not RobustDiffusionClassifier.from_pretrained("digits").training
    assert not cnn().training
