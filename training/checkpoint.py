"""Checkpoints of a run: complete or absent, whatever kills the process, and free of pickles."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rdc.config import read_json
from rdc.hub.weights import sha256
from rdc.runs.atomic import replacing
from training.distributed import on_main

KEEP = 2
UNREADABLE = (AttributeError, KeyError, RuntimeError, SafetensorError, TypeError, ValueError)
TENSORS, VALUES = "tensors.safetensors", "values.json"


class Part(Protocol):
    """A part of a run whose state is a flat dictionary of tensors and JSON values."""

    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state: Any, /) -> Any: ...


class Checkpoints:
    """Folders `step_00001000` under `folder`, each with the state of all `parts` of a run.

    `tensors.safetensors` holds the tensors, named part/name, and `values.json` all other values and
    the SHA-256 of the tensors. Reading them executes nothing. A folder with a step's name is
    complete (`rdc.runs.atomic.replacing`). The last `KEEP` are kept. Only the main process writes.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, parts: Mapping[str, Part]) -> None:
        self.folder, self.accelerator, self.parts = folder, accelerator, parts

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in ascending order."""
        matches = (re.fullmatch(r"step_(\d{8})", path.name) for path in self.folder.glob("step_*"))
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def save(self, step: int) -> None:
        """Write the state after `step` steps; every process calls this.

        Raises:
            OSError: the state could not be written (a full disk); what was saved before is intact.
        """
        on_main(self.accelerator, lambda: self._write(step))

    def load_latest(self) -> None:
        """Restore the state of the last checkpoint, if there is one; every process calls this.

        Raises:
            ValueError: the checkpoint is damaged, of another version, or of another run.
        """
        if steps := self.steps():
            self._read(self.path(steps[-1]))

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        """A context that writes `what`; an OSError (a full disk) names the last checkpoint."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise OSError(self._complaint(what, error)) from error

    def _write(self, step: int) -> None:
        for rest in self.folder.glob(".step_*"):  # of a process that was killed
            shutil.rmtree(rest)
        tensors, values = self._state()
        with self.writing(f"the checkpoint of step {step}"), replacing(self.path(step)) as part:
            part.mkdir()
            save_file(tensors, part / TENSORS)
            values["sha256"] = sha256(part / TENSORS)
            (part / VALUES).write_text(json.dumps(values), encoding="utf-8")
        for old in self.steps()[:-KEEP]:
            shutil.rmtree(self.path(old))

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {name: {} for name in self.parts}
        for part, owner in self.parts.items():
            for name, value in owner.state_dict().items():
                if isinstance(value, Tensor):
                    tensors[f"{part}/{name}"] = value.detach().cpu().contiguous()
                else:
                    values[part][name] = value
        return tensors, values

    def _read(self, path: Path) -> None:
        files = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
        remedy = "remove this folder to continue from the checkpoint before it, or begin anew"
        if files != {TENSORS, VALUES}:
            raise ValueError(
                f"{path} holds {', '.join(sorted(files)) or 'nothing'}; a checkpoint has "
                f"{TENSORS} and {VALUES} alone (earlier versions wrote pickles, which are not "
                f"read): {remedy}"
            )
        try:
            values = read_json(path / VALUES)
            if values.pop("sha256") != sha256(path / TENSORS):
                raise ValueError(f"{TENSORS} has another SHA-256 than {VALUES} says")
            for key, tensor in load_file(path / TENSORS).items():
                part, name = key.split("/", 1)
                values[part][name] = tensor
            for part, owner in self.parts.items():
                owner.load_state_dict(values[part])
        except UNREADABLE as error:
            raise ValueError(f"{path} cannot continue this run: {error!r}; {remedy}") from error

    def _complaint(self, what: str, error: Exception) -> str:
        out, steps = self.folder.parent, self.steps()
        free = shutil.disk_usage(out).free / 2**20
        last = f"the last good one is {self.path(steps[-1])}" if steps else "none is written yet"
        return (
            f"{what} could not be written to {out} ({free:,.0f} MiB free): {error}; "
            f"checkpoints: {last}. Make room, then run the same command with --resume auto"
        )


class OptimizerState:
    """The moments of an optimizer of all parameters of `module`, by the parameters' names.

    Its settings are not part of the state: they are the run's.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
        self.optimizer, self.weights = optimizer, dict(module.named_parameters())

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"{name}/{moment}": value
            for name, weight in self.weights.items()
            for moment, value in self.optimizer.state.get(weight, {}).items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        numbers = {name: number for number, name in enumerate(self.weights)}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            name, moment = key.rsplit("/", 1)
            moments.setdefault(numbers[name], {})[moment] = self._laid_out(name, value)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _laid_out(self, name: str, value: Tensor) -> Tensor:
        """A moment in the memory layout of its parameter: fused steps round as before."""
        weight = self.weights[name]
        if value.ndim == 0:
            return value
        if value.shape != weight.shape:
            raise ValueError(f"{name}: {tuple(value.shape)} in place of {tuple(weight.shape)}")
        return torch.empty_like(weight, requires_grad=False).copy_(value)
