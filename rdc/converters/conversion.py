"""A published file to a folder that `from_pretrained` reads, with a card of where it is from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdc.choices import Format, require_choice
from rdc.converters import classifiers, edm, guided_diffusion, score_sde
from rdc.converters.classifiers import ClassifierFacts
from rdc.converters.unpickle import read
from rdc.converters.weights import Published
from rdc.denoiser import Denoiser, DenoiserConfig
from rdc.hub import building
from rdc.hub.model_card import Facts, describe
from rdc.hub.weights import sha256
from rdc.networks.image_classifier import ImageClassifier
from rdc.runs.settings import require_new_folder

DENOISERS: dict[str, Callable[[Any], Published]] = {
    "edm": edm.convert,
    "score-sde": score_sde.convert,
    "guided-diffusion": guided_diffusion.convert,
}


@dataclass(frozen=True)
class Conversion:
    """A model that was converted and saved, and the published file that it comes from."""

    published: Published
    source: Path
    sha256: str
    """SHA-256 of the source"""
    model: Denoiser | ImageClassifier
    """our network with its weights"""

    @property
    def origin(self) -> dict[str, str]:
        """Name, SHA-256 and format of the published file, by field name."""
        return {
            "source": self.source.name,
            "sha256": self.sha256,
            "published as": self.published.name,
        }

    @property
    def facts(self) -> dict[str, str]:
        """Lines of the report: the origin, then the model's size and settings, and its license."""
        return {**self.origin, **describe(self.model), "license": self.published.license}

    def save(self, out: Path) -> None:
        """Write the network and its card."""
        notes = (
            "Published weights in the format of rdc, by `python -m rdc convert`. The outputs are "
            "those of the published network.",
            "\n".join(self.published.notes),
        )
        self.model.save_pretrained(
            out, facts=Facts(self.published.license, origin=self.origin, notes=notes)
        )


def convert(
    source: Path, format: Format, out: Path, *, classifier: ClassifierFacts | None = None
) -> Conversion:
    """Write the network in `source` to the folder `out`, which must be new or empty.

    `classifier` is for the format "classifier" alone, and needed there. Nothing in `source` is
    executed. Raises ValueError, and writes nothing, where the file is not whole and of this format,
    and FileNotFoundError.
    """
    require_choice("format", format, Format)
    if (format == "classifier") != (classifier is not None):
        raise ValueError(
            f"format={format!r}: architecture, mean and std are for the format 'classifier', which "
            "needs an architecture, because its files do not name it"
        )
    require_new_folder(out)
    document = read(source)
    try:
        if classifier is not None:
            published = classifiers.convert(document, classifier)
        else:
            published = DENOISERS[format](document)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"source: {source} is not of the format {format}: {error}") from error
    conversion = Conversion(published, source, sha256(source), build(published))
    conversion.save(out)
    return conversion


def build(published: Published) -> Denoiser | ImageClassifier:
    """The network with its weights, in float32 and in evaluation mode, weights frozen."""
    config = published.config
    module = building.build(
        lambda: Denoiser(config) if isinstance(config, DenoiserConfig) else ImageClassifier(config)
    )
    module.load_state_dict(published.weights)
    return module.eval().requires_grad_(False)
