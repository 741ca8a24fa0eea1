"""The run that every trainer shares: steps, averages, measurements, checkpoints, and the way back.

The randomness of a step (its images, noise levels, draws, augmentation) is a function of the seed
and the step alone. Any number of processes and accumulated parts therefore trains the same network,
and a run that was killed continues where its last checkpoint stands.
"""

import copy
import json
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import tqdm
from torch import Tensor, nn

from rdc.data import Dataset, Shape, Split, load
from rdc.hub.model_card import add_training
from rdc.runs.device import default_device
from rdc.runs.provenance import provenance
from training.checkpoint import Checkpoints
from training.ema import EMA
from training.interrupt import Interrupt
from training.progress import Meter, Progress

RECORD = "training.json"  # written last: a folder that has it holds a finished run
SETTINGS = "run.json"
HISTORY = "history.jsonl"
LATEST = "latest"  # the averaged model of the last measurement, until the run is finished
# What may change when a run continues; all else would make it another run.
FREE = ("out", "resume", "tracker", "checkpoint_every")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings that every trainer has."""

    out: Path
    """folder for the trained model, `training.json`, `history.jsonl` and the checkpoints"""
    data: str = "digits"
    """"digits", a folder split/class/*.png, a CIFAR Python archive, or a folder of parquet files"""
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
    """in images; with several, the average that validates best is saved"""
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
                raise ValueError(f"--{flag(name)} {getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{flag(name)} {getattr(self, name)} must be positive")
        if not self.ema_half_lives or min(self.ema_half_lives) < 0:
            raise ValueError(f"--ema-half-lives {self.ema_half_lives}: one or more, none negative")


Module = TypeVar("Module", bound=nn.Module)


class Task(ABC, Generic[Module]):
    """What one trainer adds to the run.

    `averaged` is the module whose averaged weights are measured and saved. `module` holds
    everything that learns: `averaged` itself, or a module around it.
    """

    averaged: Module
    module: nn.Module

    @abstractmethod
    def batch(self, step: int) -> Any:
        """The global batch of a step, all its randomness drawn."""

    @abstractmethod
    def losses(self, network: nn.Module, batch: Any, rows: slice) -> Tensor:
        """Losses (B,) of some rows of it; `network` is the prepared `module`."""

    @abstractmethod
    def measure(self, model: Module, data: Dataset, accelerator: Accelerator) -> dict[str, float]:
        """Figures on held-out images, higher is better; every process calls this.

        The first one decides between averages, the next ones between equals.
        """

    @abstractmethod
    def save(self, model: Module, out: Path, validation: Dataset | None) -> None:
        """Write the model, fitted to held-out images where there are some; on the main process."""

    def illustrate(self, model: Module, path: Path) -> None:
        """Write a picture of what the model has learned; on the main process."""


def flag(name: str) -> str:
    return name.replace("_", "-")


def start_accelerator(config: RunConfig) -> Accelerator:
    """An accelerator on what the machine has.

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
    parts = accelerator.num_processes * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"--batch-size {config.batch_size} must be divisible by the {parts} parts: "
            f"{accelerator.num_processes} processes x --accumulate {config.accumulate}"
        )
    return accelerator


def load_split(
    config: RunConfig, split: Split, accelerator: Accelerator, shape: Shape | None
) -> Dataset:
    """A split of the run's data; the main process decodes files first, the others share them."""
    with accelerator.main_process_first():
        return load(config.data, split, shape=shape)


class Run(Generic[Module]):
    """One training run of a task; `train()` does all of it."""

    def __init__(
        self,
        config: RunConfig,
        task: Task[Module],
        accelerator: Accelerator,
        data: Dataset,
        validation: Dataset,
    ) -> None:
        self.config, self.task, self.accelerator = config, task, accelerator
        self.data, self.validation = data, validation
        # Before the module is compiled, wrapped or sharded: this copy shows the averages.
        self.shown = copy.deepcopy(task.averaged).eval().requires_grad_(False)
        self.shown.to(accelerator.device)
        if config.compile:
            task.averaged.compile()
        task.module.to(accelerator.device)
        optimizer = torch.optim.AdamW(
            task.module.parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=accelerator.device.type == "cuda",
        )
        self.network, self.optimizer = accelerator.prepare(task.module, optimizer)
        self.ema = EMA(task.averaged, config.ema_half_lives)
        self.progress = Progress()
        self.meter = Meter(config.batch_size, accelerator)
        accelerator.register_for_checkpointing(self.ema, self.progress, self.meter)
        self.checkpoints = Checkpoints(config.out / "checkpoints", accelerator)

    def train(self) -> None:
        """Train to the last step, measure, save; or, on SIGTERM or Ctrl-C, save and exit."""
        if not self._enter_folder():
            return
        self.checkpoints.load_latest()
        self._start_trackers()
        config, done = self.config, self.progress.step
        bar = tqdm(
            range(done, config.steps), initial=done, total=config.steps,
            desc=f"training on {config.data}", unit="step",
        )  # fmt: skip
        self.network.train()
        with Interrupt(self.accelerator) as interrupt:
            for step in bar:
                self.meter.add(self.step(step))
                self.progress.step = step + 1
                last = step + 1 == config.steps
                self.meter.show(bar)
                if last or (step + 1) % config.validate_every == 0:
                    self._measure()
                signal = interrupt.asked(step + 1)
                if signal or last or (step + 1) % config.checkpoint_every == 0:
                    self.meter.agree(step + 1)
                    self.checkpoints.save(step + 1)
                if signal:
                    self._leave(signal)
        self._finish()

    def _enter_folder(self) -> bool:
        """Write the settings, or check them against those of the run that is there.

        False when that run is finished.
        """
        out = self.config.out
        settings = json.loads(json.dumps(asdict(self.config), default=str))
        known, finished = out / SETTINGS, (out / RECORD).exists()
        theirs = json.loads(known.read_text()) if known.exists() else None
        self.accelerator.wait_for_everyone()
        if (theirs or finished) and self.config.resume != "auto":
            raise ValueError(
                f"--out {out} holds a run already; continue it with --resume auto, "
                "or choose another folder"
            )
        if theirs:
            refuse_changes(theirs, settings, out)
        elif self.accelerator.is_main_process:
            out.mkdir(parents=True, exist_ok=True)
            known.write_text(json.dumps(settings, indent=2) + "\n")
        if finished:
            self.accelerator.print(f"{out} holds a finished run: nothing left to do")
        return not finished

    def _start_trackers(self) -> None:
        settings = {key: str(value) for key, value in asdict(self.config).items()}
        self.accelerator.init_trackers("rdc", config=settings)

    def step(self, step: int) -> Tensor:
        """One optimizer step; the mean loss of this process's share, on its device."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * rate(step, config)
        batch = self.task.batch(step)
        total = torch.zeros((), device=accelerator.device)
        for last, rows in self._parts():
            with nullcontext() if last else accelerator.no_sync(self.network):
                loss = self.task.losses(self.network, batch, rows).mean() / config.accumulate
                accelerator.backward(loss)
            total += loss.detach()
        accelerator.clip_grad_norm_(self.network.parameters(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(images_seen=(step + 1) * config.batch_size, batch_size=config.batch_size)
        return total

    def _parts(self) -> Iterator[tuple[bool, slice]]:
        """This process's rows of a batch, part by part, and whether it is the last part."""
        first, processes = self.accelerator.process_index, self.accelerator.num_processes
        count = self.config.accumulate
        for part in range(count):
            yield part == count - 1, slice(first + processes * part, None, processes * count)

    def _measure(self) -> None:
        """Measure the first average on validation images, and write down everything."""
        step = self.progress.step
        self.ema.copy_to(self.shown, 0)
        some = self.validation.subset(slice(self.config.validation_images))
        figures = self.meter.read(step)
        figures |= self.task.measure(self.shown, some, self.accelerator)
        self.progress.history.append({"step": step, **figures})
        self.accelerator.log(figures, step=step)
        self._keep_latest()
        if self.accelerator.is_main_process:
            self._write_history()
            self.task.illustrate(self.shown, self.config.out / "samples" / f"step_{step:08d}.png")
        self.meter.restart()

    def _keep_latest(self) -> None:
        """Write what was just copied as a model, before the run is over: in full or not at all."""
        if self.accelerator.is_main_process:
            latest, partial = self.config.out / LATEST, self.config.out / f".{LATEST}"
            shutil.rmtree(partial, ignore_errors=True)
            self.task.save(self.shown, partial, None)
            shutil.rmtree(latest, ignore_errors=True)
            partial.rename(latest)

    def _write_history(self) -> None:
        lines = (json.dumps(entry) + "\n" for entry in self.progress.history)
        (self.config.out / HISTORY).write_text("".join(lines))

    def _leave(self, signal: int) -> None:
        self.ema.copy_to(self.shown, 0)
        self._keep_latest()
        self.accelerator.print(
            f"\nstopped at step {self.progress.step}, which is saved; the same command with "
            f"--resume auto continues, and {self.config.out / LATEST} holds the model so far"
        )
        self.accelerator.end_training()
        raise SystemExit(128 + signal)

    def _finish(self) -> None:
        """Choose among the averages by the whole validation split; save the best."""
        found = []
        half_lives = self.config.ema_half_lives
        for track in range(len(half_lives)):
            self.ema.copy_to(self.shown, track)
            found.append(self.task.measure(self.shown, self.validation, self.accelerator))
        best = max(range(len(found)), key=lambda track: tuple(found[track].values()))
        self.ema.copy_to(self.shown, best)
        if self.accelerator.is_main_process:
            out = self.config.out
            self.task.save(self.shown, out, self.validation)
            record = {
                "config": asdict(self.config),
                **provenance(self.data),
                "parameters": sum(weights.numel() for weights in self.shown.parameters()),
                "processes": self.accelerator.num_processes,
                "seconds": round(self.progress.seconds(), 1),
                "ema_half_life": half_lives[best],
                **found[best],
                "averages": [
                    {"ema_half_life": half_life, **figures}
                    for half_life, figures in zip(half_lives, found, strict=True)
                ],
                "history": self.progress.history,
            }
            add_training(out, record)
            (out / RECORD).write_text(json.dumps(record, indent=2, default=str) + "\n")
            shutil.rmtree(out / LATEST, ignore_errors=True)
            print(f"saved {out}")
        self.accelerator.end_training()


def refuse_changes(theirs: dict[str, Any], settings: dict[str, Any], out: Path) -> None:
    """A run continues under the settings it began with."""
    changed = [
        f"{key}: {theirs.get(key)!r} -> {value!r}"
        for key, value in settings.items()
        if key not in FREE and value != theirs.get(key)
    ]
    if changed:
        raise ValueError(
            f"--resume auto: the run in {out} has other settings: {'; '.join(changed)}. "
            "Give the same ones, or choose another --out"
        )


def rate(step: int, config: RunConfig) -> float:
    """Learning rate in [0, 1]: linear warm-up, then half a cosine down to 0."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))
