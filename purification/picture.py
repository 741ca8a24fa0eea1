"""One picture: what purification does to images, row by row."""

from pathlib import Path

from torch import Tensor

from rdc.images import to_pixels
from rdc.runs.picture import save_picture

COLUMNS = ("given", "noised", "purified", "purified - given")


def draw(states: list[Tensor], path: Path) -> None:
    """Given, noised and purified images, each (B, C, H, W) on [-1, 1], and what changed."""
    # matplotlib takes a second to import; only this needs it.
    from matplotlib.figure import Figure

    given, noised, purified = (to_pixels(state) for state in states)
    # Mid-gray is no change, black and white are half the range of pixels.
    change = 0.5 + (purified - given)
    figure = Figure(figsize=(8, 2.0 * len(given)))
    axes = figure.subplots(len(given), len(COLUMNS), squeeze=False)
    for column, (title, images) in enumerate(
        zip(COLUMNS, (given, noised, purified, change), strict=True)
    ):
        axes[0, column].set_title(title)
        for row, pixels in enumerate(images):
            image = pixels.clamp(0, 1).permute(1, 2, 0).squeeze(2).numpy()
            axes[row, column].imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes[row, column].set_axis_off()
    figure.tight_layout()
    save_picture(figure, path, dpi=100)
