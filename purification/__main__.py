"""`python -m purification IN OUT --model DENOISER`: images in, purified images out."""

import sys
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from purification.files import (
    destinations,
    read_array,
    read_file,
    read_npy,
    refuse_replacement,
    remove_stale,
    write_array,
    write_file,
)
from purification.methods import build
from purification.noise_level import added_noise, noise_level
from purification.picture import draw
from purification.purifier import DiffusionPurifier, resized
from purification.purify_config import Purify
from rdc.commands.program import run_program
from rdc.denoiser import Denoiser
from rdc.hub.weights import sha256
from rdc.networks.image_classifier import ImageClassifier
from rdc.noise import using_draws
from rdc.runs.device import default_device
from rdc.runs.exclusive import exclusive
from rdc.runs.fingerprints import weights_hash
from rdc.runs.picture import check_picture
from rdc.runs.settings import lock_settings

SETTINGS = "purification.json"
"""File beside a folder's purified images: the settings and the hashes of all weights."""
SHOWN = 4
"""Images in the picture."""


def main(command: Purify) -> int:
    """Purify; the exit status is 1 where an image could not be purified."""
    if command.batch_size < 1:
        raise ValueError(f"batch_size={command.batch_size} must be at least 1")
    if command.picture is not None:
        check_picture(command.picture, "picture")
        refuse_replacement(command.picture, command.given, command.out)
    return purify_array(command) if command.given.suffix == ".npy" else purify_files(command)


def purify_array(command: Purify) -> int:
    """Purify the images of a .npy file; their rows number the draws of fresh noise."""
    run = Purification(command)
    given = read_array(command.given, command.out, run.shape[0])
    images = dict(enumerate(given.split(1)))
    for image in images.values():
        run.require_size(image, command.given)
    batches = run.batches(list(images))
    purified = []
    with tqdm(total=len(images), unit="image") as progress:
        for rows in batches:
            purified += run.purify({row: images[row] for row in rows})
            progress.update(len(rows))
    write_array(command.out, torch.cat(purified), like=command.given)
    run.warn()
    run.draw_picture({row: images[row] for row in run.shown(batches)})
    return 0


def purify_files(command: Purify) -> int:
    """Purify an image file or all below a folder; those that are there already are left out.

    Images whose file has changed are purified again, and where images see each other, those whose
    batch has.
    """
    outputs = destinations(command.given, command.out)
    run = Purification(command)
    batches = run.batches(list(outputs))
    many = command.given.is_dir()
    with exclusive(command.out) if many else nullcontext():
        if many:
            lock_folder(command)
            coupled = batches if run.purifier.batch_coupled else []
            remove_stale(outputs, command.given, command.out, batches=coupled)
        failed = purify_batches(run, batches, outputs, continued=many)
    if failed:
        print(f"{failed} of {len(outputs)} images could not be purified", file=sys.stderr)
    run.warn()
    run.draw_picture(run.read(run.shown(batches))[0])
    return int(failed > 0)


def purify_batches(
    run: "Purification", batches: list[list[Path]], outputs: dict[Path, Path], *, continued: bool
) -> int:
    """Write purified images and return how many there cannot be.

    `continued` leaves out the batches whose images are all there.
    """
    failed = 0
    with tqdm(total=len(outputs), unit="image") as progress:
        # Whole batches, as in one go: with some methods an image depends on its batch.
        for files in batches:
            if not (continued and all(outputs[file].exists() for file in files)):
                images, errors = run.read(files)
                for error in errors:
                    tqdm.write(f"error: {error}", file=sys.stderr)
                failed += len(errors)
                for file, image in zip(images, run.purify(images), strict=True):
                    write_file(outputs[file], image)
            progress.update(len(files))
    return failed


Key = TypeVar("Key", int, Path)


class Purification:
    """The purifier of a command, and its work on images (1, C, H, W) of any size in [0, 1].

    Images are named by their files, or by their rows in an array.
    """

    def __init__(self, command: Purify) -> None:
        self.command = command
        self.device = default_device()
        self.purifier = load(command).to(self.device)
        self.shape = self.purifier.denoiser.image_shape
        self.noise: list[tuple[float, float]] = []
        """Estimated noise of each image before and after."""

    def require_size(self, image: Tensor, file: Path) -> None:
        """Raise ValueError for an image of another size than the denoiser's, unless resizing."""
        size, expected = tuple(image.shape[2:]), self.shape[1:]
        if size != expected and not self.command.resize:
            raise ValueError(
                f"{file}: {size[0]}x{size[1]} pixels, but the denoiser takes {expected[0]}x"
                f"{expected[1]}; give --resize to resize images for it and back, or another --model"
            )

    def read(self, files: list[Path]) -> tuple[dict[Path, Tensor], list[str]]:
        """The images of the files, and an error for each file without one."""
        images, errors = {}, []
        for file in files:
            try:
                image = read_file(file, self.shape[0], resize=self.command.resize)
                self.require_size(image, file)
                images[file] = image
            except (FileNotFoundError, ValueError) as error:
                errors.append(str(error))
        if self.purifier.batch_coupled and len(images) == 1:
            (file,) = images
            errors.append(f"{file} is alone: no other image of its batch can be read")
            images = {}
        return images, errors

    def batches(self, keys: list[Key]) -> list[list[Key]]:
        """Batches of `batch_size`, the last larger by one where it would leave an image alone."""
        size = self.command.batch_size
        batches = [keys[i : i + size] for i in range(0, len(keys), size)]
        if not self.purifier.batch_coupled or len(batches[-1]) > 1:
            return batches
        if len(batches[0]) == 1:
            raise ValueError(
                f"images={len(keys)}: in batches of {size}, one is alone, but without a bank "
                f"{self.command.method} compares the images of a batch; give more, and "
                "batch_size=2 or more"
            )
        return [*batches[:-2], batches[-2] + batches[-1]]

    def shown(self, batches: list[list[Key]]) -> list[Key]:
        """The images that the picture needs: the first, with their batch where it matters."""
        if self.command.picture is None:
            return []
        return batches[0] if self.purifier.batch_coupled else list(chain(*batches))[:SHOWN]

    def purify(self, images: dict[Key, Tensor]) -> list[Tensor]:
        """The images, purified as one batch, clamped to [0, 1] and at their own sizes."""
        if not images:
            return []
        given = self._batch(images)
        with torch.no_grad(), using_draws(self.draws(list(images))):
            purified = self.purifier(given).clamp(0, 1)
        levels = (noise_level(each).tolist() for each in (given, purified))
        self.noise += zip(*levels, strict=True)
        return [
            resized(part, image.shape[2:]).clamp(0, 1)  # resizing may overshoot
            for part, image in zip(purified.cpu().split(1), images.values(), strict=True)
        ]

    def warn(self) -> None:
        """Print a warning if the purified images are noisier than the given ones."""
        before, after = np.mean(self.noise or [(0, 0)], axis=0)
        if warning := added_noise(before, after):
            print(f"warning: {warning}", file=sys.stderr)

    def draws(self, keys: Sequence[int | Path]) -> list[int]:
        """Number of the frozen draw of each image: of a file, it depends on its name alone."""
        if self.command.noise == "frozen":
            return [0]
        given = self.command.given
        root = given if given.is_dir() else given.parent
        return [
            key if isinstance(key, int) else zlib.crc32(key.relative_to(root).as_posix().encode())
            for key in keys
        ]

    def draw_picture(self, images: dict[Key, Tensor]) -> None:
        """Write the picture of the first images, if the command asks for one."""
        if self.command.picture is None:
            return
        if not images:
            print(f"picture={self.command.picture}: not drawn, no image for it", file=sys.stderr)
            return
        with torch.no_grad(), using_draws(self.draws(list(images))):
            states = self.purifier.trajectory(self._batch(images))
        draw([states[i][:SHOWN].cpu() for i in (0, 1, -1)], self.command.picture)
        print(f"wrote {self.command.picture}")

    def _batch(self, images: dict[Key, Tensor]) -> Tensor:
        """The images at the denoiser's size (B, C, H, W), on the device."""
        size = self.shape[1:]
        return torch.cat([resized(image, size) for image in images.values()]).to(self.device)


def load(command: Purify) -> DiffusionPurifier:
    """The purifier with frozen noise; `Purification.draws` numbers the draws of each image."""

    def classifier(name: str | None) -> ImageClassifier | None:
        return None if name is None else ImageClassifier.from_pretrained(name)

    bank = None
    if command.bank is not None:
        logits = read_npy(command.bank, "bank")
        if logits.dtype.kind not in "iuf":
            raise ValueError(
                f"bank={command.bank}: {logits.dtype}; give logits (M, K) of M training images"
            )
        bank = torch.from_numpy(logits.astype(np.float32))
    return build(
        command.method,
        Denoiser.from_pretrained(command.model),
        preset=command.preset,
        classifier=classifier(command.classifier),
        auxiliary=classifier(command.auxiliary),
        bank=bank,
        seed=command.seed,
    )


def lock_folder(command: Purify) -> None:
    """Keep the settings and hashes in the output folder, or refuse a folder begun otherwise."""
    settings = {k: v for k, v in asdict(command).items() if k not in ("out", "picture")}
    names = {"model": command.model, "classifier": command.classifier,
             "auxiliary": command.auxiliary}  # fmt: skip
    inputs = {name: weights_hash(model) for name, model in names.items() if model is not None}
    if command.bank is not None:
        inputs["bank"] = sha256(command.bank)
    settings["given"] = command.given.resolve()
    lock_settings(command.out, settings, inputs=inputs, file=SETTINGS)


if __name__ == "__main__":
    sys.exit(run_program(main))
