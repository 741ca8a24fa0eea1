"""Networks take size, channels and classes from the data, and contradict them nowhere."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from accelerate.state import AcceleratorState

from rdc import Denoiser, UNetConfig
from rdc.data import Dataset
from tests.support.pictures import noise, save
from training.config import NetworkConfig, TrainConfig
from training.network import network_for
from training.setup import load_data, start_accelerator
from training.train import main

FLAGS = ["--network.width", "8", "--network.width-multipliers", "1", "--steps", "1",
         "--batch-size", "4", "--validation-images", "4"]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def images(channels: int = 3, size: int = 16, classes: int = 4) -> Dataset:
    names = tuple(f"class {number}" for number in range(classes))
    pixels = torch.zeros(8, channels, size, size, dtype=torch.uint8)
    return Dataset(pixels, torch.arange(8) % classes, names)


def folder(root: Path, height: int, width: int, *, validation: int | None = None) -> Path:
    sizes = {"train": height, "validation": validation or height}
    names = [f"{split}/{kind}/{i}.png" for split in sizes for kind in "abc" for i in range(4)]
    pictures = {name: noise(i, sizes[name.split("/")[0]], width, 3) for i, name in enumerate(names)}
    return save(root, pictures)


@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 8, 2), (3, 32, 10)])
def test_unset_values_are_those_of_the_data(channels: int, size: int, classes: int) -> None:
    network = network_for(NetworkConfig(width=8), images(channels, size, classes), "x")
    assert network == UNetConfig(size, channels, classes, width=8) and type(network) is UNetConfig
    unconditional = NetworkConfig(width=8, conditioning="none")
    assert network_for(unconditional, images(channels, size, classes), "x").num_classes == 0


@pytest.mark.parametrize(
    ("name", "value"), [("image_size", 8), ("channels", 1), ("num_classes", 10)]
)
def test_contradictions_are_refused_by_flag(name: str, value: int) -> None:
    """Also where the value is the default of a network, or of another data set."""
    data = images()
    with pytest.raises(ValueError, match=rf"--network\.{name.replace('_', '-')} {value}, but x"):
        network_for(replace(NetworkConfig(), **{name: value}), data, "x")
    assert network_for(UNetConfig(16, 3, 4), data, "x") == UNetConfig(16, 3, 4)


def test_impossible_networks_are_refused_once_the_data_are_known() -> None:
    config = NetworkConfig(width=8, width_multipliers=(1, 1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"--network does not fit x: .*image_size=16"):
        network_for(config, images(), "x")


def test_a_run_takes_the_images_as_they_are(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    source = folder(tmp_path / "data", 16, 16)
    out = tmp_path / "run"
    main(tyro.cli(TrainConfig, args=["--out", str(out), "--data", str(source), *FLAGS]))
    model = Denoiser.from_pretrained(out)
    assert (model.image_shape, model.class_names) == ((3, 16, 16), ("a", "b", "c"))


def test_images_are_converted_only_when_asked(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    source = folder(tmp_path / "data", 16, 12)
    config = TrainConfig(out=tmp_path, data=str(source))
    accelerator = start_accelerator(config)
    with pytest.raises(ValueError, match=r"16x12; give --resize"):
        load_data(config, accelerator)
    data, validation = load_data(replace(config, resize=8, channels=1), accelerator)
    assert data.shape == validation.shape == (1, 8, 8)


def test_splits_of_different_sizes_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    source = folder(tmp_path / "data", 16, 16, validation=12)
    config = TrainConfig(out=tmp_path, data=str(source))
    with pytest.raises(ValueError, match=r"\(3, 12, 16\).*--resize"):
        load_data(config, start_accelerator(config))
