"""A published file to a folder that `from_pretrained` reads, with a card of where it is from."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from rdc.converters import classifiers, edm, guided_diffusion, score_sde
from rdc.converters.classifiers import ClassifierFacts
from rdc.converters.unpickle import read
from rdc.converters.weights import Published
from rdc.denoiser import Denoiser, DenoiserConfig
from rdc.image_classifier import ImageClassifier

Format = Literal["edm", "score-sde", "guided-diffusion", "classifier"]

DENOISERS: dict[str, Callable[[Any], Published]] = {
    "edm": edm.convert,
    "score-sde": score_sde.convert,
    "guided-diffusion": guided_diffusion.convert,
}


@dataclass(frozen=True)
class Conversion:
    """What was written, and what it was made of."""

    published: Published
    source: Path
    sha256: str
    """of the source"""
    parameters: int
    """of our network"""

    @property
    def facts(self) -> dict[str, str]:
        """What to tell about it, by name."""
        config = self.published.config
        if isinstance(config, DenoiserConfig):
            network = config.network
            what = f"denoiser, {network.architecture}, {config.preconditioning}"
        else:
            network, what = config, f"classifier, {config.architecture}"
        size = f"{network.channels}x{network.image_size}x{network.image_size}"
        return {
            "source": self.source.name,
            "sha256": self.sha256,
            "published as": self.published.name,
            "network": what,
            "images": f"{size}, {network.num_classes or 'no'} classes",
            "parameters": f"{self.parameters:,}",
            "licence": self.published.license,
        }

    def card(self) -> str:
        """The model card, in Markdown."""
        tag = "diffusion" if isinstance(self.published.config, DenoiserConfig) else "classifier"
        facts = "\n".join(f"- {name}: {value}" for name, value in self.facts.items())
        notes = "\n".join(self.published.notes)
        return (
            f"---\nlibrary_name: rdc\nlicense: {self.published.license}\ntags: [{tag}]\n---\n\n"
            f"# {self.source.stem}\n\n"
            "Published weights in the format of rdc, by `python -m rdc convert`. The outputs are "
            f"those of the published network.\n\n{facts}\n\n{notes}\n"
        )


def convert(
    source: Path, format: Format, out: Path, *, classifier: ClassifierFacts | None = None
) -> Conversion:
    """Write the network in `source` to the folder `out`, which must be new or empty.

    `classifier` is for the format "classifier" alone, and needed there. Nothing in `source` is
    executed. Raises ValueError, and writes nothing, where the file is not whole and of this format,
    and FileNotFoundError.
    """
    if format not in get_args(Format):
        raise ValueError(f"format={format!r} must be one of {get_args(Format)}")
    if (format == "classifier") != (classifier is not None):
        raise ValueError(
            f"format={format!r}: architecture, mean and std are for the format 'classifier', which "
            "needs them, because its files do not say"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={str(out)!r} must be a new or an empty folder")
    document = read(source)
    try:
        if classifier is not None:
            published = classifiers.convert(document, classifier)
        else:
            published = DENOISERS[format](document)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"source: {source} is not of the format {format}: {error}") from error
    module = build(published)
    conversion = Conversion(
        published, source, _sha256(source), sum(weights.numel() for weights in module.parameters())
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text(conversion.card(), encoding="utf-8")
    module.save_pretrained(out)
    return conversion


def build(published: Published) -> Denoiser | ImageClassifier:
    """The network with its weights, in float32 and in evaluation mode, weights frozen."""
    config = published.config
    # The initial weights are overwritten: they must not cost the caller random numbers.
    with torch.random.fork_rng(devices=[]):
        denoises = isinstance(config, DenoiserConfig)
        module = Denoiser(config) if denoises else ImageClassifier(config)
    module.load_state_dict(published.weights)
    return module.eval().requires_grad_(False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
