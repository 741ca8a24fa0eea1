"""Settings of the programs `info`, `classify`, `convert` and `export`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import tyro

from rdc.choices import MAX_SHARD_SIZE, Format
from rdc.config import require


@dataclass(frozen=True)
class Info:
    """List the packaged models, or print one model's settings, files and commands as JSON."""

    model: tyro.conf.Positional[str | None] = None
    """packaged name, directory or hub id"""


@dataclass(frozen=True)
class Classify:
    """Classify an image, or all images below a folder, with RDC.

    For a large folder give --out: the predictions are written as they come, a run that was killed
    goes on when the same command is given again, and the processes that `accelerate launch` or
    `torchrun` start share the work, each on its own GPU where there are some.
    """

    path: tyro.conf.Positional[Path]
    """image file or folder"""
    model: str = "digits"
    """packaged name (see `info`), directory or hub id"""
    json: bool = False
    """print one JSON object per image instead of a table"""
    out: Path | None = None
    """print nothing but write predictions.jsonl into this folder: one JSON object per image, sorted
    by name; images that cannot be read have an "error" and do not make the exit status 1"""
    batch_size: int = 64
    seed: int = 0
    """seed of the noise, which is the same for all images"""
    resize: bool = False
    """convert images of every other shape to the model's: gray or color, resized, cropped; without
    it, only larger images with the model's number of channels are resized"""


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

    def __post_init__(self) -> None:
        others = ("source", "format", "out")
        defaults = {each.name: each.default for each in fields(self) if each.name not in others}
        require(
            self,
            **{
                name: (self.format == "classifier" or getattr(self, name) == default,
                       f"{default!r} for format={self.format!r}: it is of classifiers only")
                for name, default in defaults.items()
            },
        )  # fmt: skip


@dataclass(frozen=True)
class Export:
    """Write a model for others: weights in a chosen precision and size of files, and a card."""

    model: tyro.conf.Positional[str]
    """packaged name, directory (also of a finished training run) or hub id"""
    out: tyro.conf.Positional[Path]
    """folder to write, new or empty"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """weights' type; bfloat16 is half as large, and rounds each by at most 1/256 of its size"""
    max_shard_size: str = MAX_SHARD_SIZE
    """no file of weights is larger, for example 15MB; there are several where needed"""
    evaluation: Path | None = None
    """folder that `python -m evaluation.evaluate` wrote about the model, for the card's figures"""
