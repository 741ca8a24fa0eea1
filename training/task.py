"""The interface between the run that all trainers share and each trainer."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from rdc.data import Dataset
from rdc.denoiser import Denoiser
from rdc.networks.image_classifier import ImageClassifier

Module = TypeVar("Module", bound=Denoiser | ImageClassifier)


class Task(ABC, Generic[Module]):
    """The part of a run that differs between trainers.

    `averaged` is the module whose averaged weights are measured and saved. `module` holds
    everything that learns: `averaged` itself, or a module around it.
    """

    averaged: Module
    module: nn.Module
    measured_rows: int
    """Held-out images in one batch of `answers`."""

    @abstractmethod
    def batch(self, step: int) -> Any:
        """The global batch of a step, all its randomness drawn."""

    @abstractmethod
    def losses(self, network: nn.Module, batch: Any, rows: slice) -> Tensor:
        """Losses (B,) of some rows of it; `network` is the prepared `module`."""

    @abstractmethod
    def answers(self, model: Module, data: Dataset) -> Tensor:
        """Answers on held-out images, one row for each: (N, columns)."""

    @abstractmethod
    def figures(self, answers: Tensor, labels: Tensor) -> dict[str, float]:
        """Figures of these answers, higher is better.

        The first one decides between averages, the next ones between equals.
        """

    @abstractmethod
    def save(self, model: Module, out: Path, answers: Tensor | None, labels: Tensor) -> None:
        """Write the model, fitted to its answers where they are given; on the main process."""

    def inputs(self) -> dict[str, str]:
        """Hashes of files that the training depends on, beside the data, by their description."""
        return {}

    def warnings(self, model: Module, data: Dataset) -> list[str]:
        """Sentences about faults of the model on held-out images; on the main process."""
        return []

    def illustrate(self, model: Module, path: Path) -> None:
        """Write a PNG of what the model has learned; on the main process."""
