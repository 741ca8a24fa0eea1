"""Programs of `rdc` parse their flags before they import torch, which takes seconds."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rdc.commands.main import PROGRAMS
from rdc.commands.program import settings_type

MISTYPED = "--mistyped-flag"
POSITIONAL = {
    "classify": ["IN"], "purify": ["IN", "OUT"], "report": ["IN"], "curves": ["IN"],
    "convert": ["IN"], "export": ["IN", "OUT"],
}  # fmt: skip
"""Arguments without a name, which the parser asks for before it looks at flags."""
REFUSED = {
    "evaluate": (["--out", "x", "--eps", "8"], "error: --eps=8: images are in [0, 1]"),
    "train": (["--out", "x", "--rdc.classifier.draws", "0"], "error: --rdc.classifier.draws=0"),
}
HEAVY = ("torch", "accelerate", "timm", "matplotlib", "sklearn", "huggingface_hub")
CODE = f"""
import json, sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name in {HEAVY}:
            raise ImportError(name)

sys.meta_path.insert(0, Refusal())
from rdc.commands.main import main

def run(*arguments):
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = ended.code or 0
        except ImportError as error:
            status = repr(error)
    return status, out.getvalue(), err.getvalue()

mistyped = {{name: run(name, *{POSITIONAL}.get(name, []), {MISTYPED!r}) for name in {[*PROGRAMS]}}}
pages = {{name: run(name, "--help") for name in {[*PROGRAMS]}}}
refused = {{name: run(name, *given) for name, (given, _) in {REFUSED}.items()}}
print(json.dumps([mistyped, pages, refused, run("--tyro-print-completion", "bash")]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list:
    """Exit status, output and errors of mistakes, pages of help and the completion script."""
    ran = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True, text=True, cwd=tmp_path_factory.mktemp("empty"), timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_flags_and_help_need_no_torch(answers: list, name: str) -> None:
    status, out, err = answers[0][name]
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ") and MISTYPED in err
    status, out, err = answers[1][name]
    assert (status, err) == (0, "") and f"usage: rdc {name} " in out


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_help_has_no_comments_for_type_checkers(answers: list, name: str) -> None:
    """tyro takes a field's comment as its help where the field has no docstring."""
    assert re.findall(r"type:\s+ignore|noqa|fmt:\s", answers[1][name][1]) == []


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_value_needs_no_torch(answers: list, name: str) -> None:
    status, out, err = answers[2][name]
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(REFUSED[name][1])


def test_completion_needs_no_torch(answers: list) -> None:
    status, out, _ = answers[3]
    assert status == 0
    assert all(word in out for word in (*PROGRAMS, "--defense.kind", "--batch-size"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_with_the_settings_that_it_parses(name: str) -> None:
    """The annotation of `main` is the class that `PROGRAMS` names."""
    program = PROGRAMS[name]
    assert settings_type(program.load_main()) is program.load_settings()


def test_modules_of_settings_import_no_torch() -> None:
    """All modules *config.py of the packages, together."""
    root = Path(__file__).parents[2]
    modules = [
        ".".join(path.relative_to(root).with_suffix("").parts)
        for package in ("rdc", "purification", "training", "evaluation")
        for path in sorted((root / package).rglob("*config.py"))
    ]
    assert "evaluation.config" in modules
    code = f"import {', '.join(modules)}, sys; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.stdout == "False\n", ran.stderr
