"""Checkpoints: exact, complete, free of pickles, and refused where they are damaged or foreign."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import nn

from rdc.hub.weights import sha256
from tests.support.tiny import tiny_denoiser
from tests.support.training_runs import config
from training.checkpoint import TENSORS, VALUES, OptimizerState
from training.run import Run
from training.train import main

SHORT = {"steps": 4, "validate_every": 4, "checkpoint_every": 2}


class Evil:
    """A pickle of this runs code: it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory) -> Path:
    """A run whose last checkpoint is that of step 2 of 4."""
    out = tmp_path_factory.mktemp("halfway") / "run"
    main(config(out, **SHORT))
    AcceleratorState._reset_state(reset_partial_state=True)
    (out / "training.json").unlink()
    shutil.rmtree(out / "checkpoints" / "step_00000004")
    return out


@pytest.fixture
def run(halfway: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(halfway, tmp_path / "run"))


def checkpoint(run: Path) -> Path:
    return run / "checkpoints" / "step_00000002"


@pytest.fixture
def untrained(monkeypatch) -> None:
    """Let no step be taken: what is refused is refused before."""

    def step(self: Run, step: int) -> None:
        raise AssertionError("the run went on")

    monkeypatch.setattr(Run, "step", step)


@pytest.mark.slow
@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("kept", [True, False])
def test_pickles_in_a_checkpoint_are_refused_and_not_run(
    kept: bool, run: Path, tmp_path: Path
) -> None:
    """Beside a checkpoint, or in place of it as earlier versions wrote them."""
    mark = tmp_path / "executed"
    evil = pickle.dumps(Evil(mark))
    for name in ("optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl"):
        (checkpoint(run) / name).write_bytes(evil)
    if not kept:
        for name in (TENSORS, VALUES):
            (checkpoint(run) / name).unlink()
    with pytest.raises(ValueError, match=r"custom_checkpoint_0\.pkl.*remove this folder"):
        main(config(run, **SHORT))
    assert not mark.exists()
    pickle.loads(evil)
    assert mark.exists()  # it would have been


@pytest.mark.usefixtures("untrained")
def test_pickles_under_the_names_of_a_checkpoint_are_not_run(run: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    (checkpoint(run) / TENSORS).write_bytes(pickle.dumps(Evil(mark)))
    state_hash(run)
    with pytest.raises(ValueError, match="cannot continue this run"):
        main(config(run, **SHORT))
    (checkpoint(run) / VALUES).write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(ValueError, match="is not JSON"):
        main(config(run, **SHORT))
    assert not mark.exists()


def state_hash(run: Path) -> None:
    """Make the hash in the checkpoint that of its tensors."""
    values = json.loads((checkpoint(run) / VALUES).read_text())
    values["sha256"] = sha256(checkpoint(run) / TENSORS)
    (checkpoint(run) / VALUES).write_text(json.dumps(values))


@pytest.mark.usefixtures("untrained")
def test_a_changed_byte_is_noticed(run: Path) -> None:
    tensors = checkpoint(run) / TENSORS
    content = bytearray(tensors.read_bytes())
    content[-5] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(ValueError, match=r"step_00000002 cannot .* another SHA-256"):
        main(config(run, **SHORT))


@pytest.mark.slow
@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (kind, change)
        for kind in ("model", "optimizer", "average")
        for change in ("missing", "another shape", "extra")
        # A parameter that no step has changed has no moments: they may be missing.
        if (kind, change) != ("optimizer", "missing")
    ],
)
def test_tensors_of_another_run_are_refused(kind: str, change: str, run: Path) -> None:
    tensors = load_file(checkpoint(run) / TENSORS)
    name = next(k for k, v in tensors.items() if k.startswith(f"{kind}/") and v.ndim == 4)
    if change == "extra":
        tensors[f"{name.rsplit('/', 1)[0]}x/y"] = torch.zeros(2)
    elif change == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(3, 3, 3, 3)
    save_file(tensors, checkpoint(run) / TENSORS)
    state_hash(run)
    with pytest.raises(ValueError, match="step_00000002 cannot continue this run"):
        main(config(run, **SHORT))


@pytest.mark.usefixtures("untrained")
def test_torn_values_are_refused_with_the_remedy(run: Path) -> None:
    file = checkpoint(run) / VALUES
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"cannot continue this run: .*remove this folder to cont"):
        main(config(run, **SHORT))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("part", ["progress", "meter", "sha256"])
def test_missing_values_are_refused(part: str, run: Path) -> None:
    values = json.loads((checkpoint(run) / VALUES).read_text())
    del values[part]
    (checkpoint(run) / VALUES).write_text(json.dumps(values))
    with pytest.raises(ValueError, match="step_00000002 cannot continue this run"):
        main(config(run, **SHORT))


@pytest.mark.usefixtures("untrained")
def test_other_data_are_refused(run: Path, monkeypatch) -> None:
    """Under the same name: the run knows them by their hash."""
    import training.setup

    def fewer(*arguments, **options):
        return load(*arguments, **options).subset(slice(100))

    load = training.setup.load
    monkeypatch.setattr(training.setup, "load", fewer)
    with pytest.raises(ValueError, match=r"data: its content has changed .*validation data: its"):
        main(config(run, **SHORT))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["teacher", "init"])
def test_other_weights_of_a_teacher_or_a_start_are_refused(
    name: str, tmp_path: Path, monkeypatch
) -> None:
    source, out = tmp_path / "source", tmp_path / "run"
    main(config(source, **SHORT))
    settings = config(out, **SHORT, **{name: str(source)})
    main(settings)
    other = {k: v + 1 for k, v in load_file(source / "model.safetensors").items()}
    save_file(other, source / "model.safetensors")
    with pytest.raises(ValueError, match=f"{name}: its content has changed"):
        main(settings)


def test_moments_come_back_in_the_layout_of_their_weights() -> None:
    """Convolutions whose channels are innermost in memory, after two steps."""
    model = tiny_denoiser().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        sum(weight.square().sum() for weight in model.parameters()).backward()  # type: ignore
        optimizer.step()
    kept = {name: t.clone() for name, t in OptimizerState(optimizer, model).state_dict().items()}
    other = torch.optim.AdamW(model.parameters())
    flat = {name: tensor.contiguous() for name, tensor in kept.items()}
    OptimizerState(other, model).load_state_dict(flat)
    for name, tensor in OptimizerState(other, model).state_dict().items():
        assert torch.equal(tensor, kept[name]) and tensor.stride() == kept[name].stride(), name
    strides = [weight.stride() != weight.contiguous().stride() for weight in model.parameters()]
    assert any(strides) and len(kept) == 3 * len(strides)


def test_weights_without_gradients_have_no_moments() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model[0](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = OptimizerState(optimizer, model).state_dict()
    assert {name.split("/")[0] for name in state} == {"0.weight", "0.bias"}
    OptimizerState(optimizer, model).load_state_dict(state)
    assert OptimizerState(optimizer, model).state_dict().keys() == state.keys()
