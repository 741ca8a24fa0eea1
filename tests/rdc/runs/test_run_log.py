"""A run's records survive whatever ends it."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rdc.runs.run_log
from rdc.runs.run_log import Record, RunLog, cut_torn_line


def batch(record: Record) -> int:
    return int(record["batch"])


def test_records_are_read_by_everybody(tmp_path: Path) -> None:
    first, second = (RunLog(tmp_path, {"seed": 0}, process=number) for number in (0, 1))
    first.append([{"batch": 0}, {"batch": 2}])
    second.append([{"batch": 1, "name": "é\n"}])
    first.append([{"batch": 4}])
    run_log = RunLog(tmp_path, {"seed": 0}, process=2)
    assert list(run_log.read(batch)) == [0, 2, 4, 1]
    for entry in run_log.entries():
        line = entry.file.read_bytes()[entry.offset :].split(b"\n")[0]
        assert f'"batch": {entry.record["batch"]}'.encode() in line


def test_a_log_belongs_to_its_settings_and_inputs(tmp_path: Path) -> None:
    RunLog(tmp_path, {"seed": 0}, inputs={"weights": "a"}).append([{"batch": 0}])
    for seed, weights in ((1, "a"), (0, "b")):
        with pytest.raises(ValueError, match="holds a run with other settings: "):
            RunLog(tmp_path, {"seed": seed}, inputs={"weights": weights})
    assert len(list(RunLog(tmp_path, {"seed": 0}, inputs={"weights": "a"}).read(batch))) == 1


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 60))
def test_torn_line_is_cut_and_the_rest_stays(tmp_path_factory, cut: int) -> None:
    """A kill at any byte of the file leaves the lines that were complete, and room for more."""
    folder = tmp_path_factory.mktemp("run")
    run_log = RunLog(folder, {})
    run_log.append([{"batch": number} for number in range(4)])
    whole = run_log.file.read_bytes()
    run_log.file.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    assert len(list(run_log.read(batch))) == complete
    again = RunLog(folder, {})
    again.append([{"batch": 99}])
    assert list(again.read(batch)) == [*range(complete), 99]


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"", b""),
        (b"a\n", b"a\n"),
        (b"a\nb\n", b"a\nb\n"),
        (b"a\nb", b"a\n"),
        (b"torn", b""),
        (b"a\n" + b"b" * 200_000, b"a\n"),
        (b"a\n" + b"b" * 65_535, b"a\n"),  # at the start of what is read at once
        (b"a" * 200_000 + b"\nb", b"a" * 200_000 + b"\n"),
        (b"a" * 200_000, b""),
    ],
)
def test_what_is_cut(tmp_path: Path, content: bytes, kept: bytes) -> None:
    (tmp_path / "lines").write_bytes(content)
    cut_torn_line(tmp_path / "lines")
    assert (tmp_path / "lines").read_bytes() == kept


@pytest.mark.parametrize("line", [b"{", b"\xff", b"[1]", b"null", b"[" * 100_000, b'{"a": 1}}'])
def test_a_complete_line_that_is_no_record_is_named(tmp_path: Path, line: bytes) -> None:
    run_log = RunLog(tmp_path, {})
    run_log.append([{"batch": 0}])
    with run_log.file.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(
        ValueError, match=r"records-000.jsonl: the line at byte 13 (is not|must be)"
    ):
        list(run_log.read(batch))


@pytest.mark.parametrize("record", [{}, {"batch": None}, {"batch": "x"}])
def test_a_record_of_another_version_is_named(tmp_path: Path, record: Record) -> None:
    run_log = RunLog(tmp_path, {})
    run_log.append([{"batch": 0}, record])
    read = run_log.read(batch)
    assert next(read) == 0
    with pytest.raises(ValueError, match=r"records-000.jsonl, byte 13: .*another version"):
        next(read)


def test_lines_have_a_longest(tmp_path: Path, monkeypatch) -> None:
    """Lines are limited, so that reading takes little memory for any file in the folder."""
    monkeypatch.setattr(rdc.runs.run_log, "LONGEST", 1000)
    run_log = RunLog(tmp_path, {})
    with pytest.raises(ValueError, match=r"a record of \d+ bytes: at most 1000; use smaller batch"):
        run_log.append([{"batch": 0}, {"text": "x" * 1000}])
    assert not run_log.file.exists()
    run_log.append([{"text": "x" * (1000 - len(json.dumps({"text": ""})) - 1)}])
    assert len(list(run_log.entries())) == 1
    with run_log.file.open("a") as file:
        file.write("x" * 1000 + "\n")
    with pytest.raises(ValueError, match=r"the line at byte 1000 is longer than 1000 bytes"):
        list(run_log.entries())
