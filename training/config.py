"""Settings that every trainer has, and what follows from them alone."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accelerate import Accelerator, DistributedType
from accelerate.tracking import get_available_trackers

from rdc.data import Dataset, load
from rdc.runs.device import default_device
from rdc.runs.settings import flag

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings that every trainer has."""

    out: Path
    """folder for the trained model, `training.json`, `history.jsonl` and the checkpoints"""
    data: str = "digits"
    """"digits", a folder split/class/*.png, a CIFAR Python archive, or a folder of parquet files"""
    resize: int | None = None
    """resize and crop the images of a folder to this side; by default they are taken as they are"""
    channels: Literal[1, 3] = 3
    """gray or color images, where they are resized"""
    steps: int = 2000
    batch_size: int = 256
    """images per step, over all processes"""
    accumulate: int = 1
    """parts into which each process cuts its share of a step, where memory is short"""
    learning_rate: float = 2e-3
    warmup: int = 50
    """steps of linear warm-up; a cosine brings the rate to 0 afterwards"""
    weight_decay: float = 0.01
    clip: float = 1.0
    """largest norm of the gradient"""
    ema_half_lives: tuple[float, ...] = (50_000,)
    """half-lives in images; of several averages the one that validates best is saved"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    """compile the network with torch.compile: minutes at the start, faster steps"""
    seed: int = 0
    validate_every: int = 500
    """steps between measurements on the validation split"""
    validation_images: int = 1000
    """images of these measurements; the last one takes the whole split"""
    checkpoint_every: int = 500
    resume: Literal["never", "auto"] = "never"
    """auto: continue the run in `out` from its last checkpoint, or start it"""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulate", "validate_every", "checkpoint_every")
        for name in (*counts, "validation_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{flag(name)} {getattr(self, name)} must be at least 1")
        if self.resize is not None and self.resize < 1:
            raise ValueError(f"--resize {self.resize} must be at least 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{flag(name)} {getattr(self, name)} must be positive")
        if not self.ema_half_lives or min(self.ema_half_lives) < 0:
            raise ValueError(f"--ema-half-lives {self.ema_half_lives}: one or more, none negative")


def start_accelerator(config: RunConfig) -> Accelerator:
    """An accelerator on the machine's devices.

    Without a GPU, accelerate joins several processes only when told that it is on a CPU; left to
    itself each of them would train alone.
    """
    cpu = default_device().type == "cpu"
    if cpu and config.precision == "fp16":
        raise ValueError("--precision fp16 needs a GPU; on a CPU use bf16 or no")
    tracker = None if config.tracker == "none" else config.tracker
    # accelerate drops a tracker that is not installed without a word.
    if tracker and tracker not in [str(name.value) for name in get_available_trackers()]:
        raise ValueError(f"--tracker {tracker} is not installed: pip install {tracker}")
    accelerator = Accelerator(
        cpu=cpu, mixed_precision=config.precision, log_with=tracker, project_dir=config.out
    )
    if accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"accelerate is configured for {accelerator.distributed_type.value}, but training uses "
            "DistributedDataParallel alone: give accelerate launch --multi_gpu"
        )
    parts = accelerator.num_processes * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"--batch-size {config.batch_size} must be divisible by the {parts} parts: "
            f"{accelerator.num_processes} processes x --accumulate {config.accumulate}"
        )
    return accelerator


def load_data(config: RunConfig, accelerator: Accelerator) -> tuple[Dataset, Dataset]:
    """Training and validation images, square and of one shape.

    The main process decodes files first; the others share them.
    """
    size = config.resize
    shape = None if size is None else (config.channels, size, size)
    with accelerator.main_process_first():
        data = load(config.data, "train", shape=shape, resize=size is not None)
        validation = load(config.data, "validation", shape=data.shape, resize=size is not None)
    for note in {*data.notes, *validation.notes}:
        accelerator.print(note)
    _, height, width = data.shape
    if height != width:
        raise ValueError(
            f"--data {config.data}: the images are {height}x{width}; give --resize to crop them"
        )
    return data, validation


def rate(step: int, config: RunConfig) -> float:
    """Learning rate in [0, 1]: linear warm-up, then half a cosine down to 0."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))
