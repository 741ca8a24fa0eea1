"""Settings of the program `purify`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from purification.presets import GUIDES, Method
from rdc.choices import NoiseMode
from rdc.config import require


@dataclass(frozen=True)
class Purify:
    """Purify an image file, all images below a folder, or an array of images.

    In a folder, images that are already there are not purified again, unless their files have
    changed (contrastive without a bank: or the names of those in their batch): a killed run goes
    on. A folder with images of another folder, of other settings or of other weights is refused.
    """

    given: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IN")]
    """image file; folder; or .npy of images (N, H, W, C) or (N, H, W), uint8 or floats in [0, 1]"""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """.png for a file, a folder with the same sub-folders for a folder, .npy for an array"""
    model: str
    """denoiser: packaged name, directory or hub id"""
    method: Method = "diffpure"
    preset: str = "cifar10-linf"
    """published settings; an unknown name lists those of the method"""
    classifier: str | None = None
    """image classifier that guides coup and contrastive: packaged name, directory or hub id"""
    auxiliary: str | None = None
    """image classifier that guides agdm"""
    bank: Path | None = None
    """contrastive only: .npy of the classifier's logits (M, K) of training images on [-1, 1]"""
    noise: NoiseMode = "frozen"
    """the same draws for all images, or fresh ones for each, by its file's name or its row"""
    seed: int = 0
    batch_size: int = 64
    picture: Path | None = None
    """draw the first images: given, noised, purified, and the change"""
    resize: bool = False
    """resize images of another size for the denoiser, and back, and make color gray for a gray
    denoiser; without, both are refused"""

    def __post_init__(self) -> None:
        guides = GUIDES.get(self.method, ())
        require(
            self,
            **{
                name: (name in guides or getattr(self, name) is None,
                       f"None for method={self.method!r}, which does not use it")
                for name in ("classifier", "auxiliary", "bank")
            },
        )  # fmt: skip
