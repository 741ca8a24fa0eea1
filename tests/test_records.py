"""Records survive whatever ends the process, and belong to one run."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.records import Records, cut_torn_line


def test_records_are_read_by_everybody(tmp_path: Path) -> None:
    first, second = (Records(tmp_path, {"eps": 0.1}, process=number) for number in (0, 1))
    first.append([{"image": 0}, {"image": 2}])
    second.append([{"image": 1}])
    first.append([{"image": 4}])
    found = Records(tmp_path, {"eps": 0.1}, process=2).read()
    assert [record["image"] for record in found] == [0, 2, 4, 1]


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 60))
def test_torn_line_is_cut_and_the_rest_stays(tmp_path_factory, cut: int) -> None:
    """A kill at any byte of the file leaves the lines that were complete, and room for more."""
    folder = tmp_path_factory.mktemp("run")
    records = Records(folder, {})
    records.append([{"image": number} for number in range(4)])
    whole = records.file.read_bytes()
    records.file.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    assert len(records.read()) == complete
    again = Records(folder, {})
    again.append([{"image": 99}])
    assert [r["image"] for r in again.read()] == [*range(complete), 99]


def test_cutting_a_complete_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    for content in (b"", b"a\n", b"a\nb\n"):
        file.write_bytes(content)
        cut_torn_line(file)
        assert file.read_bytes() == content


def test_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    Records(tmp_path, {"eps": 0.1, "seed": 0})
    Records(tmp_path, {"eps": 0.1, "seed": 0})
    with pytest.raises(ValueError, match=r"eps: 0.1 -> 0.2"):
        Records(tmp_path, {"eps": 0.2, "seed": 0})
    with pytest.raises(ValueError, match=r"steps: None -> 3"):
        Records(tmp_path, {"eps": 0.1, "seed": 0, "steps": 3})
