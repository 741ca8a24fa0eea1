"""The model card: what a saved model is and what is known of it; the rest is said to be unknown.

A card that is written here ends with a line that holds the hash of the text above. As long as it
fits, nobody has edited the card and it is renewed with the model; any other README.md stays.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import CardData, ModelCard, ModelCardData
from safetensors import safe_open

from rdc.hub.weights import weight_files, weights_sha256
from rdc.runs.atomic import write_atomically

CARD = "README.md"
SIGNATURE = re.compile(r"\n<!-- written by rdc, not edited: ([0-9a-f]{16}) -->\n\Z")
UNKNOWN = "unknown"  # the hub's identifier for a license that nobody has named
NORMS = {"linf": "L-infinity", "l2": "L2", "stadv": "displacements of pixels"}
PROTOCOLS = {
    "frozen": "the noise is known to the attacker",
    "fresh": "mean over draws that no attack has seen",
    "majority": "their majority",
    "worst draw": "wrong if it is in one of them: the attacker may try again",
}
NOT_MEASURED = """\
Clean accuracy: not measured. Robust accuracy: not measured.

`python -m evaluation.evaluate` measures both, and `python -m rdc export ... --evaluation` puts the
figures here."""


class Described(Protocol):
    """What a card tells of a model."""

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
    """What a model does not know of itself.

    `license`: a Hugging Face identifier, for example "apache-2.0".
    `training`, `evaluation`: the training.json of a trainer, the summary.json of the runner.
    `sources`: `rdc.hub.weights.weights_sha256` of the weights that these were made from.
    `rdc`: the settings of RDC that are saved beside them.
    `origin`: more by name, for example the file that was converted; `notes`: sentences about it.
    """

    license: str = UNKNOWN
    training: Mapping[str, Any] | None = None
    evaluation: Mapping[str, Any] | None = None
    sources: tuple[str, ...] = ()
    rdc: Any = None
    origin: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def describe(model: Described) -> dict[str, str]:
    """Network, images and parameters, in a few words each."""
    return {
        "network": model.summary,
        "images": f"{'x'.join(map(str, model.image_shape))}, {model.num_classes or 'no'} classes",
        "parameters": f"{sum(weights.numel() for weights in model.parameters()):,}",
    }


def model_card(model: Described, facts: Facts, *, saved: Path) -> str:
    """The card in Markdown, signed, of the model whose weights are in the folder `saved`.

    Raises:
        ValueError: the evaluation is about other weights.
    """
    metadata: dict[str, Any] = {**model.hub_metadata, "license": facts.license}
    if facts.rdc is not None:
        metadata["pipeline_tag"] = "image-classification"
        metadata["tags"] = sorted([*metadata["tags"], "adversarial-robustness"])
    if facts.training is not None:
        metadata["datasets"] = [_data_name(facts.training)]
    loader = type(model).__name__ if facts.rdc is None else "RobustDiffusionClassifier"
    title = saved.resolve().name.lstrip(".")
    parts = [_front(ModelCardData(**metadata)) + f"\n# {title}"]
    if facts.origin:
        parts.append(_listed(facts.origin))
    parts += facts.notes
    parts.append(f'```python\nimport rdc\n\nmodel = rdc.{loader}.from_pretrained("...")\n```')
    sections = {
        "Data": _data(facts.training),
        "License": _license(facts.license),
        "Architecture": _table({**describe(model), **_rdc_settings(facts.rdc)}),
        "Weights": weights(saved, facts.sources),
        "Training": _training(facts.training),
        "Accuracy": accuracy(facts.evaluation, {weights_sha256(saved), *facts.sources}),
    }
    parts += [f"## {name}\n\n{body}" for name, body in sections.items()]
    return _signed("\n\n".join(parts) + "\n")


def write_card(directory: Path, card: str) -> None:
    """Write the card, unless there is one that somebody wrote or edited."""
    path = directory / CARD
    if not path.exists() or is_generated(path.read_text(encoding="utf-8")):
        write_atomically(path, card)


def add_training(directory: Path, training: Mapping[str, Any]) -> None:
    """Tell a card that nobody has edited of the training that is over now."""
    path = directory / CARD
    if not is_generated(text := path.read_text(encoding="utf-8")):
        return
    card = ModelCard(SIGNATURE.sub("", text))
    card.data["datasets"] = [_data_name(training)]
    sections = {"Data": _data(training), "Training": _training(training)}
    page = _front(card.data) + with_sections(card.text, sections)
    write_atomically(path, _signed(page))


def with_sections(card: str, sections: Mapping[str, str]) -> str:
    """The card with these sections, by title, replaced or added; still signed where it was."""
    generated, text = is_generated(card), SIGNATURE.sub("", card)
    for title, body in sections.items():
        section = f"## {title}\n\n{body}\n"
        old = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
        if found := old.search(text):
            gap = "" if found.end() == len(text) else "\n"
            text = text[: found.start()] + section + gap + text[found.end() :]
        else:
            text = f"{text.rstrip()}\n\n{section}"
    return _signed(text) if generated else text


def is_generated(card: str) -> bool:
    """Whether the card was written here and never edited."""
    match = SIGNATURE.search(card)
    return match is not None and match[1] == _digest(card[: match.start()])


def _front(data: CardData) -> str:
    """The lines at the top of a card that the hub reads."""
    return f"---\n{data.to_yaml()}\n---\n"


def _signed(text: str) -> str:
    return f"{text}\n<!-- written by rdc, not edited: {_digest(text)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _data_name(training: Mapping[str, Any]) -> str:
    return Path(training["config"]["data"]).name


def _data(training: Mapping[str, Any] | None) -> str:
    if training is None:
        return "Not recorded."
    return (
        f"The training split of `{_data_name(training)}`; SHA-256 of its pixels and labels: "
        f"`{training['data_fingerprint']}`."
    )


def _license(license: str) -> str:
    if license != UNKNOWN:
        return f"`{license}`"
    return (
        "Not stated. Before you publish these weights, say here and above what the data, and the "
        "weights that these were made from, allow."
    )


def _rdc_settings(settings: Any) -> dict[str, str]:
    if settings is None:
        return {}
    return {f"RDC, {name}": _words(values) for name, values in asdict(settings).items()}


def _training(training: Mapping[str, Any] | None) -> str:
    if training is None:
        return "Not recorded."
    config = training["config"]
    names = ("steps", "batch_size", "accumulate", "learning_rate", "weight_decay", "ema_half_life",
             "precision", "seed", "processes", "seconds")  # fmt: skip
    known = {name: config.get(name, training.get(name)) for name in names}
    return _listed(
        {
            "command": f"`{training['command']}`",
            "commit": training["commit"],
            "settings": _words(known),
            "versions": _words({"python": training["python"], **training["packages"]}),
            "on the validation split": _words(
                {k: f"{v:.4g}" for k, v in training.items() if k.startswith("validation_")}
            ),
        }
    )


def weights(saved: Path, sources: Collection[str]) -> str:
    """How they are stored, what identifies them, and what they were made from."""
    files = weight_files(saved)
    with safe_open(files[0], framework="pt") as opened:
        dtypes = {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
    stored = {
        "precision": " and ".join(sorted(dtypes)),
        "files": f"{len(files)}, {sum(file.stat().st_size for file in files):,} bytes",
        "SHA-256": f"`{weights_sha256(saved)}`",
    }
    if len(files) > 1:
        stored["SHA-256"] += " (of what `sha256sum` says of the files)"
    if sources:
        stored["made from weights with SHA-256"] = ", ".join(f"`{source}`" for source in sources)
    return _listed(stored)


def accuracy(summary: Mapping[str, Any] | None, weights: Collection[str]) -> str:
    """What was measured, how, and whether that can be trusted; or that nothing was.

    `summary`: the runner's summary.json. `weights`: the SHA-256 of those it must be about.
    """
    if summary is None:
        return NOT_MEASURED
    if missing := [key for key in ("config", "accuracy", "norm", "command") if key not in summary]:
        raise ValueError(f"evaluation: not a summary.json of the runner, it has no {missing}")
    config = summary["config"]
    parts = [
        f"Measured {_where(summary, weights)} by `{summary['command']}` at commit "
        f"{summary['commit']}: {config['images']} images of the {config['split']} split of "
        f"`{Path(config['data']).name}`, attacked within {NORMS[summary['norm']]} budgets on "
        f"images in [0, 1], seed {config['seed']}.",
        _listed({
            "defense": _words(config["defense"]),
            "attacks": _words({"kind": config.get("attack"), **config["suite"]}),
            "model calls per image": _words(summary["calls_per_image"]),
        }),
        _checks(summary.get("checks", [])),
        _accuracies(summary["accuracy"]),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _where(summary: Mapping[str, Any], weights: Collection[str]) -> str:
    measured = summary.get("weights")
    if measured is None:
        return "on weights that the summary does not name,"
    if found := [sha for sha in measured.values() if sha in weights]:
        return f"on the weights with SHA-256 `{found[0]}`,"
    raise ValueError(
        f"evaluation: its summary is about the weights {measured}, and these have SHA-256 "
        f"{', '.join(weights)}; give the summary of this model, or none"
    )


def _checks(checks: list[Mapping[str, Any]]) -> str:
    if not checks:
        return "No checks of this measurement were recorded."
    words = {True: "passed", False: "FAILED", None: "not judged"}
    lines = {check["name"]: f"{words[check['passed']]}. {check['detail']}" for check in checks}
    failed = [check["name"] for check in checks if check["passed"] is False]
    warning = (
        f"**Checks of this measurement failed ({', '.join(failed)}): the accuracies under attack "
        "below are no evidence of robustness.**\n\n"
    )
    return (warning if failed else "") + "Checks of the measurement:\n\n" + _listed(lines)


def _accuracies(budgets: Mapping[str, Any]) -> str:
    protocols = list(next(iter(budgets.values()))["worst"])
    rows = [f"| accuracy in % [95 % interval] | {' | '.join(protocols)} |"]
    rows.append("|---" * (len(protocols) + 1) + "|")
    for eps, attacks in budgets.items():
        for attack, shares in attacks.items():
            if eps == "0" and attack == "worst":
                continue
            name = "worst of these, image by image" if attack == "worst" else attack
            label = "clean" if eps == "0" else f"eps {eps}, {name}"
            rows.append(f"| {label} | {' | '.join(_cell(shares[p]) for p in protocols)} |")
    explained = [f"{name}: {PROTOCOLS[name]}" for name in protocols if name in PROTOCOLS]
    table = "\n".join(rows) + ("\n\n" + "; ".join(explained) + "." if explained else "")
    attacked = any(eps != "0" for eps in budgets)
    return table if attacked else table + "\n\nRobust accuracy: not measured."


def _cell(share: Mapping[str, float]) -> str:
    percent = [100 * share[key] for key in ("accuracy", "low", "high")]
    return "{:.1f} [{:.0f}, {:.0f}]".format(*percent)


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _listed(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in values.items() if value)


def _table(values: Mapping[str, str]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
    return f"| | |\n|---|---|\n{rows}"
