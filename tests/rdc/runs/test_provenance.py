"""Facts of a run: the command can be pasted into a shell."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rdc.runs.provenance
from rdc.data import Dataset
from rdc.runs.provenance import commit, provenance


def test_the_command_is_written_as_a_shell_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--out", "a folder", "--suite.only", "*/apgd-margin"]
    monkeypatch.setattr(sys, "argv", ["/bin/rdc", *given])
    data = Dataset.of(torch.zeros(2, 1, 4, 4), [0, 1], ("a", "b"))
    command = provenance(data)["command"]
    assert shlex.split(command)[-4:] == given and "'*/apgd-margin'" in command


@pytest.mark.parametrize("tracked", [True, False])
def test_the_commit_is_that_of_our_code(tracked: bool, tmp_path: Path, monkeypatch) -> None:
    """An environment that lies in a user's repository does not have that repository's commit."""
    file = tmp_path / "site-packages" / "rdc" / "runs" / "provenance.py"
    file.parent.mkdir(parents=True)
    file.touch()
    (tmp_path / "theirs.py").touch()
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    added = "." if tracked else "theirs.py"
    for command in (["init", "-q"], ["add", added], [*who, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(rdc.runs.provenance, "__file__", str(file))
    assert (commit() is not None) == tracked
