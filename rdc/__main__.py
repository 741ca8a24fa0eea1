"""`python -m rdc classify IMAGE_OR_FOLDER`, `python -m rdc info`, `python -m rdc convert FILE`."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from rdc.checkpoint import packaged_models
from rdc.classifier import RobustDiffusionClassifier, classify
from rdc.converters import ClassifierFacts, Format, convert
from rdc.denoiser import Denoiser
from rdc.images import image_files, to_images


@dataclass(frozen=True)
class Classify:
    """Classify an image, or all images below a folder, with RDC."""

    path: tyro.conf.Positional[Path]
    """image file or folder"""
    model: str = "digits"
    """packaged name (see `info`), directory or hub id"""
    json: bool = False
    """print one JSON object per image instead of a table"""
    batch_size: int = 64


@dataclass(frozen=True)
class Info:
    """List the packaged models, or show the settings of one model."""

    model: tyro.conf.Positional[str | None] = None
    """packaged name, directory or hub id"""


@dataclass(frozen=True)
class Convert:
    """Bring published weights into the format of this library; nothing in the file is executed."""

    source: tyro.conf.Positional[Path]
    """the published file"""
    format: Format
    """what published it: NVIDIA's EDM (.pkl), score_sde (checkpoint_8.pth), guided-diffusion
    (256x256_diffusion_uncond.pt), or a classifier's state dictionary"""
    out: Path
    """folder to write, new or empty"""
    architecture: str | None = None
    """of a classifier: wrn-28-10, wrn-70-16, or a name of timm's"""
    mean: tuple[float, ...] = ()
    """what a classifier's images in [0, 1] are normalised with, for example 0.49 0.48 0.45; 0 where
    they are not"""
    std: tuple[float, ...] = ()
    """by what they are divided; 1 where they are not"""
    image_size: int = 32
    """of a classifier"""
    stem: Literal["small", "original"] = "small"
    """of a classifier of timm's: original for images of about 224 pixels"""


def main(command: Classify | Info | Convert) -> int:
    """Run a command; the exit status is 1 where something could not be done."""
    try:
        if isinstance(command, Convert):
            return run_convert(command)
        return run_classify(command) if isinstance(command, Classify) else run_info(command)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run_info(command: Info) -> int:
    if command.model is None:
        print("\n".join(packaged_models()))
        return 0
    model = RobustDiffusionClassifier.from_pretrained(command.model)
    assert isinstance(model.denoiser, Denoiser)  # nothing else can be loaded
    network = {"denoiser": asdict(model.denoiser.config), "rdc": asdict(model.config)}
    print(json.dumps(network, indent=2))
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
    files = image_files(command.path)
    model = RobustDiffusionClassifier.from_pretrained(command.model)
    width = max(len(str(file)) for file in files)
    if not command.json:
        print(f"{'image':<{width}}  {'class':>12}  {'p':>6}  {'second':>12}  {'p':>6}")
    failed = 0
    chunks = [files[i : i + command.batch_size] for i in range(0, len(files), command.batch_size)]
    for chunk in tqdm(chunks, disable=len(chunks) == 1, unit="batch"):
        for row in classify_files(chunk, model):
            failed += "error" in row
            tqdm.write(json.dumps(row) if command.json else table_row(row, width))
    if failed:
        print(f"{failed} of {len(files)} images could not be classified", file=sys.stderr)
    return int(failed > 0)


def classify_files(files: list[Path], model: RobustDiffusionClassifier) -> list[dict]:
    """One record per file; a file that cannot be read costs its own record alone."""
    rows: dict[Path, dict] = {}
    readable = []
    for file in files:
        try:
            readable.append((file, to_images(str(file), model.denoiser.image_shape)))
        except (FileNotFoundError, ValueError) as error:
            rows[file] = {"image": str(file), "error": str(error)}
    if readable:
        images = [image for _, image in readable]
        prediction = classify(images, model, batch_size=len(images))
        names = prediction.class_names or tuple(map(str, range(model.denoiser.num_classes)))
        for (file, _), name, p in zip(
            readable, prediction.names, prediction.probabilities.tolist(), strict=True
        ):
            posterior = dict(zip(names, (round(value, 6) for value in p), strict=True))
            rows[file] = {"image": str(file), "class": name, "probabilities": posterior}
    return [rows[file] for file in files]


def table_row(row: dict, width: int) -> str:
    if "error" in row:
        return f"{row['image']:<{width}}  {row['error']}"
    (first, p), (second, q) = sorted(row["probabilities"].items(), key=lambda item: -item[1])[:2]
    return f"{row['image']:<{width}}  {first:>12}  {p:6.3f}  {second:>12}  {q:6.3f}"


Command = (
    Annotated[Classify, tyro.conf.subcommand("classify")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
)

if __name__ == "__main__":
    sys.exit(main(tyro.cli(Command, prog="python -m rdc")))  # type: ignore[arg-type]
