"""The same numbers on a GPU as on the CPU in float64, by every way that leads to them.

What is cheap runs on the CPU too, so that the tests themselves are tested without a GPU. With
--emulate most of them run on an emulated device as well, and what waits for it is counted.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from evaluation.attacks.apgd import apgd
from evaluation.attacks.losses import margin
from evaluation.attacks.square import square
from evaluation.defense_config import KINDS, DefenseConfig
from evaluation.defenses import build
from evaluation.gradient_modes import surrogates
from purification import build as build_purifier
from purification.__main__ import main as purify
from purification.files import read_file
from purification.purify_config import Purify
from rdc import ClassifierConfig, Denoiser, DiffusionClassifier, Noise, RDCConfig
from rdc.commands.classify import main as command_line
from rdc.commands.config import Classify
from rdc.data import Dataset, load
from rdc.gradients import gradient
from rdc.likelihood import class_errors
from tests import emulated
from tests.support.denoisers import SMALL, random_denoiser, small_rdc
from tests.support.oracle import some_images
from tests.support.pictures import noise, save
from tests.support.training_runs import assert_same_run
from tests.support.training_runs import config as run_config
from training import batches
from training.batches import Batches
from training.checkpoint import Checkpoints
from training.classifier import ClassifierTask
from training.classifier import main as train_classifier
from training.config import ClassifierTrainConfig, TrainConfig
from training.denoising import DenoiserTask
from training.run import Run
from training.setup import start_accelerator
from training.train import main as train

pytestmark = pytest.mark.slow

CUDA = torch.cuda.is_available()
GPU = emulated.NAME if emulated.started() else "cuda"
needs_cuda = pytest.mark.skipif(not CUDA, reason="needs a CUDA GPU")
needs_gpu = pytest.mark.skipif(
    not (CUDA or emulated.started()), reason="needs a CUDA GPU, or --emulate"
)
on_cuda, on_gpu = [pytest.mark.gpu, needs_cuda], [pytest.mark.gpu, needs_gpu]
on_both = pytest.mark.parametrize("device", ["cpu", pytest.param(GPU, marks=on_gpu)])
only_gpu = pytest.mark.parametrize("device", [pytest.param(GPU, marks=on_gpu)])
on_cpu_and_cuda = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_cuda)])
IMAGES = some_images(3, (1, 8, 8))
LABELS = torch.tensor([0, 1, 2])


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate remembers the first precision for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def deterministic():
    """Sums on a GPU in one order: what "bit for bit" asks of PyTorch."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def logits_and_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the margin's gradient, moved to the CPU and to float64."""
    images = images.detach().requires_grad_()
    logits = model(images)
    (found,) = torch.autograd.grad(margin(logits, labels.to(images.device)).sum(), images)
    return logits.detach().cpu().double(), found.cpu().double()


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


# Defenses


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", "test").subset(slice(2))


def defense(kind: str, dtype: torch.dtype) -> nn.Module:
    """A defense of the packaged networks; purifiers take three steps."""
    purifier = kind not in ("classifier", "diffusion", "rdc", "maximization")
    rounds = {"steps": 3} if purifier else {}
    return build(DefenseConfig(kind=kind, **rounds), data="digits").to(dtype)  # type: ignore[arg-type]


DEFENSES = [kind for kind in KINDS if kind != "module"]


@pytest.fixture(scope="module", params=DEFENSES)
def exact(request, digits: Dataset) -> tuple[str, tuple[Tensor, Tensor]]:
    """A defense by name, and its logits and gradient: the CPU's, in float64."""
    model = defense(request.param, torch.float64)
    return request.param, logits_and_gradient(model, digits.images.double(), digits.labels)


@pytest.mark.parametrize(
    ("kind", "device"),
    [("diffusion", "cpu"), *(pytest.param(kind, GPU, marks=on_gpu) for kind in DEFENSES)],
)
def test_every_defense_has_its_gradients_in_float64(kind: str, digits: Dataset, device) -> None:
    """In every mode, relative to the largest entry: cuDNN sums in another order."""
    images = digits.images.double()
    here, there = defense(kind, torch.float64), defense(kind, torch.float64).to(device)
    modes = [{"exact": model} | surrogates(model) for model in (here, there)]
    for name in modes[0]:
        expected = logits_and_gradient(modes[0][name], images, digits.labels)
        found = logits_and_gradient(modes[1][name], images.to(device), digits.labels)
        for one, other in zip(found, expected, strict=True):
            assert (one - other).abs().max() <= 1e-6 * other.abs().max(), name


@on_both
def test_every_defense_has_nearly_its_gradient_in_float32(exact, digits: Dataset, device) -> None:
    """Attacks run in float32; on a GPU convolutions then have TF32's ten bits."""
    kind, expected = exact
    model = defense(kind, torch.float32).to(device)
    logits, found = logits_and_gradient(model, digits.images.to(device), digits.labels)
    there, slope = expected
    torch.testing.assert_close(logits, there, rtol=0.02, atol=0.02 * there.abs().max().item())
    assert cosine(found, slope) > 0.98


@on_both
def test_every_defense_treats_images_alone_as_in_a_batch(exact, digits: Dataset, device) -> None:
    model = defense(exact[0], torch.float64).to(device)
    images = digits.images.double().to(device)
    together = logits_and_gradient(model, images, digits.labels)
    alone = logits_and_gradient(model, images[1:], digits.labels[1:])
    for whole, part in zip(together, alone, strict=True):
        assert (whole[1:] - part).abs().max() <= 1e-8 * part.abs().max()


# Second derivatives, chunks, draws


@on_both
@pytest.mark.parametrize("second_order", ["double_backward", "central_difference"])
def test_rdc_differentiates_twice_through_attention(second_order, device: str) -> None:
    """Derivatives equal the CPU's in float64, and nearly so in float32 (without fused kernels)."""
    options = {"second_order": second_order}
    reference = logits_and_gradient(small_rdc(**options), IMAGES, LABELS)
    double = logits_and_gradient(small_rdc(**options).to(device), IMAGES.to(device), LABELS)
    for here, there in zip(double, reference, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-9 * there.abs().max().item())
    model = small_rdc(**options).float().to(device)
    _, single = logits_and_gradient(model, IMAGES.float().to(device), LABELS)
    assert cosine(single, reference[1]) > 0.98


@on_both
def test_the_hessian_is_symmetric_in_single_precision(device: str) -> None:
    """<u, H v> = <v, H u> through attention: a kernel without a second derivative would raise."""
    denoiser = random_denoiser(torch.float32).to(device)

    def loss(x: Tensor) -> Tensor:
        return (denoiser.denoise(x, 0.7) - x).square().flatten(1).sum(1)

    generator = torch.Generator().manual_seed(0)
    x = (2 * IMAGES[:1].float() - 1).to(device).requires_grad_()
    u, v = (torch.randn(x.shape, generator=generator).to(device) for _ in range(2))
    products = [torch.autograd.grad(gradient(loss, x), x, direction)[0] for direction in (u, v)]
    left, right = (u * products[1]).sum(), (v * products[0]).sum()
    torch.testing.assert_close(left, right, rtol=0.02, atol=0.02)


@on_both
def test_chunks_change_nothing(device: str) -> None:
    denoiser = random_denoiser().to(device)
    x = (2 * IMAGES - 1).to(device).requires_grad_()
    sigmas = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    noise = Noise("frozen").normal(x, 3)

    def found(chunk: int | None) -> list[Tensor]:
        errors = class_errors(denoiser, x, sigmas, noise, chunk=chunk)
        return [errors.detach(), torch.autograd.grad(errors[:, 0].sum(), x)[0]]

    for whole, parts in zip(found(None), found(2), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("mode", ["frozen", "fresh"])
def test_draws_are_the_same_on_every_device(mode) -> None:
    here, there = (Noise(mode).normal(IMAGES.to(device), 3) for device in ("cpu", GPU))
    assert torch.equal(here, there.cpu())


@only_gpu
def test_attacks_stay_on_the_device_and_in_the_ball(device: str) -> None:
    model = small_rdc(torch.float32, second_order="central_difference").to(device)
    images = IMAGES.float().to(device)
    labels = model(images).argmax(1)
    for attack in (partial(apgd, steps=2), partial(square, queries=4)):
        attacked = attack(model, images, labels, eps=0.1, norm="linf", seeds=[0, 1, 2])
        assert attacked.device == images.device
        assert 0 < (attacked - images).abs().max() <= 0.1 + 1e-6


@only_gpu
def test_command_lines_compute_on_the_device(device: str, tmp_path: Path, monkeypatch) -> None:
    """The files on the device are those on the CPU, to one gray level."""
    given = save(tmp_path / "given", {f"{i}.png": noise(i, 8, 8) for i in range(3)})
    seen: set[str] = set()

    monkeypatch.setattr("purification.__main__.build", partial(build_purifier, steps=3))

    def purified(where: str) -> list[Tensor]:
        for module in ("rdc.commands.classify", "purification.__main__"):
            monkeypatch.setattr(f"{module}.default_device", lambda: torch.device(where))
        out, picture = tmp_path / where, tmp_path / "picture.png"
        assert purify(Purify(given, out, model="digits", picture=picture)) == 0
        return [read_file(out / f"{i}.png", 1) for i in range(3)]

    expected = purified("cpu")
    with register_module_forward_pre_hook(lambda _, rows: seen.add(rows[0].device.type)):
        found = purified(device)
        assert command_line(Classify(given)) == 0
    assert seen == {device}
    torch.testing.assert_close(found, expected, rtol=0, atol=1.01 / 255)


# Waiting


@contextmanager
def nobody_waits() -> Iterator[None]:
    """Fails when the host asks the GPU for a value, which lets its queue run dry."""
    if emulated.started():
        before = emulated.waits()
        yield
        assert emulated.waits() == before
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
def test_a_wait_is_noticed() -> None:
    images = IMAGES.to(GPU)
    failure = pytest.raises((AssertionError, RuntimeError), match=r"waits|synchronizing")
    with failure, nobody_waits():
        images.sum().item()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", ["denoiser", "student", "classifier"])
def test_training_steps_do_not_wait(kind: str, tmp_path: Path) -> None:
    config: TrainConfig | ClassifierTrainConfig
    if kind == "classifier":
        config = ClassifierTrainConfig(out=tmp_path, architecture="wrn-10-1", batch_size=8)
        config = replace(config, objective=replace(config.objective, kind="trades"))
    else:
        config = replace(run_config(tmp_path), teacher="optimal" if kind == "student" else "none")
    accelerator = start_accelerator(config)
    data = load("digits", "train")
    make: Any = ClassifierTask if kind == "classifier" else DenoiserTask
    run = Run(config, make(config, data, accelerator.device), accelerator, data, data)
    run.step(0)
    with nobody_waits():
        run.step(1)


@pytest.mark.gpu
@needs_gpu
def test_the_classifier_does_not_wait() -> None:
    model = small_rdc(torch.float32).to(GPU)
    images = IMAGES.float().to(GPU)
    model.classifier(images)
    with nobody_waits(), torch.no_grad():
        model.classifier(images)


# Precision and compilation


@on_both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_single(dtype: torch.dtype, device: str) -> None:
    """Losses are summed in float32 whatever the network computes in: 8 bits cost 2 % at most."""
    model = DiffusionClassifier(random_denoiser(torch.float32), SMALL.classifier).to(device)
    images = IMAGES.float().to(device)
    expected = model(images)
    with torch.autocast(device, dtype):
        logits = model(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0.02, atol=0.0)
    assert not torch.equal(logits, expected)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("part", [lambda model: model.classifier, lambda model: model])
def test_compiled_rdc_gives_the_same(part: Callable[[Any], nn.Module]) -> None:
    """The maximizer uses central differences: compiled code has no second derivative."""
    plain, compiled = (
        small_rdc(second_order="central_difference").float().to("cuda") for _ in range(2)
    )
    assert isinstance(compiled.denoiser, Denoiser)
    compiled.denoiser.compile(backend="inductor")
    images = IMAGES[:1].float().to("cuda")
    expected, slope = logits_and_gradient(part(plain), images, LABELS[:1])
    logits, found = logits_and_gradient(part(compiled), images, LABELS[:1])
    assert (logits - expected).abs().max() < 1e-3 * expected.abs().max()
    assert cosine(found, slope) > 0.98


# Training, on the GPU where there is one


@pytest.fixture
def quick(monkeypatch) -> dict[str, Any]:
    """Settings of runs that measure little and draw no samples."""
    monkeypatch.setattr("training.denoising.save_samples", lambda *_, **__: None)
    return {"rdc": RDCConfig(ClassifierConfig(levels=1))}


@pytest.mark.gpu
@needs_gpu
def test_a_killed_run_continues_bit_for_bit(
    tmp_path: Path, monkeypatch, deterministic, quick
) -> None:
    """Weights, averages, optimizer, history: with dropout, which draws on the device."""
    train(run_config(tmp_path / "whole", **quick))
    save = Checkpoints.save

    def die_at_nine(self: Checkpoints, step: int) -> None:
        if step == 9:
            raise RuntimeError("power cut")
        save(self, step)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="power cut"):
        patched.setattr(Checkpoints, "save", die_at_nine)
        train(run_config(tmp_path / "run", **quick))
    train(run_config(tmp_path / "run", **quick))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=on_cuda)])
def test_training_in_half_precision_learns_as_much(precision, tmp_path: Path, quick) -> None:
    losses = []
    for name in ("no", precision):
        train(run_config(tmp_path / name, precision=name, **quick))
        lines = (tmp_path / name / "history.jsonl").read_text().splitlines()
        losses.append(json.loads(lines[-1])["loss"])
        AcceleratorState._reset_state(reset_partial_state=True)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.gpu
@needs_cuda
def test_training_compiled_learns_as_much(tmp_path: Path, quick) -> None:
    losses = []
    for name in ("plain", "compiled"):
        compiled = name == "compiled"
        train(run_config(tmp_path / name, compile=compiled, steps=4, validate_every=4, **quick))
        lines = (tmp_path / name / "history.jsonl").read_text().splitlines()
        losses.append(json.loads(lines[-1])["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_a_student_learns_from_a_network(tmp_path: Path, quick) -> None:
    """The teacher has two classes and computes in half precision."""
    teacher = run_config(tmp_path / "teacher", steps=2, validate_every=2, **quick)
    train(replace(teacher, network=replace(teacher.network, conditioning="label")))
    student = run_config(
        tmp_path / "student", steps=2, validate_every=2, **quick,
        teacher=str(tmp_path / "teacher"), init=str(tmp_path / "teacher"), precision="bf16",
        compile=CUDA,
    )  # fmt: skip
    objective = replace(student.objective, image_share=0.0, teacher_classes=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    train(replace(student, objective=objective))
    assert (tmp_path / "student" / "training.json").is_file()


@pytest.mark.parametrize("kind", ["standard", "trades"])
def test_classifiers_train(kind: str, tmp_path: Path) -> None:
    config = ClassifierTrainConfig(
        out=tmp_path / kind, architecture="wrn-10-1", augment="flip-shift", steps=3, batch_size=20,
        compile=CUDA, precision="bf16",
    )  # fmt: skip
    attack = {"attack_steps": 2} if kind == "trades" else {}
    objective = replace(config.objective, kind=kind, **attack)
    train_classifier(replace(config, objective=objective))
    assert json.loads((tmp_path / kind / "training.json").read_text())["validation_accuracy"] > 0


@on_cpu_and_cuda
def test_batches_gathered_ahead_are_those_of_resident_data(device: str, monkeypatch) -> None:
    """A thread gathers them, on a GPU into pinned memory that is copied without waiting."""
    data, where = load("digits", "train"), torch.device(device)
    resident = Batches(data, 100, 0, where)
    monkeypatch.setattr(batches, "fits", lambda *_: False)
    ahead = Batches(data, 100, 0, where)
    assert resident.resident and not ahead.resident
    assert ahead._gather(0).is_pinned() == (device == "cuda")
    for step in (*range(30), 5, 6):
        for mine, theirs in zip(ahead(step), resident(step), strict=True):
            assert mine.device.type == device
            assert torch.equal(mine, theirs)


def test_the_optimizer_is_fused_on_a_gpu(tmp_path: Path) -> None:
    config = TrainConfig(out=tmp_path / "run")
    accelerator = start_accelerator(config)
    data = load("digits", "validation")
    task = DenoiserTask(config, data, accelerator.device)
    run = Run(config, task, accelerator, data, data)
    assert run.optimizer.optimizer.defaults["fused"] == CUDA


@on_cpu_and_cuda
def test_the_fused_optimizer_takes_the_same_steps(device: str) -> None:
    ends = []
    for fused in (False, True):
        denoiser = random_denoiser(torch.float32).to(device).requires_grad_()
        optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3, fused=fused)
        x = (2 * IMAGES.float() - 1).to(device)
        for _ in range(5):
            optimizer.zero_grad()
            (denoiser(x, 0.7) - x[:, None]).square().mean().backward()
            optimizer.step()
        ends.append(torch.cat([weights.detach().flatten() for weights in denoiser.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
