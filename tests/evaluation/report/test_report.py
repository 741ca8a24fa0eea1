"""The report: what it says first, that its figures are those of the files, and what it refuses."""

import base64
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from evaluation.config import EvaluateConfig
from evaluation.report import write
from evaluation.report.calibration import Answer, answers, calibration, calibration_error, confusion
from evaluation.report.compare import groups, pairs
from evaluation.report.examples import Example, difference, draw, examples, scale
from evaluation.report.figures import confusions, curve, spread
from evaluation.report.load import Run, load, spoken
from evaluation.report.page import default_out, state
from evaluation.results.statistics import mcnemar
from tests.support.fake_runs import BROKEN, CHECKS, Fake, make
from tests.support.pages import Node, read
from tests.support.records import record

HOSTILE = '$x_{$ <img src="https://evil.example/x" onerror="a()">&amp;'


@dataclass
class Report:
    """Three defenses in a folder, one of whose checks failed."""

    folder: Path
    out: Path
    root: Node
    lines: list[str]

    def summary(self, name: str) -> dict:
        return json.loads((self.folder / name / "summary.json").read_text())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder, lines = tmp_path_factory.mktemp("runs"), []
    make(folder / "classifier-linf", Fake())
    make(folder / "rdc-linf", Fake("rdc", halved=0.3, purifies=True, checks=(*CHECKS[1:], BROKEN)))
    random = Fake("diffpure", "l2", (1.0,), draws=7, halved=1.5)
    make(folder / "diffpure-l2", random)
    before = dict(matplotlib.rcParams)
    page = write([folder], folder / "report", log=lines.append)
    assert dict(matplotlib.rcParams) == before
    return Report(folder, page.parent, read(page), lines)


@pytest.fixture
def unpictured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of words: pictures take nearly all of the time."""
    for where in ("page.figures.confusions", "page.figures.reliability", "page.draw"):
        monkeypatch.setattr(f"evaluation.report.{where}", lambda *_: b"")


def test_failed_checks_come_first(report: Report) -> None:
    expected = "CHECKS FAILED in rdc-linf: finite differences."
    (body,) = report.root.all("body")
    first = body.children[0]
    assert isinstance(first, Node) and first.text == expected
    assert first.attributes["class"] == "state failed"
    assert report.root.all("title")[0].text.startswith("CHECKS FAILED")
    assert report.lines[0] == expected
    assert [line for line in report.lines if line.startswith("rdc-linf") and "FAILED" in line]
    assert report.lines[-1] == f"wrote {report.out / 'index.html'}"


def test_nothing_is_loaded(report: Report) -> None:
    text = (report.out / "index.html").read_text()
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    for node in report.root.walk():
        for name in ("src", "href"):
            assert (node.attributes.get(name) or "#").startswith(("data:image/png;base64,", "#"))
        assert not [name for name in node.attributes if name.startswith("on")]


def test_every_picture_is_a_file_beside_the_page(report: Report) -> None:
    sources = [node.attributes["src"] or "" for node in report.root.all("img")]
    inside = [base64.b64decode(source.split(",")[1]) for source in sources]
    files = {file.name: file.read_bytes() for file in report.out.glob("*.png")}
    assert sorted(inside) == sorted(files.values())
    kinds = ("confusion", "reliability")
    assert {f"rdc-linf-{kind}-{s}.png" for kind in kinds for s in ("clean", "attacked")} < set(
        files
    )
    assert {"accuracy-1-linf.png", "accuracy-1-l2.png", "rdc-linf-wrong.png"} < set(files)
    assert all(Image.open(io.BytesIO(png)).width == 920 for png in inside)


def rows(table: Node) -> list[list[Node]]:
    return [[n for n in row.children if isinstance(n, Node)] for row in table.all("tr")]


def shown(share: dict) -> str:
    low, high = 100 * share["low"], 100 * share["high"]
    return f"{100 * share['accuracy']:.1f} [{low:.0f}, {high:.0f}]"


def test_headline_has_the_figures_of_the_summaries(report: Report) -> None:
    columns = {
        "classifier": ("linf", ["0", "0.1", "0.2", None, None]),
        "diffpure": ("l2", [None, None, None, "0", "1"]),
        "rdc": ("linf", ["0", "0.1", "0.2", None, None]),
    }
    protocol, seen = "", []
    for cells in rows(report.root.all("table")[0])[2:]:
        if len(cells) == 1:
            protocol = cells[0].text.lower().removesuffix(" noise")
            continue
        name = cells[0].text.split()[0]
        norm, budgets = columns[name]
        figures = report.summary(f"{name}-{norm}")["accuracy"]
        for eps, cell in zip(budgets, cells[1:], strict=True):
            share = None if eps is None else figures[eps]["none" if eps == "0" else "worst"]
            assert cell.text == ("-" if share is None else shown(share[protocol]))
            assert cell.struck() == (name == "rdc" and share is not None)
        seen.append((protocol, name))
    frozen = [("frozen", name) for name in columns]
    assert seen == [*frozen, *((p, "diffpure") for p in ("fresh", "majority", "worst draw"))]
    assert "the vote of these 7 draws" in report.root.all("ul")[0].text


def test_run_has_every_attack_and_is_struck_through_where_it_failed(report: Report) -> None:
    for run in report.root.all("details", "run"):
        name = run.all("h3")[0].text
        figures = report.summary(name)["accuracy"]
        (table,) = [t for t in run.all("table") if t.all("tr", "worst")]
        found = {(c[0].text, c[1].text): c[2:] for c in rows(table)[1:]}
        assert len(found) == 1 + sum(len(by) for eps, by in figures.items() if eps != "0")
        for (eps, attack), cells in found.items():
            by = (
                figures["0"]["none"]
                if eps == "clean"
                else figures[eps.removeprefix("eps ")][attack]
            )
            assert [cell.text for cell in cells[: len(by)]] == [shown(s) for s in by.values()]
            assert all(cell.struck() == (name == "rdc-linf") for cell in cells[: len(by)])
        states = [item.all("b")[1].text for item in run.all("ul", "checks")[0].all("li")]
        failing = ["FAILED", "passed", "not applied"]
        assert states == (failing if name == "rdc-linf" else ["passed", "passed", "not applied"])
        captions = [node for node in run.all("figcaption") if re.match("Clean|Attacked", node.text)]
        assert len(captions) == 4
        assert all(bool(node.all("s")) == (name == "rdc-linf") for node in captions)


def test_curves_are_the_figures(report: Report) -> None:
    (run,) = load([report.folder / "classifier-linf"])[0]
    axes = Figure().add_subplot()
    curve(axes, run, 0, 0.01)
    shares = [run.share(eps) for eps in (0.0, 0.1, 0.2)]
    assert axes.lines[0].get_xdata() == pytest.approx([0.01, 0.11, 0.21])
    assert axes.lines[0].get_ydata() == pytest.approx([100 * s.mean for s in shares])
    caps = [line.get_ydata() for line in axes.lines[1:]]
    assert caps[0] == pytest.approx([100 * s.low for s in shares])
    assert caps[1] == pytest.approx([100 * s.high for s in shares])


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12).map(sorted))
def test_labels_do_not_touch(wanted: list[float]) -> None:
    placed = spread(wanted, gap=6)
    assert all(b - a >= 6 - 1e-9 for a, b in pairwise(placed))
    assert placed[0] >= 0 and placed[-1] <= 100
    if all(b - a >= 6 for a, b in pairwise(wanted)):
        assert placed == wanted


def test_text_of_files_is_text(tmp_path: Path) -> None:
    check = {"name": HOSTILE, "passed": False, "detail": HOSTILE}
    classes = tuple(f"{HOSTILE}{number}" for number in range(10))
    folder = make(tmp_path / HOSTILE.replace("/", "-"), Fake(checks=(check,), classes=classes))
    summary = json.loads((folder / "summary.json").read_text())
    for part in (summary["config"]["defense"], summary["config"], summary["packages"], summary):
        part |= {key: HOSTILE for key, value in part.items() if key not in ("norm", "split")
                 and isinstance(value, str)}  # fmt: skip
    summary["weights"] = {HOSTILE: HOSTILE}
    summary["calls_per_image"] = {HOSTILE: 3}
    (folder / "summary.json").write_text(json.dumps(summary))
    root = read(write([folder], tmp_path / "out"))
    for img in root.all("img"):
        assert set(img.attributes) == {"src", "alt", "width", "class"}
        assert (img.attributes["src"] or "").startswith("data:")
    assert sum(HOSTILE in cell.text for cell in root.all("td")) >= 5
    assert HOSTILE in root.all("ul", "checks")[0].text
    assert HOSTILE in root.all("p", "state")[0].text and HOSTILE in root.all("h2")[0].text


def run(folder: Path, fake: Fake) -> Run:
    return load([make(folder, fake)])[0][0]


def test_pairs_are_of_the_same_images_norm_and_budget(tmp_path: Path) -> None:
    fakes = {
        "a": Fake("a", halved=0.1), "b": Fake("b", eps=(0.2, 0.3), halved=0.2),
        "c": Fake("c", "l2"), "d": Fake("d", fingerprint="e2" * 32), "e": Fake("e", images=10),
        "f": Fake("f", checks=(BROKEN,)),
    }  # fmt: skip
    runs = [run(tmp_path / name, fake) for name, fake in fakes.items()]
    first, *others = groups(runs)
    assert [r.name for r in first.runs] == ["a", "b", "c", "f"]
    assert [[r.name for r in group.runs] for group in others] == [["d"], ["e"]]
    found = pairs(first, "linf")
    assert [(p.first.name, p.second.name, p.eps) for p in found] == [
        ("a", "b", 0.0), ("a", "b", 0.2),
    ]  # fmt: skip
    right = [[survived(r, 0.2, image) for image in range(12)] for r in runs[:2]]
    assert found[1].p == mcnemar(*right)
    only = sum(a and not b for a, b in zip(*right, strict=True))
    assert found[1].only_first == only
    assert found[1].only_first - found[1].only_second == sum(right[0]) - sum(right[1]) != 0


def survived(run: Run, eps: float, image: int) -> bool:
    rows = [r for r in run.records if r.image == image and r.eps in (0, eps)]
    return all(r.right for r in rows)


def test_different_images_stay_apart_and_differences_are_named(tmp_path: Path, unpictured) -> None:
    make(tmp_path / "all" / "a", Fake("a"))
    make(tmp_path / "all" / "b", Fake("b", steps=20))
    make(tmp_path / "all" / "c", Fake("c", fingerprint="e2" * 32))
    lines: list[str] = []
    root = read(write([tmp_path / "all"], tmp_path / "out", log=lines.append))
    assert [h.text for h in root.all("h2")] == ["digits, test split, 12 images"] * 2 + ["Runs"]
    assert any("2 different sets of images" in p.text for p in root.all("p"))
    names = [[c[0].text for c in rows(t)] for t in root.all("table")]
    assert ["a : b"] in [[name for name in table if " : " in name][1:] for table in names]
    assert "suite.steps: 40 (a); 20 (b)" in [li.text for li in root.all("li")]
    assert lines[0] == root.all("p", "state passed")[0].text
    assert lines[0] == "All checks passed in all 3 runs (6 checks; 3 not applied)."


def test_state_of_the_checks(tmp_path: Path) -> None:
    sound, silent = run(tmp_path / "sound", Fake()), run(tmp_path / "silent", Fake(checks=()))
    skipped = run(tmp_path / "skipped", Fake(checks=(CHECKS[2],)))
    failed = run(tmp_path / "failed", Fake(checks=(BROKEN,)))
    assert state([sound])[1] == "passed"
    assert state([silent])[0] == "CHECKS NOT RUN in silent."
    assert state([silent, skipped])[0] == "CHECKS NOT RUN in any of the 2 runs."
    assert state([sound, silent, skipped]) == (
        "CHECKS NOT RUN in silent, skipped. Passed in 1 of 3 runs.", "open",
    )  # fmt: skip
    line, kind = state([sound, failed, silent])
    assert kind == "failed"
    assert line == "CHECKS FAILED in failed: finite differences. Not run in silent."


def test_worst_answer_of_an_image() -> None:
    said = [
        (0, 0.0, 1, 0.99), (0, 0.1, 1, 0.7), (0, 0.1, 1, 0.8),
        (1, 0.0, 1, 0.5), (1, 0.1, 2, 0.6), (1, 0.1, 3, 0.9),
        (2, 0.0, 4, 0.4), (2, 0.1, 1, 0.1), (2, 0.2, 5, 1.0),
    ]  # fmt: skip
    rows = [
        record(image, eps, "a", frozen, label=1, frozen_confidence=sure)
        for image, eps, frozen, sure in said
    ]
    assert answers(rows, 0.1) == [
        Answer(0, 1, 1, 0.7), Answer(1, 1, 3, 0.9), Answer(2, 1, 4, 0.4),
    ]  # fmt: skip
    assert [answer.confidence for answer in answers(rows, 0.0)] == [0.99, 0.5, 0.4]
    # What is within a budget is within a larger one.
    assert answers(rows, 0.2) == [*answers(rows, 0.1)[:2], Answer(2, 1, 5, 1.0)]
    counts = confusion(answers(rows, 0.1), 5)
    assert counts.sum() == 3 and counts[1].tolist() == [0, 1, 0, 1, 1]


def test_calibration_by_hand() -> None:
    """Four answers at 0.95, three of them right; one right at 0.3, the edge of a bin."""
    found = [Answer(i, 0, int(i == 0), 0.95) for i in range(4)] + [Answer(4, 0, 0, 0.3)]
    bins = calibration(found)
    assert [part.count if part else 0 for part in bins] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 4]
    assert calibration_error(bins) == pytest.approx((4 * abs(0.75 - 0.95) + abs(1 - 0.3)) / 5)
    assert calibration([Answer(0, 0, 0, 1.0)])[-1] is not None


def test_budgets_are_said_as_people_write_them() -> None:
    assert [spoken(eps) for eps in (0.0, 0.1, 8 / 255, 0.2, 1.0)] == [
        "clean", "eps 0.1", "eps 8/255", "eps 0.2", "eps 1",
    ]  # fmt: skip


def test_many_classes_have_a_matrix_without_names() -> None:
    classes = [f"a class with a long name, {number}" for number in range(100)]
    assert confusions([Answer(0, 99, 3, 0.5)], classes, "title").startswith(b"\x89PNG")


def test_examples_are_images_of_their_records(tmp_path: Path, unpictured) -> None:
    found = run(tmp_path / "rdc", Fake("rdc", purifies=True, images=20, eps=(0.1, 0.2)))
    kept = examples(found, 0.2)
    assert len(kept["wrong"]) == len(kept["right"]) == 3
    for name, part in kept.items():
        for example in part:
            assert example.record.eps == 0.2 and example.clean.eps == 0
            assert example.record.linf == pytest.approx(
                abs(example.attacked - example.given).max(), abs=1e-6
            )
            assert example.purified is not None and example.wrong == (name == "wrong")
    shutil.rmtree(found.folder / "images")
    assert examples(found, 0.2) == {}
    page = read(write([found.folder], tmp_path / "out"))
    assert any("holds none of eps 0.2" in p.text for p in page.all("p", "open"))


def test_differences_of_gray_and_color_images() -> None:
    """Up is red or bright, down blue or dark, by how much of the largest change."""
    said = record(0, 0.2, "a", 1, label=0)
    for channels, colors in ((1, ["#b2182b", "#ffffff", "#2166ac"]),
                             (3, ["#ffffff", "#808080", "#000000"])):  # fmt: skip
        given = np.full((channels, 1, 3), 0.5)
        example = Example(given, given + np.array([0.2, 0.0, -0.2]), None, said, said)
        assert scale([example]) == pytest.approx(0.2)
        assert [to_hex(c) for c in difference(example, 0.2)[0]] == colors
        assert draw([example], ["a name", "of another class"], "title").startswith(b"\x89PNG")


def test_images_of_another_run_are_refused(tmp_path: Path) -> None:
    one, other = make(tmp_path / "a", Fake("a")), make(tmp_path / "b", Fake("b"))
    shutil.rmtree(one / "images")
    shutil.copytree(other / "images", one / "images")
    with pytest.raises(ValueError, match="images and records of different runs"):
        write([one], tmp_path / "out")


def test_unfinished_run_says_how_to_finish_it(tmp_path: Path, unpictured) -> None:
    """The command's settings are the run's; beside finished runs it is a note."""
    make(tmp_path / "all" / "sound", Fake())
    folder = tmp_path / "all" / "un finished"
    folder.mkdir()
    config = EvaluateConfig(out=folder, norm="l2", eps=(0.5, 1.0), images=7)
    (folder / "settings.json").write_text(json.dumps({**asdict(config), "out": None}, default=str))
    with pytest.raises(ValueError, match="is not finished") as caught:
        load([folder])
    command = shlex.split(str(caught.value).split("continue it: ")[1])
    assert command[:3] == ["python", "-m", "evaluation.evaluate"]
    assert tyro.cli(EvaluateConfig, args=command[3:]) == config
    assert "--batch-size" in command and "--defense.t-star" not in command
    runs, notes = load([tmp_path / "all"])
    assert [r.name for r in runs] == ["sound"] and len(notes) == 1
    page = read(write([tmp_path / "all"], tmp_path / "out"))
    assert notes[0] in [p.text for p in page.all("p")]


def doubled(summary: dict) -> None:
    """As many right answers among twice as many images."""
    share = summary["accuracy"]["0"]["none"]["frozen"]
    share |= {"images": 2 * share["images"], "accuracy": share["accuracy"] / 2}


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        summary = json.loads((folder / "summary.json").read_text())
        change(summary)
        (folder / "summary.json").write_text(json.dumps(summary))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "is not a folder"),
        (
            lambda folder: (folder / "summary.json").write_text("{"),
            "JSONDecodeError",
        ),
        (edit(lambda s: s.pop("checks")), "KeyError"),
        (
            edit(lambda s: s["accuracy"]["0"]["none"].pop("frozen")),
            "under the frozen draw",
        ),
        (edit(lambda s: s["accuracy"]["0.1"]["worst"]["frozen"].update(accuracy=0)), "records say"),
        (edit(doubled), "of 24 images"),
        (lambda folder: (folder / "records-001.jsonl").unlink(), "records say"),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, damage, message: str) -> None:
    folder = make(tmp_path / "run", Fake())
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nor does a folder in it"):
        load([tmp_path])
    with pytest.raises(ValueError, match="none given"):
        load([])


def test_names_are_as_long_as_they_must_be(tmp_path: Path) -> None:
    for name in ("new/rdc-linf", "old/rdc-linf"):
        make(tmp_path / name, Fake("rdc"))
    runs, _ = load([tmp_path / "new", tmp_path / "old", tmp_path / "new" / "rdc-linf"])
    assert [(r.name, r.defense) for r in runs] == [
        ("new/rdc-linf", "new/rdc"), ("old/rdc-linf", "old/rdc"),
    ]  # fmt: skip
    assert default_out([tmp_path / "new", tmp_path / "old"]) == tmp_path / "report"
    assert default_out([tmp_path / "new"]) == tmp_path / "new" / "report"
