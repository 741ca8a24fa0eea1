"""Large folders: any number of processes and kills, the same predictions; bounded memory."""

import ast
import json
import os
import random
import re
import shutil
import signal
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tqdm import tqdm

import rdc.commands.classify_folder
from rdc.commands.classify_folder import (
    FILES,
    FolderRun,
    classify_files,
    classify_folder,
    list_files,
)
from rdc.image_files import SUFFIXES, image_files
from rdc.prediction import classify
from rdc.runs.exclusive import exclusive
from rdc.runs.run_log import RunLog
from tests.support.launchers import TORCHRUN, printed, run
from tests.support.tiny import NETWORK, tiny_rdc

ROOT = Path(__file__).parents[3]
PREDICTIONS = "predictions.jsonl"
COUNT = 23
SMALLEST = replace(NETWORK, width_multipliers=(1,), attention_resolutions=())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "model"
    tiny_rdc(SMALLEST).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in folders, with two files among them that are none."""
    folder = tmp_path_factory.mktemp("images") / "in"
    rng = np.random.default_rng(0)
    for number in range(COUNT - 2):
        path = folder / ("deep" if number % 3 else "a") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    (folder / "deep" / "005x.png").write_bytes(b"not an image")
    (folder / "zürich\n.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def whole(model: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The predictions that an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert classify_folder(images, out, model, batch_size=4) == 2
    return (out / PREDICTIONS).read_bytes()


def test_a_second_start_in_the_folder_is_refused(model: Path, images: Path, tmp_path: Path) -> None:
    """Lines that the first one is writing would be cut off."""
    out = tmp_path / "out"
    with exclusive(out), pytest.raises(ValueError, match="in use by another start"):
        classify_folder(images, out, model)
    assert list(out.iterdir()) == []


def rows(content: bytes) -> list[dict]:
    return [json.loads(line) for line in content.splitlines()]


def batches(out: Path, process: int = 0) -> list[int]:
    """Numbers of the batches in a process's records, without a torn line."""
    file = out / f"records-{process:03d}.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line)["batch"] for line in lines if line.endswith("\n")]


def share(model, images: Path, out: Path, process: int, processes: int) -> tuple:
    """One process's part of a run, and the run."""
    run = FolderRun(images, out, model, batch_size=4, seed=0, device=torch.device("cpu"))
    run_log = RunLog(out, run.settings, inputs=run.inputs, process=process, beside=[FILES])
    with tqdm(disable=True) as bar:
        run.share(run_log, process, processes, bar)
    return run, run_log


# --- what is written ---


def test_predictions_are_those_of_classify(whole: bytes, model: Path, images: Path) -> None:
    found = rows(whole)
    names = [file.relative_to(images).as_posix() for file in image_files(images)]
    assert [row["image"] for row in found] == names and len(names) == COUNT
    errors = {row["image"] for row in found if "error" in row}
    assert errors == {"deep/005x.png", "zürich\n.png"}
    good = [row for row in found if "error" not in row]
    prediction = classify([images / row["image"] for row in good], model)
    assert [row["class"] for row in good] == prediction.names
    given = np.array([list(row["probabilities"].values()) for row in good])
    np.testing.assert_allclose(given, prediction.probabilities.numpy(), atol=1e-5)
    assert len({row["class"] for row in good}) > 1 and len({str(row) for row in found}) == COUNT


@pytest.mark.parametrize("processes", [2, 7])
def test_shares_make_the_whole(whole, model, images, tmp_path, processes: int) -> None:
    """No image twice; the merged file is that of one process, byte for byte."""
    out = tmp_path / "out"
    list_files(images, out)
    parts = [share(model, images, out, process, processes) for process in range(processes)]
    run, run_log = parts[0]
    assert sorted(run_log.read(lambda record: record["batch"])) == list(range(6))
    assert batches(out, 1) == list(range(1, 6, processes))
    assert run.merge(run_log) == 2
    assert (out / PREDICTIONS).read_bytes() == whole


def test_another_number_of_processes_goes_on(whole, model, images, tmp_path: Path) -> None:
    out = tmp_path / "out"
    list_files(images, out)
    share(model, images, out, 1, 3)
    for process in range(2):
        with (out / f"records-{process:03d}.jsonl").open("ab") as file:
            file.write(b'{"batch": 0, "rows": [')
    assert classify_folder(images, out, model, batch_size=4) == 2
    assert (out / PREDICTIONS).read_bytes() == whole
    assert (batches(out), batches(out, 1)) == ([0, 2, 3, 5], [1, 4])


def test_a_finished_run_computes_nothing(whole, model, images, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    classify_folder(images, out, model, batch_size=4)
    (out / PREDICTIONS).unlink()
    monkeypatch.setattr(rdc.commands.classify_folder, "classify_files", None)
    assert classify_folder(images, out, model, batch_size=4) == 2
    assert (out / PREDICTIONS).read_bytes() == whole


def test_one_image(model: Path, images: Path, tmp_path: Path) -> None:
    assert classify_folder(images / "a" / "000.png", tmp_path / "out", model) == 0
    (row,) = rows((tmp_path / "out" / PREDICTIONS).read_bytes())
    assert row["image"] == "000.png"


# --- what ends a run ---


@pytest.mark.slow
def test_sigkill_at_random_moments_loses_nothing(
    model: Path, images: Path, tmp_path: Path, processes
) -> None:
    """Up to five kills while images are classified, one at a time, and written."""
    classify_folder(images, tmp_path / "whole", model, batch_size=1)
    out, generator = tmp_path / "out", random.Random(os.getpid())
    kept: list[int] = []
    exits: list[int] = []
    while not (out / PREDICTIONS).exists():
        child = processes.Process(
            target=classify_folder, args=(images, out, model), kwargs={"batch_size": 1}
        )
        child.start()
        if len(exits) < 5:
            wait_for_more(out, child)
            child.join(generator.uniform(0, 0.03))
            child.kill()
        child.join()
        exits.append(child.exitcode)
        found = batches(out)
        assert found[: len(kept)] == kept  # nothing is done again
        kept = found
    assert set(exits) == {-signal.SIGKILL, 0}
    assert kept == list(range(COUNT))
    assert (out / PREDICTIONS).read_bytes() == (tmp_path / "whole" / PREDICTIONS).read_bytes()


def wait_for_more(out: Path, child) -> None:
    """Until the child has recorded something."""
    records = out / "records-000.jsonl"
    before = records.stat().st_size if records.exists() else 0
    while child.is_alive() and not (records.exists() and records.stat().st_size > before):
        time.sleep(0.002)


@pytest.mark.slow
def test_two_processes_of_torchrun(whole: bytes, model, images, tmp_path: Path) -> None:
    """A run that one process began and two finish; only one of them talks."""
    out = tmp_path / "out"
    list_files(images, out)
    share(model, images, out, 2, 3)
    before = (out / "records-002.jsonl").read_bytes()
    program = ["rdc", "classify", images, "--out", out, "--model", model, "--batch-size", "4"]
    printer = tmp_path / "torchrun"
    status = run(printer, "torch.distributed.run", *TORCHRUN, *program)
    stdout, stderr = printed(printer)
    assert status == 0, stderr[-3000:]
    assert stdout == f"wrote {out / PREDICTIONS}; 2 images could not be classified\n"
    assert stderr.count("23/23") == 1
    assert (out / PREDICTIONS).read_bytes() == whole
    assert (out / "records-002.jsonl").read_bytes() == before
    assert (out / "records-000.jsonl").exists() and (out / "records-001.jsonl").exists()


def test_accelerate_is_imported_where_it_is_needed() -> None:
    """Importing accelerate takes seconds, which a table of one image need not wait for."""
    eager = [
        file.name
        for file in (ROOT / "rdc").rglob("*.py")
        for statement in ast.parse(file.read_text(encoding="utf-8")).body
        if re.match(r"(from|import) accelerate\b", ast.unparse(statement))
    ]
    assert eager == []


# --- what is refused ---


@pytest.fixture
def begun(model: Path, images: Path, tmp_path: Path) -> Path:
    """A run with two of six batches, of copies of the model and the images."""
    shutil.copytree(model, tmp_path / "model")
    shutil.copytree(images, tmp_path / "in")
    list_files(tmp_path / "in", tmp_path / "out")
    share(tmp_path / "model", tmp_path / "in", tmp_path / "out", 0, 3)
    return tmp_path


def go_on(begun: Path, **changes) -> int:
    options = {"batch_size": 4, "seed": 0, **changes}
    return classify_folder(begun / "in", begun / "out", begun / "model", **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"seed": 1}, "--seed: 0 -> 1"), ({"batch_size": 5}, "--batch-size: 4 -> 5")],
)
def test_other_settings_are_refused(begun: Path, changes, message: str) -> None:
    with pytest.raises(ValueError, match=f"out holds a run with other settings: {message}"):
        go_on(begun, **changes)
    assert go_on(begun) == 2


def test_another_model_is_refused(begun: Path) -> None:
    tiny_rdc(SMALLEST, seed=1).save_pretrained(begun / "model")
    with pytest.raises(ValueError, match="other settings: weights: its content has changed"):
        go_on(begun)
    tiny_rdc(SMALLEST).save_pretrained(begun / "model")
    settings = (begun / "model" / "rdc.json").read_text()
    (begun / "model" / "rdc.json").write_text(settings.replace("20.0", "10.0"))
    with pytest.raises(ValueError, match=r"settings: rdc\.json: its content has changed"):
        go_on(begun)


@pytest.mark.parametrize("change", ["more", "fewer", "other"])
def test_other_images_are_refused(begun: Path, change: str) -> None:
    if change != "more":
        (begun / "in" / "a" / "000.png").unlink()
    if change != "fewer":
        shutil.copy(begun / "in" / "a" / "003.png", begun / "in" / "new.png")
    now = {"more": COUNT + 1, "fewer": COUNT - 1, "other": COUNT}[change]
    with pytest.raises(ValueError, match=rf"began with \({COUNT} then, {now} now\); give another"):
        go_on(begun)
    assert sorted(path.name for path in (begun / "out").iterdir()) == [
        "files.jsonl", "records-000.jsonl", "settings.json",
    ]  # fmt: skip


@pytest.mark.parametrize("change", ["content", "time"])
def test_changed_images_are_refused(begun: Path, change: str) -> None:
    """The names are the same, and for each change one of the size and the time."""
    file = begun / "in" / "a" / "000.png"
    before = file.stat()
    if change == "content":
        file.write_bytes(file.read_bytes() + b"more")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + (change == "time")))
    with pytest.raises(ValueError, match=rf"began with \({COUNT} then, {COUNT} now\); give"):
        go_on(begun)


def test_another_folder_is_refused(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with equal names, sizes and times; the same folder may be called otherwise."""
    shutil.copytree(begun / "in", begun / "copy")
    with pytest.raises(ValueError, match=r"other settings: --path: '.*in' -> '.*copy'; give"):
        classify_folder(begun / "copy", begun / "out", begun / "model", batch_size=4)
    monkeypatch.chdir(begun)
    assert classify_folder(Path("in"), begun / "out", begun / "model", batch_size=4) == 2


def test_folders_with_other_files_are_refused(model, images, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"holds files but no settings.json"):
        classify_folder(images, tmp_path, model)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_kill_before_the_settings_are_there(whole, model, images, tmp_path: Path) -> None:
    for name in (".files.jsonl", ".settings.json.123"):
        (tmp_path / name).write_text("torn")
    assert classify_folder(images, tmp_path, model, batch_size=4) == 2
    assert (tmp_path / PREDICTIONS).read_bytes() == whole


def test_missing_and_empty_folders(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path=.*nowhere does not exist"):
        classify_folder(tmp_path / "nowhere", tmp_path / "out", model)
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image below the folder"):
        classify_folder(tmp_path / "empty", tmp_path / "out", model)


def test_folders_that_are_not_shared_are_an_error(model, images, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the same folder for all processes"):
        FolderRun(images, tmp_path, model, batch_size=4, seed=0, device=torch.device("cpu"))
    list_files(images, tmp_path)
    part, run_log = share(model, images, tmp_path, 0, 2)
    with pytest.raises(ValueError, match=r"has 3 of 6 batches .* must write"):
        part.merge(run_log)


# --- how it scales ---


def peak_memory(count: int, folder: Path, model: Path, monkeypatch) -> int:
    """Bytes that Python took at most to go through `count` images, without classifying them."""
    for number in range(count):
        file = folder / f"{number % 7}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    answer = {"class": "zero", "probabilities": {name: 0.333333 for name in ("a", "b", "c")}}
    monkeypatch.setattr(
        rdc.commands.classify_folder,
        "classify_files",
        lambda names, *_, **__: [{"image": name, **answer} for name in names],
    )
    out = folder.parent / "out"
    list_files(folder, out)
    run = FolderRun(folder, out, model, batch_size=20, seed=0, device=torch.device("cpu"))
    run_log = RunLog(out, run.settings, beside=[FILES])
    tracemalloc.start()
    with tqdm(disable=True) as bar:
        run.share(run_log, 0, 1, bar)
    run.merge(run_log)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (out / PREDICTIONS).read_bytes().count(b"\n") == count
    return peak


def test_memory_does_not_grow_with_the_folder(model: Path, tmp_path: Path, monkeypatch) -> None:
    """Memory grows by a number per batch, and by the names of one folder while files are listed."""
    few = peak_memory(300, tmp_path / "few" / "in", model, monkeypatch)
    many = peak_memory(2300, tmp_path / "many" / "in", model, monkeypatch)
    assert many - few < 2000 * 30  # a name takes 60, a row's dictionaries 700


NAMES = st.sampled_from(["a", "b", "a.png", "b.PNG", "B", "a b.jpg", "a.b", "é.tif", "a-", "c.txt"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(NAMES, min_size=1, max_size=3), min_size=1, max_size=12))
def test_files_are_found_in_the_order_of_paths(tmp_path_factory, paths) -> None:
    folder = tmp_path_factory.mktemp("tree")
    (folder / "z.png").touch()
    for parts in paths:
        path = folder.joinpath(*parts)
        if not any(parent.is_file() for parent in path.parents) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    everything = (p for p in folder.rglob("*") if "/." not in str(p.relative_to(folder.parent)))
    expected = sorted(p for p in everything if p.suffix.lower() in SUFFIXES and p.is_file())
    assert image_files(folder) == expected


def test_links_are_classified_too(model: Path, images: Path, tmp_path: Path) -> None:
    """Also one that leads nowhere, which has a row with its error."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "folder").symlink_to(images / "a")
    (tmp_path / "in" / "lost.png").symlink_to(tmp_path / "nowhere")
    assert classify_folder(tmp_path / "in", tmp_path / "out", model) == 1
    found = rows((tmp_path / "out" / PREDICTIONS).read_bytes())
    assert len(found) == len(image_files(images / "a")) + 1
    assert "lost.png does not exist" in found[-1]["error"]


def test_files_that_vanish_have_their_rows(model: Path, images: Path, tmp_path: Path) -> None:
    rows = classify_files(["a/000.png", "gone.png"], tiny_rdc(), images)
    assert "class" in rows[0] and "gone.png does not exist" in rows[1]["error"]
