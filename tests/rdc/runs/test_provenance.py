"""Facts of a run: the command can be pasted into a shell."""

import shlex
import sys

import pytest
import torch

from rdc.data import Dataset
from rdc.runs.provenance import provenance


def test_the_command_is_written_as_a_shell_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--out", "a folder", "--suite.only", "*/apgd-margin"]
    monkeypatch.setattr(sys, "argv", ["/bin/rdc", *given])
    data = Dataset.of(torch.zeros(2, 1, 4, 4), [0, 1], ("a", "b"))
    command = provenance(data)["command"]
    assert shlex.split(command)[-4:] == given and "'*/apgd-margin'" in command
