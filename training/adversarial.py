"""Objectives of classifiers: standard training, and adversarial training (PGD, TRADES)."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.networks.evaluating import evaluating
from rdc.norms import project, steepest
from training.objective_config import ClassifierObjectiveConfig, Distance

CROSS_ENTROPY = partial(F.cross_entropy, reduction="none")


def classifier_losses(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: ClassifierObjectiveConfig,
    generator: torch.Generator,
    *,
    attacked: nn.Module | None = None,
) -> Tensor:
    """Losses (B,) of images (B, C, H, W) in [0, 1] with labels (B,), to be minimized.

    `attacked` is the module that the attack differentiates: where `model` is wrapped for several
    processes, the one inside, whose passes need no communication.

    TRADES' own code passes the images and the perturbed ones one after the other. Here they are one
    batch of 2 B rows: batch norm then has the statistics of the mixture in training too, which are
    those that it has in evaluation, and DistributedDataParallel gets the one pass before a backward
    pass that its shared buffers allow. The graph goes through both outputs, not through the attack.

    Noisy images are not clipped to [0, 1], because those of a diffusion process are not either.
    """
    noise = random_noise(images, config, generator)
    if config.kind == "standard":
        return _cross_entropy(model(images + noise), labels, config)
    attacked = model if attacked is None else attacked
    start = random_start(images, config, generator)
    perturbed = perturb(attacked, images, labels=labels, config=config, start=start, noise=noise)
    if config.kind == "pgd":
        return _cross_entropy(model(perturbed + noise), labels, config)
    both = torch.cat([images + noise, perturbed + noise])
    clean_logits, perturbed_logits = model(both).chunk(2)
    apart = output_distance(clean_logits, perturbed_logits, config.distance)
    return _cross_entropy(clean_logits, labels, config) + config.weight * apart


def perturb(
    model: nn.Module,
    images: Tensor,
    *,
    labels: Tensor,
    config: ClassifierObjectiveConfig,
    start: Tensor,
    noise: Tensor | float = 0.0,
    loss: Callable[[Tensor, Tensor], Tensor] = CROSS_ENTROPY,
) -> Tensor:
    """The worst images (B, C, H, W) that the attack of `config` finds, in its ball and in [0, 1].

    Projected gradient ascent from `images + start` (`random_start`), signed steps for "linf" and
    normalized ones for "l2"; the last point, as in both papers. It climbs the cross-entropy, or
    another `loss` (B,) of logits and labels; for "trades" the distance from the outputs for
    `images`. `noise` is added to what the network sees, the same in every step (as Salman et al.
    2019 do). The network is in evaluation mode meanwhile: its running statistics stay, and nothing
    accumulates in the gradients of its weights.
    """
    with evaluating(model):
        climbed = _attacked_loss(model, images, labels, config, noise, loss)
        point = project(images + start, images, config.eps, config.norm)
        for _ in range(config.attack_steps):
            ahead = point + _step(climbed, point, config)
            point = project(ahead, images, config.eps, config.norm)
    return point


def random_noise(
    images: Tensor, config: ClassifierObjectiveConfig, generator: torch.Generator
) -> Tensor:
    """Gaussian noise (B, C, H, W) on the [0, 1] scale; its deviation is each image's own."""
    if not config.noise:
        return torch.zeros_like(images)
    std = config.noise / 2 * _uniform((len(images), 1, 1, 1), images, generator)
    return std * _normal(images, generator)


def random_start(
    images: Tensor, config: ClassifierObjectiveConfig, generator: torch.Generator
) -> Tensor:
    """Start of the attack, relative to the images (B, C, H, W).

    Uniform in the ball; for "trades" 0.001 N(0, I) as in the paper, because the distance has no
    gradient at the image itself.
    """
    if config.kind == "trades":
        return 0.001 * _normal(images, generator)
    if config.norm == "linf":
        return config.eps * (2 * _uniform(images.shape, images, generator) - 1)
    direction = _normal(images, generator)
    # The share of the ball within r eps is r^d.
    r = _uniform((len(images), 1, 1, 1), images, generator) ** (1 / images[0].numel())
    return config.eps * r * steepest(direction, "l2")


def output_distance(clean: Tensor, perturbed: Tensor, distance: Distance) -> Tensor:
    """(B,) from two sets of logits (B, K): KL(p || p') in nats, or the squared L2 distance."""
    if distance == "l2":
        return (clean - perturbed).square().sum(1)
    log_p, log_q = clean.log_softmax(1), perturbed.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def _cross_entropy(logits: Tensor, labels: Tensor, config: ClassifierObjectiveConfig) -> Tensor:
    smoothing = config.label_smoothing
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def _attacked_loss(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: ClassifierObjectiveConfig,
    noise: Tensor | float,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor], Tensor]:
    """The function that the attack maximizes: points (B, C, H, W) to (B,)."""
    if config.kind != "trades":
        return lambda points: loss(model(points + noise), labels)
    with torch.no_grad():
        clean = model(images + noise)
    return lambda points: output_distance(clean, model(points + noise), config.distance)


def _step(
    loss: Callable[[Tensor], Tensor], points: Tensor, config: ClassifierObjectiveConfig
) -> Tensor:
    """One step of steepest ascent in the norm of the ball."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        # Only the images' gradient: that of the weights is neither computed nor added up.
        (gradient,) = torch.autograd.grad(loss(points).sum(), points)
    return config.relative_step * config.eps * steepest(gradient, config.norm)


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    draws = torch.rand(shape, generator=generator, dtype=like.dtype, device=generator.device)
    return draws.to(like.device)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    on = {"generator": generator, "device": generator.device}
    return torch.randn(like.shape, dtype=like.dtype, **on).to(like.device)
