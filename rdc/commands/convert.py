"""The program `rdc convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from rdc.converters import ClassifierFacts, Format, convert


@dataclass(frozen=True)
class Convert:
    """Bring published weights into the format of this library; nothing in the file is executed."""

    source: tyro.conf.Positional[Path]
    """the published file; a folder of diffusers needs no converting: see rdc.DiffusersDenoiser"""
    format: Format
    """code that wrote the file: NVIDIA's EDM (.pkl, or RDC's .pt of the same networks), score_sde
    (checkpoint_8.pth), guided-diffusion (256x256_diffusion_uncond.pt), or a classifier's state
    dictionary"""
    out: Path
    """folder to write, new or empty"""
    architecture: str | None = None
    """classifiers only: wrn-28-10, dm-wrn-70-16 (RobustBench's DMWideResNet) or a name of timm"""
    mean: tuple[float, ...] = ()
    """classifiers only: means subtracted from images in [0, 1], such as 0.49 0.48 0.45; 0 without
    normalization; by default the file's own"""
    std: tuple[float, ...] = ()
    """classifiers only: standard deviations that divide them; 1 without normalization; by default
    the file's own"""
    image_size: int = 32
    """classifiers only: height and width in pixels"""
    stem: Literal["small", "original"] = "small"
    """timm's classifiers only: original for images of about 224 pixels"""
    entry: str | None = None
    """classifiers only: state dictionary to convert, if the checkpoint has several; by default the
    averages (ema, swa)"""


def main(command: Convert) -> None:
    """Convert, and print what was found."""
    facts = None
    given = (command.architecture, command.mean, command.std)
    if command.format == "classifier" or any(given):
        if command.architecture is None:
            raise ValueError("--architecture is missing: a classifier's file does not name its own")
        facts = ClassifierFacts(
            command.architecture,
            command.mean,
            command.std,
            command.image_size,
            command.stem,
            command.entry,
        )
    done = convert(command.source, command.format, command.out, classifier=facts)
    for name, value in (done.facts | {"written to": str(command.out)}).items():
        print(f"{name:<14}{value}")
    print("\n".join(done.published.notes))
