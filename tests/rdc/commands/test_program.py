"""Command lines: settings from the annotation of `main`, errors of users in one line, once."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import tyro
from safetensors import SafetensorError

from rdc.commands import program
from rdc.commands.program import report_error, run_program, with_current_flags, with_flags
from tests.support.launchers import printed, two


@dataclass(frozen=True)
class Inner:
    width: int = 4
    """width"""
    seed: int = 0
    """seed"""


@dataclass(frozen=True)
class Settings:
    given: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IN")]
    """a file"""
    batch_size: int = 1
    """rows"""
    seed: int = 0
    """seed"""
    place: Path = Path("a/b")
    """folder"""
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class Writing:
    out: Path = Path("a/b")
    """folder"""


USED, ROOM = "--out=a/b cannot be used:", "give a place that can be written and has room"


def raising(make) -> int:
    """The exit status of a program whose `main` calls `make`."""

    def main(config: Settings) -> None:
        make(config)

    return run_program(main, ["x", "--batch-size", "3"])


def refuse(config: Settings) -> None:
    raise ValueError(
        f"batch_size={config.batch_size} is odd;\nsecond line"
    )  # fmt: skip


def lose_connection(config: Settings) -> None:
    raise RuntimeError("connection closed")


def test_the_status_is_that_of_main() -> None:
    def main(config: Settings) -> int:
        return config.batch_size

    def nothing(config: Settings) -> None:
        pass

    assert run_program(main, ["x", "--batch-size", "7"]) == 7
    assert run_program(nothing, ["x"]) == 0


def test_former_flags_are_taken_with_a_warning(capsys) -> None:
    @dataclass(frozen=True)
    class Convert:
        image_size: int = 32

    given = ["--chunk=3", "--suite.draws", "2", "--image-size", "8", "--seed=1"]
    now = ["--max-rows=3", "--suite.eot-samples", "2", "--resize", "8", "--seed=1"]
    assert with_current_flags(given, Settings) == now
    assert capsys.readouterr().err.splitlines()[0] == "warning: --chunk is now called --max-rows"
    assert with_current_flags(["--image-size", "8"], Convert) == ["--image-size", "8"]


def test_errors_of_this_project_are_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(program, "CHECKOUT", Path(__file__).parent)
    monkeypatch.setattr(program, "PACKAGES", (Path(__file__).name,))
    assert raising(refuse) == 2
    assert capsys.readouterr() == ("", "error: --batch-size=3 is odd;\\nsecond line\n")


def test_traceback_is_shown_when_asked_for(monkeypatch, capsys) -> None:
    monkeypatch.setattr(program, "PACKAGES", ("tests",))

    def main(config: Settings) -> None:
        refuse(config)

    assert run_program(main, ["x", "--traceback"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback") and error.splitlines()[-1].startswith("error: --batch")


def test_faults_keep_their_traceback(monkeypatch) -> None:
    """A ValueError of Python, and an error of ours that is no mistake of the user."""
    monkeypatch.setattr(program, "PACKAGES", ("tests",))
    with pytest.raises(ValueError, match="invalid literal"):
        raising(lambda _: int("x"))
    with pytest.raises(TypeError, match="unsupported operand"):
        raising(lambda config: config.seed + "x")

    def broken(_: Settings) -> None:
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        raising(broken)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "No such file", "x"), "x: No such file"),
        (PermissionError(13, "denied", "a/.b.0123.part"), f"{USED} a/.b.0123.part: denied; {ROOM}"),
        (FileExistsError(17, "exists", "a"), f"{USED} a: exists; {ROOM}"),
        (OSError(28, "full"), f"{USED} full; {ROOM}"),
        (SafetensorError("I/O error: full"), f"{USED} I/O error: full; {ROOM}"),
        (OSError("in words"), "in words"),
    ],
)
def test_errors_of_the_system_are_one_line(capsys, error: Exception, message: str) -> None:
    def fail(_: Writing) -> None:
        raise error

    assert run_program(fail, []) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_ctrl_c_is_one_line(capsys) -> None:
    def stop(_: Settings) -> None:
        raise KeyboardInterrupt

    assert raising(stop) == 130
    assert capsys.readouterr().err == "\nstopped by Ctrl-C\n"


def test_output_that_nobody_reads_ends_a_program_silently() -> None:
    """The pipe's reader has ended before the program prints."""
    reads, writes = os.pipe()
    os.close(reads)
    lines = (
        "from dataclasses import make_dataclass",
        "from rdc.commands.program import run_program",
        "run = lambda _: print('x' * 9999)",
        "raise SystemExit(run_program(run, [], kind=make_dataclass('Settings', [])))",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writes)
    assert (done.stderr, done.returncode) == ("", 141)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("batch_size=3 must be 1", "--batch-size=3 must be 1"),
        ("batch_size=0 must be 1", "batch_size=0 must be 1"),  # not what was given
        ("width=4: too small", "--inner.width=4: too small"),
        ("size=3: a number of another name", "size=3: a number of another name"),
        ("seed=0: two have it", "seed=0: two have it"),
        ("given=x: positional", "given=x: positional"),
        ("place='a/b' is full", "--place='a/b' is full"),
        ("place=a/b is full", "--place=a/b is full"),
        ("place=a/bc is full", "place=a/bc is full"),
        ("file x: width=4", "file x: width=4"),
        ("no argument", "no argument"),
    ],
)
def test_arguments_are_written_as_flags(message: str, expected: str) -> None:
    assert with_flags(message, Settings(Path("x"), batch_size=3)) == expected


def test_the_main_process_prints_what_all_have(monkeypatch, capsys) -> None:
    """Another process waits to be ended, and prints what it alone has."""
    waited: list[float] = []
    monkeypatch.setattr(program.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "0")
    report_error("a")
    assert (capsys.readouterr().err, waited) == ("error: a\n", [])
    monkeypatch.setenv("RANK", "1")
    report_error("b")
    assert capsys.readouterr().err == "error in process 1: b\n"
    assert len(waited) == 1


def test_faults_of_other_processes_wait_too(monkeypatch):
    """A process that loses its connection to the main one is ended before it prints a traceback."""
    waited: list[float] = []
    monkeypatch.setattr(program.time, "sleep", waited.append)
    for process, expected in ("0", 0), ("1", 1):
        monkeypatch.setenv("RANK", process)
        with pytest.raises(RuntimeError, match="connection closed"):
            raising(lose_connection)
        assert len(waited) == expected


@pytest.mark.slow
def test_several_processes_print_an_error_once(tmp_path: Path) -> None:
    """The processes run as under torchrun, which ends the others when one has ended."""
    arguments = ["classify", tmp_path / "missing", "--out", tmp_path / "out"]
    with two(tmp_path / "printed", "rdc", *arguments) as (first, second):
        first.join()
        second.terminate()
    assert first.exitcode == 2 and second.exitcode != 0
    stderr = "".join(printed(tmp_path / "printed" / rank)[1] for rank in "01")
    assert [line for line in stderr.splitlines() if line.startswith("error")] == [
        f"error: path={tmp_path / 'missing'} does not exist; give an image or a folder"
    ]
