"""Functions that tests run in other processes."""

import os
import runpy
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import purification.__main__ as purify
from evaluation import target
from evaluation.config import EvaluateConfig
from evaluation.evaluate import main as evaluate
from rdc import Defense, ImageClassifier
from rdc.commands.program import run_program
from rdc.data import load
from rdc.noise import Noise
from training.config import TrainConfig
from training.train import main


def run_module(
    out: Path, module: str, arguments: list[str], cwd: Path, environment: dict[str, str]
) -> None:
    """`python -m MODULE ARGUMENTS`, which prints to the files `out`.out and `out`.err."""
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        with out.with_suffix(suffix).open("w") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(cwd)
    os.environ |= environment
    sys.argv = [module, *arguments]
    warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)  # it is preloaded
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def load_and_die(root: Path, cache: Path) -> None:
    """Load the folder's test split, killed where the first written file would get its name."""
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    load(root, "test", cache=cache)


def train_or_report(config: TrainConfig, report: Path) -> None:
    """Train; an OSError is written down."""
    try:
        main(config)
    except OSError as error:
        report.write_text(str(error))
        raise


class Noisy(nn.Module):
    """A purifier of one step, quick and random."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = Noise("frozen")

    def forward(self, images: Tensor) -> Tensor:
        return images + 0.2 * self.noise.normal(images, 1)[:, 0]

    def with_gradient(self, gradient: str) -> "Noisy":
        return self


def evaluate_noisy(config: EvaluateConfig) -> None:
    """Evaluate a CNN behind `Noisy`, whatever defense the settings name."""
    build = target.build
    target.build = lambda *_, **__: Defense(Noisy(), ImageClassifier.from_pretrained("digits-cnn"))
    try:
        evaluate(config)
    finally:
        target.build = build


def purify_in_few_steps(arguments: list[str]) -> None:
    """`rdc purify` with three steps in place of each preset's number."""
    build = purify.build

    def short(*args: Any, **options: Any) -> Any:
        return build(*args, **options, steps=3)

    purify.build = short
    try:
        run_program(purify.main, arguments)
    finally:
        purify.build = build
