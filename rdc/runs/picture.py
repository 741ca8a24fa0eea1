"""Pictures as files, in the format that the name of the file asks for."""

from pathlib import Path
from typing import TYPE_CHECKING

from rdc.runs.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_picture(path: Path, argument: str) -> None:
    """Raise ValueError, naming `argument`, for a path to which no picture can be saved."""
    # matplotlib takes a second to import; only commands that draw need it.
    from matplotlib.figure import Figure

    formats = Figure().canvas.get_supported_filetypes()
    if path.is_dir() or _format(path) not in formats:
        raise ValueError(
            f"{argument}={path} cannot become a picture; give a file that ends in one of "
            f"{', '.join(sorted(formats))}"
        )


def save_picture(figure: "Figure", path: Path, *, dpi: int) -> None:
    """Save a figure, there in full or not at all; a name without a suffix becomes a PNG."""
    with replacing(path) as part:
        figure.savefig(part, dpi=dpi, format=_format(path))


def _format(path: Path) -> str:
    return path.suffix[1:].lower() or "png"
