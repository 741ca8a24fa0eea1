"""The command `rdc`: one name for all programs, each imported once its flags have been read."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated, Any

import rdc
from rdc.commands.program import USAGE_ERROR, Main, run_program


@dataclass(frozen=True)
class Program:
    """A program of `rdc`: the class of its settings, the module with its `main`, a line of help.

    Modules of settings import no torch, which takes seconds: that is left to `main`.
    """

    settings: str
    module: str
    summary: str

    def load_settings(self) -> Any:
        module, _, name = self.settings.rpartition(".")
        return getattr(import_module(module), name)

    def load_main(self) -> Main:
        return import_module(self.module).main

    def run(self, config: Any) -> int | None:
        return self.load_main()(config)


PROGRAMS = {
    "demo": Program(
        "evaluation.config.DemoConfig", "evaluation.demo",
        "attack RDC and a CNN on digits: about a minute",
    ),
    "info": Program(
        "rdc.commands.config.Info", "rdc.commands.info",
        "list packaged models, or describe a model",
    ),
    "classify": Program(
        "rdc.commands.config.Classify", "rdc.commands.classify",
        "classify an image or a folder with RDC",
    ),
    "purify": Program(
        "purification.purify_config.Purify", "purification.__main__",
        "purify an image, a folder or an array",
    ),
    "evaluate": Program(
        "evaluation.config.EvaluateConfig", "evaluation.evaluate",
        "attack a defense, with checks and intervals",
    ),
    "sweep": Program(
        "evaluation.sweep_config.SweepConfig", "evaluation.sweep",
        "attack all defenses under all threats",
    ),
    "report": Program(
        "evaluation.config.ReportConfig", "evaluation.report.__main__",
        "write a web page about evaluations",
    ),
    "certify": Program(
        "evaluation.certification.config.CertifyConfig", "evaluation.certification.program",
        "certify by randomized smoothing",
    ),
    "train": Program(
        "training.config.TrainConfig", "training.train",
        "train a denoiser",
    ),
    "train-classifier": Program(
        "training.config.ClassifierTrainConfig", "training.classifier",
        "train an ordinary or a robust classifier",
    ),
    "curves": Program(
        "training.config.CurvesConfig", "training.curves",
        "draw learning curves of runs",
    ),
    "calibrate": Program(
        "training.config.CalibrationConfig", "training.calibration",
        "choose the settings of RDC on held-out images",
    ),
    "convert": Program(
        "rdc.commands.config.Convert", "rdc.commands.convert",
        "convert published weights",
    ),
    "export": Program(
        "rdc.commands.config.Export", "rdc.commands.export",
        "write a model for others, with a card",
    ),
}  # fmt: skip
# For several processes, `accelerate launch -m MODULE` or `torchrun -m MODULE`.
COMPLETION = "--tyro-print-completion"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program that the first argument names; the exit status is the program's."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name, rest = (given[0], given[1:]) if given else ("--help", [])
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"rdc {rdc.__version__}")
        return 0
    if name.startswith(COMPLETION):
        print_completion([name, *rest])
    if name not in PROGRAMS:
        near = get_close_matches(name, PROGRAMS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; rdc --help lists the commands"
        print(f"error: {name!r} is not a command of rdc{hint}", file=sys.stderr)
        return USAGE_ERROR
    program = PROGRAMS[name]
    return run_program(program.run, rest, kind=program.load_settings(), prog=f"rdc {name}")


def usage() -> str:
    width = max(map(len, PROGRAMS))
    return "\n".join(
        [
            "usage: rdc COMMAND [ARGUMENTS]",
            "",
            "Robust classification with diffusion models.",
            "",
            *(f"  {name:<{width}}  {program.summary}" for name, program in PROGRAMS.items()),
            "",
            "  rdc COMMAND --help    flags of a command",
            "  rdc --version",
            f"  rdc {COMPLETION} bash    a completion script, also for zsh and tcsh",
            "",
            "An error is one line; with --traceback, a command also prints where it arose.",
        ]
    )


def print_completion(arguments: Sequence[str]) -> None:
    """Print the completion script for a shell and exit; it needs the flags of all programs."""
    import tyro

    kinds: list[Any] = [
        Annotated[program.load_settings(), tyro.conf.subcommand(name)]
        for name, program in PROGRAMS.items()
    ]
    tyro.cli(reduce(or_, kinds), prog="rdc", args=arguments)
