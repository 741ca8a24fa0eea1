"""The sweep: every defense in a folder of its own, one table of all, and no work done twice."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from evaluation import costs, schedule
from evaluation.config import EvaluateConfig
from evaluation.defenses import build
from evaluation.evaluate import main as evaluate
from evaluation.journal import FolderJournal
from evaluation.progress import Progress
from evaluation.runner import Runner
from evaluation.schedule import pieces, take
from evaluation.suite_config import SuiteConfig
from evaluation.sweep import evaluations, main
from evaluation.sweep_config import DEFENSES, SweepConfig
from evaluation.work_queue import Claims
from rdc.data import load
from tests.support.pages import without_pictures

pytestmark = pytest.mark.slow

PUBLISHED = dict(DEFENSES)
SUITE = SuiteConfig(steps=1, eot_samples=2, only=("*exact/apgd-margin", "*exact/stadv"))


@pytest.fixture(scope="module", autouse=True)
def quick():
    """One step of purification in place of ten; reports of words."""
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        patch.setitem(DEFENSES, "diffpure", replace(PUBLISHED["diffpure"], steps=1))
        yield


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def config(out: Path, **changes) -> SweepConfig:
    settings: dict[str, Any] = {
        "defenses": ("cnn", "diffpure"), "norms": ("linf", "stadv"), "suite": SUITE, "images": 3,
        "eval_draws": 2, "batch_size": 2, "check_images": 1,
    }  # fmt: skip
    return SweepConfig(out=out, **{**settings, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "digits"
    main(config(out))
    AcceleratorState._reset_state(reset_partial_state=True)
    return out


def cells(out: Path) -> list[list[str]]:
    lines = (out / "table.md").read_text().splitlines()
    return [[c.strip() for c in line.split("|")[1:-1]] for line in lines if line.startswith("|")]


def test_every_pair_is_an_evaluation_in_a_folder_of_its_own(whole: Path) -> None:
    folders = {path.parent.name for path in whole.glob("*/settings.json")}
    assert folders == {"cnn-linf", "cnn-stadv", "diffpure-linf", "diffpure-stadv"}
    for name in folders:
        summary = json.loads((whole / name / "summary.json").read_text())
        assert summary["norm"] == name.split("-")[1]
        assert summary["config"]["defense"]["kind"] in ("classifier", "diffpure")
        assert list((whole / name / "images").glob("*.safetensors"))


def test_a_model_that_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    """The same folder takes the command again when it is right."""
    out = tmp_path / "digits"
    wrong = config(out, model=str(tmp_path / "misspelled"))
    with pytest.raises(FileNotFoundError, match="misspelled"):
        main(wrong)
    assert not out.exists()


def test_one_report_of_all(whole: Path) -> None:
    page = (whole / "report" / "index.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("cnn-linf", "cnn-stadv", "diffpure-linf"))


def test_checks_are_asked_once_for_each_defense(whole: Path) -> None:
    found = {path.parent.name for path in whole.glob("*/checks.json")}
    assert found == {"cnn-linf", "diffpure-linf"}


def test_one_table_of_all(whole: Path) -> None:
    head, _, *rows = cells(whole)
    assert head == ["defense", "protocol", "clean", "linf 0.1", "linf 0.2", "stadv 0.05"]
    names = [row[:2] for row in rows if len(row) == 6]
    protocols = ["frozen", "fresh", "majority", "worst draw"]
    drawn = [["diffpure", protocol] for protocol in protocols]
    expected = [["cnn", "frozen"], ["cnn", "8 bits"], *drawn, ["diffpure", "8 bits"]]
    assert sorted(names) == sorted(expected)
    figure = json.loads((whole / "cnn-stadv" / "summary.json").read_text())["accuracy"]
    share = figure["0.05"]["worst"]["frozen"]["accuracy"]
    assert rows[0][5].startswith(f"{100 * share:.1f} [")
    compared = [row for row in rows if len(row) == 5 and "(" in row[1]]
    assert [row[0] for row in compared] == ["cnn", "diffpure"]
    assert all("(diffpure)" in cell for cell in compared[0][1:])


def test_continued_with_another_defense_only_that_one_is_attacked(
    whole: Path, tmp_path: Path, monkeypatch
) -> None:
    run, seen, out = Runner.run, [], tmp_path / "copy"
    shutil.copytree(whole, out)

    def spy(self: Runner, unit, progress) -> None:
        seen.append(self.name)
        run(self, unit, progress)

    monkeypatch.setattr(Runner, "run", spy)
    main(config(out, defenses=("cnn", "diffpure", "trades"), reference="cnn"))
    assert set(seen) == {"trades-linf", "trades-stadv"}
    assert [row[0] for row in cells(out) if len(row) == 5 and "(" in row[-1]] == [
        "diffpure", "trades"
    ]  # fmt: skip


def test_one_of_its_folders_can_be_continued_by_itself(whole: Path) -> None:
    records = (whole / "cnn-linf" / "records-000.jsonl").read_bytes()
    (each,) = [
        each for name, each in config(whole).evaluations() if (name, each.norm) == ("cnn", "linf")
    ]
    assert isinstance(each, EvaluateConfig)
    evaluate(each)
    assert (whole / "cnn-linf" / "records-000.jsonl").read_bytes() == records


def test_whoever_is_free_takes_the_next_unit_and_nothing_is_done_twice(
    tmp_path: Path, monkeypatch
) -> None:
    """Two processes as two threads, one of which is at its first unit until the other is done."""
    taken: dict[str, list[tuple[str, str]]] = {"quick": [], "slow": []}
    both, done = threading.Barrier(2, timeout=60), threading.Event()

    def work(self: Runner, unit, progress) -> None:
        name = threading.current_thread().name
        if not taken[name]:
            both.wait()
        taken[name].append((self.name, unit.name))
        if name == "slow":
            assert done.wait(timeout=60)

    monkeypatch.setattr(Runner, "run", work)
    place: Any = SimpleNamespace(
        process_index=0, num_processes=1, device=torch.device("cpu"), is_main_process=True,
        wait_for_everyone=lambda: None,
    )  # fmt: skip
    settings = config(tmp_path, defenses=("cnn", "trades"), batch_size=1)
    todo = pieces(runner for _, runner in evaluations(settings, place))
    claims = Claims(tmp_path / ".claims", place)

    def process() -> None:
        take(todo, claims, Progress([]))
        if threading.current_thread().name == "quick":
            done.set()

    threads = [threading.Thread(target=process, name=name) for name in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = taken["quick"] + taken["slow"]
    assert len(everything) == len(set(everything)) == 2 * 3 * 5
    assert sum(map(len, todo.values())) == len(everything)
    assert len(taken["quick"]) > len(taken["slow"]) > 0


def test_a_process_claims_no_checks_before_it_has_made_those_it_claimed(
    tmp_path: Path, monkeypatch
) -> None:
    """Otherwise the first process would take all of them. The longest come first."""
    events: list[str] = []
    monkeypatch.setattr(schedule, "make_checks", lambda runner, _: events.append(runner.name))
    place: Any = SimpleNamespace(process_index=0, device=torch.device("cpu"))
    settings = config(tmp_path, defenses=("cnn", "trades"), norms=("linf",))
    runners = [runner for _, runner in evaluations(settings, place)]
    claims: Any = SimpleNamespace(take=lambda name: events.append(name) is None)
    schedule.check(runners, claims, Progress([]))
    assert events == ["cnn-linf checks", "cnn-linf", "trades-linf checks", "trades-linf"]
    events.clear()
    runners[1].costs.measured[runners[1].target.model, False] = 2.0
    schedule.check(runners, claims, Progress([]))
    assert events == ["trades-linf checks", "trades-linf", "cnn-linf checks", "cnn-linf"]


def test_passes_of_a_defense_are_timed_once_for_all_norms(tmp_path: Path, monkeypatch) -> None:
    timed = []
    monkeypatch.setattr(costs, "seconds_per_image", lambda call, most: timed.append(call) or 0.25)
    place: Any = SimpleNamespace(process_index=1, device=torch.device("cpu"))
    runners = [runner for _, runner in evaluations(config(tmp_path / "digits"), place)]
    for runner in runners:
        runner.measure_passes()
    # The CNN and its gradient; DiffPure, and forward and gradient of it as a surrogate.
    assert len(timed) == 2 + 3
    assert {runner.costs.seconds("none") for runner in runners} == {2 * 0.25, 4 * 0.25}


@pytest.mark.parametrize("norms", [("linf", "corruption"), ("corruption", "linf")])
def test_attacks_have_a_transfer_model_and_corruptions_none(tmp_path: Path, norms) -> None:
    place: Any = SimpleNamespace(process_index=0, device=torch.device("cpu"))
    swept = config(tmp_path, defenses=("cnn",), norms=norms, suite=SuiteConfig(steps=1, queries=2))
    runners = {runner.options.norm: runner for _, runner in evaluations(swept, place)}
    linf, corruption = runners["linf"].target, runners["corruption"].target
    assert linf.settings["transfer"] == "digits-trades" and corruption.settings["transfer"] is None
    assert any(name.startswith("transfer") for name in runners["linf"].entries)
    assert "weights of digits-trades" in linf.inputs.keys() - corruption.inputs.keys()
    assert corruption.model is linf.model and corruption.pass_seconds is linf.pass_seconds


def test_every_process_has_a_file_of_records_for_itself(tmp_path: Path) -> None:
    place: Any = SimpleNamespace(process_index=1, device=torch.device("cpu"))
    ((_, runner),) = evaluations(config(tmp_path, defenses=("cnn",), norms=("l2",)), place)
    assert isinstance(runner.journal, FolderJournal)
    assert runner.journal.log.file == tmp_path / "cnn-l2" / "records-001.jsonl"


def test_claims_of_a_killed_sweep_are_forgotten(tmp_path: Path) -> None:
    place: Any = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    claims = Claims(tmp_path / "claims", place)
    assert claims.take("a") and not claims.take("a") and claims.take("b")
    claims = Claims(tmp_path / "claims", place)
    assert claims.take("a")
    claims.forget()
    assert not (tmp_path / "claims").exists()


def test_all_defenses_answer_and_are_right_on_clean_digits() -> None:
    data = load("digits", "test").subset(slice(8))
    settings = SweepConfig(images=8, norms=("linf",))
    assert [name for name, _ in settings.evaluations()] == list(DEFENSES)
    for name, defense in PUBLISHED.items():
        with torch.no_grad():
            said = build(defense, data="digits")(data.images).argmax(1)
        assert (said == data.labels).sum() >= 7, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defenses": ()}, "--defenses"),
        ({"norms": ("l2", "l2")}, "--norms"),
        ({"reference": "rdc"}, "--reference rdc: must be among --defenses"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)
