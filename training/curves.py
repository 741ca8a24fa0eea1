"""Learning curves of runs as one picture: `python -m training.curves runs/a runs/b`."""

import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rdc.commands.program import run_program
from rdc.config import parse_json
from rdc.runs.picture import check_picture, save_picture
from training.config import CurvesConfig
from training.run import HISTORY

LABELS = {"flop": "floating-point operations", "images": "training images", "step": "steps"}


def main(config: CurvesConfig) -> None:
    """Draw training loss and validation figures of the runs, one line per run."""
    if not config.runs:
        raise ValueError("runs: none given; give folders that training wrote")
    check_picture(config.out, "out")
    names = [run.name for run in config.runs]
    histories = {
        run.name if names.count(run.name) == 1 else str(run): read_history(run, config.over)
        for run in config.runs
    }
    save_picture(draw(histories, config.over), config.out, dpi=120)
    print(f"wrote {config.out}")


def read_history(run: Path, over: str) -> list[dict[str, Any]]:
    """The measurements of a run, first to last, all of which count `over`."""
    file = run / HISTORY
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: the run has not been measured yet")
    history = [parse_json(line, str(file)) for line in file.read_bytes().splitlines()]
    if not history:
        raise ValueError(f"{file} is empty: the run has not been measured yet")
    if any(over not in entry for entry in history):
        raise ValueError(f"{file} does not count {over}: an earlier version wrote it; --over step")
    return history


def draw(histories: dict[str, list[dict[str, Any]]], over: str) -> Figure:
    """One panel for the loss and one for every accuracy that a run was measured by."""
    found = {name for history in histories.values() for entry in history for name in entry}
    panels = ["loss", *sorted(name for name in found if name.endswith("accuracy"))]
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        scale = 1 if panel == "loss" else 100
        for number, (name, history) in enumerate(histories.items()):
            points = [(entry[over], scale * entry[panel]) for entry in history if panel in entry]
            if points:
                axes.plot(*zip(*points, strict=True), f"C{number}o-", markersize=3, label=name)
        axes.set_xlabel(LABELS[over])
        axes.set_ylabel(panel.replace("_", " ") + (" in %" if scale > 1 else ""))
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    return figure


if __name__ == "__main__":
    sys.exit(run_program(main))
