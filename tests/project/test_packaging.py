"""The wheel holds the library, its type marker and its packaged models, and nothing else."""

import subprocess
import sys
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

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


def test_top_level_names(names: set[str]) -> None:
    """Importable names are few: a wheel must not claim `tests` or `training` for everyone."""
    libraries = {name for name in ("rdc", "purification") if (ROOT / name / "__init__.py").exists()}
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == libraries
    assert len(top) == len(libraries) + 1


def test_every_module_is_inside(names: set[str]) -> None:
    files = [path for name in ("rdc", "purification") for path in (ROOT / name).rglob("*.py")]
    modules = {path.relative_to(ROOT).as_posix() for path in files}
    assert {"rdc/classifier.py", "purification/purifier.py"} <= modules
    assert modules <= names


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
