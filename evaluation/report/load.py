"""Finished evaluations, read from their folders and checked against their records."""

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any

from evaluation.certification.program import SUMMARY as CERTIFICATES
from evaluation.config import GIVEN
from evaluation.eps import eps_title
from evaluation.results.metrics import WORST
from evaluation.results.records import Record, read_records, worst
from evaluation.results.summary import SUMMARY, Summary
from rdc.config import read_json
from rdc.runs.settings import INPUTS, SETTINGS, flag

NORMS = {"linf": "L-infinity", "l2": "L2", "stadv": "stAdv", "corruption": "corruptions"}
"""Titles of the threats, in the order of tables."""


@dataclass(frozen=True)
class Run(Summary):
    """One evaluation, a defense under one norm: its summary, folder and records.

    `name` is unique among the runs of a report, `defense` among those under the same norm.
    """

    folder: Path
    name: str
    defense: str
    records: list[Record]

    @property
    def draws(self) -> int:
        """Draws that judge an image and that no attack has seen; 0 for a defense without noise."""
        return len(self.records[0].predictions)

    @cached_property
    def answers(self) -> dict[float, list[Record]]:
        """Records of the worst answer to every image, by budget; see `harm`.

        A budget includes all smaller ones, and the image without an attack.
        """
        return {
            eps: list(worst((r for r in self.records if r.eps <= eps), harm).values())
            for eps in (0.0, *self.budgets)
        }

    @property
    def state(self) -> str:
        """State of the checks: "failed", "passed", or "not run" where none was applied."""
        passed = any(check.passed for check in self.checks)
        return "failed" if self.failed else "passed" if passed else "not run"


def harm(record: Record) -> float:
    """Confidence of the frozen draw's answer if that is wrong, minus the confidence if right.

    The largest is the most confident wrong answer, or where all are right the least confident.
    """
    return -record.frozen_confidence if record.right else record.frozen_confidence


def load(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs in `folders`, and notes on runs that were left out.

    A folder is a run, or holds runs at any depth. A run that was asked for by name and is not
    finished is an error; one that was found along the way is left out and named.
    """
    if not folders:
        raise ValueError("folders: none given; give a folder that evaluation.evaluate wrote")
    runs, left_out = [], []
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"folders: {folder} is not a folder; give what --out named")
        for found in inside(folder):
            if (found / SUMMARY).exists():
                runs.append(read(found))
            elif (found / CERTIFICATES).exists():
                continue
            elif found == folder:
                raise ValueError(unfinished(found))
            else:
                left_out.append(str(found))
    different = {run.folder.resolve(): run for run in runs}
    if not different and not left_out:
        raise ValueError("folders: only certifications; give an evaluation of the same data too")
    note = (
        f"Left out, not finished: {', '.join(left_out)}. What wrote them continues them when it is "
        f"started again as before; `python -m evaluation.report FOLDER` gives the command for one."
    )
    if not different:
        raise ValueError(note)
    return named(list(different.values())), [note] if left_out else []


def inside(folder: Path) -> list[Path]:
    """The folder itself where it is a run, otherwise all runs below it."""
    if is_run(folder):
        return [folder]
    below = {path.parent for name in (SUMMARY, SETTINGS) for path in folder.rglob(name)}
    found = sorted(filter(is_run, below))
    if not found:
        raise ValueError(
            f"folders: {folder} holds no {SUMMARY} and no {SETTINGS} of an evaluation, nor does a "
            "folder in it; give a folder that evaluation.evaluate wrote"
        )
    return found


def is_run(folder: Path) -> bool:
    """True for the folder of an evaluation or a certification, finished or not.

    Other programs, such as `rdc classify`, write settings too.
    """
    if (folder / SUMMARY).exists() or (folder / CERTIFICATES).exists():
        return True
    if not (folder / SETTINGS).exists():
        return False
    try:
        found = read_json(folder / SETTINGS)
    except ValueError:
        return True  # damaged
    return not isinstance(found, dict) or not {"attack", "sigma"}.isdisjoint(found)


def unfinished(folder: Path) -> str:
    found = read_json(folder / SETTINGS)
    if not isinstance(found, dict):
        raise ValueError(
            f"{folder / SETTINGS} must be a JSON object of settings; give a new folder"
        )
    settings = {name: value for name, value in found.items() if name != INPUTS}
    if settings.get("data") == GIVEN:
        return (
            f"{folder} has no {SUMMARY}: the run is not finished. The same call of "
            "evaluation.evaluate continues it"
        )
    flags = [word for name, value in flatten(settings) for word in typed(name, value)]
    program = "evaluation.certify" if "sigma" in settings else "evaluation.evaluate"
    command = shlex.join(["python", "-m", program, "--out", str(folder), *flags])
    return (
        f"{folder} has no {SUMMARY}: the run is not finished. The same settings continue it: "
        f"{command}"
    )


def flatten(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name, as the command line spells them."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{above}{name}.")
        else:
            yield above + name, value


def typed(name: str, value: Any) -> list[str]:
    """A setting as words of a command line; None is a default."""
    word = flag(name)
    if value is None:
        return []
    if isinstance(value, bool):
        # tyro negates the last part of a nested name: --suite.no-round.
        group, dot, name = word.removeprefix("--").rpartition(".")
        return [word if value else f"--{group}{dot}no-{name}"]
    values = value if isinstance(value, list) else [value]
    return [word, *map(str, values)]


def read(folder: Path) -> Run:
    summary = Summary.read(folder / SUMMARY)
    run = Run(
        **vars(summary), folder=folder, name=folder.name, defense=folder.name,
        records=read_records(folder),
    )  # fmt: skip
    # Pictures and tests come from the records.
    if conflict := next(conflicts(run), None):
        raise ValueError(
            f"{run.folder}: {conflict}; run evaluation.evaluate with the same settings to "
            "summarize the records again"
        )
    return run


def conflicts(run: Run) -> Iterator[str]:
    """Contradictions between the summary and the records, a sentence each."""
    for record in run.records:
        number = max(record.label, record.frozen, *record.predictions)
        if number >= len(run.class_names):
            yield (
                f"{SUMMARY} names {len(run.class_names)} classes, the records of image "
                f"{record.image} have number {number}"
            )
    found = Counter((record.eps, record.attack) for record in run.records)
    listed = {(eps, attack) for eps, by in run.accuracies.items() for attack in by}
    for eps, attack in sorted((listed | found.keys()) - {(eps, WORST) for eps in run.budgets}):
        images = run.images if (eps, attack) in listed else 0
        if found[eps, attack] != images:
            yield (
                f"{SUMMARY} says {images} images at {eps_title(eps)}, {attack!r}, the records say "
                f"{found[eps, attack]}"
            )
    for eps, answers in run.answers.items():
        right, share = sum(answer.right for answer in answers), run.accuracy(eps)
        if abs(right - share.mean * share.images) > 0.5:
            yield (
                f"{SUMMARY} says {100 * share.mean:.1f} % of {share.images} images at "
                f"{eps_title(eps)}, the records say {right} of {len(answers)}"
            )


def named(runs: list[Run]) -> list[Run]:
    """The runs under different names: that of a caller's model and the norm, or the folder's; or
    the last parts of their paths, as many as it takes."""
    paths = [run.folder.resolve().parts for run in runs]
    given = [(run.config["defense"].get("name"), run.norm) for run in runs]
    short = [f"{name}-{norm}" if name else path[-1]
             for (name, norm), path in zip(given, paths, strict=True)]  # fmt: skip
    tries = (["/".join(path[-depth:]) for path in paths] for depth in count(1))
    names = next(found for found in chain([short], tries) if len(set(found)) == len(runs))
    # A sweep calls its folders defense-norm: without the norm, the name of the defense.
    bare = [name.removesuffix(f"-{run.norm}") for run, name in zip(runs, names, strict=True)]
    clear = len({(name, run.norm) for run, name in zip(runs, bare, strict=True)}) == len(runs)
    defenses = bare if clear else names
    return [
        replace(run, name=name, defense=defense)
        for run, name, defense in zip(runs, names, defenses, strict=True)
    ]
