"""Records as files hold them, and the worst of several."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.results.records import Record, read_records, unique, worst
from tests.support.records import record

ROW = record(3, 0.1, "a", 1, (1, 2), label=1)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def test_records_come_back_from_json() -> None:
    assert Record.from_json(json.loads(json.dumps(ROW.to_json()))) == ROW


@given(st.sampled_from(sorted(ROW.to_json())), json_values)
def test_any_value_of_a_field_is_a_record_or_an_error_that_names_it(name: str, value) -> None:
    try:
        found = Record.from_json({**ROW.to_json(), name: value})
    except ValueError as error:
        assert name in str(error)
    else:
        assert Record.from_json(json.loads(json.dumps(found.to_json()))) == found


@given(json_values)
def test_what_is_no_record_is_refused(value) -> None:
    with pytest.raises(ValueError, match=r"^record: "):
        Record.from_json(value)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "records-000.jsonl"
    first = json.dumps(ROW.to_json()) + "\n"
    file.write_text(first + json.dumps({**ROW.to_json(), "eps": -1}) + "\n")
    with pytest.raises(ValueError, match=rf"records-000.jsonl, byte {len(first)}: .* eps=-1"):
        read_records(tmp_path)


def test_of_repeated_records_the_last_counts() -> None:
    again = replace(ROW, frozen=5)
    assert unique([ROW, replace(ROW, image=4), again]) == [again, replace(ROW, image=4)]


def test_worst_of_equals_is_the_first() -> None:
    harms = [(2, "a", 0.1), (1, "a", 0.3), (2, "b", 0.1), (1, "b", 0.4)]
    rows = [record(image, 0.1, name, 0, label=0, linf=harm) for image, name, harm in harms]
    found = worst(rows, lambda row: row.linf)
    assert [(image, row.attack) for image, row in found.items()] == [(1, "b"), (2, "a")]
