"""A run's folder belongs to the settings and inputs that it was begun with."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rdc.runs.settings import SETTINGS, differences, flag, lock_settings, require_own_folder


@dataclass(frozen=True)
class Suite:
    steps: int = 3
    levels: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Config:
    out: Path = Path("out")
    max_rows: int = 5
    suite: Suite = field(default_factory=Suite)


INPUTS = {"weights of digits-cnn": "a" * 64, "data": "b" * 64}


def test_same_settings_go_on(tmp_path: Path) -> None:
    for _ in range(2):
        lock_settings(tmp_path / "new", Config(), inputs=INPUTS)
    kept = json.loads((tmp_path / "new" / SETTINGS).read_text())
    assert kept["inputs"] == INPUTS and kept["suite"] == {"steps": 3, "levels": [1, 2]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (Config(max_rows=6), "--max-rows: 5 -> 6"),
        (Config(suite=Suite(steps=4)), "--suite.steps: 3 -> 4"),
        (Config(suite=Suite(4, (1,))), r"--suite.levels: \[1, 2\] -> \[1\]; --suite.steps: 3 -> 4"),
        ({"max_rows": 5}, "--out: 'out' -> None; --suite: {.*} -> None"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, changed, message: str) -> None:
    lock_settings(tmp_path, Config())
    before = (tmp_path / SETTINGS).read_bytes()
    with pytest.raises(
        ValueError, match=rf"{tmp_path} holds a run with other settings: {message};"
    ):
        lock_settings(tmp_path, changed)
    assert (tmp_path / SETTINGS).read_bytes() == before
    lock_settings(tmp_path, Config())


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    """The flags are the same, and a file that they name is not."""
    lock_settings(tmp_path, Config(), inputs=INPUTS)
    with pytest.raises(ValueError, match=r"settings: data: its content has changed \(b+ -> c+\);"):
        lock_settings(tmp_path, Config(), inputs=INPUTS | {"data": "c" * 64})
    with pytest.raises(ValueError, match=r"weights of digits-cnn: its .* \(a{12} -> None\)"):
        lock_settings(tmp_path, Config(), inputs={"data": "b" * 64})
    with pytest.raises(ValueError, match=r"teacher: its content .* \(None -> d{12}\)"):
        lock_settings(tmp_path, Config(), inputs=INPUTS | {"teacher": "d" * 64})


def test_free_settings_may_change(tmp_path: Path) -> None:
    lock_settings(tmp_path, Config(), free=["out"], file="run.json")
    lock_settings(tmp_path, Config(out=Path("elsewhere")), free=["out"], file="run.json")
    with pytest.raises(ValueError, match="--max-rows: 5 -> 6"):
        lock_settings(tmp_path, Config(Path("x"), 6), free=["out"], file="run.json")


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "[" * 100_000])
def test_broken_settings_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / SETTINGS).write_text(content)
    with pytest.raises(
        ValueError, match=rf"^{tmp_path / SETTINGS} (is not JSON|must be a JSON obj)"
    ):
        lock_settings(tmp_path, Config())


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    require_own_folder(tmp_path / "new")
    require_own_folder(tmp_path)
    (tmp_path / ".hidden").touch()
    (tmp_path / "list").touch()
    require_own_folder(tmp_path, beside=["list"])
    with pytest.raises(ValueError, match=r"holds files but no settings.json: it is not of an ear"):
        require_own_folder(tmp_path)
    with pytest.raises(ValueError, match="holds files but no"):
        lock_settings(tmp_path, Config())
    lock_settings(tmp_path, Config(), beside=["list"])
    require_own_folder(tmp_path)


def test_differences_have_their_place() -> None:
    assert list(differences({"a": {"b": 1}}, {"a": {"b": 1}})) == []
    assert list(differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 0}})) == [
        ("a.b", 1, 0), ("a.c", 2, None),
    ]  # fmt: skip
    assert list(differences({"a": {"b": 1}}, {"a": 3})) == [("a", {"b": 1}, 3)]


def test_flags_are_spelled_as_on_the_command_line() -> None:
    assert flag("suite.eot_samples") == "--suite.eot-samples"
