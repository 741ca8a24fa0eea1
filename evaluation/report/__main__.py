"""Write one page about finished evaluations: `python -m evaluation.report results/digits`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from evaluation.report.page import default_out, write
from rdc.commands.program import run_program


@dataclass(frozen=True)
class ReportConfig:
    """Checks, accuracies with intervals, paired tests, pictures and provenance of evaluations.

    Writes `index.html`, which holds everything and loads nothing, and its figures as PNG files.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """results of `evaluation.evaluate`, or folders of several"""
    out: Path | None = None
    """folder to write; by default `report` in the folder, or in the one that several share"""


def main(config: ReportConfig) -> None:
    """Write the page."""
    write(config.folders, config.out or default_out(config.folders), log=print)


if __name__ == "__main__":
    sys.exit(run_program(main))
