"""The page: its first lines, the figures of the files in its tables, and text that stays text."""

import base64
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from evaluation.checks.check import OF_RECORDS
from evaluation.report.load import Run, load
from evaluation.report.page import default_out, write
from evaluation.report.state import state, strength
from rdc.text import printable
from tests.support.fake_runs import BROKEN, CHECKS, Fake, make
from tests.support.pages import Node, read, without_pictures

HOSTILE = '$x_{$ <img src="https://evil.example/x" onerror="a()">&amp;\x1b[2J\n\u202e'


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
    without_pictures(monkeypatch)


@pytest.mark.slow
def test_failed_checks_come_first(report: Report) -> None:
    expected = "CHECKS FAILED in rdc-linf: finite differences."
    (body,) = report.root.all("body")
    first = next(child for child in body.children if isinstance(child, Node))
    assert first.attributes["class"] == "state failed"
    assert first.text.startswith(expected) and first.text.endswith(report.lines[1])
    assert report.root.all("title")[0].text.startswith("CHECKS FAILED")
    assert report.lines[0] == expected
    assert [line for line in report.lines if line.startswith("rdc-linf") and "FAILED" in line]
    assert report.lines[-1] == f"wrote {report.out / 'index.html'}"


@pytest.mark.slow
def test_nothing_is_loaded(report: Report) -> None:
    text = (report.out / "index.html").read_text()
    assert not re.search(r"https?:|url\(|@import|<script|<link", text)
    for node in report.root.walk():
        for name in ("src", "href"):
            assert (node.attributes.get(name) or "#").startswith(("data:image/png;base64,", "#"))
        assert not [name for name in node.attributes if name.startswith("on")]


@pytest.mark.slow
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
    assert all(Image.open(io.BytesIO(png)).width == pytest.approx(920, abs=1) for png in inside)


def rows(table: Node) -> list[list[Node]]:
    return [[n for n in row.children if isinstance(n, Node)] for row in table.all("tr")]


def shown(share: dict) -> str:
    low, high = 100 * share["low"], 100 * share["high"]
    return f"{100 * share['accuracy']:.1f} [{low:.0f}, {high:.0f}]"


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_text_of_files_is_text(tmp_path: Path) -> None:
    check = {"name": HOSTILE, "passed": False, "detail": HOSTILE}
    classes = HOSTILE, *"123456789"
    folder = make(
        tmp_path / HOSTILE.replace("/", "-"), Fake(checks=(check,), classes=classes, eps=(0.1,))
    )
    summary = json.loads((folder / "summary.json").read_text())
    for part in (summary["config"]["defense"], summary["config"], summary["packages"], summary):
        part |= {key: HOSTILE for key, value in part.items() if key not in ("norm", "split")
                 and isinstance(value, str)}  # fmt: skip
    summary["weights"] = {HOSTILE: HOSTILE}
    summary["calls_per_image"] = {HOSTILE: 3}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines: list[str] = []
    page = write([folder], tmp_path / "out", log=lines.append)
    root = read(page)
    for img in root.all("img"):
        assert set(img.attributes) == {"src", "alt", "width", "class"}
        assert (img.attributes["src"] or "").startswith("data:")
    shown = printable(HOSTILE)
    assert sum(shown in cell.text for cell in root.all("td")) >= 5
    assert shown in root.all("ul", "checks")[0].text
    assert shown in root.all("p", "state")[0].text and shown in root.all("h2")[0].text
    assert not {*"\x1b\u202e"} & {*page.read_text(encoding="utf-8")}
    assert all(line.isprintable() for line in lines) and any(shown in line for line in lines)


def run(folder: Path, fake: Fake) -> Run:
    return load([make(folder, fake)])[0][0]


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
    assert " ".join(lines[:2]) == root.all("p", "state passed")[0].text
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
    unasked = run(tmp_path / "unasked", Fake(checks=({**CHECKS[0], "name": OF_RECORDS[0]},)))
    assert state([unasked]) == (
        "MODELS NOT CHECKED; checks of the records passed in the run (1 checks).", "open",
    )  # fmt: skip
    assert state([sound, unasked]) == (
        "All checks passed in all 2 runs (3 checks; 1 not applied). Models were checked in 1 of "
        "them.", "passed",
    )  # fmt: skip
    corrupted = run(tmp_path / "corrupted", Fake(norm="corruption", checks=()))
    assert state([sound, corrupted]) == state([sound])
    assert state([corrupted])[0] == "No checks: corruptions are no attack."
    line, kind = state([sound, failed, silent])
    assert kind == "failed"
    assert line == "CHECKS FAILED in failed: finite differences. Not run in silent."


def test_strength_is_the_weakest_and_the_strongest_of_the_runs(tmp_path: Path) -> None:
    one = run(tmp_path / "one", Fake(images=12, halved=0.15, steps=40))
    widest = max(share.high - share.low for eps in (0.0, 0.1, 0.2) for share in [one.accuracy(eps)])
    assert strength([one]) == (
        f"Strength: 12 images (95 % intervals up to {100 * widest:.0f} points wide), 40 steps per "
        "attack (AutoAttack: 100)."
    )
    other = run(tmp_path / "other", Fake(images=4, steps=3))
    assert "4 to 12 images" in strength([one, other])
    assert "3 to 40 steps per attack" in strength([one, other])


def test_default_out_is_the_folder_that_all_share(tmp_path: Path) -> None:
    assert default_out([tmp_path / "new", tmp_path / "old"]) == tmp_path / "report"
    assert default_out([tmp_path / "new"]) == tmp_path / "new" / "report"
