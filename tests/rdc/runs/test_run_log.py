"""A run's records survive whatever ends it, and its folder belongs to its settings."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc.runs.run_log import RunLog, cut_torn_line, differences, keep_settings


def test_records_are_read_by_everybody(tmp_path: Path) -> None:
    first, second = (RunLog(tmp_path, {"seed": 0}, process=number) for number in (0, 1))
    first.append([{"batch": 0}, {"batch": 2}])
    second.append([{"batch": 1, "name": "é\n"}])
    first.append([{"batch": 4}])
    run_log = RunLog(tmp_path, {"seed": 0}, process=2)
    assert [record["batch"] for record in run_log.read()] == [0, 2, 4, 1]
    for entry in run_log.entries():
        line = entry.file.read_bytes()[entry.offset :].split(b"\n")[0]
        assert f'"batch": {entry.record["batch"]}'.encode() in line


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
    assert len(list(run_log.read())) == complete
    again = RunLog(folder, {})
    again.append([{"batch": 99}])
    assert [record["batch"] for record in again.read()] == [*range(complete), 99]


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


def test_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    keep_settings(tmp_path, {"seed": 0, "rdc": {"steps": 3, "levels": (1, 2)}})
    keep_settings(tmp_path, {"seed": 0, "rdc": {"steps": 3, "levels": (1, 2)}})
    with pytest.raises(ValueError, match=r"other settings: seed: 0 -> 1; give"):
        keep_settings(tmp_path, {"seed": 1, "rdc": {"steps": 3, "levels": (1, 2)}})
    with pytest.raises(ValueError, match=r"rdc.levels: \[1, 2\] -> \[1\]; rdc.steps: 3 -> 4; give"):
        keep_settings(tmp_path, {"seed": 0, "rdc": {"steps": 4, "levels": (1,)}})
    with pytest.raises(ValueError, match=r"data: None -> 'x'"):
        keep_settings(tmp_path, {"seed": 0, "rdc": {"steps": 3, "levels": (1, 2)}, "data": "x"})


def test_differences_have_their_place() -> None:
    assert list(differences({"a": {"b": 1}}, {"a": {"b": 1}})) == []
    assert list(differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 0}})) == [
        "a.b: 1 -> 0", "a.c: 2 -> None",
    ]  # fmt: skip
    assert list(differences({"a": {"b": 1}}, {"a": 3})) == ["a: {'b': 1} -> 3"]
