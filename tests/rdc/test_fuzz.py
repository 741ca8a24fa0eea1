"""Random and damaged files: reading gives a valid object or an error of ours, and soon.

Never another exception, never more than 1 GB of memory.
"""

import copy
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rdc import Denoiser, ImageClassifier, ImageClassifierConfig, RobustDiffusionClassifier
from rdc.config import read_json
from rdc.runs.run_log import RunLog, entries
from rdc.runs.settings import SETTINGS, lock_settings
from tests.support.tiny import tiny_rdc

FUZZ = settings(
    max_examples=30,
    deadline=20_000,  # milliseconds, on a machine with other work
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**31, 10**9, 10**18, -(10**9), 10**400, 0.5, 1e-300, 1e300, 5e-324]),
    st.floats(),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10**6  # KiB


def places(value: Any, above: tuple = ()) -> list[tuple]:
    """The keys that lead to every value inside."""
    if not isinstance(value, dict | list):
        return []
    found = []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        found += [(*above, key), *places(inner, (*above, key))]
    return found


@st.composite
def damaged_json(draw: st.DrawFn, content: bytes) -> bytes:
    """JSON with values replaced, removed and added, and sometimes with wrong bytes."""
    value = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        found = places(value)
        if not found:
            break
        *above, last = draw(st.sampled_from(found))
        parent = value
        for key in above:
            parent = parent[key]
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if change == "remove":
            del parent[last]
        elif change == "add" and isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = draw(VALUES)
        else:
            parent[last] = draw(VALUES)
    damaged = json.dumps(value).encode()
    return draw(damaged_bytes(damaged)) if draw(st.booleans()) else damaged


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that are cut, changed or repeated."""
    start, end = sorted((draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))))
    strange = st.sampled_from([b"[" * 50_000, b"{", b"\xff", b"0" * 5000])
    inserted = draw(st.binary(max_size=12) | strange)
    return content[:start] + inserted + (content[end:] if draw(st.booleans()) else content[start:])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_rdc().save_pretrained(folder / "rdc")
    tiny_rdc().save_pretrained(folder / "shards", max_shard_size="80KB")
    ImageClassifier(ImageClassifierConfig("cnn-4", 8, 1, 3)).save_pretrained(folder / "cnn")
    return folder


def accepted(read: Callable[[], Any]) -> Any:
    """The result, or None after an error of ours, whose text is not longer than a screen."""
    try:
        return read()
    except (FileNotFoundError, ValueError) as error:
        assert 0 < len(str(error)) < 4000
        return None


def check(model: Any) -> None:
    """A model that was accepted answers; it may still say that it overflows."""
    if model is not None:
        assert all(weights.isfinite().all() for weights in model.parameters())
        assert {weights.dtype for weights in model.parameters()} == {torch.float32}


@FUZZ
@given(data=st.data(), kind=st.sampled_from(["rdc", "cnn"]))
def test_config(saved: Path, data: st.DataObject, kind: str) -> None:
    good = (saved / kind / "config.json").read_bytes()
    broken = saved.with_name("broken")
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(saved / kind, broken)
    (broken / "config.json").write_bytes(data.draw(damaged_json(good)))
    loader = Denoiser if kind == "rdc" else ImageClassifier
    check(accepted(lambda: loader.from_pretrained(broken)))


@FUZZ
@given(data=st.data())
def test_rdc_settings(saved: Path, data: st.DataObject) -> None:
    good = (saved / "rdc" / "rdc.json").read_bytes()
    broken = saved.with_name("broken-rdc")
    shutil.copytree(saved / "rdc", broken, dirs_exist_ok=True)
    (broken / "rdc.json").write_bytes(data.draw(damaged_json(good)))
    model = accepted(lambda: RobustDiffusionClassifier.from_pretrained(broken))
    check(model)
    assert model is None or model.classifier.levels.sigmas.isfinite().all()


@pytest.mark.slow
@FUZZ
@given(data=st.data(), whole=st.booleans())
def test_safetensors_headers(saved: Path, data: st.DataObject, whole: bool) -> None:
    """The header's JSON, its length, and any byte of the file."""
    broken = saved.with_name("broken-weights")
    shutil.copytree(saved / "rdc", broken, dirs_exist_ok=True)
    good = (saved / "rdc" / "model.safetensors").read_bytes()
    size = int.from_bytes(good[:8], "little")
    if whole:
        content = data.draw(damaged_bytes(good))
    else:
        header = data.draw(damaged_json(good[8 : 8 + size]))
        length = data.draw(st.just(len(header)) | st.integers(0, 2**64 - 1))
        content = length.to_bytes(8, "little") + header + good[8 + size :]
    (broken / "model.safetensors").write_bytes(content)
    check(accepted(lambda: Denoiser.from_pretrained(broken)))


@pytest.mark.slow
@FUZZ
@given(data=st.data())
def test_index_of_shards(saved: Path, data: st.DataObject) -> None:
    broken = saved.with_name("broken-shards")
    shutil.copytree(saved / "shards", broken, dirs_exist_ok=True)
    good = (saved / "shards" / "model.safetensors.index.json").read_bytes()
    (broken / "model.safetensors.index.json").write_bytes(data.draw(damaged_json(good)))
    check(accepted(lambda: Denoiser.from_pretrained(broken)))


@FUZZ
@given(data=st.data())
def test_records(tmp_path: Path, data: st.DataObject) -> None:
    """Records are complete lines; after any damage a log goes on, or its reading is refused."""
    folder = tmp_path / "log"
    shutil.rmtree(folder, ignore_errors=True)
    log = RunLog(folder, {"seed": 0})
    log.append({"image": image, "eps": 0.1, "names": ["é"]} for image in range(5))
    log.file.write_bytes(data.draw(damaged_bytes(log.file.read_bytes())))
    found = accepted(lambda: list(entries(folder)))
    lines = log.file.read_bytes().splitlines(keepends=True)
    assert found is None or len(found) == log.file.read_bytes().count(b"\n") <= len(lines)
    again = RunLog(folder, {"seed": 0})
    again.append([{"image": 99}])
    if found is not None:
        assert list(again.read(dict)) == [*(entry.record for entry in found), {"image": 99}]


def without_none(value: Any) -> Any:
    """The value without what is None in its dictionaries: settings that are not given."""
    if isinstance(value, dict):
        return {k: without_none(v) for k, v in value.items() if v is not None}
    return value


@FUZZ
@given(data=st.data())
def test_settings_of_a_run(tmp_path: Path, data: st.DataObject) -> None:
    """The folder's owner goes on only where its settings still say the same."""
    mine = {"seed": 0, "suite": {"steps": 3, "only": ["a", "b"]}, "out": "x"}
    (tmp_path / SETTINGS).unlink(missing_ok=True)
    lock_settings(tmp_path, mine, inputs={"weights": "ab" * 32})
    good = read_json(tmp_path / SETTINGS)
    (tmp_path / SETTINGS).write_bytes(data.draw(damaged_json(json.dumps(good).encode())))

    def go_on() -> bool:
        lock_settings(tmp_path, copy.deepcopy(mine), inputs={"weights": "ab" * 32})
        return True

    if accepted(go_on):
        kept = read_json(tmp_path / SETTINGS)
        assert without_none(kept) == good
