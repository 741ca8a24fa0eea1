"""Train a denoiser: `accelerate launch -m training.train --out runs/digits`.

One process or many see the same global batches: the rows, noise levels and draws of a step are a
function of the seed and the step alone, and each process takes its share.
"""

import json
import time
from dataclasses import asdict, dataclass, field, replace
from math import cos, pi
from pathlib import Path

import torch
import tyro
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import Tensor

from rdc import (
    Denoiser,
    DenoiserConfig,
    DiffusionClassifier,
    OptimalDenoiser,
    RDCConfig,
    RobustDiffusionClassifier,
)
from rdc.backbone import UNetConfig
from rdc.data import Dataset, load
from rdc.denoiser import DenoiserLike
from rdc.images import to_x
from rdc.provenance import provenance
from training.accelerator import start_accelerator
from training.batches import batch_rows, step_generator
from training.calibration import fit_temperature
from training.ema import EMA
from training.objective import (
    ObjectiveConfig,
    image_losses,
    lattice_sigmas,
    leave_data,
    teacher_losses,
    weighted,
)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run; the defaults train a small network on digits.

    `teacher`: "none" denoises images; "optimal" distils the exact denoiser of the training images;
    anything else is a denoiser as `Denoiser.from_pretrained` takes it.
    """

    out: Path
    """folder for the trained denoiser and `training.json`"""
    data: str = "digits"
    network: UNetConfig = field(
        default_factory=lambda: UNetConfig(
            image_size=8, channels=1, width=16, width_multipliers=(1, 2), blocks_per_level=1,
            attention_resolutions=(), head_blocks=1, head_width=8,
        )
    )  # fmt: skip
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    rdc: RDCConfig = field(default_factory=RDCConfig)
    """classifier and maximization that are saved with the network; the temperature is fitted"""
    teacher: str = "none"
    steps: int = 2000
    batch_size: int = 256
    """images per step, over all processes"""
    learning_rate: float = 2e-3
    warmup: int = 50
    """steps of linear warm-up; a cosine brings the rate to 0 afterwards"""
    ema_half_life: float = 50_000
    """in images"""
    seed: int = 0
    validate_every: int = 500
    """steps between measurements of the diffusion classifier on the validation split"""


def main(config: TrainConfig) -> None:
    """Train, validate and save; the averaged weights are what is saved."""
    accelerator = start_accelerator()
    data = load(config.data, "train")
    check(config, data, accelerator.num_processes)
    torch.manual_seed(config.seed)
    denoiser = build_denoiser(config, data)
    teacher = build_teacher(config, data, accelerator.device)
    ema = EMA(denoiser.to(accelerator.device), config.ema_half_life)
    optimizer = torch.optim.AdamW(
        denoiser.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    started = time.perf_counter()
    history = fit(config, accelerator, denoiser, teacher, optimizer, ema, data)
    if accelerator.is_main_process:
        calibrated(ema.module, config, load(config.data, "validation")).save_pretrained(config.out)
        record = {
            "config": asdict(config),
            **provenance(data),
            "processes": accelerator.num_processes,
            "seconds": round(time.perf_counter() - started, 1),
            "history": history,
        }
        (config.out / "training.json").write_text(json.dumps(record, indent=2, default=str) + "\n")
        print(f"saved {config.out}")
    accelerator.end_training()


def check(config: TrainConfig, data: Dataset, processes: int) -> None:
    """Refuse settings that do not fit the data or the processes."""
    network = config.network
    shape = (network.channels, network.image_size, network.image_size, network.num_classes)
    expected = (*data.images.shape[1:], len(data.class_names))
    if shape != expected:
        raise ValueError(
            f"--network: channels, height, width and classes are {shape}, but {config.data} has "
            f"{expected}; set --network.image-size, --network.channels, --network.num-classes"
        )
    if config.batch_size % processes:
        raise ValueError(
            f"--batch-size {config.batch_size} must be divisible by the {processes} processes"
        )
    if config.steps < 1:
        raise ValueError(f"--steps {config.steps} must be at least 1")
    if config.teacher != "none" and config.network.conditioning != "multihead":
        raise ValueError("--teacher needs --network.conditioning multihead: one output per class")


def build_denoiser(config: TrainConfig, data: Dataset) -> Denoiser:
    sigma_data = to_x(data.images).std().item()
    return Denoiser(DenoiserConfig(config.network, round(sigma_data, 4), data.class_names))


def build_teacher(config: TrainConfig, data: Dataset, device: torch.device) -> DenoiserLike | None:
    if config.teacher == "none":
        return None
    if config.teacher == "optimal":
        return OptimalDenoiser(to_x(data.images), data.labels).to(device)
    teacher = Denoiser.from_pretrained(config.teacher).to(device)
    expected = (tuple(data.images.shape[1:]), len(data.class_names))
    if (teacher.image_shape, teacher.num_classes) != expected:
        raise ValueError(
            f"--teacher {config.teacher}: images {teacher.image_shape} of {teacher.num_classes} "
            f"classes, but {config.data} has {expected}"
        )
    return teacher


def fit(
    config: TrainConfig,
    accelerator: Accelerator,
    denoiser: Denoiser,
    teacher: DenoiserLike | None,
    optimizer: torch.optim.Optimizer,
    ema: EMA[Denoiser],
    data: Dataset,
) -> list[dict[str, float]]:
    """The loop. Returns step, loss and validation accuracy at every measurement."""
    network, optimizer = accelerator.prepare(denoiser, optimizer)
    images, labels = data.images.to(accelerator.device), data.labels.to(accelerator.device)
    validation, history = load(config.data, "validation"), []
    progress = tqdm(range(config.steps), desc=f"training on {config.data}", unit="step")
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate(step, config)
        losses = step_losses(config, accelerator, network, teacher, images, labels, step)
        optimizer.zero_grad()
        accelerator.backward(losses.mean())
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        seen = (step + 1) * config.batch_size
        ema.update(denoiser, images_seen=seen, batch_size=config.batch_size)
        if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
            loss = torch.mean(accelerator.gather(losses.detach())).item()  # type: ignore[arg-type]
            logits, truth = held_out(ema.module, config, validation)
            accuracy = (logits.argmax(1) == truth).double().mean().item()
            history.append({"step": step + 1, "loss": loss, "validation_accuracy": accuracy})
            progress.set_postfix(loss=f"{loss:.4f}", accuracy=f"{accuracy:.3f}")
    return history


def rate(step: int, config: TrainConfig) -> float:
    """Learning rate in [0, 1]: linear warm-up, then half a cosine down to 0."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 * (1 + cos(pi * (step - config.warmup) / max(1, config.steps - config.warmup)))


def step_losses(
    config: TrainConfig,
    accelerator: Accelerator,
    network: torch.nn.Module,
    teacher: DenoiserLike | None,
    images: Tensor,
    labels: Tensor,
    step: int,
) -> Tensor:
    """Weighted losses of this process's rows of the step's global batch."""
    objective, size = config.objective, config.batch_size
    generator = step_generator(config.seed, step, images.device)
    rows = batch_rows(config.seed, step, size, len(labels)).to(images.device)
    x, y = to_x(images[rows]), labels[rows]
    plain = size if teacher is None else round(objective.image_share * size)
    if objective.off_data and plain < size:
        x = torch.cat([x[:plain], leave_data(x[plain:], 2 * objective.off_data, generator)])
    sigma = lattice_sigmas(size, objective.noise, generator)
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    noised = x + sigma[:, None, None, None] * noise
    if config.network.conditioning == "label":
        dropped = torch.rand(size, generator=generator, device=x.device) < objective.label_dropout
        y = y.masked_fill(dropped, config.network.num_classes)

    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    plain = len(range(size)[:plain][mine])
    x, y, sigma, noised = x[mine], y[mine], sigma[mine], noised[mine]
    denoised = network(noised, sigma, labels=y)
    if config.network.conditioning == "label":
        losses = (denoised - x).square().mean((1, 2, 3))
    else:
        losses = image_losses(denoised[:plain], x[:plain], y[:plain])
        if teacher is not None:
            of_teacher = teacher_losses(denoised[plain:], teacher, noised[plain:], sigma[plain:])
            losses = torch.cat([losses, of_teacher])
    return weighted(losses, sigma, accelerator.unwrap_model(network).config.sigma_data)


@torch.no_grad()
def held_out(denoiser: Denoiser, config: TrainConfig, data: Dataset) -> tuple[Tensor, Tensor]:
    """Logits of the diffusion classifier, frozen noise and no maximization, and the labels."""
    device = next(denoiser.parameters()).device
    classifier = DiffusionClassifier(denoiser, config.rdc.classifier)
    logits = [classifier(images.to(device)).cpu() for images in data.images.split(64)]
    return torch.cat(logits), data.labels


def calibrated(denoiser: Denoiser, config: TrainConfig, data: Dataset) -> RobustDiffusionClassifier:
    """RDC with the temperature that fits the held-out images."""
    temperature = config.rdc.classifier.temperature * fit_temperature(
        *held_out(denoiser, config, data)
    )
    classifier = replace(config.rdc.classifier, temperature=float(f"{temperature:.4g}"))
    return RobustDiffusionClassifier(denoiser, replace(config.rdc, classifier=classifier))


if __name__ == "__main__":
    main(tyro.cli(TrainConfig))
