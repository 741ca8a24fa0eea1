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
    """what published it: NVIDIA's EDM (.pkl), score_sde (checkpoint_8.pth), guided-diffusion
    (256x256_diffusion_uncond.pt), or a classifier's state dictionary"""
    out: Path
    """folder to write, new or empty"""
    architecture: str | None = None
    """of a classifier: wrn-28-10, wrn-70-16, or a name of timm's"""
    mean: tuple[float, ...] = ()
    """what a classifier's images in [0, 1] are normalized with, for example 0.49 0.48 0.45; 0 where
    they are not"""
    std: tuple[float, ...] = ()
    """by what they are divided; 1 where they are not"""
    image_size: int = 32
    """of a classifier"""
    stem: Literal["small", "original"] = "small"
    """of a classifier of timm's: original for images of about 224 pixels"""
    entry: str | None = None
    """of a classifier's checkpoint with several state dictionaries: the one to convert; by default
    the averages (ema, swa)"""


def main(command: Convert) -> None:
    """Convert, and print what was found."""
    facts = None
    given = (command.architecture, command.mean, command.std)
    if command.format == "classifier" or any(given):
        if command.architecture is None or not command.mean or not command.std:
            raise ValueError(
                "--architecture, --mean and --std belong together: a classifier's file says none "
                "of them; --mean 0 --std 1 is for one that takes images as they are"
            )
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
