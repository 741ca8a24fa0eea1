"""Folders that diffusers wrote: what they hold is what is loaded, or they are refused."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rdc import DiffusersDenoiser
from tests.support.optional import installed
from tests.support.tiny_diffusers import network, scheduler

pytestmark = pytest.mark.slow

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _seed() -> None:
    installed("diffusers")
    torch.manual_seed(0)


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """The folder of a pipeline, whose scheduler is one for sampling fast."""
    diffusers = installed("diffusers")
    fast = diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2")
    diffusers.DDPMPipeline(network(), fast).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Network and scheduler side by side, as in the first repositories."""
    network(classes=4).save_pretrained(tmp_path / "flat")
    scheduler(prediction_type="sample").save_pretrained(tmp_path / "flat")
    return tmp_path / "flat"


def test_from_a_pipeline(pipeline: Path) -> None:
    before = torch.get_rng_state()
    denoiser = DiffusersDenoiser.from_pretrained(pipeline)
    assert torch.equal(torch.get_rng_state(), before)
    assert not denoiser.network.training
    assert not any(weights.requires_grad for weights in denoiser.parameters())
    live = installed("diffusers").DDPMPipeline.from_pretrained(pipeline)
    x = torch.randn(2, 1, 8, 8)
    expected = DiffusersDenoiser(live.unet, scheduler(beta_schedule="squaredcos_cap_v2"))
    assert torch.equal(denoiser.denoise(x, 1.0), expected.denoise(x, 1.0))


def test_from_parts_side_by_side(flat: Path) -> None:
    names = ("a", "b", "c")
    denoiser = DiffusersDenoiser.from_pretrained(str(flat), null_label=0, class_names=names)
    assert (denoiser.prediction, denoiser.num_classes) == ("sample", 3)
    assert denoiser.class_names == names


def test_the_first_names_of_attention_are_read(flat: Path) -> None:
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 1.0])
    expected = DiffusersDenoiser.from_pretrained(flat).denoise_classes(x, sigma)
    tensors = load_file(flat / WEIGHTS)
    first = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in first.items():
        tensors = {name.replace(f".{new}.", f".{old}."): t for name, t in tensors.items()}
    assert any(".query." in name for name in tensors)
    save_file(tensors, flat / WEIGHTS, metadata={"format": "pt"})
    assert torch.equal(DiffusersDenoiser.from_pretrained(flat).denoise_classes(x, sigma), expected)


def change(path: Path, **values: Any) -> None:
    """Change entries of a JSON file; None takes one out."""
    entries = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in entries.items() if v is not None}))


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    del tensors["conv_in.bias"]
    save_file(tensors, folder / "unet" / WEIGHTS, metadata={"format": "pt"})


def with_a_tensor_too_many(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS) | {"class_embedding.weight": torch.zeros(4, 32)}
    save_file(tensors, folder / "unet" / WEIGHTS, metadata={"format": "pt"})


def with_infinity(folder: Path) -> None:
    tensors = load_file(folder / "unet" / WEIGHTS)
    tensors["conv_out.bias"][0] = torch.inf
    save_file(tensors, folder / "unet" / WEIGHTS, metadata={"format": "pt"})


def truncated(folder: Path) -> None:
    path = folder / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "unet" / WEIGHTS), folder / "unet/diffusion_pytorch_model.bin")
    (folder / "unet" / WEIGHTS).unlink()


BROKEN: dict[str, tuple[Any, type[Exception], str]] = {
    "missing tensor": (without_a_tensor, ValueError, r"missing \['conv_in.bias'\], unexp"),
    "unexpected": (with_a_tensor_too_many, ValueError, r"unexpected \['class_embedding.weight'\]"),
    "infinite": (with_infinity, ValueError, r"NaN or infinity in \['conv_out.bias'\]"),
    "truncated": (truncated, FileNotFoundError, "unet"),
    "pickled": (pickled, FileNotFoundError, "Only safetensors are read"),
    "other width": (
        lambda folder: change(folder / "unet/config.json", block_out_channels=[16, 16]),
        ValueError, "shape",
    ),
    "text": (
        lambda folder: change(folder / "unet/config.json", _class_name="UNet2DConditionModel"),
        ValueError, "_class_name='UNet2DConditionModel' must be 'UNet2DModel'",
    ),
    "latents": (
        lambda folder: change(folder / "model_index.json", vqvae=["diffusers", "VQModel"]),
        ValueError, r"also has \['vqvae'\]",
    ),
    "no network": (
        lambda folder: (folder / "unet/config.json").unlink(), FileNotFoundError, "save_pretrained"
    ),
    "no scheduler": (
        lambda folder: (folder / "scheduler/scheduler_config.json").unlink(),
        FileNotFoundError, "scheduler_config.json does not exist",
    ),
    "no betas": (
        lambda folder: change(
            folder / "scheduler/scheduler_config.json", _class_name="ScoreSdeVeScheduler"
        ),
        ValueError, "a ScoreSdeVeScheduler has no betas",
    ),
    "no class": (
        lambda folder: change(folder / "scheduler/scheduler_config.json", _class_name="logging"),
        ValueError, "_class_name='logging' is no scheduler",
    ),
    "not JSON": (
        lambda folder: (folder / "unet/config.json").write_text("{"), ValueError, "is not JSON"
    ),
    "no object": (
        lambda folder: (folder / "unet/config.json").write_text("[]"),
        ValueError, "must be a JSON object",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders_are_refused(name: str, pipeline: Path) -> None:
    breaks, error, message = BROKEN[name]
    breaks(pipeline)
    logging.disable(logging.WARNING)  # diffusers says some of it, too
    try:
        with pytest.raises(error, match=message):
            DiffusersDenoiser.from_pretrained(pipeline)
    finally:
        logging.disable(logging.NOTSET)


def test_parts_that_a_pipeline_lacks_do_not_count(pipeline: Path) -> None:
    change(pipeline / "model_index.json", safety_checker=[None, None], requires_safety_checker=True)
    assert isinstance(DiffusersDenoiser.from_pretrained(pipeline), DiffusersDenoiser)


def test_hub_repositories_go_through_diffusers() -> None:
    with pytest.raises(FileNotFoundError, match=r"'google/ddpm-cat-256' is not a folder; for a"):
        DiffusersDenoiser.from_pretrained("google/ddpm-cat-256")
