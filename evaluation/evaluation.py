"""Results of an evaluation, and several of them side by side."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from html import escape
from importlib import import_module
from itertools import chain
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from evaluation.eps import written
from evaluation.gradient_modes import noises
from evaluation.journal import FolderJournal
from evaluation.results.compare import Results, comparison, results
from evaluation.results.metrics import WORST, Accuracy
from evaluation.results.protocols import FROZEN
from evaluation.results.records import Record
from evaluation.results.statistics import mcnemar
from evaluation.results.summary import Summary, failed_checks
from evaluation.runner import Runner
from evaluation.summarize import write_summary
from rdc.runs.settings import differences

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Evaluation:
    """Accuracies, records, checks and attacked images of one model under one norm."""

    name: str
    summary: Summary
    runner: Runner

    @cached_property
    def records(self) -> list[Record]:
        """One record for each image, budget and attack."""
        return self.runner.journal.records()

    def accuracy(
        self, norm: str, eps: float, *, attack: str = WORST, protocol: str = FROZEN
    ) -> Accuracy:
        """Accuracy with its 95 % interval, by default under the worst attack for each image.

        `eps` 0 is the clean accuracy. `attack` and `protocol` as in the printed table.

        Raises:
            ValueError: the evaluation has no such norm, budget, attack or protocol.
        """
        budgets = [each for each in self.summary.accuracies if isclose(each, eps, rel_tol=1e-6)]
        if norm != self.summary.norm or not budgets:
            known = ", ".join(written(each) for each in self.summary.accuracies)
            raise ValueError(
                f"norm={norm!r}, eps={written(eps)}: evaluated was {self.summary.norm!r} at eps "
                f"{known}"
            )
        attacks = self.summary.accuracies[budgets[0]]
        known = {WORST, *chain.from_iterable(self.summary.accuracies.values())}
        if attack not in (attacks if budgets[0] else known):
            raise ValueError(f"attack={attack!r}: must be one of {list(attacks)}")
        if protocol not in self.summary.protocols:
            raise ValueError(f"protocol={protocol!r}: must be one of {self.summary.protocols}")
        return self.summary.accuracy(budgets[0], attack, protocol)

    def to_dataframe(self) -> Any:
        """The records as a pandas.DataFrame, one row each."""
        try:
            pandas = import_module("pandas")
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas: pip install pandas") from error
        return pandas.DataFrame([record.to_json() for record in self.records])

    def save(self, folder: str | Path) -> None:
        """Write what `python -m evaluation.evaluate --out` writes.

        Raises:
            ValueError: the folder holds another run.
        """
        folder, runner, source = Path(folder), self.runner, self.runner.journal
        journal = FolderJournal(folder, runner.settings, inputs=runner.target.inputs)
        known = set(journal.records())  # of an earlier call, which may have been killed
        journal.append(record for record in self.records if record not in known)
        for unit in runner.units:
            if (kept := source.kept(unit.name)) is not None:
                journal.keep(unit.name, kept)
        journal.keep_checks(source.checks() or [])
        write_summary(self.summary, folder)

    def report(self, path: str | Path) -> Path:
        """Write a report into the folder `path`; returns its page."""
        return Comparison((self,)).report(path)

    def figure(self) -> "Figure":
        """Accuracy over the budget with 95 % intervals, worst attack and frozen draw."""
        return Comparison((self,)).figure()

    def __str__(self) -> str:
        return f"{self.name}: {self.summary.text}"

    def _repr_html_(self) -> str:
        head, *lines = self.summary.text.split("\n\n", 1)
        return f"<p><b>{escape(self.name)}</b>: {escape(head)}</p>" + "".join(
            f"<pre>{escape(line)}</pre>" for line in lines
        )


@dataclass(frozen=True)
class Comparison:
    """Evaluations of several models on the same images."""

    evaluations: tuple[Evaluation, ...]

    @cached_property
    def scores(self) -> Results:
        """Scores of each image, by model, threat and protocol."""
        return results((each.name, each.records, each.summary.norm) for each in self.evaluations)

    @property
    def failed(self) -> dict[str, list[str]]:
        """The checks that failed, by model."""
        return failed_checks((each.name, each.summary) for each in self.evaluations)

    @property
    def differences(self) -> list[str]:
        """Sentences on how the attacks of the evaluations differ."""
        first, *others = self.evaluations
        return [
            f"Attacks differ: {name} is {old} for {first.name}, {new} for {other.name}."
            for other in others
            for name, old, new in differences(attack_settings(first), attack_settings(other))
            # A model without random numbers has one draw, whatever was asked for.
            if name != "suite.eot_samples"
            or all(noises(each.runner.target.model) for each in (first, other))
        ]

    def p_value(self, first: str, second: str, norm: str, eps: float) -> float:
        """P-value of McNemar's exact test that two models are equally accurate.

        Under the worst attack for each image and the frozen draw; `eps` 0 is without attack.

        Raises:
            ValueError: none of the evaluations has this name, norm or budget, or checks of one of
                the two failed.
        """
        threat = f"{norm} {written(eps)}" if eps else "clean"
        for name in (first, second):
            norms = {each.summary.norm for each in self.evaluations if each.name == name}
            if threat not in self.scores.get(name, {}) or norm not in norms:
                known = {each: list(threats) for each, threats in self.scores.items()}
                raise ValueError(f"{name!r} under {norm} {written(eps)}: give one of {known}")
            if name in self.failed:
                raise ValueError(f"{name!r}: checks failed: {', '.join(self.failed[name])}")
        one, other = (self.scores[name][threat][FROZEN] for name in (first, second))
        return mcnemar([score == 1 for score in one], [score == 1 for score in other])

    def report(self, path: str | Path) -> Path:
        """Write one report of all into the folder `path`; returns its page."""
        from evaluation.report.page import write

        path, folders = Path(path), []
        for each in self.evaluations:
            folder = each.runner.out
            if folder is None:
                folder = path / "runs" / quote(f"{each.name}-{each.summary.norm}", safe="")
                each.save(folder)
            folders.append(folder)
        return write(folders, path)

    def figure(self) -> "Figure":
        """Accuracy over the budget with 95 % intervals, worst attack and frozen draw."""
        from matplotlib.figure import Figure

        from evaluation.report.figures import curve

        figure = Figure(figsize=(5, 3.5), layout="constrained")
        axes = figure.add_subplot()
        for number, each in enumerate(self.evaluations):
            curve(axes, each.summary, number, label=f"{each.name}, {each.summary.norm}")
        axes.set(xlabel="budget eps", ylabel="accuracy in %", ylim=(0, 101))
        axes.legend()
        return figure

    def __str__(self) -> str:
        return "\n\n".join([*self.differences, comparison(self.scores, failed=self.failed)])

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def attack_settings(evaluation: Evaluation) -> dict[str, Any]:
    """The settings of the attacks but for their budgets."""
    return {name: evaluation.runner.settings[name] for name in ("attack", "suite", "seed")}


def model_hashes(evaluation: Evaluation) -> tuple[str, ...]:
    """Hashes of the model's weights, settings and source."""
    inputs = evaluation.runner.target.inputs
    return tuple(value for name, value in inputs.items() if name.endswith(" of the model"))


def compare(evaluations: Iterable[Evaluation]) -> Comparison:
    """Put evaluations on the same images and budgets side by side.

    Raises:
        ValueError: they are no evaluations, saw different images or budgets, or two have the same
            name, and the same norm or different models.
    """
    if isinstance(evaluations, str) or not isinstance(evaluations, Iterable):
        raise ValueError(f"evaluations: a {type(evaluations).__name__}; give several, in a list")
    evaluations = tuple(evaluations)
    if other := next((each for each in evaluations if not isinstance(each, Evaluation)), None):
        raise ValueError(f"evaluations: one is a {type(other).__name__}; give those of `evaluate`")
    if not evaluations:
        raise ValueError("evaluations: none given")
    different = {(each.name, each.summary.norm) for each in evaluations}
    models = {(each.name, model_hashes(each)) for each in evaluations}
    if len(different) < len(evaluations) or len(models) > len({name for name, _ in models}):
        raise ValueError(
            f"evaluations: {[each.name for each in evaluations]} need different names; give "
            "evaluate(..., name=...)"
        )
    if len({each.summary.provenance["data_fingerprint"] for each in evaluations}) > 1:
        raise ValueError("evaluations: of different images; evaluate all on the same ones")
    found = Comparison(evaluations)
    threats = {name: list(by) for name, by in found.scores.items()}
    if len({frozenset(each) for each in threats.values()}) > 1:
        raise ValueError(f"evaluations: under different budgets: {threats}; use the same ones")
    return found
