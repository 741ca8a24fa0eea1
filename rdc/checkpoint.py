"""Saving and loading: a directory with `config.json` and `model.safetensors`, read strictly.

`from_pretrained` takes a directory, a packaged name or a Hugging Face hub id. It never falls back
to random weights and never unpickles: unknown or missing settings, missing, extra or wrongly
shaped tensors and truncated files are errors.
"""

import typing
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rdc.config import from_json

PACKAGED = Path(__file__).parent / "pretrained"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
RDC_SETTINGS = "rdc.json"


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
