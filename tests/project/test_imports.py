"""Imports run one way: rdc knows nobody, programs know the library and not each other."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import rdc
from tests.support.pictures import tree

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "rdc": set(),
    "purification": {"rdc"},
    "training": {"rdc", "purification"},
    "evaluation": {"rdc", "purification"},
    "benchmarks": {"rdc", "purification", "training", "evaluation"},
    "examples": {"rdc", "purification", "evaluation"},
}
OURS = {*ALLOWED, "tests", "recipes"}
HEAVY = ["timm", "accelerate", "torchsde", "sklearn", "matplotlib", "torchvision", "tyro",
         "diffusers", "pyarrow"]  # fmt: skip


def sources(package: str) -> dict[str, str]:
    """Source text of every module of a package by dotted name, a package's own as a.b.__init__."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in (ROOT / package).rglob("*.py")
    }


def imported(source: str, module: str = "m") -> Iterator[str]:
    """Every name that might be a module: `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(module.split(".")[: -node.level]) + "." if node.level else ""
            base = (start + (node.module or "")).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def runs_itself(source: str) -> bool:
    """True if the module ends in `if __name__ == "__main__":`."""
    return any(
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in ast.parse(source).body
    )


def entry_points() -> set[str]:
    return {
        module
        for package in ALLOWED
        for module, source in sources(package).items()
        if runs_itself(source) or module.endswith(".__main__")
    }


EXAMPLE = """
import a.b
from c import d
def late():
    from . import e
    from ..f.g import h
if __name__ == "__main__":
    late()
"""


def test_the_reader_sees_every_kind_of_import() -> None:
    names = ["a.b", "c", "c.d", "pkg.sub", "pkg.sub.e", "pkg.f.g", "pkg.f.g.h"]
    assert list(imported(EXAMPLE, "pkg.sub.module")) == names
    assert runs_itself(EXAMPLE)
    assert not runs_itself("if __name__ == 'm':\n    pass")


def test_the_known_packages_are_read() -> None:
    assert {"rdc.__init__", "rdc.classifier", "rdc.__main__"} <= set(sources("rdc"))
    assert {"rdc.__main__", "training.train"} <= entry_points()
    assert "rdc.classifier" not in entry_points()


@pytest.mark.parametrize("package", [name for name in ALLOWED if (ROOT / name).is_dir()])
def test_imports_run_one_way(package: str) -> None:
    forbidden = OURS - ALLOWED[package] - {package}
    wrong = [
        f"{module} imports {name}"
        for module, source in sources(package).items()
        for name in imported(source, module)
        if name.split(".")[0] in forbidden
    ]
    assert wrong == []


@pytest.mark.slow
def test_tests_import_nothing_from_other_tests() -> None:
    """Code that several tests need is in `tests.support`."""
    wrong = [
        f"{module} imports {name}"
        for module, source in sources("tests").items()
        for name in imported(source, module)
        if any(part.startswith("test_") for part in name.split(".")[:-1])
    ]
    assert wrong == []


def test_libraries_import_no_program() -> None:
    """Programs may build on other programs."""
    programs = entry_points()
    wrong = [
        f"{module} imports {name}"
        for package in ALLOWED
        for module, source in sources(package).items()
        if module not in programs
        for name in imported(source, module)
        if name in programs
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import rdc; rdc.__version__", []),
        ("import rdc.commands.main", []),
        pytest.param(
            "import rdc, purification, torch; from pathlib import Path; "
            "rdc.Denoiser.from_pretrained('digits'); rdc.data.load('.', 'train', cache=Path('c')); "
            "from rdc.networks import blocks; torch.set_default_device('meta'); "
            "blocks.position_frequencies(4); blocks.closed_position_frequencies(4)",
            ["torch"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_library_starts_light(tmp_path: Path, code: str, expected: list[str]) -> None:
    """Packages that only programs and single functions need are imported inside these."""
    tree(tmp_path, 1)
    loaded = f"[name for name in {['torch', 'torch._dynamo', *HEAVY]} if name in sys.modules]"
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print({loaded})"],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert ran.stdout == f"{expected}\n", ran.stderr


def test_public_names_and_modules_are_attributes() -> None:
    assert {"Denoiser", "classify", "__version__"} <= set(dir(rdc))
    assert rdc.Denoiser is import_module("rdc.denoiser").Denoiser
    assert all(getattr(rdc, name) is getattr(rdc.public, name) for name in rdc.public.__all__)
    assert rdc.levels.Levels is rdc.Levels
    starred: dict = {}
    exec("from rdc import *", starred)
    assert set(rdc.public.__all__) <= set(starred)
    with pytest.raises(AttributeError, match="module 'rdc' has no attribute 'nothing'"):
        rdc.nothing  # noqa: B018
