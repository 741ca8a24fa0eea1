"""The wheel holds the four packages, their models and templates, and works from anywhere."""

import json
import os
import subprocess
import sys
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

import rdc
from tests.support.pictures import noise, save

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the declared backend as it is installed here: nothing is downloaded."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=out, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path, names: set[str]) -> Message:
    (path,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    with ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(path).decode())


PACKAGES = ("rdc", "purification", "training", "evaluation")


def test_top_level_names(names: set[str]) -> None:
    """Importable names are few: a wheel must not claim `tests` or `examples` for everyone."""
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)
    assert len(top) == len(PACKAGES) + 1


def test_every_module_and_template_is_inside(names: set[str]) -> None:
    files = [path for name in PACKAGES for kind in ("py", "jinja", "css", "npz")
             for path in (ROOT / name).rglob(f"*.{kind}")]  # fmt: skip
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    assert {"rdc/classifier.py", "training/train.py", "evaluation/report/style.css"} <= expected
    assert expected <= names


def test_the_version_and_the_command_are_declared(wheel: Path, metadata: Message) -> None:
    assert metadata["Version"] == rdc.__version__
    with ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith("entry_points.txt"))
        assert "rdc = rdc.commands.main:main" in archive.read(name).decode()


def test_types_are_declared(names: set[str]) -> None:
    assert {"rdc/py.typed", "purification/py.typed"} <= names


def test_packaged_models_are_inside(names: set[str]) -> None:
    pretrained = ROOT / "rdc" / "pretrained"
    files = {path.relative_to(ROOT).as_posix() for path in pretrained.rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith("rdc/pretrained/")} == files


def test_nothing_compiled_or_hidden_is_inside(names: set[str]) -> None:
    assert [name for name in names if "__pycache__" in name or "/." in name] == []


def test_requirements_have_no_upper_caps(metadata: Message) -> None:
    """A cap on torch or torchvision alone is how the two come apart."""
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    assert {"torch", "timm", "safetensors"} <= {r.name for r in requirements}
    operators = {(r.name, s.operator) for r in requirements for s in r.specifier}
    assert {operator for _, operator in operators} == {">="}, operators


def test_the_wheel_cannot_be_uploaded_by_mistake(metadata: Message) -> None:
    """The name `rdc` on the package index belongs to another project."""
    assert "Private :: Do Not Upload" in metadata.get_all("Classifier", [])


def test_license_and_readme_travel_along(names: set[str], metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


# Each step uses what the steps before it wrote. The work is as small as it can be.
STEPS = (
    ("--version",),
    ("demo", "--help"),
    ("info",),
    ("train", "--out", "run", "--steps", "2", "--batch-size", "4", "--network.width", "8",
     "--network.width-multipliers", "1", "--network.attention-resolutions", "--warmup", "1",
     "--rdc.classifier.levels", "2", "--rdc.maximization.steps", "1",
     "--validation-images", "4"),
    ("purify", "in", "out", "--model", "run"),
    ("classify", "out", "--model", "digits", "--json"),
    ("evaluate", "--out", "result", "--defense.kind", "classifier", "--images", "2",
     "--suite.steps", "1", "--suite.targets", "1", "--suite.queries", "2", "--check-images", "0"),
    ("report", "result"),
)  # fmt: skip


PROGRAM = """
import json, multiprocessing, sys
import rdc, rdc.commands.main
import accelerate, evaluation.report.page, purification.__main__, torch._dynamo, training.train


def run(step):
    sys.argv = ["rdc", *step]
    sys.exit(rdc.commands.main.main())


print(rdc.__file__, flush=True)
for step in json.loads(sys.argv[1]):
    print(step, flush=True)
    child = multiprocessing.get_context("fork").Process(target=run, args=(step,))
    child.start()
    child.join()
    if child.exitcode:
        sys.exit(child.exitcode)
"""
"""Every step in a process forked from one that has imported what takes longest."""


def test_the_programs_run_from_the_unpacked_wheel(wheel: Path, tmp_path: Path) -> None:
    """The folder is empty, and nothing of the checkout is on the path."""
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    work = tmp_path / "work"
    save(work / "in", {"digit.png": noise(0, 8, 8)})
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, json.dumps(STEPS)], cwd=work, env=environment,
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert ran.returncode == 0, (ran.stdout[-500:], ran.stderr[-3000:])
    assert ran.stdout.startswith(str(tmp_path / "site" / "rdc"))
    assert (work / "out" / "digit.png").is_file()
    assert (work / "result" / "report" / "index.html").is_file()
