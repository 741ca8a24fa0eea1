"""Training that starts from a network, asks one, and leaves a model before it is over."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from rdc import Denoiser, RobustDiffusionClassifier
from rdc.data import load
from tests.support.tiny import NETWORK as TINY
from tests.support.tiny import tiny_denoiser
from tests.support.training_runs import NETWORK
from tests.support.training_runs import config as run_config
from training.checkpoint import Checkpoints
from training.denoising import DenoiserTask
from training.objective import weighted
from training.objective_config import ObjectiveConfig
from training.train import main
from training.warm_start import warm_start

HEADS = ("class_heads", "unconditional_head", "head")


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_the_same_network_is_taken_whole(tmp_path: Path) -> None:
    tiny_denoiser(seed=1).save_pretrained(tmp_path)
    denoiser = tiny_denoiser(seed=2)
    warm_start(denoiser, str(tmp_path))
    expected = tiny_denoiser(seed=1).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in denoiser.state_dict().items())


def test_a_student_takes_its_teachers_trunk(tmp_path: Path) -> None:
    """The student keeps its own heads."""
    teacher = tiny_denoiser(replace(TINY, conditioning="label"), seed=1)
    teacher.save_pretrained(tmp_path)
    student, before = tiny_denoiser(seed=2), tiny_denoiser(seed=2).state_dict()
    warm_start(student, str(tmp_path))
    theirs = teacher.state_dict()
    for name, value in student.state_dict().items():
        head = name.split(".")[1] in HEADS
        assert torch.equal(value, before[name] if head else theirs[name]), name
    assert any(not torch.equal(before[name], theirs[name]) for name in before if name in theirs)


def test_another_trunk_is_refused(tmp_path: Path) -> None:
    tiny_denoiser(replace(TINY, width=16)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"--init .* has another trunk .*: \d+ tensors differ"):
        warm_start(tiny_denoiser(), str(tmp_path))


@pytest.mark.slow
def test_a_run_starts_from_a_network(tmp_path: Path) -> None:
    """The second run's learning rate is nearly 0, so it also ends at the network."""
    once = {"steps": 1, "validate_every": 1, "checkpoint_every": 1}
    main(run_config(tmp_path / "first", **once))
    AcceleratorState._reset_state(reset_partial_state=True)
    init = str(tmp_path / "first")
    main(run_config(tmp_path / "second", init=init, learning_rate=1e-12, seed=9, **once))
    first, second = (
        Denoiser.from_pretrained(tmp_path / name).state_dict() for name in ("first", "second")
    )
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_network_that_teaches_computes_in_the_runs_precision(precision, tmp_path: Path) -> None:
    main(run_config(tmp_path / "teacher", steps=1, validate_every=1, checkpoint_every=1))
    config = run_config(tmp_path / "x", teacher=str(tmp_path / "teacher"), precision=precision)
    task = DenoiserTask(config, load("digits", "validation"), torch.device("cpu"))
    assert isinstance(task.teacher, Denoiser)
    seen = []
    task.teacher.network.stem.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    task.losses(task.module, task.batch(0), slice(None))
    assert set(seen) == {{"no": torch.float32, "bf16": torch.bfloat16}[precision]}


def test_an_exact_teacher_stays_exact(tmp_path: Path) -> None:
    data, losses = load("digits", "validation"), []
    for precision in ("no", "bf16"):
        config = run_config(tmp_path / precision, teacher="optimal", precision=precision)
        task = DenoiserTask(config, data, torch.device("cpu"))
        torch.manual_seed(0)  # of the dropout
        losses.append(task.losses(task.module, task.batch(0), slice(None)).detach())
    assert torch.equal(*losses)


@pytest.mark.slow
def test_heads_learn_the_estimates_of_a_teacher_with_a_classifier(tmp_path: Path) -> None:
    """The target of class y is D(x, sigma) + sigma^2 grad log p(y | x, sigma) (Bayes, Tweedie)."""
    network = replace(TINY, num_classes=10)
    teacher = tiny_denoiser(replace(network, conditioning="classifier"), classes="0123456789")
    teacher.save_pretrained(tmp_path)
    objective = ObjectiveConfig(image_share=0.0)
    config = run_config(
        tmp_path / "run", teacher=str(tmp_path), network=network, objective=objective
    )
    task = DenoiserTask(config, load("digits", "validation"), torch.device("cpu"))
    batch = task.batch(0)
    x, sigma = batch.noised.clone().requires_grad_(), batch.sigma
    scores = torch.autograd.functional.jacobian(
        lambda x: teacher.class_log_posterior(x, sigma).sum(0), x
    )
    squared = sigma.square()[:, None, None, None, None]
    unconditional = teacher.denoise(batch.noised, sigma)[:, None]
    targets = torch.cat([unconditional + squared * scores.movedim(0, 1), unconditional], dim=1)
    errors = (task.averaged(batch.noised, sigma) - targets).square().mean((1, 2, 3, 4))
    expected = weighted(errors, sigma, task.averaged.config.sigma_data)
    torch.testing.assert_close(task.losses(task.module, batch, slice(None)), expected)
    main(replace(config, steps=1))
    assert Denoiser.from_pretrained(tmp_path / "run").multihead


def test_a_student_starts_from_the_trunk_of_a_teacher_with_a_classifier(tmp_path: Path) -> None:
    teacher = tiny_denoiser(replace(TINY, conditioning="classifier"), seed=1)
    teacher.save_pretrained(tmp_path)
    student = tiny_denoiser(seed=2)
    warm_start(student, str(tmp_path))
    assert torch.equal(student.network.stem.weight, teacher.network.stem.weight)


@pytest.mark.slow
def test_a_run_that_is_not_over_has_a_model(tmp_path: Path, monkeypatch) -> None:
    """The model is that of the last measurement, or of the moment of the request to stop."""

    def power_cut(self: Checkpoints, step: int) -> None:
        raise RuntimeError("power cut")

    config = run_config(tmp_path / "run", validate_every=4, checkpoint_every=6)
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="power cut"):
        patched.setattr(Checkpoints, "save", power_cut)
        main(config)
    latest = RobustDiffusionClassifier.from_pretrained(tmp_path / "run" / "latest")
    assert isinstance(latest.denoiser, Denoiser)
    assert latest.denoiser.config.network == NETWORK
    assert latest.config == config.rdc
    main(config)
    assert not (tmp_path / "run" / "latest").exists()
    assert json.loads((tmp_path / "run" / "training.json").read_text())["config"]["steps"] == 12
