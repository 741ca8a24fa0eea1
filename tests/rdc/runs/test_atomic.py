"""A killed write leaves the old or the new content, at whatever byte and between whatever steps."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

import rdc.runs.atomic
from rdc.runs.atomic import make_folder, replacing, write_atomically, write_json

# Without torch, so that a fork costs a millisecond. A file size limit kills at an exact byte.
KILLER = """
import importlib.util, json, os, resource, signal, sys
spec = importlib.util.spec_from_file_location("atomic", sys.argv[1])
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
path, old, new = atomic.Path(sys.argv[2]), *sys.argv[3:]
outcomes = []
for limit in range(len(new.encode()) + 2):
    path.write_text(old)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        atomic.write_atomically(path, new)
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    outcomes.append([killed, path.read_text()])
print(json.dumps(outcomes))
"""


def test_kill_at_every_byte(tmp_path: Path) -> None:
    old, new = "old\n", json.dumps({"names": ["é", "二"], "steps": list(range(30))})
    ran = subprocess.run(
        [sys.executable, "-c", KILLER, rdc.runs.atomic.__file__, tmp_path / "x.json", old, new],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    size = len(new.encode())
    assert json.loads(ran.stdout) == [[True, old]] * size + [[False, new]] * 2


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", ["flush", "flush_entry", "replace"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_kill_between_steps(tmp_path: Path, monkeypatch, step: str, kind: str) -> None:
    """Every call of every step is the last one of some attempt; nothing may clean up after it."""
    path = tmp_path / "model"
    build(path, kind, "old")
    owner = os if step == "replace" else rdc.runs.atomic
    original = getattr(owner, step)
    for count in range(20):
        calls = iter(range(20))

        def dies(*arguments: Path, last=count, calls=calls) -> None:
            if next(calls) == last:
                raise Killed
            original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(owner, step, dies)
            patch.setattr(rdc.runs.atomic, "remove", lambda path: None)
            try:
                with replacing(path) as part:
                    build(part, kind, "new")
            except Killed:
                assert content(path, kind) in ("old", "new", None)
                if kind == "file":
                    assert content(path, kind) is not None
                build(path, kind, "old")
                continue
        assert content(path, kind) == "new" and count > 0
        return


def build(path: Path, kind: str, text: str) -> None:
    if kind == "folder":
        (path / "deep").mkdir(parents=True, exist_ok=True)
        path = path / "deep" / "file"
    path.write_text(text)


def content(path: Path, kind: str) -> str | None:
    file = path / "deep" / "file" if kind == "folder" else path
    return file.read_text() if path.exists() else None


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("exists", [False, True])
def test_an_exception_changes_nothing(tmp_path: Path, kind: str, exists: bool) -> None:
    path = tmp_path / "model"
    if exists:
        build(path, kind, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        build(part, kind, "new")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == ([path] if exists else [])
    assert not exists or content(path, kind) == "old"


def test_ctrl_c_between_the_two_steps_of_a_folder_loses_nothing(
    tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("old")
    replace = os.replace

    def interrupted(old: Path, new: Path) -> None:
        if Path(old).suffix == ".part":
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as part:
        part.mkdir()
    assert (tmp_path / "a" / "file").read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("before", ["file", "folder", "link", None])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_replaced(tmp_path: Path, kind: str, before: str | None) -> None:
    """A file never takes the place of a folder, and nothing is written behind a link."""
    path = tmp_path / "sub" / "model"
    make_folder(path.parent)
    (tmp_path / "elsewhere").mkdir()
    if before:
        path.symlink_to(tmp_path / "elsewhere") if before == "link" else build(path, before, "old")
    refused = (kind, before) in (("file", "folder"), ("folder", "file"), ("folder", "link"))
    with pytest.raises(OSError) if refused else nullcontext(), replacing(path) as part:
        build(part, kind, "new")
    if before != "link" or not refused:
        left = before if refused else kind
        assert content(path, str(left)) == ("old" if refused else "new")
    assert list(path.parent.iterdir()) == [path]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_everything_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch) -> None:
    """The file, then its new name, then the names of its folder."""
    steps: list[str] = []

    def note(descriptor: int) -> None:
        steps.append(f"fsync {os.readlink(f'/proc/self/fd/{descriptor}').split('.')[0]}")

    def rename(old: Path, new: Path) -> None:
        steps.append("rename")
        Path(old).rename(new)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", rename)
    write_atomically(tmp_path / "model", b"x")
    assert steps == [f"fsync {tmp_path}/", "rename", f"fsync {tmp_path}"]


def test_json_and_text_are_utf8(tmp_path: Path) -> None:
    write_atomically(tmp_path / "text", "é\n")
    assert (tmp_path / "text").read_bytes() == "é\n".encode()
    write_json(tmp_path / "json", {"path": Path("a"), "tuple": (1, 2)})
    assert json.loads((tmp_path / "json").read_text()) == {"path": "a", "tuple": [1, 2]}
