"""Training of denoisers: label-conditional, multi-head or with a classifier of noised images."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purification import build
from purification.noise_level import added_noise, noise_level
from rdc import Denoiser, DenoiserConfig, OptimalDenoiser, RobustDiffusionClassifier
from rdc.choices import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE
from rdc.classifier import build_classifier
from rdc.data import Dataset
from rdc.denoiser import DenoiserLike
from rdc.images import to_x
from rdc.runs.fingerprints import weights_hash
from training.augment import flip, geometry, shift
from training.batches import Batches, step_generator
from training.config import TrainConfig
from training.network import network_for
from training.objective import (
    Learner,
    NoisedBatch,
    image_losses,
    lattice_sigmas,
    leave_data,
    some_classes,
    teacher_losses,
    weighted,
)
from training.samples import save_samples
from training.task import Task
from training.temperature import fit_temperature
from training.warm_start import warm_start

PURIFIED = 16
"""Held-out images that a trained denoiser purifies, to see whether it adds noise."""


class DenoiserTask(Task[Denoiser]):
    """Denoising under EDM's weights, by images or by a teacher."""

    measured_rows = 64

    def __init__(self, config: TrainConfig, data: Dataset, device: torch.device) -> None:
        network = network_for(config.network, data, config.data)
        self.config = config = replace(config, network=network)
        torch.manual_seed(config.seed)
        # A sample suffices: sigma_data is a scale, not an estimate.
        sigma_data = to_x(data.subset(slice(10_000)).images).std().item()
        self.averaged = Denoiser(
            DenoiserConfig(config.network, round(sigma_data, 4), data.class_names)
        )
        if config.init != "none":
            warm_start(self.averaged, config.init)
        self.module = Learner(self.averaged, uncertainty=config.objective.uncertainty)
        self.teacher = build_teacher(config, data, device)
        self.batches = Batches(data, config.batch_size, config.seed, device)

    def batch(self, step: int) -> NoisedBatch:
        config, objective = self.config, self.config.objective
        generator = step_generator(config.seed, step, self.batches.device)
        images, labels = self.batches(step)
        augment = None
        size, shared = len(images), config.classifies or self.teacher is not None
        plain = round(objective.image_share * size) if shared else size
        if config.augment in ("flip", "flip-shift"):
            images = flip(images, generator)
        elif config.augment == "geometry":
            images, augment = geometry(images, config.geometry_probability, generator)
        if config.augment == "flip-shift":
            images = torch.cat([images[:plain], shift(images[plain:], generator)])
        x = to_x(images)
        if objective.off_data and plain < size:
            x = torch.cat([x[:plain], leave_data(x[plain:], 2 * objective.off_data, generator)])
        if config.classifies:
            denoised = lattice_sigmas(plain, objective.noise, generator)
            classified = lattice_sigmas(size - plain, objective.class_noise, generator)
            sigma = torch.cat([denoised, classified])
        else:
            sigma = lattice_sigmas(size, objective.noise, generator)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        noised = x + sigma[:, None, None, None] * noise
        classes, count = None, config.network.num_classes
        if config.network.conditioning == "label":
            draws = torch.rand(size, generator=generator, device=x.device)
            labels = labels.masked_fill(draws < objective.label_dropout, count)
        elif 0 < objective.teacher_classes < count:
            classes = some_classes(labels, objective.teacher_classes, count, generator)
        return NoisedBatch(x, labels, sigma, noised, plain, classes, augment)

    def losses(self, network: nn.Module, batch: NoisedBatch, rows: slice) -> Tensor:
        part = batch.part(rows)
        denoised, logits, u = network(part)
        if self.config.network.conditioning == "multihead":
            errors = self._head_errors(denoised, part)
        else:
            errors = (denoised - part.x[: len(denoised)]).square().mean((1, 2, 3))
        sigma = part.sigma[: len(errors)]
        losses = weighted(errors, sigma, self.averaged.config.sigma_data) / u.exp() + u
        if logits is None:
            return losses
        classified = F.cross_entropy(logits, part.labels[part.plain :], reduction="none")
        return torch.cat([losses, classified])

    def _head_errors(self, denoised: Tensor, part: NoisedBatch) -> Tensor:
        plain = part.plain
        errors = image_losses(denoised[:plain], part.x[:plain], part.labels[:plain])
        if self.teacher is None:
            return errors
        classes = None if part.classes is None else part.classes[plain:]
        with self._asking():
            taught = teacher_losses(
                denoised[plain:], self.teacher, part.noised[plain:], part.sigma[plain:], classes
            )
        return torch.cat([errors, taught])

    def _asking(self) -> AbstractContextManager[Any]:
        """The run's precision for a teacher that is a network; an exact one stays exact."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        if dtype is None or not isinstance(self.teacher, Denoiser):
            return nullcontext()
        return torch.autocast(self.batches.device.type, dtype)

    @torch.no_grad()
    def answers(self, model: Denoiser, data: Dataset) -> Tensor:
        """Logits (N, K) of the diffusion classifier, frozen noise and no maximization."""
        classifier = build_classifier(model, self.config.rdc.classifier)
        return classifier(data.images.to(self.batches.device)).float()

    def figures(self, answers: Tensor, labels: Tensor) -> dict[str, float]:
        posterior = answers.softmax(1)[torch.arange(len(labels)), labels]
        right = answers.argmax(1) == labels
        return {
            "validation_accuracy": right.double().mean().item(),
            "validation_posterior": posterior.mean().item(),
        }

    def save(self, model: Denoiser, out: Path, answers: Tensor | None, labels: Tensor) -> None:
        """RDC, with the temperature that fits the answers."""
        rdc = self.config.rdc
        if answers is not None:
            fitted = fit_temperature(answers, labels)
            # Equal logits have no best temperature: it may be too large for a configuration.
            best = max(LOWEST_TEMPERATURE, rdc.classifier.temperature * fitted)
            temperature = float(f"{min(HIGHEST_TEMPERATURE, best):.4g}")
            rdc = replace(rdc, classifier=replace(rdc.classifier, temperature=temperature))
        RobustDiffusionClassifier(model, rdc).save_pretrained(out)

    def inputs(self) -> dict[str, str]:
        files = {"teacher": self.config.teacher, "init": self.config.init}
        # The exact denoiser is that of the data, whose hash the run has already.
        return {
            name: source if source in ("none", "optimal") else weights_hash(source)
            for name, source in files.items()
        }

    @torch.no_grad()
    def warnings(self, model: Denoiser, data: Dataset) -> list[str]:
        """A warning if DiffPure with the model makes held-out images noisier."""
        images = data.subset(slice(PURIFIED)).images.to(self.batches.device)
        purifier = build("diffpure", model, preset="cifar10-linf", steps=20)
        purified = purifier(images).clamp(0, 1)
        before, after = (noise_level(each).mean().item() for each in (images, purified))
        warning = added_noise(before, after)
        return [] if warning is None else [f"DiffPure with 20 steps: {warning}"]

    def illustrate(self, model: Denoiser, path: Path) -> None:
        save_samples(model, path, sigmas=self.config.objective.noise.range, seed=self.config.seed)


def build_teacher(config: TrainConfig, data: Dataset, device: torch.device) -> DenoiserLike | None:
    if config.teacher == "none":
        return None
    if config.teacher == "optimal":
        return OptimalDenoiser(to_x(data.images), data.labels).to(device)
    teacher = Denoiser.from_pretrained(config.teacher).to(device)
    if config.compile:
        teacher.compile()
    expected = (data.shape, len(data.class_names))
    if (teacher.image_shape, teacher.num_classes) != expected:
        raise ValueError(
            f"--teacher {config.teacher}: images {teacher.image_shape} of {teacher.num_classes} "
            f"classes, but {config.data} has {expected}"
        )
    if data.of_classes(teacher.class_names) is not data:
        raise ValueError(
            f"--teacher {config.teacher}: its classes are in the order {teacher.class_names}, but "
            f"those of {config.data} in the order {data.class_names}; give both the same order"
        )
    return teacher
