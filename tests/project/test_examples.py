"""The scripts in examples/ run, say what they measured, and are as short as they should be."""

import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.support.optional import installed

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {
    "attack_with_autoattack": "pyautoattack",
    "attack_with_torchattacks": "torchattacks",
    "attack_with_foolbox": "foolbox",
    "attack_with_art": "art.attacks.evasion",
    "robustbench_model": "pyautoattack",
    "own_classifier": "torch",
}
ATTACKS = [name for name in NEEDS if name.startswith("attack_with_")]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> Iterator[Callable[..., str]]:
    """Runs a script as a program, in another folder; what it printed."""
    tracer = sys.gettrace()
    monkeypatch.chdir(tmp_path)

    def script(name: str, *arguments: str) -> str:
        installed(NEEDS[name])
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    yield script
    sys.settrace(tracer)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name: str, run: Callable[..., str]) -> None:
    """The budget is large: the CNN's answer does not stay right."""
    lines = run(name, "--images", "1", "--steps", "2", "--eps", "0.3").splitlines()
    figures = {
        line.split(":")[0]: [int(figure) for figure in re.findall(r"(\d+)%", line)]
        for line in lines[:2]
    }
    assert [*figures] == ["CNN", "RDC"]
    clean, attacked = figures["CNN"]
    assert (clean, attacked) == (100, 0)
    assert figures["RDC"][0] == 100
    assert "Share of 1 digits that 2 steps of" in lines[2]
    assert "python -m evaluation.evaluate --out" in lines[2]


def test_robustbench(run: Callable[..., str]) -> None:
    lines = run("robustbench_model", "--images", "1").splitlines()
    said = {line[:17].strip(): line[17:] for line in lines[:5]}
    dynamic, random = (f"it seems to be a {what} defense" for what in ("dynamic", "randomized"))
    assert said == {
        "CNN": "nothing to object",
        "RDC, frozen": dynamic,
        "DiffPure, frozen": "nothing to object",
        "RDC, fresh": f"{random}; {dynamic}",
        "DiffPure, fresh": random,
    }


def test_every_script_is_short_and_in_the_table() -> None:
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    assert set(scripts) == set(NEEDS)
    assert {name: text.count("\n") for name, text in scripts.items() if text.count("\n") > 40} == {}
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert [name for name in scripts if f"| `{name}.py` |" not in table] == []


def test_own_classifier(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Three models are in the table and in the report; less training, one image, one step."""
    monkeypatch.chdir(tmp_path)
    source = (EXAMPLES / "own_classifier.py").read_text(encoding="utf-8")
    assert source.count("images, steps = 8, 5") == 1
    assert source.count("range(300)") == 1
    source = source.replace("range(300)", "range(30)")
    with torch.random.fork_rng(devices=[]):
        exec(source.replace("images, steps = 8, 5", "images, steps = 1, 1"), {})
    text = capsys.readouterr().out
    for name in ("CNN", "DiffPure + CNN", "RDC"):
        assert re.search(rf"^\| *{re.escape(name)} *\| *frozen *\| *\d", text, re.MULTILINE), text
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "DiffPure + CNN" in page


def test_the_notebook_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its code cells in order, in one namespace, in an empty folder; it holds no outputs.

    Two images and one step take the place of its parameters, as papermill would do it, and a third
    of its training.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = json.loads((EXAMPLES / "defend_my_classifier.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)
    namespace: dict[str, object] = {"__name__": "notebook"}
    with torch.random.fork_rng(devices=[]):
        for cell in cells:
            source = "".join(cell["source"]).replace("range(300)", "range(100)")
            exec(compile(source, cell["id"], "exec"), namespace)
            if "parameters" in cell["metadata"].get("tags", []):
                assert {"images", "steps"} <= namespace.keys()
                namespace |= {"images": 2, "steps": 1}
    assert len(namespace["test"]) == 2  # type: ignore[arg-type]
    said = re.findall(r"(?:accuracy|attack): ([\d.]+)", capsys.readouterr().out)
    clean, attacked = map(float, said)
    assert clean == 1 and attacked <= 0.5
    assert (tmp_path / "report" / "index.html").is_file()
