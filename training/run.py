"""The run that every trainer shares: steps, averages, measurements, checkpoints, and their order.

The randomness of a step (its images, noise levels, draws, augmentation) is a function of the seed
and the step alone. Any number of processes and accumulated parts therefore trains the same network,
except where dropout, batch norm or an attack's draws depend on the parts. A run that was killed
continues from its last checkpoint.
"""

import copy
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from typing import Any, Generic

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, tqdm
from torch import Tensor

from rdc.commands.info import commands
from rdc.data import Dataset
from rdc.hub.checkpoint import RDC_SETTINGS
from rdc.hub.model_card import add_training
from rdc.hub.weights import TRAINING
from rdc.runs.atomic import replacing, write_atomically, write_json
from rdc.runs.exclusive import exclusive
from rdc.runs.fingerprints import data_fingerprint
from rdc.runs.provenance import provenance
from rdc.runs.settings import lock_settings
from training.batches import seed_layers
from training.card import described
from training.checkpoint import Checkpoints, OptimizerState, Part
from training.config import RunConfig, rate
from training.distributed import on_main
from training.ema import EMA
from training.flop import flop_per_image
from training.interrupt import Interrupt
from training.progress import Meter, Progress, in_words
from training.task import Module, Task

SETTINGS = "run.json"
HISTORY = "history.jsonl"
LATEST = "latest"  # the averaged model of the last measurement, until the run is finished
# Settings that may change when a run continues. Data, teacher and start are known by their hashes.
FREE = ("out", "data", "teacher", "init", "resume", "tracker", "checkpoint_every")


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
        # Before the module is compiled or wrapped: this copy shows the averages.
        self.shown = copy.deepcopy(task.averaged).eval().requires_grad_(False)
        self.shown.to(accelerator.device)
        task.module.to(accelerator.device)
        parts = accelerator.num_processes * config.accumulate
        self.flop_per_image = flop_per_image(task, slice(0, None, parts))
        if config.compile:
            task.averaged.compile()
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
        state: dict[str, Part] = {
            "model": task.module, "optimizer": OptimizerState(optimizer, task.module),
            "average": self.ema, "progress": self.progress, "meter": self.meter,
        }  # fmt: skip
        if accelerator.scaler is not None:
            state["scaler"] = accelerator.scaler
        self.checkpoints = Checkpoints(config.out / "checkpoints", accelerator, state)

    def train(self) -> None:
        """Train to the last step, measure, save; or, on SIGTERM or Ctrl-C, save and exit."""
        with ExitStack() as alone:
            on_main(self.accelerator, lambda: self._enter_folder(alone))
            self._train()

    def _train(self) -> None:
        if (self.config.out / TRAINING).exists():
            self.accelerator.print(f"{self.config.out} holds a finished run: nothing left to do")
            return
        self.checkpoints.load_latest()
        config, done = self.config, self.progress.step
        settings = {key: str(value) for key, value in asdict(config).items()}
        self.accelerator.init_trackers("rdc", config=settings)
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
                    self._measure(bar)
                signal = interrupt.asked(step + 1)
                if signal or last or (step + 1) % config.checkpoint_every == 0:
                    self.meter.agree(step + 1)
                    self.checkpoints.save(step + 1)
                if signal:
                    self._leave(signal)
        self._finish()

    def _enter_folder(self, alone: ExitStack) -> None:
        """Write settings and hashes, or compare them with those of the run that is there.

        The context `alone` keeps other starts out of the folder.
        """
        out = self.config.out
        alone.enter_context(exclusive(out))
        if (out / SETTINGS).exists() and self.config.resume != "auto":
            raise ValueError(
                f"--out {out} holds a run already; continue it with --resume auto, "
                "or choose another folder"
            )
        # Kept for the record: files may be gone when the run is over.
        self.inputs = self.task.inputs()
        inputs = {
            "data": data_fingerprint(self.data),
            "validation data": data_fingerprint(self.validation),
            **self.inputs,
        }
        lock_settings(out, self.config, inputs=inputs, file=SETTINGS, free=FREE)
        if (out / TRAINING).exists():
            shutil.rmtree(out / LATEST, ignore_errors=True)

    def step(self, step: int) -> Tensor:
        """One optimizer step; the mean loss of this process's share, on its device."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * rate(step, config)
        seed_layers(config.seed, step, accelerator.process_index)
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
        """Yield for each part of a batch True if it is the last, and this process's rows of it."""
        first, processes = self.accelerator.process_index, self.accelerator.num_processes
        count = self.config.accumulate
        for part in range(count):
            yield part == count - 1, slice(first + processes * part, None, processes * count)

    def _show(self, track: int) -> None:
        """Copy the averages of a track to `shown`, the same in all processes; all call this.

        Running statistics are those of the main process, which saves: each has its own.
        """
        self.ema.copy_to(self.shown, track)
        broadcast([*self.shown.buffers()])

    def _answers(self, data: Dataset, label: str | None = None) -> Tensor:
        """Answers (N, columns) of the copied averages, of which each process computes its share.

        With a label, a progress bar shows how far they are.
        """
        first, processes = self.accelerator.process_index, self.accelerator.num_processes
        parts = torch.arange(len(data))[first::processes].split(self.task.measured_rows)
        mine = torch.cat(
            [
                self.task.answers(self.shown, data.subset(rows))
                for rows in tqdm(parts, desc=label, disable=label is None, unit="batch")
            ]
        )
        answers = mine.new_zeros(len(data), mine.shape[1])
        answers[first::processes] = mine
        return torch.as_tensor(self.accelerator.reduce(answers, "sum")).cpu()

    def _measure(self, bar: Any) -> None:
        """Measure the first average on validation images; write and show the figures."""
        step, config = self.progress.step, self.config
        self._show(0)
        some = self.validation.subset(slice(config.validation_images))
        figures = self.meter.read(step)
        figures |= self.task.figures(self._answers(some), some.labels)
        images = step * config.batch_size
        before = self.progress.history[-1]["step"] if self.progress.history else 0
        self.progress.history.append(
            {"step": step, "images": images, "flop": images * self.flop_per_image, **figures}
        )
        self.accelerator.log(figures, step=step)
        if self.accelerator.is_main_process:
            bar.write(f"step {step} of {config.steps}: {in_words(figures)}")
            self._keep_latest()
            lines = (json.dumps(entry) + "\n" for entry in self.progress.history)
            with self.checkpoints.writing(f"the measurement of step {step}"):
                write_atomically(config.out / HISTORY, "".join(lines))
                if picture_is_due(before, step, config.steps):
                    file = config.out / "samples" / f"step_{step:08d}.png"
                    self.task.illustrate(self.shown, file)
        self.meter.restart()

    def _keep_latest(self) -> None:
        """Save the copied averages as a model, before the run is over."""
        latest, writing = self.config.out / LATEST, self.checkpoints.writing("the model so far")
        with writing, replacing(latest) as folder:
            self.task.save(self.shown, folder, None, self.validation.labels)

    def _leave(self, signal: int) -> None:
        self._show(0)
        if self.accelerator.is_main_process:
            self._keep_latest()
        self.accelerator.print(
            f"\nstopped at step {self.progress.step}, which is saved; the same command with "
            f"--resume auto continues, and {self.config.out / LATEST} holds the model so far"
        )
        self.accelerator.end_training()
        raise SystemExit(128 + signal)

    def _finish(self) -> None:
        """Choose among the averages by the whole validation split; save the best."""
        labels, half_lives = self.validation.labels, self.config.ema_half_lives
        answers = []
        for track, half_life in enumerate(half_lives):
            self._show(track)
            label = f"held-out images, average of half-life {half_life:g}"
            answers.append(self._answers(self.validation, label))
        found = [self.task.figures(each, labels) for each in answers]
        best = max(range(len(found)), key=lambda track: tuple(found[track].values()))
        self._show(best)
        if self.accelerator.is_main_process:
            with self.checkpoints.writing("the trained model"):
                self._save(found, best, answers[best])
            print(
                f"{in_words(found[best])} on {len(self.validation)} held-out images; "
                f"the model is in {self.config.out}. Next:"
            )
            classifies = (self.config.out / RDC_SETTINGS).is_file()
            for line in commands(str(self.config.out), self.shown, classifies=classifies):
                print(f"  {line}")
            for warning in self.task.warnings(self.shown, self.validation):
                print(f"warning: {warning}", file=sys.stderr)
        self.accelerator.end_training()

    def _save(self, found: list[dict[str, float]], best: int, answers: Tensor) -> None:
        out, half_lives = self.config.out, self.config.ema_half_lives
        self.task.save(self.shown, out, answers, self.validation.labels)
        record = {
            "config": asdict(self.config),
            **provenance(self.data),
            "inputs": self.inputs,
            "parameters": sum(weights.numel() for weights in self.shown.parameters()),
            "flop_per_image": self.flop_per_image,
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
        add_training(out, described(self.config, record, found[best]))
        write_json(out / TRAINING, record)  # last: a folder that has it holds a finished run
        shutil.rmtree(out / LATEST, ignore_errors=True)


def picture_is_due(before: float, step: int, steps: int) -> bool:
    """True where an eighth, a quarter, a half or all of the `steps` lies in (`before`, `step`].

    At most four pictures in a run of any length: their cost is that of a few measurements.
    """
    return any(before < steps / parts <= step for parts in (8, 4, 2, 1))
