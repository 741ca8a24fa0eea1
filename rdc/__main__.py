"""`python -m rdc classify IMAGE_OR_FOLDER`, and `info`, `convert` and `export` for models."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tqdm import tqdm

from rdc.classifier import RobustDiffusionClassifier
from rdc.commands.classify_folder import PREDICTIONS, classify_files, classify_folder
from rdc.commands.export import export
from rdc.commands.info import info
from rdc.converters import ClassifierFacts, Format, convert
from rdc.hub.checkpoint import packaged_models
from rdc.hub.weights import MAX_SHARD_SIZE
from rdc.image_files import image_files
from rdc.images import spelled
from rdc.runs.device import default_device
from rdc.text import printable


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
    """of the noise, which is the same for all images"""
    resize: bool = False
    """convert images of another shape to the model's: gray or color, resized, cropped"""


@dataclass(frozen=True)
class Info:
    """List the packaged models for RDC, or tell what one model is: settings, files, commands."""

    model: tyro.conf.Positional[str | None] = None
    """packaged name, directory or hub id"""


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


@dataclass(frozen=True)
class Export:
    """Write a model for others: the weights as small as they may be, and a card."""

    model: tyro.conf.Positional[str]
    """packaged name, directory (also of a finished training run) or hub id"""
    out: tyro.conf.Positional[Path]
    """folder to write, new or empty"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the weights; bfloat16 is half as large, and rounds each by at most 1/256 of its size"""
    max_shard_size: str = MAX_SHARD_SIZE
    """no file of weights is larger, for example 15MB; there are several where needed"""
    evaluation: Path | None = None
    """folder that `python -m evaluation.evaluate` wrote about the model, for the card's figures"""


def main(command: Classify | Info | Convert | Export) -> int:
    """Run a command; the exit status is 1 where something could not be done."""
    try:
        if isinstance(command, Convert):
            return run_convert(command)
        if isinstance(command, Export):
            return run_export(command)
        return run_classify(command) if isinstance(command, Classify) else run_info(command)
    except (FileNotFoundError, FloatingPointError, ValueError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1


def run_info(command: Info) -> int:
    if command.model is None:
        print("\n".join(packaged_models()))
        return 0
    print(json.dumps(info(command.model), indent=2))
    return 0


def run_export(command: Export) -> int:
    export(
        command.model,
        command.out,
        dtype=getattr(torch, command.dtype),
        max_shard_size=command.max_shard_size,
        evaluation=command.evaluation,
    )
    for file in sorted(command.out.iterdir()):
        print(f"{file.stat().st_size:>14,}  {file}")
    return 0


def run_convert(command: Convert) -> int:
    facts = None
    given = (command.architecture, command.mean, command.std)
    if command.format == "classifier" or any(given):
        if command.architecture is None or not command.mean or not command.std:
            raise ValueError(
                "--architecture, --mean and --std belong together: a classifier's file says none "
                "of them; --mean 0 --std 1 is for one that takes images as they are"
            )
        facts = ClassifierFacts(
            command.architecture, command.mean, command.std, command.image_size, command.stem
        )
    done = convert(command.source, command.format, command.out, classifier=facts)
    for name, value in (done.facts | {"written to": str(command.out)}).items():
        print(f"{name:<14}{value}")
    print("\n".join(done.published.notes))
    return 0


def run_classify(command: Classify) -> int:
    if command.batch_size < 1:
        raise ValueError(f"batch_size={command.batch_size} must be at least 1")
    if command.out is not None:
        return run_classify_folder(command, command.out)
    files = image_files(command.path)
    model = RobustDiffusionClassifier.from_pretrained(command.model, seed=command.seed)
    model.to(default_device())
    width = max(len(printable(file)) for file in files)
    if not command.json:
        print(f"{'image':<{width}}  {'class':>12}  {'p':>6}  {'second':>12}  {'p':>6}")
    failed = converted = 0
    chunks = [files[i : i + command.batch_size] for i in range(0, len(files), command.batch_size)]
    for chunk in tqdm(chunks, disable=len(chunks) == 1, unit="batch"):
        rows = classify_files([str(file) for file in chunk], model, resize=command.resize)
        for row in rows:
            failed += "error" in row
            converted += "converted" in row
            tqdm.write(json.dumps(row) if command.json else table_row(row, width))
    shape = spelled(model.denoiser.image_shape)
    print(f"model {printable(command.model)}, for {shape} images", file=sys.stderr)
    if converted:
        print(f"{converted} of {len(files)} images were converted to {shape}", file=sys.stderr)
    if failed:
        print(f"{failed} of {len(files)} images could not be classified", file=sys.stderr)
    return int(failed > 0)


def run_classify_folder(command: Classify, out: Path) -> int:
    # accelerate takes seconds to import.
    from accelerate import PartialState

    failed = classify_folder(
        command.path,
        out,
        command.model,
        batch_size=command.batch_size,
        seed=command.seed,
        resize=command.resize,
    )
    state = PartialState()
    if state.is_main_process:
        print(f"wrote {out / PREDICTIONS}; {failed} images could not be classified")
    state.destroy_process_group()
    return 0


def table_row(row: dict, width: int) -> str:
    """An image's name, its two most probable classes and their probabilities, or its error."""
    name = f"{printable(row['image']):<{width}}"
    if "error" in row:
        return f"{name}  {printable(row['error'])}"
    best = sorted(row["probabilities"].items(), key=lambda item: -item[1])[:2]
    return name + "".join(f"  {printable(label):>12}  {p:6.3f}" for label, p in best)


Command = (
    Annotated[Classify, tyro.conf.subcommand("classify")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)

if __name__ == "__main__":
    sys.exit(main(tyro.cli(Command, prog="python -m rdc")))  # type: ignore[arg-type]
