"""`python -m purification IN OUT --model DENOISER`: images in, purified images out."""

import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from purification.files import (
    destinations,
    read_array,
    read_file,
    read_npy,
    write_array,
    write_file,
)
from purification.methods import build
from purification.picture import draw
from purification.presets import Method
from purification.purifier import DiffusionPurifier, resized
from rdc.denoiser import Denoiser
from rdc.hub.checkpoint import CONFIG, locate
from rdc.hub.weights import sha256, weights_sha256
from rdc.networks.image_classifier import ImageClassifier
from rdc.noise import NoiseMode, using_draws
from rdc.runs.device import default_device

SETTINGS = "purification.json"
"""beside the images of a folder: what they are of, and what they were purified with"""
SHOWN = 4
"""images in the picture"""


@dataclass(frozen=True)
class Purify:
    """Purify an image file, all images below a folder, or an array of images.

    In a folder, images that are already there are not purified again: a killed run goes on. A
    folder with images of another folder, of other settings or of other weights is refused.
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
    """for contrastive: .npy of the classifier's logits (M, K) of training images on [-1, 1]"""
    noise: NoiseMode = "frozen"
    """the same draws for all images, or fresh ones for each, by its file's name or its row"""
    seed: int = 0
    batch_size: int = 64
    picture: Path | None = None
    """draw the first images: given, noised, purified, and what changed"""


def main(command: Purify) -> int:
    """Purify; the exit status is 1 where an image could not be."""
    try:
        if command.batch_size < 1:
            raise ValueError(f"batch_size={command.batch_size} must be at least 1")
        return run_array(command) if command.given.suffix == ".npy" else run_files(command)
    except (FileNotFoundError, FloatingPointError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def load(command: Purify) -> DiffusionPurifier:
    """The purifier; its noise is frozen, and `purify` says which copy of it an image takes."""

    def classifier(name: str | None) -> ImageClassifier | None:
        return None if name is None else ImageClassifier.from_pretrained(name)

    bank = None
    if command.bank is not None:
        bank = torch.from_numpy(read_npy(command.bank, "bank").astype(np.float32))
    purifier = build(
        command.method,
        Denoiser.from_pretrained(command.model),
        preset=command.preset,
        classifier=classifier(command.classifier),
        auxiliary=classifier(command.auxiliary),
        bank=bank,
        seed=command.seed,
    )
    return purifier.to(default_device())


def run_array(command: Purify) -> int:
    purifier = load(command)
    given = read_array(command.given, command.out, purifier.denoiser.image_shape[0])
    images = dict(enumerate(given.split(1)))
    shares = batches(list(images), purifier, command)
    purified = []
    with tqdm(total=len(images), unit="image") as progress:
        for rows in shares:
            purified += purify(purifier, {row: images[row] for row in rows}, command)
            progress.update(len(rows))
    write_array(command.out, torch.cat(purified), like=command.given)
    show(purifier, {row: images[row] for row in first(shares, purifier, command)}, command)
    return 0


def run_files(command: Purify) -> int:
    outputs = destinations(command.given, command.out)
    purifier = load(command)
    shares = batches(list(outputs), purifier, command)
    many = command.given.is_dir()
    if many:
        record_settings(command)
    failed = 0
    with tqdm(total=len(outputs), unit="image") as progress:
        # Batches are the same whatever is there: in some methods an image depends on its batch.
        for files in shares:
            if not (many and all(outputs[file].exists() for file in files)):
                images, errors = read(files, purifier)
                for error in errors:
                    tqdm.write(f"error: {error}", file=sys.stderr)
                failed += len(errors)
                for file, image in zip(images, purify(purifier, images, command), strict=True):
                    write_file(outputs[file], image)
            progress.update(len(files))
    if failed:
        print(f"{failed} of {len(outputs)} images could not be purified", file=sys.stderr)
    show(purifier, read(first(shares, purifier, command), purifier)[0], command)
    return int(failed > 0)


def read(files: list[Path], purifier: DiffusionPurifier) -> tuple[dict[Path, Tensor], list[str]]:
    """The images (1, C, H, W) of the files, and why some have none."""
    images, errors = {}, []
    for file in files:
        try:
            images[file] = read_file(file, purifier.denoiser.image_shape[0])
        except (FileNotFoundError, ValueError) as error:
            errors.append(str(error))
    if purifier.batch_coupled and len(images) == 1:
        (file,) = images
        errors.append(f"{file} is alone: no other image of its batch can be read")
        images = {}
    return images, errors


Key = TypeVar("Key", int, Path)


def batches(keys: list[Key], purifier: DiffusionPurifier, command: Purify) -> list[list[Key]]:
    """Batches of `batch_size`, the last larger by one where it would leave an image alone."""
    size = command.batch_size
    shares = [keys[i : i + size] for i in range(0, len(keys), size)]
    if not purifier.batch_coupled or len(shares[-1]) > 1:
        return shares
    if len(shares[0]) == 1:
        raise ValueError(
            f"images={len(keys)}: in batches of {size}, one is alone, but without a bank "
            f"{command.method} compares the images of a batch; give more, and batch_size=2 or more"
        )
    return [*shares[:-2], shares[-2] + shares[-1]]


def first(shares: list[list[Key]], purifier: DiffusionPurifier, command: Purify) -> list[Key]:
    """The images whose states the picture needs: the first, with their batch where it matters."""
    if command.picture is None:
        return []
    return shares[0] if purifier.batch_coupled else list(chain(*shares))[:SHOWN]


def purify(purifier: DiffusionPurifier, images: dict[Key, Tensor], command: Purify) -> list[Tensor]:
    """Images (1, C, H, W) of any sizes as one batch, purified and in [0, 1]."""
    if not images:
        return []
    with torch.no_grad(), using_draws(numbers(list(images), command)):
        purified = purifier(batch(purifier, images)).cpu().split(1)
    return [
        resized(part, image.shape[2:]).clamp(0, 1)
        for part, image in zip(purified, images.values(), strict=True)
    ]


def batch(purifier: DiffusionPurifier, images: dict[Key, Tensor]) -> Tensor:
    """The images at the denoiser's size (B, C, H, W), where it computes."""
    size = purifier.denoiser.image_shape[1:]
    return torch.cat([resized(image, size) for image in images.values()]).to(default_device())


def numbers(keys: Sequence[int | Path], command: Purify) -> list[int]:
    """Which copy of the frozen noise each image takes; a file's depends on nothing but its name."""
    if command.noise == "frozen":
        return [0]
    root = command.given if command.given.is_dir() else command.given.parent
    return [
        key if isinstance(key, int) else zlib.crc32(key.relative_to(root).as_posix().encode())
        for key in keys
    ]


def show(purifier: DiffusionPurifier, images: dict[Key, Tensor], command: Purify) -> None:
    """Draw the picture, if one is wanted, of the first of `images`."""
    if command.picture is None or not images:
        return
    with torch.no_grad(), using_draws(numbers(list(images), command)):
        states = purifier.trajectory(batch(purifier, images))
    draw([states[i][:SHOWN].cpu() for i in (0, 1, -1)], command.picture)
    print(f"wrote {command.picture}")


def weights(command: Purify) -> dict[str, str]:
    """The SHA-256 of all weights and of the bank: names stay when files are overwritten."""
    models = {"model": command.model, "classifier": command.classifier,
              "auxiliary": command.auxiliary}  # fmt: skip
    found = {
        f"{argument}_sha256": weights_sha256(locate(name, CONFIG).parent)
        for argument, name in models.items()
        if name is not None
    }
    return found if command.bank is None else found | {"bank_sha256": sha256(command.bank)}


def record_settings(command: Purify) -> None:
    """Keep the settings in the folder, or refuse one that holds images of other settings."""
    chosen = {k: v for k, v in asdict(command).items() if k not in ("out", "picture")}
    chosen |= {"given": command.given.resolve()} | weights(command)
    settings = json.loads(json.dumps(chosen, default=str))
    kept = command.out / SETTINGS
    if not kept.exists():
        if command.out.exists() and any(command.out.iterdir()):
            raise ValueError(
                f"out={command.out} holds files but no {SETTINGS}: it is not of an earlier run; "
                "give a new or an empty folder"
            )
        command.out.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(settings, indent=2) + "\n")
        return
    before = json.loads(kept.read_text())
    changed = [
        f"{name}: {before.get(name)!r}, now {value!r}"
        for name, value in settings.items()
        if before.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"out={command.out} holds images of other settings ({'; '.join(changed)}); "
            "give another folder"
        )


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Purify, prog="python -m purification")))
