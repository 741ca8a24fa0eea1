"""Weights in one file or in shards, as float32 or bfloat16: read back whole, or not at all."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import rdc.hub.checkpoint
import rdc.hub.weights
from rdc import Denoiser, ImageClassifier, ImageClassifierConfig, RobustDiffusionClassifier
from rdc.data import load
from rdc.hub.weights import weight_files, weights_sha256, write_model
from tests.support.oracle import some_images
from tests.support.tiny import tiny_denoiser, tiny_rdc

INDEX = "model.safetensors.index.json"
IMAGES = some_images(2, (1, 8, 8), dtype=torch.float32)
SIZE = "80KB"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "model"
    tiny_rdc().save_pretrained(folder, max_shard_size=SIZE)
    return folder


@pytest.fixture
def sharded(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def edit_index(directory: Path, **changes: str | None) -> None:
    """Change the file of tensors; `None` removes the tensor."""
    index = json.loads((directory / INDEX).read_text())
    index["weight_map"] |= changes
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v is not None}
    (directory / INDEX).write_text(json.dumps(index))


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# --- what was saved comes back ---


def test_shards_come_back(sharded: Path) -> None:
    files = weight_files(sharded)
    assert len(files) > 2
    assert all(file.stat().st_size <= 80_000 for file in files)
    index = json.loads((sharded / INDEX).read_text())
    held = {file.name: set(load_file(file)) for file in files}
    for name, file in index["weight_map"].items():
        assert name in held[file]
    loaded = RobustDiffusionClassifier.from_pretrained(sharded)
    assert torch.equal(loaded(IMAGES), tiny_rdc()(IMAGES))


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 9), max_size=3), min_size=1, max_size=8),
    size=st.integers(0, 5000),
)
def test_any_network_comes_back_in_any_shards(tmp_path_factory, shapes, size: int) -> None:
    module = nn.Module()
    generator = torch.Generator().manual_seed(size)
    for i, shape in enumerate(shapes):
        module.register_parameter(
            f"weight{i}", nn.Parameter(torch.randn(shape, generator=generator))
        )
    largest = max(p.nbytes for p in module.parameters())
    size += largest + 200 * len(shapes)
    directory = tmp_path_factory.mktemp("weights")
    write_model(module, directory, {"config.json": "{}"}, max_shard_size=size)
    found = {k: v for file in weight_files(directory) for k, v in load_file(file).items()}
    assert found.keys() == module.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in module.state_dict().items())
    assert max(file.stat().st_size for file in weight_files(directory)) <= size


def test_a_small_model_stays_in_one_file(tmp_path: Path) -> None:
    tiny_denoiser().save_pretrained(tmp_path, max_shard_size="1MB")
    assert names(tmp_path) == {"config.json", "model.safetensors", "README.md"}


@pytest.mark.parametrize(("first", "then"), [("5GB", SIZE), (SIZE, "5GB"), (SIZE, "120KB")])
def test_saving_again_leaves_nothing_of_the_old_layout(tmp_path: Path, first, then) -> None:
    tiny_denoiser().save_pretrained(tmp_path, max_shard_size=first)
    tiny_denoiser(seed=1).save_pretrained(tmp_path, max_shard_size=then)
    tiny_denoiser(seed=1).save_pretrained(tmp_path / "new", max_shard_size=then)
    assert names(tmp_path) - {"new"} == names(tmp_path / "new")
    x = 2 * IMAGES - 1
    loaded = Denoiser.from_pretrained(tmp_path)
    assert torch.equal(loaded.denoise(x, 0.3), tiny_denoiser(seed=1).denoise(x, 0.3))


def test_a_full_disk_leaves_the_old_weights(sharded: Path, monkeypatch) -> None:
    before = {path.name: path.read_bytes() for path in sharded.iterdir()}

    def full(tensors: dict, directory: Path, **_: object) -> None:
        (directory / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(rdc.hub.weights, "save_torch_state_dict", full)
    with pytest.raises(OSError, match="No space left"):
        tiny_rdc(seed=1).save_pretrained(sharded)
    assert {path.name: path.read_bytes() for path in sharded.iterdir()} == before


def test_packaged_models_may_be_sharded(sharded: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(rdc.hub.checkpoint, "PACKAGED", tmp_path / "pretrained")
    shutil.copytree(sharded, tmp_path / "pretrained" / "tiny")
    assert rdc.packaged_models() == ["tiny"]
    loaded = RobustDiffusionClassifier.from_pretrained("tiny")
    assert torch.equal(loaded(IMAGES), tiny_rdc()(IMAGES))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("15", "must be a text like '15MB' or a number of bytes"),
        ("15 mb", "must be a text like '15MB'"),
        ("-1MB", "must be a text like '15MB'"),
        (0, "must be a text like '15MB' or a number of bytes"),
        (-5, "must be a text like '15MB' or a number of bytes"),
        ("1KB", r"is too small: the largest tensor, network.*, takes 18,432 bytes, and a file's"),
    ],
)
def test_bad_sizes_are_refused(tmp_path: Path, size, message: str) -> None:
    with pytest.raises(ValueError, match=rf"max_shard_size={size!r} {message}"):
        tiny_denoiser().save_pretrained(tmp_path / "model", max_shard_size=size)
    assert not (tmp_path / "model").exists()


# --- bfloat16 ---


def rounded(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.bfloat16().float() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("size", ["5GB", "50KB"])
def test_bfloat16_rounds_the_weights_and_nothing_else(tmp_path: Path, size: str) -> None:
    denoiser, expected = tiny_denoiser(), tiny_denoiser()
    denoiser.save_pretrained(tmp_path, dtype=torch.bfloat16, max_shard_size=size)
    loaded = Denoiser.from_pretrained(tmp_path)
    assert {weights.dtype for weights in loaded.parameters()} == {torch.float32}
    expected.load_state_dict(rounded(denoiser))
    x = 2 * IMAGES - 1
    assert torch.equal(loaded.denoise_classes(x, 0.3), expected.denoise_classes(x, 0.3))
    assert loaded.config == denoiser.config
    for name, weights in denoiser.state_dict().items():
        error = (loaded.state_dict()[name] - weights).abs()
        assert (error <= weights.abs() / 256).all()
    stored = sum(file.stat().st_size for file in weight_files(tmp_path))
    assert 2 * sum(w.numel() for w in denoiser.parameters()) < stored
    assert stored < 2.6 * sum(w.numel() for w in denoiser.parameters())
    # What was saved is untouched.
    assert torch.equal(denoiser.denoise(x, 0.3), tiny_denoiser().denoise(x, 0.3))


def test_integers_stay_integers_in_bfloat16(tmp_path: Path) -> None:
    cnn = ImageClassifier(ImageClassifierConfig("cnn-8", 8, 1, 3))
    cnn.get_buffer("network.layers.1.num_batches_tracked").fill_(1001)  # bfloat16 has no 1001
    cnn.save_pretrained(tmp_path, dtype=torch.bfloat16)
    loaded = ImageClassifier.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == rounded(cnn).keys()
    for name, tensor in rounded(cnn).items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.slow
def test_digits_in_bfloat16_answer_nearly_the_same(tmp_path: Path) -> None:
    """RDC's decisions survive the rounding, and its posterior moves by little."""
    model = RobustDiffusionClassifier.from_pretrained("digits")
    model.save_pretrained(tmp_path, dtype=torch.bfloat16, max_shard_size="200KB")
    assert len(weight_files(tmp_path)) == 3
    loaded = RobustDiffusionClassifier.from_pretrained(tmp_path)
    data = load("digits", "test").subset(slice(40))
    with torch.no_grad():
        before = model.classifier(data.images).softmax(1)
        after = loaded.classifier(data.images).softmax(1)
    assert torch.equal(before.argmax(1), after.argmax(1))
    assert 0 < (before - after).abs().max() < 0.1
    assert (before - after).abs().mean() < 0.005


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8])
def test_other_precisions_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"dtype=torch\..* must be one of \(torch.float32, "):
        tiny_denoiser().save_pretrained(tmp_path, dtype=dtype)


# --- what is refused ---

STEM = "network.stem.weight"


@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_missing_shard_is_named(sharded: Path, number: int) -> None:
    file = weight_files(sharded)[number]
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{INDEX} names {file.name}, which does not exist"
    ):
        RobustDiffusionClassifier.from_pretrained(sharded)


@pytest.mark.parametrize("kept", [0, 5, 500, -1])
def test_a_truncated_shard_is_named(sharded: Path, kept: int) -> None:
    file = weight_files(sharded)[1]
    file.write_bytes(file.read_bytes()[:kept])
    message = rf"{file.name} is not a complete safetensors file"
    with pytest.raises(ValueError, match=message):
        Denoiser.from_pretrained(sharded)


def test_a_tensor_that_the_index_lacks_is_refused(sharded: Path) -> None:
    edit_index(sharded, **{STEM: None})
    with pytest.raises(ValueError, match=rf"hold what .* says: missing \[\], extra \['{STEM}'\]"):
        Denoiser.from_pretrained(sharded)


def test_a_tensor_that_only_the_index_has_is_refused(sharded: Path) -> None:
    edit_index(sharded, extra=weight_files(sharded)[0].name)
    with pytest.raises(ValueError, match=r"hold what .* says: missing \['extra'\], extra \[\]"):
        Denoiser.from_pretrained(sharded)


def test_a_tensor_in_another_shard_is_refused(sharded: Path) -> None:
    first, last = weight_files(sharded)[0], weight_files(sharded)[-1]
    assert STEM in load_file(first)
    edit_index(sharded, **{STEM: last.name})
    with pytest.raises(ValueError, match="does not hold what"):
        Denoiser.from_pretrained(sharded)


def test_shards_of_another_network_are_refused(sharded: Path) -> None:
    """Index and shards agree, and the network still lacks a tensor."""
    file = next(file for file in weight_files(sharded) if STEM in load_file(file))
    save_file({k: v for k, v in load_file(file).items() if k != STEM}, file)
    edit_index(sharded, **{STEM: None})
    with pytest.raises(ValueError, match=rf"(?s){INDEX} does not fit the network .*{STEM}"):
        Denoiser.from_pretrained(sharded)


def test_broken_numbers_in_a_shard_are_refused(sharded: Path) -> None:
    file = next(file for file in weight_files(sharded) if STEM in load_file(file))
    save_file(load_file(file) | {STEM: torch.full((8, 1, 3, 3), torch.nan)}, file)
    with pytest.raises(ValueError, match=rf"{INDEX}: NaN or infinity in {STEM}"):
        Denoiser.from_pretrained(sharded)


@pytest.mark.parametrize(
    "name",
    ["../elsewhere.safetensors", "/etc/passwd", "model.bin", "model.safetensors", "x/y", 3, None],
)
def test_an_index_that_points_elsewhere_is_refused(sharded: Path, name: object) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][STEM] = name
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"is not the name of a shard"):
        Denoiser.from_pretrained(sharded)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"weight_map": []}', "\xff"])
def test_a_broken_index_is_refused(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{INDEX} is not a safetensors index"):
        Denoiser.from_pretrained(sharded)


def test_weights_of_two_models_are_refused(sharded: Path, tmp_path: Path) -> None:
    tiny_denoiser().save_pretrained(tmp_path / "whole")
    shutil.copy(tmp_path / "whole" / "model.safetensors", sharded)
    with pytest.raises(ValueError, match=r"model.safetensors beside model-00001-of"):
        Denoiser.from_pretrained(sharded)


def test_a_shard_that_the_index_lacks_is_refused(sharded: Path) -> None:
    shutil.copy(weight_files(sharded)[0], sharded / "model-00009-of-00009.safetensors")
    with pytest.raises(ValueError, match=r"model-00009-of-00009.safetensors beside model-00001"):
        Denoiser.from_pretrained(sharded)


def test_no_weights_at_all(sharded: Path) -> None:
    for file in [*weight_files(sharded), sharded / INDEX]:
        file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"model.safetensors does not exist, and {INDEX}"):
        Denoiser.from_pretrained(sharded)


# --- what identifies weights ---


def test_every_byte_of_every_shard_counts(sharded: Path) -> None:
    known = {weights_sha256(sharded)}
    for file in weight_files(sharded):
        save_file({k: 2 * v for k, v in load_file(file).items()}, file)
        known.add(weights_sha256(sharded))
    assert len(known) == len(weight_files(sharded)) + 1
