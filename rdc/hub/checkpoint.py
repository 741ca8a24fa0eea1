"""Saving and loading: a directory with `config.json` and `model.safetensors`, read strictly.

`from_pretrained` takes a directory, a packaged name or a Hugging Face hub id. It never falls back
to random weights and never unpickles: unknown or missing settings, missing, extra or wrongly
shaped tensors and truncated files are errors.
"""

import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from huggingface_hub import HfApi, PyTorchModelHubMixin, snapshot_download

from rdc.choices import MAX_SHARD_SIZE
from rdc.config import from_json, to_json
from rdc.hub.building import build, skeleton
from rdc.hub.model_card import CARD, Facts, is_generated, model_card, write_card
from rdc.hub.weights import (
    INDEX,
    SHARDS,
    TRAINING,
    WEIGHTS,
    load_weights,
    require_fit,
    write_model,
)

PACKAGED = Path(__file__).parents[1] / "pretrained"
CONFIG = "config.json"
RDC_SETTINGS = "rdc.json"
LAYOUTS = [WEIGHTS, INDEX, SHARDS]


def packaged_models(file: str = RDC_SETTINGS) -> list[str]:
    """Names of the models that ship with the package and have `file`: by default those for RDC."""
    return sorted(path.parent.name for path in PACKAGED.glob(f"*/{file}"))


def locate(
    model: str | Path,
    file: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Path of `file` of a packaged model, a directory, or a hub repository ("owner/name").

    A string that names a packaged model means that model, also where a folder has the same name;
    "./name" or a `Path` is the folder. The other files of the model lie beside it, those of a hub
    repository at the same commit. `revision` (a branch, tag or commit), `token` and
    `local_files_only` (what is in the cache already) are for the hub.
    """
    if not isinstance(model, str | Path):
        raise TypeError(f"model: {type(model).__name__}; give a name, a directory or a hub id")
    packaged = isinstance(model, str) and model in packaged_models(CONFIG)
    directory = PACKAGED / model if packaged else Path(model)
    if directory.is_dir():
        if revision is not None:
            raise ValueError(
                f"revision={revision!r}: model={str(model)!r} is a folder on this machine, which "
                "has no revisions; leave it out, or give the id of a hub repository"
            )
    elif isinstance(model, str) and model.count("/") == 1 and not model.startswith((".", "/")):
        try:
            # One call for all files: they are of one commit, also while somebody uploads another.
            directory = Path(
                snapshot_download(
                    model, revision=revision, token=token, local_files_only=local_files_only,
                    allow_patterns=[CONFIG, RDC_SETTINGS, TRAINING, CARD, *LAYOUTS],
                )
            )  # fmt: skip
        except Exception as error:
            raise FileNotFoundError(
                f"model={model!r} is neither a directory here nor to be had from the Hugging Face "
                f"hub: {error}. Packaged models: {packaged_models(file)}"
            ) from error
    else:
        raise FileNotFoundError(
            f"model={str(model)!r} is not a directory; packaged models: {packaged_models(file)}; "
            "a hub id has the form 'owner/name'"
        )
    if not (directory / file).is_file():
        raise FileNotFoundError(
            f"model={str(model)!r}: {directory / file} does not exist; packaged models that "
            f"have {file}: {packaged_models(file)}"
        )
    return directory / file


class OnHub:
    """Mixin that adds `push_to_hub` to a class with `save_pretrained`."""

    save_pretrained: Callable[..., None]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | bool | None = None,
        private: bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        commit_message: str = "Weights, settings and card of an rdc model",
        **saving: Any,
    ) -> str:
        """Upload what `save_pretrained(**saving)` writes, in one commit; returns the commit's URL.

        The repository "owner/name" is created when missing. The model in it is replaced, weights
        whole or in shards and its settings, and its training record is removed; a card that
        somebody wrote or edited there is kept.
        """
        api = HfApi(token=token)
        with TemporaryDirectory() as folder:
            saved = Path(folder) / repo_id.split("/")[-1]
            self.save_pretrained(saved, **saving)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if api.file_exists(repo_id, CARD, revision=branch):
                theirs = api.hf_hub_download(repo_id, CARD, revision=branch)
                if not is_generated(Path(theirs).read_text(encoding="utf-8")):
                    (saved / CARD).unlink()
            return api.upload_folder(
                repo_id=repo_id, folder_path=saved, commit_message=commit_message, revision=branch,
                create_pr=create_pr, delete_patterns=[*LAYOUTS, RDC_SETTINGS, TRAINING],
            )  # fmt: skip


class Pretrained(OnHub, PyTorchModelHubMixin):
    """Strict form of the hub's mixin, for classes with a `config_class` and a `summary`.

    The mixin's own loading leaves missing tensors random and ignores unknown settings, and its
    saving ignores misspelled arguments.
    """

    config_class: type
    config: Any

    @property
    def hub_metadata(self) -> dict[str, Any]:
        """Metadata of every model of the class for the hub, such as tags."""
        return self._hub_mixin_info.model_card_data.to_dict()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load from a directory, a packaged name or a hub id; in evaluation mode, weights frozen.

        Weights become float32, and are frozen because classification, purification and attacks
        differentiate the image; `.train().requires_grad_(True)` lets them learn again. The other
        arguments are for the hub: see `locate`.
        """
        settings = locate(
            model, CONFIG, revision=revision, token=token, local_files_only=local_files_only
        )
        config = from_json(cls.config_class, settings)
        make: Any = partial(cls, config)
        # Before memory is taken: the settings may ask for any amount of it.
        require_fit(skeleton(make, settings), settings.parent)
        module = build(make)
        load_weights(module, settings.parent)
        return module.eval().requires_grad_(False)

    def save_pretrained(  # type: ignore[override]
        self,
        directory: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        max_shard_size: int | str = MAX_SHARD_SIZE,
        facts: Facts | None = None,
    ) -> None:
        """Write the configuration, the weights and a model card.

        dtype, max_shard_size: of the weights, see `rdc.hub.weights.write_model`.
        facts: for the card, beside what the model knows. A card that somebody wrote or edited is
            left as it is. `facts.rdc` is written as `rdc.json`; without it, that file is removed,
            and so is the `training.json` of other weights.
        """
        module, directory = typing.cast(Any, self), Path(directory)
        facts = facts or Facts()
        texts = {
            CONFIG: to_json(self.config),
            RDC_SETTINGS: None if facts.rdc is None else to_json(facts.rdc),
        }
        write_model(module, directory, texts, dtype=dtype, max_shard_size=max_shard_size)
        write_card(directory, model_card(module, facts, saved=directory))
