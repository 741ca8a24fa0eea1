"""Progress of an evaluation: passes through the models, and the time that is left."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn
from tqdm import tqdm

from evaluation.costs import GRADIENT
from evaluation.results.records import CLEAN

REFRESH = 0.2
"""Seconds between two updates of the bar."""


@dataclass(frozen=True)
class Task:
    """An attack on a unit of a run.

    `passes`: forward passes of an image, at most; a gradient counts as GRADIENT of them.
    `seconds`: time of all passes, as far as that was measured.
    """

    run: str
    unit: str
    attack: str
    passes: float
    seconds: float

    @property
    def kinds(self) -> list[tuple[str, ...]]:
        """Groups of tasks that need a similar share of `seconds`, the most similar first.

        The first answers of a run, to clean images, tell nothing about attacks.
        """
        if self.attack == CLEAN:
            return [(self.run, CLEAN), ("*", CLEAN)]
        gradient, _, kind = self.attack.rpartition("/")
        return [(self.run, self.attack), (self.run, gradient, "*"), (self.run,), ("*", kind), ()]


class Progress:
    """Time left for some tasks, from their passes and the time that similar ones took.

    `workers`: processes that share the tasks. With `show`, a bar on the terminal.
    """

    def __init__(self, tasks: Iterable[Task], *, show: bool = False, workers: int = 1) -> None:
        self.open = dict.fromkeys(tasks)
        self.current: Task | None = None
        self.counted = self.began = 0.0
        self.workers = workers
        self.spent: dict[tuple[str, ...], tuple[float, float]] = {}
        self.started = time.perf_counter()
        self.shown = 0.0
        self.bar = tqdm(
            total=1.0, disable=not show, leave=False,
            bar_format="{percentage:3.0f}%|{bar:24}| {desc}",
        )  # fmt: skip

    @contextmanager
    def task(self, task: Task, *models: nn.Module) -> Iterator[None]:
        """A context that does a task; calls of `models` are counted."""
        self.current, self.counted, self.began = task, 0.0, time.perf_counter()
        # Scripted modules take no hooks; their calls are not counted.
        hooks = [model.register_forward_hook(self._count) for model in models
                 if not isinstance(model, torch.jit.ScriptModule)]  # fmt: skip
        try:
            self._show()
            yield
        finally:
            for hook in hooks:
                hook.remove()
        seconds = time.perf_counter() - self.began
        for kind in task.kinds:
            before = self.spent.get(kind, (0.0, 0.0))
            self.spent[kind] = before[0] + seconds, before[1] + task.seconds
        self.drop(task)

    def __deepcopy__(self, memo: dict) -> Self:
        """The same: calls of a copy of a counted model are counted too."""
        return self

    def drop(self, *tasks: Task) -> None:
        """Forget tasks, which are done or another process's."""
        for task in tasks:
            self.open.pop(task, None)
        self.current = None
        self._show(at_once=True)

    def wait_for_others(self) -> None:
        """Show that the tasks that are left are those of other processes."""
        if self.workers > 1:
            elapsed = duration(time.perf_counter() - self.started)
            self.bar.set_description_str(f"{elapsed}; waiting for the other processes")

    def close(self) -> None:
        self.bar.close()

    def seconds_left(self) -> float:
        """An estimate; before any task was done, the time of all passes that they may need."""
        return sum(map(self._seconds, self.open)) / self.workers

    def _seconds(self, task: Task) -> float:
        kind = next((kind for kind in task.kinds if kind in self.spent), None)
        taken, planned = self.spent[kind] if kind is not None else (1.0, 1.0)
        whole = task.seconds * taken / planned
        if task != self.current:
            return whole
        elapsed, share = time.perf_counter() - self.began, min(self.counted / task.passes, 1)
        # As soon as a tenth is done, that tells more than tasks of other kinds.
        if kind != task.kinds[0] and share > 0.1:
            whole = elapsed / share
        return max(whole - elapsed, (1 - share) * whole / 2)

    def _count(self, module: nn.Module, arguments: tuple, output: object) -> None:
        self.counted += len(arguments[0]) * (GRADIENT if torch.is_grad_enabled() else 1)
        self._show()

    def _show(self, *, at_once: bool = False) -> None:
        now = time.perf_counter()
        if self.bar.disable or (now - self.shown < REFRESH and not at_once):
            return
        self.shown, left, elapsed = now, self.seconds_left(), now - self.started
        self.bar.total, self.bar.n = max(elapsed + left, 1e-9), elapsed
        task = self.current
        words = [duration(elapsed), f"about {duration(left)} left"]
        words += [f"{task.unit}, {task.attack}"] if task is not None else []
        self.bar.set_description_str("; ".join(words))


def duration(seconds: float) -> str:
    """Time in words: "40 s", "12 min" or "3 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
