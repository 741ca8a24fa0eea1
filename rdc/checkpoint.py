"""Saving and loading: a directory with `config.json` and `model.safetensors`, read strictly.

`from_pretrained` takes a directory, a packaged name or a Hugging Face hub id. It never falls back
to random weights and never unpickles: unknown or missing settings, missing, extra or wrongly
shaped tensors and truncated files are errors.
"""

import dataclasses
import inspect
import json
import types
import typing
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

PACKAGED = Path(__file__).parent / "pretrained"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
RDC_SETTINGS = "rdc.json"

T = TypeVar("T")


def packaged_models(file: str = RDC_SETTINGS) -> list[str]:
    """Names of the models that ship with the package and have `file`: by default those for RDC."""
    return sorted(path.parent.name for path in PACKAGED.glob(f"*/{file}"))


def locate(model: str | Path, file: str) -> Path:
    """Path of `file` of a packaged model, a directory, or a hub repository ("owner/name").

    A string that names a packaged model means that model, also where a folder has the same name;
    "./name" or a `Path` is the folder.
    """
    packaged = isinstance(model, str) and model in packaged_models(CONFIG)
    directory = PACKAGED / model if packaged else Path(model)
    if directory.is_dir():
        if not (directory / file).is_file():
            raise FileNotFoundError(
                f"model={str(model)!r}: {directory / file} does not exist; packaged models that "
                f"have {file}: {packaged_models(file)}"
            )
        return directory / file
    if isinstance(model, str) and model.count("/") == 1 and not model.startswith((".", "/")):
        try:
            return Path(hf_hub_download(repo_id=model, filename=file))
        except Exception as error:
            raise FileNotFoundError(
                f"model={model!r} is neither a directory here nor to be had from the Hugging Face "
                f"hub: {error}. Packaged models: {packaged_models(file)}"
            ) from error
    raise FileNotFoundError(
        f"model={str(model)!r} is not a directory; packaged models: {packaged_models(file)}; "
        "a hub id has the form 'owner/name'"
    )


def to_json(config: Any) -> str:
    """A configuration dataclass as JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(cls: type[T], path: Path) -> T:
    """The configuration dataclass `cls` from a JSON file; unknown or missing keys are errors."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return _decode(cls, values, str(path))


def _decode(cls: type[T], values: Any, where: str) -> T:
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a JSON object with the fields of {cls.__name__}")
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if set(values) != fields:
        unknown, missing = sorted(set(values) - fields), sorted(fields - set(values))
        raise ValueError(
            f"{where} does not describe a {cls.__name__}: unknown keys {unknown}, "
            f"missing keys {missing}"
        )
    hints = typing.get_type_hints(cls)
    return cls(**{k: _decode_value(hints[k], v, f"{where}: {k}") for k, v in values.items()})


def _decode_value(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and value is not None:
            return _decode(typing.cast(type, option), value, where)
    value = tuple(value) if isinstance(value, list) else value
    if not any(_fits(option, value) for option in options):
        raise ValueError(f"{where}={value!r} must be {inspect.formatannotation(hint)}")
    return value


def _fits(hint: Any, value: Any) -> bool:
    """Whether a decoded JSON value has the type of its annotation; an int will do as a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(arguments[0], item) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill `module` from a safetensors file that matches it exactly."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the network in its {CONFIG}: {error}") from error
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{path}: NaN or infinity in {broken}")


class Pretrained(PyTorchModelHubMixin):
    """Strict `from_pretrained` over the hub mixin; the class has `config_class` and takes it."""

    config_class: type

    @classmethod
    def from_pretrained(cls, model: str | Path) -> Self:  # type: ignore[override]
        """Load from a directory, a packaged name or a hub id; in evaluation mode, weights frozen.

        Weights are frozen (`requires_grad_(False)`) because classification, purification and
        attacks differentiate the image; call `.train().requires_grad_(True)` to go on training.
        """
        config = from_json(cls.config_class, locate(model, CONFIG))
        # The initial weights are overwritten: they must not cost the caller random numbers.
        with torch.random.fork_rng(devices=[]):
            module = cls(config)  # type: ignore[call-arg]
        load_weights(typing.cast(nn.Module, module), locate(model, WEIGHTS))
        return typing.cast(Any, module).eval().requires_grad_(False)
