"""A picture of attacked images: the answers of a CNN and of RDC, image by image."""

from pathlib import Path

import torch
from torch import Tensor, nn

from rdc import RobustDiffusionClassifier
from rdc.data import Dataset
from rdc.runs.atomic import replacing
from rdc.text import printable

COLUMNS = (
    "given",
    "attacked: CNN",
    "CNN: posterior",
    "attacked: RDC",
    "after maximization",
    "RDC: posterior",
)


def draw(
    cnn: nn.Module,
    rdc: RobustDiffusionClassifier,
    data: Dataset,
    for_cnn: Tensor,
    for_rdc: Tensor,
    *,
    title: str,
    path: Path,
) -> None:
    """Write a PNG file with a row per image of `data`.

    for_cnn, for_rdc: the images (B, C, H, W) in [0, 1] as attacked for each model, whose posterior
        stands beside them.
    """
    # matplotlib takes a second to import; only this needs it.
    from matplotlib.figure import Figure

    with torch.no_grad():
        maximized = rdc.purifier(for_rdc)
        of_cnn, of_rdc = cnn(for_cnn).softmax(1), rdc.classifier(maximized).softmax(1)

    figure = Figure(figsize=(2.1 * len(COLUMNS), 2.0 * len(data)))
    axes = figure.subplots(len(data), len(COLUMNS), squeeze=False)
    for column, head in enumerate(COLUMNS):
        axes[0, column].set_title(head)
    for row in range(len(data)):
        label = int(data.labels[row])
        show(axes[row, 0], data.images[row])
        show(axes[row, 1], for_cnn[row])
        bars(axes[row, 2], of_cnn[row], label, data.class_names)
        show(axes[row, 3], for_rdc[row])
        show(axes[row, 4], maximized[row])
        bars(axes[row, 5], of_rdc[row], label, data.class_names)
    figure.suptitle(title)
    figure.tight_layout()
    with replacing(path) as part:
        figure.savefig(part, dpi=80, format="png")


def show(axis, image: Tensor) -> None:
    """Draw an image (C, H, W) in [0, 1]."""
    pixels = image.permute(1, 2, 0).squeeze(2).cpu().numpy()
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_axis_off()


def bars(axis, probabilities: Tensor, label: int, names: tuple[str, ...]) -> None:
    """The posterior as bars: the true class green, a wrong winner red, the rest gray."""
    winner = int(probabilities.argmax())
    colors = ["lightgray"] * len(probabilities)
    colors[winner] = "tab:red"
    colors[label] = "tab:green"
    axis.bar(range(len(probabilities)), probabilities.tolist(), color=colors)
    axis.set_ylim(0, 1)
    axis.set_yticks([])
    axis.set_xticks(range(len(names)), [*map(printable, names)], fontsize=8)
