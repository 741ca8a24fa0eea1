"""Models on the Hugging Face hub: what is asked of it, and what is uploaded; nothing is reached."""

import fnmatch
import inspect
import shutil
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, PyTorchModelHubMixin

import rdc.hub.checkpoint
from rdc import Denoiser, ImageClassifier, ImageClassifierConfig, RobustDiffusionClassifier
from rdc.hub.model_card import is_generated
from tests.support.oracle import some_images
from tests.support.tiny import tiny_denoiser, tiny_rdc

IMAGES = some_images(2, (1, 8, 8), dtype=torch.float32)
KINDS = (Denoiser, ImageClassifier, RobustDiffusionClassifier)


def like_the_real_one(method: Callable) -> Callable:
    """Refuses what the method of that name of `HfApi` would not take."""
    real = inspect.signature(getattr(HfApi, method.__name__))

    @wraps(method)
    def checked(*args: Any, **options: Any) -> Any:
        real.bind(*args, **options)
        return method(*args, **options)

    return checked


class Hub:
    """A repository "owner/name" with branches, each a folder; remembers what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[dict[str, Any]] = []
        self.token: object = None

    @like_the_real_one
    def snapshot_download(self, repo_id: str, *, revision=None, allow_patterns, **options) -> str:
        self.asked.append({"repo_id": repo_id, "revision": revision, **options})
        target = self.folder / "cache" / str(len(self.asked))
        target.mkdir(parents=True)
        for file in (self.folder / (revision or "main")).iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, target)
        return str(target)

    def api(self, token: object = None) -> "Hub":
        self.token = token
        return self

    @like_the_real_one
    def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
        self.asked.append({"repo_id": repo_id, **options})
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    @like_the_real_one
    def file_exists(self, repo_id: str, file: str, revision: str | None = None) -> bool:
        return (self.folder / (revision or "main") / file).exists()

    @like_the_real_one
    def hf_hub_download(self, repo_id: str, file: str, revision: str | None = None) -> str:
        return str(self.folder / (revision or "main") / file)

    @like_the_real_one
    def upload_folder(self, *, folder_path, revision, delete_patterns, **options: Any) -> str:
        self.asked.append(options)
        branch = self.folder / (revision or "main")
        branch.mkdir(exist_ok=True)
        for file in list(branch.iterdir()):
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in delete_patterns):
                file.unlink()
        shutil.copytree(folder_path, branch, dirs_exist_ok=True)
        return "https://a-commit"

    def names(self, branch: str = "main") -> set[str]:
        return {file.name for file in (self.folder / branch).iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(rdc.hub.checkpoint, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(rdc.hub.checkpoint, "HfApi", hub.api)
    monkeypatch.chdir(tmp_path)
    tiny_rdc().save_pretrained(hub.folder / "main")
    tiny_rdc(seed=1).save_pretrained(hub.folder / "v2", max_shard_size="80KB")
    return hub


# --- what is asked ---


@pytest.mark.parametrize("kind", [Denoiser, RobustDiffusionClassifier])
def test_revision_and_token_reach_the_hub_and_nothing_else_does(hub: Hub, kind) -> None:
    kind.from_pretrained("owner/name", revision="v2", token="hf_x", local_files_only=True)
    options = {"revision": "v2", "token": "hf_x", "local_files_only": True}
    # Once: two questions might be answered with two commits.
    assert hub.asked == [{"repo_id": "owner/name", **options}]


def test_nothing_is_asked_for_by_default(hub: Hub) -> None:
    Denoiser.from_pretrained("owner/name")
    options = {"revision": None, "token": None, "local_files_only": False}
    assert hub.asked == [{"repo_id": "owner/name", **options}]


def test_a_revision_is_another_model(hub: Hub) -> None:
    """Weights in shards, and the settings beside them."""
    for revision, seed in ((None, 0), ("v2", 1)):
        loaded = RobustDiffusionClassifier.from_pretrained("owner/name", revision=revision)
        assert torch.equal(loaded(IMAGES), tiny_rdc(seed=seed)(IMAGES))
        assert loaded.config == tiny_rdc().config
    seeded = RobustDiffusionClassifier.from_pretrained("owner/name", revision="v2", seed=3)
    assert not torch.equal(seeded(IMAGES), loaded(IMAGES))


def test_classifiers_come_from_the_hub_too(hub: Hub) -> None:
    cnn = ImageClassifier(ImageClassifierConfig("cnn-4", 8, 1, 3)).eval()
    cnn.save_pretrained(hub.folder / "cnn")
    loaded = ImageClassifier.from_pretrained("owner/name", revision="cnn", token=True)
    assert torch.equal(loaded(IMAGES), cnn(IMAGES))
    assert hub.asked[0]["token"] is True


def test_a_file_that_the_repository_lacks_is_named(hub: Hub) -> None:
    (hub.folder / "main" / "rdc.json").unlink()
    Denoiser.from_pretrained("owner/name")
    with pytest.raises(FileNotFoundError, match=r"model='owner/name': .*rdc.json does not exist"):
        RobustDiffusionClassifier.from_pretrained("owner/name")


def test_other_files_are_left_on_the_hub(hub: Hub) -> None:
    (hub.folder / "main" / "optimizer.bin").write_bytes(b"large")
    Denoiser.from_pretrained("owner/name")
    assert not list((hub.folder / "cache").rglob("optimizer.bin"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["digits", "digits-cnn", "./hub/main", Path("hub/main")])
def test_folders_have_no_revisions(hub: Hub, kind, model) -> None:
    with pytest.raises(ValueError, match=r"revision='v2': model='.*' is a folder on this machine"):
        kind.from_pretrained(model, revision="v2")
    assert hub.asked == []


def test_a_folder_that_looks_like_a_repository_is_a_folder(hub: Hub) -> None:
    shutil.copytree(hub.folder / "main", "owner/name")
    Denoiser.from_pretrained("owner/name", token="hf_x")
    assert hub.asked == []
    with pytest.raises(ValueError, match="revision='v2': model='owner/name' is a folder"):
        Denoiser.from_pretrained("owner/name", revision="v2")


# --- what is uploaded ---


def test_what_is_pushed_comes_back(hub: Hub) -> None:
    url = tiny_rdc(seed=2).push_to_hub("owner/name", token="hf_x", branch="new", private=True)
    assert url == "https://a-commit"
    assert hub.token == "hf_x"
    assert hub.asked[0] == {"repo_id": "owner/name", "private": True, "exist_ok": True}
    assert hub.names("new") == {"config.json", "model.safetensors", "rdc.json", "README.md"}
    loaded = RobustDiffusionClassifier.from_pretrained("owner/name", revision="new")
    assert torch.equal(loaded(IMAGES), tiny_rdc(seed=2)(IMAGES))
    card = (hub.folder / "new" / "README.md").read_text()
    assert "\n# name\n" in card and "RobustDiffusionClassifier" in card


def test_denoisers_are_pushed_without_settings_of_rdc(hub: Hub) -> None:
    assert isinstance(tiny_denoiser(), PyTorchModelHubMixin)
    tiny_denoiser().push_to_hub("name", branch="new", create_pr=True, commit_message="mine")
    assert hub.names("new") == {"config.json", "model.safetensors", "README.md"}
    expected = {"repo_id": "me/name", "commit_message": "mine", "create_pr": True}
    assert hub.asked[-1] == expected


def test_settings_and_training_on_the_hub_are_not_those_of_a_later_denoiser(hub: Hub) -> None:
    assert "rdc.json" in hub.names()
    (hub.folder / "main" / "training.json").write_text("{}")
    tiny_denoiser(seed=3).push_to_hub("owner/name")
    assert not {"rdc.json", "training.json"} & hub.names()


def test_another_layout_replaces_the_old_one(hub: Hub) -> None:
    """Both at once could not be loaded."""
    layouts: list[dict[str, Any]] = [{"max_shard_size": "80KB"}, {"dtype": torch.bfloat16}]
    for options in layouts:
        tiny_rdc(seed=3).push_to_hub("owner/name", **options)
        loaded = RobustDiffusionClassifier.from_pretrained("owner/name")
        torch.testing.assert_close(loaded(IMAGES), tiny_rdc(seed=3)(IMAGES), rtol=0.05, atol=0.1)


def test_a_card_that_somebody_edited_on_the_hub_stays(hub: Hub) -> None:
    card = hub.folder / "main" / "README.md"
    assert is_generated(card.read_text())
    tiny_rdc(seed=4).push_to_hub("owner/name")
    assert "\n# name\n" in card.read_text()
    card.write_text(card.read_text() + "\nMind the eyes.\n")
    tiny_rdc(seed=5).push_to_hub("owner/name")
    assert card.read_text().endswith("Mind the eyes.\n")


def test_misspelled_options_are_refused_before_anything_is_uploaded(hub: Hub) -> None:
    with pytest.raises(TypeError, match="max_shard"):
        tiny_denoiser().push_to_hub("owner/name", branch="new", max_shard="1MB")
    assert hub.asked == [] and not (hub.folder / "new").exists()
