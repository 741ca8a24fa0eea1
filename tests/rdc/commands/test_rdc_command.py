"""The command `rdc`: its programs, help and version."""

import subprocess
import sys
from pathlib import Path

import pytest

import rdc
from rdc.commands.main import PROGRAMS, main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_program(capsys, arguments: list[str]) -> None:
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {name for name in PROGRAMS if any(line.split()[:1] == [name] for line in lines)} == {
        *PROGRAMS
    }


def test_help_and_version_are_printed_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from rdc.commands.main import main; main(['--help']); main(['--version']);"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    *_, version, loaded = ran.stdout.splitlines()
    assert (version, loaded) == (f"rdc {rdc.__version__}", "False False"), ran.stderr


def test_a_mistyped_command_is_named(capsys) -> None:
    assert main(["clasify", "x"]) == 2
    assert capsys.readouterr().err == (
        "error: 'clasify' is not a command of rdc; did you mean classify?\n"
    )
    assert main(["xyz"]) == 2
    assert "rdc --help lists the commands" in capsys.readouterr().err
