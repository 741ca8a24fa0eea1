"""Classification of image folders of any size, resumable and shared by several processes.

Images are classified in batches that depend on their sorted names and the batch size alone; each
process takes every n-th batch and appends its results to a file of its own. Any number of
processes, and a run that was killed and started again, therefore end with the same predictions.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from rdc.classifier import RobustDiffusionClassifier
from rdc.hub.checkpoint import CONFIG, RDC_SETTINGS, locate
from rdc.hub.weights import sha256, weights_sha256
from rdc.image_files import iterate_images, listing
from rdc.images import convert_images
from rdc.prediction import classify
from rdc.runs.atomic import replacing
from rdc.runs.device import default_device
from rdc.runs.exclusive import exclusive
from rdc.runs.run_log import RunLog
from rdc.runs.settings import require_own_folder

PREDICTIONS = "predictions.jsonl"
FILES = "files.jsonl"
Row = dict[str, Any]


def classify_files(
    names: Sequence[str],
    model: RobustDiffusionClassifier,
    root: Path = Path(),
    *,
    resize: bool = False,
) -> list[Row]:
    """One record per file below `root`, also for files that cannot be read.

    A record has "image" and either "error", or "class", "probabilities" by class and, where the
    image was converted to the model's shape, "converted".
    """
    rows: dict[str, Row] = {name: {"image": name} for name in names}
    images: dict[str, Tensor] = {}
    for name in names:
        try:
            found = convert_images(root / name, model.denoiser.image_shape, resize=resize)
        except (FileNotFoundError, ValueError) as error:
            rows[name]["error"] = str(error)
            continue
        images[name] = found.images
        if found.changes[0]:
            rows[name]["converted"] = found.changes[0]
    if images:
        prediction = classify(torch.cat([*images.values()]), model, batch_size=len(images))
        classes = prediction.class_names or tuple(map(str, range(model.denoiser.num_classes)))
        answers = zip(images, prediction.names, prediction.probabilities.tolist(), strict=True)
        for name, label, p in answers:
            posterior = dict(zip(classes, (round(value, 6) for value in p), strict=True))
            rows[name] |= {"class": label, "probabilities": posterior}
    return list(rows.values())


def classify_folder(
    folder: Path,
    out: Path,
    model: str | Path,
    *,
    batch_size: int = 64,
    seed: int = 0,
    resize: bool = False,
) -> int:
    """Classify all images below `folder` into `out`/predictions.jsonl, a line each, sorted by name.

    Every process that torchrun or accelerate has started calls this; they share the work, and `out`
    must be the same folder for all. Called again after it was interrupted, it goes on. An image
    that cannot be read has a line with its error; how many there are is returned. Memory does not
    grow with the images, but for the names of one folder and a number per batch.

    Raises:
        ValueError: `out` holds a run of another model, other settings or other images, or another
            start is at work there.
    """
    if not folder.exists():
        raise FileNotFoundError(f"path={folder} does not exist; give an image or a folder")
    # accelerate takes seconds to import.
    from accelerate import PartialState

    # Processes that are done wait for the others, which after a restart may have far more to do; by
    # default they would give up after some minutes.
    state = PartialState(cpu=default_device().type == "cpu", timeout=timedelta(days=7))
    with exclusive(out) if state.is_main_process else nullcontext():
        if state.is_main_process:
            list_files(folder, out)
        state.wait_for_everyone()
        device = cast(torch.device, state.device)
        run = FolderRun(
            folder, out, model, batch_size=batch_size, seed=seed, device=device, resize=resize
        )
        run_log = RunLog(
            out, run.settings, inputs=run.inputs, process=state.process_index, beside=[FILES]
        )
        state.wait_for_everyone()
        with tqdm(total=run.count, unit="image", disable=not state.is_main_process) as bar:
            run.share(run_log, state.process_index, state.num_processes, bar)
        state.wait_for_everyone()
        failed = run.merge(run_log) if state.is_main_process else 0
        state.wait_for_everyone()
    return failed


def list_files(folder: Path, out: Path) -> None:
    """List the images below `folder` in `out`, or check the list that is there.

    What is written is what counts: processes that each looked for themselves might differ. A line
    has a name and, to notice another image of that name, the file's size and time.
    """
    require_own_folder(out, beside=[FILES])
    listed, root = out / FILES, root_of(folder)
    with replacing(listed) as part:
        with part.open("w", encoding="utf-8") as file:
            for path in iterate_images(folder):
                file.write(json.dumps(listing(path, root)) + "\n")
        if listed.exists() and count_and_hash(listed) != count_and_hash(part):
            before, now = count_and_hash(listed)[0], count_and_hash(part)[0]
            raise ValueError(
                f"path={folder}: its images, by name, size and time, are not those that the run "
                f"in {out} began with ({before} then, {now} now); give another --out"
            )


def root_of(folder: Path) -> Path:
    """The folder that names are relative to; a single image is one below its folder."""
    return folder if folder.is_dir() else folder.parent


def count_and_hash(file: Path) -> tuple[int, str]:
    """Lines of a file, and its SHA-256."""
    with file.open("rb") as lines:
        count = sum(1 for _ in lines)
    return count, sha256(file)


class FolderRun:
    """The work of `classify_folder` on a list of images: one process's batches, and the merge.

    The predictions depend on `settings` and `inputs`.
    """

    def __init__(
        self, folder: Path, out: Path, model: str | Path, *, batch_size: int, seed: int,
        device: torch.device, resize: bool = False,
    ) -> None:  # fmt: skip
        self.root, self.out, self.batch_size = root_of(folder), out, batch_size
        self.resize = resize
        saved = locate(model, RDC_SETTINGS).parent
        self.model = RobustDiffusionClassifier.from_pretrained(saved, seed=seed).to(device)
        if not (out / FILES).is_file():
            raise ValueError(
                f"out={out} is not the same folder for all processes; give one on a file system "
                "that all machines share"
            )
        self.count, files = count_and_hash(out / FILES)
        self.settings = {
            "path": str(self.root.resolve()), "seed": seed, "batch_size": batch_size,
            "resize": resize,
        }  # fmt: skip
        self.inputs = {
            "weights": weights_sha256(saved), "images": files,
            **{name: sha256(saved / name) for name in (CONFIG, RDC_SETTINGS)},
        }  # fmt: skip

    def batches(self) -> Iterator[list[str]]:
        """The names of the images, batch by batch."""
        with (self.out / FILES).open(encoding="utf-8") as lines:
            while batch := [json.loads(line)["image"] for line in islice(lines, self.batch_size)]:
                yield batch

    def share(self, run_log: RunLog, process: int, processes: int, bar: tqdm) -> None:
        """Classify the remaining batches of this process; the bar counts all images."""
        done = set(run_log.read(lambda record: record["batch"]))
        for number, names in enumerate(self.batches()):
            if number % processes == process and number not in done:
                rows = classify_files(names, self.model, self.root, resize=self.resize)
                run_log.append([{"batch": number, "rows": rows}])
            bar.update(len(names))

    def merge(self, run_log: RunLog) -> int:
        """Write all predictions in the order of the names; returns how many are errors."""
        places = {entry.record["batch"]: (entry.file, entry.offset) for entry in run_log.entries()}
        needed = -(-self.count // self.batch_size)
        if len(places) < needed:
            raise ValueError(
                f"out={self.out} has {len(places)} of {needed} batches although all processes are "
                "done: they must write to the same folder"
            )
        failed = 0
        with replacing(self.out / PREDICTIONS) as part, part.open("w", encoding="utf-8") as file:
            for number, _ in enumerate(self.batches()):
                for row in read_rows(*places[number]):
                    failed += "error" in row
                    file.write(json.dumps(row) + "\n")
        return failed


def read_rows(file: Path, offset: int) -> list[Row]:
    """The rows of the batch whose record begins there."""
    with file.open("rb") as lines:
        lines.seek(offset)
        return json.loads(lines.readline())["rows"]
