"""A few images of a run: given, attacked, purified, and what the attack changed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from safetensors import SafetensorError

from evaluation.journal import Kept, read_kept
from evaluation.report.figures import STYLE, WIDTH, fitted, png
from evaluation.report.load import Run
from evaluation.results.records import CLEAN, Record

EACH = 3
"""Images shown with a wrong answer, and with a right one."""
TOLERANCE = 1e-3
REMEDY = "evaluate again into a new folder, or remove the folder of images"
WRONG = "#B3261E"
EDGE, HEAD, LINE = 0.06, 0.66, 0.15
"""Inches around an image, above the first row, and of a line of a caption."""
LESS_TO_MORE = LinearSegmentedColormap.from_list("change", ["#2166AC", "white", "#B2182B"], N=255)


@dataclass(frozen=True)
class Example:
    """Images (C, H, W) in [0, 1], the record of the attacked one and that of the given one."""

    given: np.ndarray
    attacked: np.ndarray
    purified: np.ndarray | None
    record: Record
    clean: Record

    @property
    def wrong(self) -> bool:
        return not self.record.right


def examples(run: Run, eps: float) -> dict[str, list[Example]]:
    """The first attacked images with a wrong answer and the first with a right one; nothing where
    the run's images were not kept.
    """
    found: dict[str, list[Example]] = {"wrong": [], "right": []}
    for example in saved(run, eps):
        part = found["wrong" if example.wrong else "right"]
        if len(part) < EACH:
            part.append(example)
        if all(len(part) == EACH for part in found.values()):
            break
    return {name: part for name, part in found.items() if part}


def saved(run: Run, eps: float) -> Iterator[Example]:
    """All images of a budget that the run kept, in order."""
    files = (run.folder / "images").glob(f"eps{eps:g}-[0-9]*.safetensors")
    for file in sorted(files, key=first_row):
        given, kept = read(file)
        purified = [None] * len(given) if kept.purified is None else kept.purified.numpy()
        images = zip(given, kept.images.numpy(), purified, kept.attacks, strict=True)
        for number, (before, after, pure, attack) in enumerate(images, first_row(file)):
            record = of(run, eps, number, attack, after - before, file)
            clean = of(run, eps, number, CLEAN, np.zeros(1), file)
            yield Example(before, after, pure, record, clean)


def read(file: Path) -> tuple[np.ndarray, Kept]:
    """Given images (B, C, H, W), and what a file holds of them attacked.

    Raises:
        ValueError: names the file, where it is not one that the evaluation writes.
    """
    try:
        kept = read_kept(file)
        given = read_kept(file.with_name(f"eps0-{first_row(file):05d}.safetensors"))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not readable ({error}); {REMEDY}") from error
    tensors = (given.images, kept.images, kept.purified)
    shapes = {tuple(images.shape) for images in tensors if images is not None}
    if len(shapes) > 1 or given.images.ndim != 4 or given.images.shape[1] not in (1, 3):
        raise ValueError(f"{file} holds images of the shapes {sorted(shapes)}; {REMEDY}")
    if len(kept.attacks) != len(given.images):
        raise ValueError(f"{file} names attacks={kept.attacks!r:.80}, not one per image; {REMEDY}")
    return given.images.numpy(), kept


def first_row(file: Path) -> int:
    return int(file.stem.rsplit("-", 1)[1])


def of(run: Run, eps: float, image: int, attack: str, change: np.ndarray, file: Path) -> Record:
    """The record of an attack on an image, within `eps` or a smaller budget, that made `change`."""
    size = np.abs(change).max(), np.linalg.norm(change)
    found = [r for r in run.records if (r.image, r.attack) == (image, attack) and r.eps <= eps]
    for record in sorted(found, key=lambda record: -record.eps):
        if np.allclose(size, (record.linf, record.l2), rtol=0, atol=TOLERANCE):
            return record
    raise ValueError(
        f"{file}: image {image} is of no attack in the records; the folder holds images and "
        f"records of different runs; {REMEDY}"
    )


def scale(found: list[Example]) -> float:
    """The largest change among them, which the pictures of differences show in full color."""
    return max(float(np.abs(example.attacked - example.given).max()) for example in found) or 1.0


def draw(found: list[Example], classes: Sequence[str], *title: str) -> bytes:
    """A row per image, captions "label → answer, confidence"."""
    largest = scale(found)
    columns = ["given", "attacked", "purified", "difference"]
    if found[0].purified is None:
        columns.remove("purified")
    step = (WIDTH - EDGE) / len(columns)
    side = step - EDGE
    tall = side * found[0].given.shape[1] / found[0].given.shape[2]
    captions = [[caption(r, classes) for r in (e.clean, e.record)] for e in found]
    below = LINE * (1.5 + max(text.count("\n") for pair in captions for text in pair))
    height = HEAD + (tall + below) * len(found)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        # One system of inches from the top left corner: an axes for every image takes far longer.
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.text(EDGE, 0.05, "\n".join(fitted(line, WIDTH - 2 * EDGE) for line in title), va="top")
        for place, name in enumerate(columns):
            axes.text(EDGE + place * step + side / 2, 0.56, name, ha="center", va="center")
        for row, example in enumerate(found):
            y = HEAD + row * (tall + below)
            images = [example.given, example.attacked, example.purified]
            shown = [colored(image) for image in images if image is not None]
            shown.append(difference(example, largest))
            for place, pixels in enumerate(shown):
                x = EDGE + place * step
                box = (x, x + side, y + tall, y)
                axes.imshow(pixels, extent=box, interpolation="nearest", aspect="auto")
                axes.add_patch(
                    Rectangle((x, y), side, tall, fill=False, color="0.8", linewidth=0.7)
                )
            for place, text in enumerate(captions[row]):
                color = WRONG if "wrong" in text.splitlines()[-1] else "black"
                x = EDGE + place * step + side / 2
                axes.text(x, y + tall + 0.03, text, color=color, fontsize=8, ha="center", va="top")
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        return png(figure)


def colored(image: np.ndarray) -> np.ndarray:
    """(C, H, W) in [0, 1] to (H, W, 3)."""
    return np.broadcast_to(image.clip(0, 1), (3, *image.shape[1:])).transpose(1, 2, 0)


def difference(example: Example, largest: float) -> np.ndarray:
    """Blue less, red more, white the same; of color images, mid-gray is the same."""
    change = (example.attacked - example.given) / largest
    if len(change) == 1:
        return LESS_TO_MORE(0.5 + change[0] / 2)[..., :3]
    return colored(0.5 + change / 2)


def key(example: Example, largest: float) -> str:
    """The key to the colors of a difference whose largest change is `largest`."""
    if len(example.given) == 1:
        return f"red +{largest:.3g}, blue -{largest:.3g}"
    return f"gray 0, white +{largest:.3g}, black -{largest:.3g}"


def caption(record: Record, classes: Sequence[str]) -> str:
    """Label, answer and its confidence, on two or three lines."""
    label, answer = (fitted(classes[number], 1.05, 8) for number in (record.label, record.frozen))
    wrong = ", wrong" if not record.right else ""
    gap = " " if len(label + answer) <= 13 else "\n"
    return f"{label}{gap}→ {answer}\n{100 * record.frozen_confidence:.0f} %{wrong}"
