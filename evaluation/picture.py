"""A picture of images and of the posteriors that models give them, a row per image."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rdc.data import Dataset
from rdc.runs.picture import save_picture
from rdc.text import printable

TRUE, WRONG, OTHER = "tab:green", "tab:red", "lightgray"


def draw(columns: Mapping[str, Tensor], data: Dataset, *, title: str, path: Path) -> None:
    """Save a picture with a row per image of `data`, named by its true class.

    columns: by title, images (B, C, H, W), or posteriors (B, K), which become bars.
    """
    # matplotlib takes a second to import; only this needs it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.1 * len(columns), 2.0 * len(data)), layout="constrained")
    axes = figure.subplots(len(data), len(columns), squeeze=False)
    names = [*map(printable, data.class_names)]
    for column, (head, values) in enumerate(columns.items()):
        axes[0, column].set_title(head)
        for axis, value, label in zip(axes[:, column], values, data.labels.tolist(), strict=True):
            if value.ndim == 3:
                show(axis, value)
            else:
                bars(axis, value, label, names)
    for axis, label in zip(axes[:, 0], data.labels.tolist(), strict=True):
        axis.set_ylabel(names[label], color=TRUE, fontsize=12)
    figure.suptitle(title)
    save_picture(figure, path, dpi=80)


def show(axis, image: Tensor) -> None:
    """Draw an image (C, H, W), cut off at [0, 1], which purifiers may leave."""
    pixels = image.clamp(0, 1).permute(1, 2, 0).squeeze(2).cpu().numpy()
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def bars(axis, probabilities: Tensor, label: int, names: list[str]) -> None:
    """Draw the posterior as bars: the true class green, a wrong winner red, the rest gray."""
    winner = int(probabilities.argmax())
    colors = [OTHER] * len(names)
    colors[winner] = WRONG
    colors[label] = TRUE
    axis.barh(range(len(names)), probabilities.tolist(), color=colors)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xticks=[])
