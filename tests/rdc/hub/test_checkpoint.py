"""A saved model comes back bit for bit; a directory that does not fit is refused."""

import dataclasses
import itertools
import json
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import rdc.hub.checkpoint
import rdc.runs.atomic
from rdc import (
    Denoiser,
    DenoiserConfig,
    MaximizationConfig,
    OptimalDenoiser,
    RDCConfig,
    RobustDiffusionClassifier,
    packaged_models,
)
from rdc.config import from_json, to_json
from rdc.hub.checkpoint import locate
from rdc.networks.image_classifier import ImageClassifier, ImageClassifierConfig
from tests.support.oracle import some_images
from tests.support.tiny import NETWORK, tiny_denoiser, tiny_rdc

SHAPE = (1, 8, 8)


def images() -> Tensor:
    return some_images(2, SHAPE, dtype=torch.float32)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "model"
    tiny_rdc().save_pretrained(folder)
    return folder


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    """A directory with a whole RDC: config.json, model.safetensors, rdc.json."""
    return Path(shutil.copytree(original, tmp_path / "model"))


@pytest.fixture
def packaged(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the only packaged model, "tiny"; nothing can be downloaded."""

    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(rdc.hub.checkpoint, "PACKAGED", tmp_path / "pretrained")
    monkeypatch.setattr(rdc.hub.checkpoint, "snapshot_download", unreachable)
    return Path(shutil.copytree(saved, tmp_path / "pretrained" / "tiny"))


def edit_config(directory: Path, file: str = "config.json", **changes: object) -> None:
    """Change keys of a JSON file; `None` removes the key."""
    values = json.loads((directory / file).read_text()) | changes
    values = {key: value for key, value in values.items() if value is not None}
    (directory / file).write_text(json.dumps(values))


def edit_weights(directory: Path, **changes: Tensor | None) -> None:
    """Change tensors of the safetensors file; `None` removes the tensor."""
    tensors = load_file(directory / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, directory / "model.safetensors")


# --- what was saved comes back ---


@pytest.mark.parametrize("conditioning", ["label", "multihead"])
@pytest.mark.parametrize("kind", [str, Path])
def test_denoiser_round_trip(conditioning, kind, tmp_path: Path) -> None:
    network = dataclasses.replace(NETWORK, conditioning=conditioning, head_blocks=1)
    denoiser = tiny_denoiser(network)
    denoiser.save_pretrained(tmp_path / "model")
    loaded = Denoiser.from_pretrained(kind(tmp_path / "model"))
    x, sigma = 2 * images() - 1, torch.tensor([0.3, 1.0])
    assert loaded.config == denoiser.config
    assert torch.equal(loaded.denoise(x, sigma), denoiser.denoise(x, sigma))
    classes = loaded.denoise_classes(x, sigma)
    assert torch.equal(classes, denoiser.denoise_classes(x, sigma))
    assert not torch.equal(classes[:, 0], classes[:, 1])


def test_classifier_round_trip_with_its_running_statistics(tmp_path: Path) -> None:
    config = ImageClassifierConfig("cnn-8", 8, 1, 3, class_names=("a", "b", "c"))
    cnn = ImageClassifier(config)
    cnn(images())  # in training mode: the BatchNorm statistics leave their start
    cnn.save_pretrained(tmp_path)
    loaded = ImageClassifier.from_pretrained(tmp_path)
    assert loaded.config == cnn.config
    assert torch.equal(loaded(images()), cnn.eval()(images()))


def test_rdc_round_trip(saved: Path) -> None:
    model, loaded = tiny_rdc(), RobustDiffusionClassifier.from_pretrained(saved)
    assert loaded.config == model.config != RDCConfig()
    assert torch.equal(loaded(images()), model(images()))
    seeded = RobustDiffusionClassifier.from_pretrained(saved, seed=1)
    assert not torch.equal(seeded(images()), model(images()))


def test_only_denoisers_can_be_saved(tmp_path: Path) -> None:
    other = OptimalDenoiser(torch.rand(3, *SHAPE), torch.arange(3))
    with pytest.raises(TypeError, match="only a Denoiser can be saved, not OptimalDenoiser"):
        RobustDiffusionClassifier(other).save_pretrained(tmp_path)


def test_configs_come_back_with_tuples_and_nested_dataclasses(tmp_path: Path) -> None:
    config = tiny_denoiser().config
    (tmp_path / "config.json").write_text(to_json(config))
    loaded = from_json(DenoiserConfig, tmp_path / "config.json")
    assert loaded == config
    assert isinstance(loaded.network.width_multipliers, tuple)
    assert hash(loaded) == hash(config)


def test_an_integer_is_good_enough_for_a_float(saved: Path) -> None:
    edit_config(saved, sigma_data=1)
    assert Denoiser.from_pretrained(saved).config.sigma_data == 1


def test_files_from_before_architectures_are_ours(saved: Path) -> None:
    values = json.loads((saved / "config.json").read_text())
    assert values.pop("preconditioning") == "edm"
    assert values["network"].pop("architecture") == "rdc"
    (saved / "config.json").write_text(json.dumps(values))
    loaded, x = Denoiser.from_pretrained(saved), 2 * images() - 1
    assert loaded.config == tiny_denoiser().config
    assert torch.equal(loaded.denoise_classes(x, 0.3), tiny_denoiser().denoise_classes(x, 0.3))


def test_names_outside_ascii_come_back(saved: Path) -> None:
    values = json.loads((saved / "config.json").read_text()) | {"class_names": ["nul", "én", "二"]}
    text = json.dumps(values, ensure_ascii=False)
    (saved / "config.json").write_text(text, encoding="utf-8")
    assert Denoiser.from_pretrained(saved).config.class_names == ("nul", "én", "二")


def test_loaded_models_are_frozen_and_in_evaluation_mode(saved: Path) -> None:
    denoiser = Denoiser.from_pretrained(saved)
    assert not any(weights.requires_grad for weights in denoiser.parameters())
    assert not any(module.training for module in denoiser.modules())


def test_loading_costs_no_random_numbers(saved: Path) -> None:
    before = torch.get_rng_state()
    RobustDiffusionClassifier.from_pretrained(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_threads_draw_as_if_nothing_were_loaded(saved: Path) -> None:
    """Restoring the generator's state afterwards would undo what others drew meanwhile."""
    torch.manual_seed(0)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(lambda: [Denoiser.from_pretrained(saved) for _ in range(5)])
        drawn = torch.stack([torch.randn(()) for _ in range(1000)])
        loading.result()
    torch.manual_seed(0)
    expected = torch.stack([torch.randn(()) for _ in range(1000)])
    assert torch.equal(drawn, expected)


@pytest.fixture
def default_dtype() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def test_the_default_precision_has_no_influence(saved: Path, default_dtype: None) -> None:
    expected = Denoiser.from_pretrained(saved).denoise(2 * images() - 1, 0.3)
    torch.set_default_dtype(torch.float64)
    loaded = Denoiser.from_pretrained(saved)
    assert torch.equal(loaded.denoise(2 * images() - 1, 0.3), expected)
    torch.set_default_dtype(torch.bfloat16)
    with pytest.raises(ValueError, match=r"float32, but torch's default is torch.bfloat16: call"):
        Denoiser.from_pretrained(saved)


def test_the_default_device_has_no_influence(saved: Path) -> None:
    with torch.device("meta"):
        loaded = Denoiser.from_pretrained(saved)
    assert {tensor.device.type for tensor in (*loaded.parameters(), *loaded.buffers())} == {"cpu"}
    assert torch.equal(loaded.denoise(images(), 0.3), tiny_denoiser().denoise(images(), 0.3))


@pytest.mark.slow
def test_a_killed_save_leaves_one_model_or_a_clear_error(saved: Path, monkeypatch) -> None:
    """Weights of one model are never read with the settings of another."""
    old, new = tiny_rdc(), tiny_rdc(seed=1)
    new = RobustDiffusionClassifier(
        tiny_denoiser(seed=1), dataclasses.replace(new.config, maximization=MaximizationConfig())
    )

    def same(model: RobustDiffusionClassifier, other: RobustDiffusionClassifier) -> bool:
        pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
        return model.config == other.config and all(torch.equal(a, b) for a, b in pairs)

    outcomes, last, names = set(), 0, ("flush_entry", "remove", "write_atomically")
    for last in range(100):
        calls = itertools.count()

        def dying(function, last=last, calls=calls):
            def call(*args):
                if next(calls) == last:
                    raise KeyboardInterrupt
                return function(*args)

            return call

        old.save_pretrained(saved)
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(rdc.runs.atomic, name, dying(getattr(rdc.runs.atomic, name)))
            try:
                new.save_pretrained(saved)
                break
            except KeyboardInterrupt:
                pass
        try:
            found = RobustDiffusionClassifier.from_pretrained(saved)
            models = {"old": old, "new": new}
            outcomes |= {name for name in models if same(found, models[name])} or {"mixed"}
        except FileNotFoundError as error:
            assert "config.json does not exist" in str(error) or "rdc.json" in str(error)
            outcomes.add("none")
    assert outcomes == {"old", "none", "new"} and last > 5


def test_a_denoiser_removes_the_settings_of_another_rdc(saved: Path) -> None:
    tiny_denoiser(seed=1).save_pretrained(saved)
    with pytest.raises(FileNotFoundError, match=r"rdc.json does not exist"):
        RobustDiffusionClassifier.from_pretrained(saved)


def test_a_training_record_goes_with_the_weights_it_is_about(saved: Path) -> None:
    record = saved / "training.json"
    record.write_text('{"validation_accuracy": 0.9}')
    tiny_rdc().save_pretrained(saved)
    assert record.is_file()
    tiny_rdc(seed=1).save_pretrained(saved)
    assert not record.exists()


def test_saving_is_silent_and_offline(tmp_path: Path, monkeypatch, capfd) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("saving wants the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    tiny_rdc().save_pretrained(tmp_path)
    assert capfd.readouterr() == ("", "")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors", "rdc.json", "README.md"}


def test_saving_again_replaces_the_model_and_keeps_its_card(saved: Path) -> None:
    (saved / "README.md").write_text("# My card\n")
    other = tiny_rdc(seed=1)
    other.save_pretrained(saved)
    loaded = RobustDiffusionClassifier.from_pretrained(saved)
    assert torch.equal(loaded(images()), other(images()))
    assert (saved / "README.md").read_text() == "# My card\n"


def test_misspelled_arguments_are_refused(tmp_path: Path) -> None:
    """The hub's mixin ignores them without a word."""
    misspelled: dict[str, Any] = {"max_shard_siz": "15MB"}
    for model in (tiny_rdc(), tiny_denoiser()):
        with pytest.raises(TypeError, match="max_shard_siz"):
            model.save_pretrained(tmp_path, **misspelled)


# --- where a model is looked for ---


def test_packaged_models_are_found_by_name(packaged: Path) -> None:
    assert packaged_models() == ["tiny"]
    assert locate("tiny", "config.json") == packaged / "config.json"
    assert Denoiser.from_pretrained("tiny").config == tiny_denoiser().config


def test_a_folder_does_not_hide_a_packaged_model(packaged: Path, tmp_path, monkeypatch) -> None:
    """`python -m rdc classify digits/` beside the packaged model "digits"."""
    shutil.copytree(packaged, tmp_path / "here" / "tiny")
    monkeypatch.chdir(tmp_path / "here")
    assert locate("tiny", "config.json") == packaged / "config.json"
    for folder in ("./tiny", Path("tiny")):
        assert locate(folder, "config.json").resolve() == tmp_path / "here/tiny/config.json"


@pytest.mark.parametrize("name", ["nothing", "./a/b", "/a/b", "a/b/c", Path("a/b")])
def test_unknown_models_list_the_packaged_ones(name, packaged: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Denoiser.from_pretrained(name)
    assert str(caught.value).startswith(f"model={str(name)!r} ")
    assert "packaged models: ['tiny']; a hub id has the form 'owner/name'" in str(caught.value)


def test_unreachable_hub_lists_the_packaged_models(packaged: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no route to the hub\. .*\['tiny'\]") as caught:
        Denoiser.from_pretrained("owner/name")
    assert str(caught.value).startswith("model='owner/name' is neither a directory here nor")
    assert isinstance(caught.value.__cause__, ConnectionError)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "rdc.json"])
def test_missing_files_are_named(saved: Path, file: str) -> None:
    """A directory that lacks a file is an error, not a reason to look elsewhere."""
    (saved / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"^model='.*model': .*{file} does not exist"):
        RobustDiffusionClassifier.from_pretrained(saved)


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 1}, r"unknown keys \['sigma'\], missing keys \[\]"),
        ({"sigma_data": None}, r"unknown keys \[\], missing keys \['sigma_data'\]"),
        ({"network": {"width": 8}}, r"config.json: network does not .* missing keys \['atten"),
        ({"network": 3}, r"config.json: network must be a JSON object .* UNetConfig"),
        ({"network": "x"}, r"config.json: network must be a JSON object .* UNetConfig"),
        ({"sigma_data": "0.5"}, r"config.json: sigma_data='0.5' must be float"),
        ({"sigma_data": True}, r"config.json: sigma_data=True must be float"),
        ({"sigma_data": -1.0}, r"sigma_data=-1.0 must be from 0.001"),
        ({"class_names": "abc"}, r"config.json: class_names='abc' must be tuple\[str, \.\.\.\]"),
        ({"class_names": [1, 2, 3]}, r"class_names=\(1, 2, 3\) must be tuple\[str, \.\.\.\]"),
        ({"class_names": ["a", "b"]}, r"class_names=\('a', 'b'\) must be empty, or 3 "),
    ],
)
def test_bad_settings_are_refused(saved: Path, changes: dict, message: str) -> None:
    edit_config(saved, **changes)
    with pytest.raises(ValueError, match=message):
        Denoiser.from_pretrained(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widht": 8}, r"config.json: network does not .* unknown keys \['widht'\]"),
        ({"width": None}, r"config.json: network does not .* missing keys \['width'\]"),
        ({"width": 8.0}, r"config.json: network: width=8.0 must be int"),
        (
            {"width": 12},
            r"config.json: network: UNetConfig: width=12 must be a multiple of 8, 8 to",
        ),
        ({"dropout": float("nan")}, r"dropout=nan must be 0 or of a size in \[1e-12, 1e\+12\]"),
        (
            {"conditioning": "both"},
            r"conditioning='both' must be Literal\['label', 'multihead', ",
        ),
    ],
)
def test_bad_nested_settings_are_refused(saved: Path, changes: dict, message: str) -> None:
    network = json.loads((saved / "config.json").read_text())["network"] | changes
    edit_config(saved, network={k: v for k, v in network.items() if v is not None})
    with pytest.raises(ValueError, match=message):
        Denoiser.from_pretrained(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "config.json is not JSON"),
        (b"\xff\xfe{}", "config.json is not JSON"),
        (b"", "config.json is not JSON"),
        (b"[1]", "config.json must be a JSON object with the fields of DenoiserConfig"),
        (b"null", "config.json must be a JSON object with the fields of DenoiserConfig"),
    ],
)
def test_settings_that_are_not_json_are_refused(saved: Path, content, message: str) -> None:
    (saved / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Denoiser.from_pretrained(saved)


def test_settings_of_another_network_are_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="does not describe a ImageClassifierConfig: unknown keys"):
        ImageClassifier.from_pretrained(saved)


def test_unknown_rdc_settings_are_refused(saved: Path) -> None:
    edit_config(saved, "rdc.json", temperature=1.0)
    with pytest.raises(ValueError, match=r"rdc.json .* RDCConfig: unknown keys \['temperature'\]"):
        RobustDiffusionClassifier.from_pretrained(saved)


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("classifier", "sigma_max", float("inf"), r"sigma_max=inf must be 0 or of a size in"),
        ("classifier", "temperature", 1e-300, r"temperature=1e-300 must be 0 or of a size in"),
        ("classifier", "temperature", 10**400, r"temperature=10000.*\.\.\. must be 0 or of a size"),
        ("classifier", "levels", 10**8, r"levels=100000000 must be 1 to 10000"),
        (
            "classifier",
            "draws",
            10**8,
            r"draws=100000000 must be at least 1, and levels x draws at",
        ),
        ("maximization", "steps", 10**8, r"steps=100000000 must be 0 to 10000"),
        ("maximization", "draws", 10**8, r"draws=100000000 must be at least 1, and steps x draws"),
        ("maximization", "budget", float("nan"), r"budget=nan must be 0 or of a size in"),
    ],
)
def test_unbounded_rdc_settings_are_refused(saved: Path, part, key, value, message: str) -> None:
    settings = json.loads((saved / "rdc.json").read_text())[part] | {key: value}
    edit_config(saved, "rdc.json", **{part: settings})
    with pytest.raises(ValueError, match=rf"rdc.json: {part}: \w+Config: .*{message}"):
        RobustDiffusionClassifier.from_pretrained(saved)


@pytest.mark.parametrize("file", ["config.json", "rdc.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "is not JSON of ours: it is nested too deeply"),
        ('{"a": ' * 100_000, "is not JSON of ours: it is nested too deeply"),
        (" " * (2**24 + 1), r"has 16,777,217 bytes, but its settings take no more than"),
        ("9" * 5000, "is not JSON: Exceeds the limit"),
        (
            json.dumps({"x" * 10_000: 1, "y" * 10**6: 2}),
            r"unknown keys \['xx.*\.\.\., missing keys",
        ),
    ],
)
def test_deep_and_huge_settings_are_refused(saved: Path, file: str, content, message) -> None:
    (saved / file).write_text(content)
    with pytest.raises(ValueError, match=rf"{file} .*{message}") as caught:
        RobustDiffusionClassifier.from_pretrained(saved)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_files_that_are_none_are_refused(saved: Path, file: str) -> None:
    """Reading a pipe would wait for its writer for ever."""
    (saved / file).unlink()
    os.mkfifo(saved / file)
    with pytest.raises((ValueError, FileNotFoundError), match=file):
        Denoiser.from_pretrained(saved)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"width": 4096, "width_multipliers": [64, 64, 64, 64]},
        {"width": 2**40},
        {"blocks_per_level": 32, "width": 2048},
        {"blocks_per_level": 10**9},
        {"head_blocks": 10**9},
        {"head_width": 10**7},
        {"num_classes": 100_000},
        {"num_classes": 10**9},
        {"augment_features": 10**9},
        {"width_multipliers": [1] * 10**6},
        {"image_size": 2**40},
    ],
)
def test_networks_of_other_sizes_take_no_memory(saved: Path, changes: dict) -> None:
    network = json.loads((saved / "config.json").read_text())["network"] | changes
    edit_config(saved, network=network, class_names=[])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"config.json"):
        Denoiser.from_pretrained(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture", ["cnn-99999", "cnn-" + "9" * 30, "wrn-994-999", "wrn-9994-1"]
)
def test_classifiers_of_other_sizes_take_no_memory(tmp_path: Path, architecture: str) -> None:
    ImageClassifier(ImageClassifierConfig("cnn-4", 8, 1, 3)).save_pretrained(tmp_path)
    edit_config(tmp_path, architecture=architecture)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"config.json"):
        ImageClassifier.from_pretrained(tmp_path)
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    )  # timm's own 300 MB


def test_unknown_classifier_settings_are_refused(saved: Path) -> None:
    classifier = json.loads((saved / "rdc.json").read_text())["classifier"]
    edit_config(saved, "rdc.json", classifier=classifier | {"level": 3})
    with pytest.raises(ValueError, match=r"rdc.json: classifier .* unknown keys \['level'\]"):
        RobustDiffusionClassifier.from_pretrained(saved)


WEIGHT = "network.stem.weight"
FINITE = tiny_denoiser().state_dict()[WEIGHT]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {WEIGHT: None},
            rf"does not fit the network in its config.json; tensors missing: {WEIGHT}",
        ),
        ({"extra": torch.zeros(1)}, r"does not fit .*; tensors unexpected: extra \(1 in all\)"),
        (
            {WEIGHT: torch.zeros(8, 1, 5, 5)},
            rf"does not fit .*; tensors of another shape: {WEIGHT} \(8, 1, 5, 5\) for \(8, 1, 3, 3",
        ),
        (
            {WEIGHT: FINITE > 0, "extra": FINITE},
            rf"unexpected: extra .*; tensors of another type: {WEIGHT} BOOL for torch.float32",
        ),
        ({WEIGHT: FINITE.int()}, rf"of another type: {WEIGHT} I32 for torch.float32"),
        ({WEIGHT: FINITE.to(torch.complex64)}, rf"of another type: {WEIGHT} C64 for torch.float32"),
        ({WEIGHT: FINITE.to(torch.float8_e4m3fn)}, rf"of another type: {WEIGHT} F8_E4M3 for torch"),
        ({WEIGHT: torch.full((8, 1, 3, 3), torch.nan)}, rf"NaN or infinity in {WEIGHT} \(1 in all"),
        ({WEIGHT: torch.full((8, 1, 3, 3), torch.inf)}, rf"NaN or infinity in {WEIGHT} \(1 in all"),
        (
            {WEIGHT: FINITE.double() + 1e300},
            rf"float64 that torch.float32 does not hold .* {WEIGHT}",
        ),
        ({WEIGHT: FINITE.double() / 3}, rf"float64 that torch.float32 does not hold .* {WEIGHT}"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved: Path, changes: dict, message: str) -> None:
    assert WEIGHT in load_file(saved / "model.safetensors")
    edit_weights(saved, **changes)
    with pytest.raises(ValueError, match=rf"(?s)model\.safetensors.*{message}"):
        Denoiser.from_pretrained(saved)


def test_counts_of_batch_norm_stay_integers(tmp_path: Path) -> None:
    ImageClassifier(ImageClassifierConfig("cnn-8", 8, 1, 3)).save_pretrained(tmp_path)
    name = "network.layers.1.num_batches_tracked"
    edit_weights(tmp_path, **{name: torch.tensor(3.0)})
    with pytest.raises(ValueError, match=rf"of another type: {name} F32 for torch.int64"):
        ImageClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_floats_that_convert_exactly_are_taken(saved: Path, dtype: torch.dtype) -> None:
    rounded = FINITE.to(dtype)
    edit_weights(saved, **{WEIGHT: rounded})
    loaded = Denoiser.from_pretrained(saved).state_dict()[WEIGHT]
    assert loaded.dtype == torch.float32 and torch.equal(loaded, rounded.float())


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_weights_are_refused(saved: Path, kept: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete safetensors file"):
        Denoiser.from_pretrained(saved)


def test_pickles_are_refused(saved: Path) -> None:
    torch.save({"weights": torch.zeros(1)}, saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a complete safetensors file"):
        Denoiser.from_pretrained(saved)
