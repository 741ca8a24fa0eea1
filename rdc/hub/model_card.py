"""Model cards, generated from a template; facts that are not known are named as unknown.

A generated card ends with the hash of its text. While the hash fits, nobody has edited the card,
and saving the model again replaces it; any other README.md is kept.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import CardData, ModelCard, ModelCardData

from rdc.hub.weights import read_headers, weight_files, weights_sha256
from rdc.runs.atomic import write_atomically

CARD = "README.md"
TEMPLATE = "model_card.md.jinja"
SIGNATURE = re.compile(r"\n<!-- written by rdc, not edited: ([0-9a-f]{16}) -->\n\Z")
UNKNOWN = "unknown"  # the hub's identifier for a license that nobody has named


class Described(Protocol):
    """Properties of a model that its card shows."""

    @property
    def summary(self) -> str: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def hub_metadata(self) -> dict[str, Any]: ...
    def parameters(self) -> Iterable[Any]: ...


@dataclass(frozen=True)
class Facts:
    """Facts that a model's own files lack.

    `license`: a Hugging Face identifier, for example "apache-2.0".
    `sources`: `rdc.hub.weights.weights_sha256` of the weights that these were made from.
    `rdc`: the settings of RDC that are saved beside them.
    `origin`: more by name, for example the file that was converted; `notes`: sentences about it.
    """

    license: str = UNKNOWN
    sources: tuple[str, ...] = ()
    rdc: Any = None
    origin: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """A finished training, as its program describes it.

    `data`: name of the data set; `data_fingerprint`: `rdc.runs.fingerprints.data_fingerprint`.
    `command`, `commit`, `versions`: see `rdc.runs.provenance`; `settings`: those worth reading.
    `figures`: measurements on the validation split, by name.
    """

    data: str
    data_fingerprint: str
    command: str
    commit: str | None
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    figures: Mapping[str, str]


@dataclass(frozen=True)
class Measurement:
    """A finished evaluation, as its program describes it in the file `MEASUREMENT` of its folder.

    `weights`: SHA-256 of all weights that it is about.
    `text`: Markdown that goes on after "Measured on the weights with SHA-256 ..., ".
    """

    weights: tuple[str, ...]
    text: str


MEASUREMENT = "model_card.json"


def describe(model: Described) -> dict[str, str]:
    """Short descriptions of network, images and parameters, by name."""
    return {
        "network": model.summary,
        "images": f"{'x'.join(map(str, model.image_shape))}, {model.num_classes or 'no'} classes",
        "parameters": f"{sum(weights.numel() for weights in model.parameters()):,}",
    }


def model_card(model: Described, facts: Facts, *, saved: Path) -> str:
    """The card in Markdown, signed, of the model whose weights are in the folder `saved`."""
    metadata: dict[str, Any] = {**model.hub_metadata, "license": facts.license}
    if facts.rdc is not None:
        metadata["pipeline_tag"] = "image-classification"
        metadata["tags"] = sorted([*metadata["tags"], "adversarial-robustness"])
    rdc_settings = {} if facts.rdc is None else asdict(facts.rdc)
    page = _render(
        "card",
        title=saved.resolve().name.lstrip("."),
        origin=facts.origin,
        notes=facts.notes,
        loader=type(model).__name__ if facts.rdc is None else "RobustDiffusionClassifier",
        sections={
            "Data": _render("data", training=None),
            "License": _render("license", identifier=facts.license),
            "Architecture": _render("architecture", facts=describe(model), rdc=rdc_settings),
            "Weights": weights(saved, facts.sources),
            "Training": _render("training", training=None),
            "Accuracy": _render("accuracy", measurement=None, sha256=""),
        },
    )
    return _signed(f"{_front(ModelCardData(**metadata))}\n{page}\n")


def write_card(directory: Path, card: str) -> None:
    """Write the card, unless there is one that somebody wrote or edited.

    Of the same weights, what the card there says about their training stays.
    """
    path = directory / CARD
    if path.exists():
        before = path.read_text(encoding="utf-8")
        if not is_generated(before):
            return
        if section(before, "Weights") == section(card, "Weights"):
            kept = {title: section(before, title) for title in ("Data", "Training")}
            card = _with_training(card, ModelCard(before).data.get("datasets"), kept)
    write_atomically(path, card)


def add_training(directory: Path, training: Training) -> None:
    """Add a finished training to a card that nobody has edited."""
    path = directory / CARD
    if not is_generated(text := path.read_text(encoding="utf-8")):
        return
    sections = {
        "Data": _render("data", training=training),
        "Training": _render("training", training=training),
    }
    write_atomically(path, _with_training(text, [training.data], sections))


def _with_training(card: str, data: list[str] | None, sections: Mapping[str, str]) -> str:
    """The signed card with these sections, and the names of the data sets for the hub."""
    found = ModelCard(SIGNATURE.sub("", card))
    found.data["datasets"] = data
    return _signed(_front(found.data) + with_sections(found.text, sections))


def _section(title: str) -> re.Pattern[str]:
    return re.compile(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def section(card: str, title: str) -> str:
    """The text of a section of a card; empty where there is none."""
    found = _section(title).search(SIGNATURE.sub("", card))
    return found[1].strip() if found else ""


def with_sections(card: str, sections: Mapping[str, str]) -> str:
    """The card with these sections, by title, replaced or added; still signed where it was."""
    generated, text = is_generated(card), SIGNATURE.sub("", card)
    for title, body in sections.items():
        new = f"## {title}\n\n{body}\n"
        if found := _section(title).search(text):
            gap = "" if found.end() == len(text) else "\n"
            text = text[: found.start()] + new + gap + text[found.end() :]
        else:
            text = f"{text.rstrip()}\n\n{new}"
    return _signed(text) if generated else text


def is_generated(card: str) -> bool:
    """True for a card that was written here and never edited."""
    match = SIGNATURE.search(card)
    return match is not None and match[1] == _digest(card[: match.start()])


def _front(data: CardData) -> str:
    """The lines at the top of a card that the hub reads."""
    return f"---\n{data.to_yaml()}\n---\n"


def _signed(text: str) -> str:
    return f"{text}\n<!-- written by rdc, not edited: {_digest(text)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights(saved: Path, sources: Collection[str]) -> str:
    """The section on the weights in the folder `saved`; `sources` are hashes of their sources."""
    files = weight_files(saved)
    return _render(
        "weights",
        precision=" and ".join(sorted({each.dtype for each in read_headers(saved).values()})),
        files=len(files),
        size=sum(file.stat().st_size for file in files),
        sha256=weights_sha256(saved),
        sources=list(sources),
    )


def accuracy(measurement: Measurement, weights: Collection[str]) -> str:
    """The section on accuracy, of a model whose weights have one of these hashes.

    Raises:
        ValueError: the measurement is about other weights.
    """
    about = [sha for sha in measurement.weights if sha in weights]
    if not about:
        raise ValueError(
            f"evaluation: it is about the weights {measurement.weights}, and these have SHA-256 "
            f"{', '.join(weights)}; give the evaluation of this model, or none"
        )
    return _render("accuracy", measurement=measurement, sha256=about[0])


def _render(macro: str, **values: Any) -> str:
    """The text of a macro of the template, without superfluous empty lines."""
    text = str(getattr(_template(), macro)(**values)).strip()
    return re.sub(r"\n{3,}", "\n\n", text)


@cache
def _template() -> Any:
    # Only cards need it.
    from jinja2 import Environment, PackageLoader

    found = Environment(loader=PackageLoader("rdc", "hub"), trim_blocks=True, lstrip_blocks=True)
    return found.get_template(TEMPLATE).module
