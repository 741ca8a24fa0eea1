"""Training: objectives, batches, averages, and the commands with one process and with two."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from rdc import (
    AmortizedDiffusionClassifier,
    ClassifierConfig,
    Denoiser,
    OptimalDenoiser,
    RDCConfig,
    RobustDiffusionClassifier,
    UNetConfig,
)
from rdc.commands.main import main as rdc_command
from rdc.data import Dataset, load
from rdc.networks.image_classifier import ImageClassifier
from tests.support.denoisers import random_denoiser
from tests.support.launchers import printed, run, two
from tests.support.oracle import some_images, two_classes
from tests.support.tiny import NETWORK, tiny_denoiser
from training import batches
from training.batches import Batches, batch_rows, step_generator
from training.config import NetworkConfig, TrainConfig
from training.denoising import DenoiserTask, build_teacher
from training.ema import EMA
from training.objective import (
    NoisedBatch,
    Uncertainty,
    estimates,
    image_losses,
    lattice_sigmas,
    leave_data,
    some_classes,
    teacher_losses,
    weighted,
)
from training.objective_config import NoiseConfig, ObjectiveConfig
from training.train import main

DEFAULT = TrainConfig(out=Path("unused"))
TINY_FLAGS = [
    "--network.width", "8", "--network.width-multipliers", "1", "--batch-size", "16",
    "--steps", "4", "--warmup", "1", "--validate-every", "2", "--validation-images", "8",
    "--rdc.classifier.levels", "2",
]  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_lattice_covers_the_distribution_in_every_batch() -> None:
    """One draw of 400 levels has the quantiles of the log-normal to 1/400 each."""
    logs = lattice_sigmas(400, NoiseConfig(mean=-0.5, std=0.8), generator()).log().double()
    cdf = torch.special.ndtr((logs.sort().values + 0.5) / 0.8)
    steps = torch.arange(400, dtype=torch.float64) / 400
    assert ((cdf - steps) >= -1e-4).all() and ((cdf - steps) <= 1 / 400 + 1e-4).all()
    assert not torch.equal(logs, logs.sort().values)


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1))
def test_leaving_the_data_keeps_to_radius_and_box(radius: float) -> None:
    x = 2 * some_images(30, (1, 4, 4), dtype=torch.float32) - 1
    moved = leave_data(x, radius, generator())
    assert (moved - x).abs().max() <= radius + 1e-6
    assert moved.abs().max() <= 1


def test_image_loss_supervises_the_true_and_the_unconditional_head_alone() -> None:
    denoised = torch.randn(3, 5, 1, 2, 2, generator=generator()).requires_grad_()
    labels = torch.tensor([0, 2, 3])
    losses = image_losses(denoised, torch.zeros(3, 1, 2, 2), labels)
    (gradient,) = torch.autograd.grad(losses.sum(), denoised)
    supervised = gradient.flatten(2).any(2)
    expected = torch.zeros(3, 5, dtype=torch.bool)
    expected[torch.arange(3), labels] = expected[:, -1] = True
    assert torch.equal(supervised, expected)
    own = denoised[0, [0, 4]].square().mean()
    torch.testing.assert_close(losses[0], own)


def test_a_teacher_agrees_with_itself() -> None:
    teacher, x = two_classes(), some_images(3)
    sigma = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    answers = [teacher.denoise_classes(x, sigma), teacher.denoise(x, sigma)[:, None]]
    denoised = torch.cat(answers, dim=1)
    assert not teacher_losses(denoised, teacher, x, sigma).any()
    assert (teacher_losses(denoised + 0.1, teacher, x, sigma) - 0.01).abs().max() < 1e-9


def test_edm_weight_makes_an_ignorant_network_equally_bad_everywhere() -> None:
    """lambda(sigma) c_out(sigma)^2 = 1: the raw output's error counts alike at all levels."""
    sigma = torch.tensor([0.01, 0.5, 30.0])
    c_out = sigma * 0.7 / (sigma.square() + 0.49).sqrt()
    torch.testing.assert_close(weighted(c_out.square(), sigma, 0.7), torch.ones(3))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 5))
def test_every_epoch_is_a_permutation(count: int, batch_size: int, seed: int) -> None:
    """The rows of all steps are whole permutations one after another, for every batch size."""
    steps = -(-3 * count // batch_size)
    rows = torch.cat([batch_rows(seed, step, batch_size, count) for step in range(steps)])
    for epoch in rows[: 3 * count].view(3, count):
        assert epoch.sort().values.tolist() == list(range(count))


def test_steps_have_their_own_randomness() -> None:
    device = torch.device("cpu")
    draws = {
        torch.rand(1, generator=step_generator(seed, step, device)).item()
        for seed in range(3)
        for step in range(3)
    }
    assert len(draws) == 9
    assert not torch.equal(batch_rows(0, 0, 50, 50), batch_rows(0, 1, 50, 50))


def test_averages_have_their_half_lives() -> None:
    """The average of weights that jump from 0 to 1 is 1/2 after one half-life."""
    module = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(module.weight)
    ema = EMA(module, (1000.0, 500.0), ramp=1.0)
    torch.nn.init.ones_(module.weight)
    for step in range(100):
        ema.update(images_seen=10**6 + step * 10, batch_size=10)
    assert [float(track[0]) for track in ema.tracks] == pytest.approx([0.5, 0.75])


def test_young_averages_are_short() -> None:
    module = torch.nn.Linear(1, 1)
    ema = EMA(module, (1e9,))
    torch.nn.init.constant_(module.weight, 3.0)
    for step in range(1, 50):
        ema.update(images_seen=step * 10, batch_size=10)
    assert float(ema.tracks[0][0]) == pytest.approx(3.0, abs=1e-3)


def test_averages_follow_running_statistics_and_copy_counters() -> None:
    module = torch.nn.BatchNorm1d(2)
    ema, shown = EMA(module, (0.0,)), torch.nn.BatchNorm1d(2)
    module(torch.randn(20, 2, generator=generator()) + 5)
    ema.update(images_seen=20, batch_size=20)
    ema.copy_to(shown, 0)
    assert torch.equal(torch.as_tensor(shown.running_mean), torch.as_tensor(module.running_mean))
    assert torch.as_tensor(shown.running_mean).min() > 0.3
    assert int(torch.as_tensor(shown.num_batches_tracked)) == 1


@pytest.mark.slow
def test_uncertainty_finds_the_expected_loss() -> None:
    """loss / exp(u) + u is least where exp(u) is the mean loss of the level."""
    torch.manual_seed(0)
    uncertainty = Uncertainty()
    sigma = torch.logspace(-1, 1, 50)
    loss = 0.2 + sigma
    optimizer = torch.optim.Adam(uncertainty.parameters(), lr=0.03)
    assert not uncertainty(sigma).any()
    for _ in range(1500):
        u = uncertainty(sigma)
        optimizer.zero_grad()
        (loss / u.exp() + u).mean().backward()
        optimizer.step()
    torch.testing.assert_close(uncertainty(sigma).exp().detach(), loss, rtol=0.05, atol=0)


def test_some_classes_hold_the_own_class_and_different_others() -> None:
    labels = torch.arange(200) % 7
    classes = some_classes(labels, 3, 7, generator())
    assert classes.shape == (200, 3) and torch.equal(classes[:, 0], labels)
    assert all(len(set(row)) == 3 for row in classes.tolist())
    assert classes[:, 1:].unique().tolist() == list(range(7))


@pytest.mark.parametrize("conditioning", ["label", "multihead", "classifier"])
def test_teacher_of_some_classes_is_the_teacher_of_all_restricted(conditioning: str) -> None:
    teacher = tiny_denoiser(replace(NETWORK, conditioning=conditioning))
    noised = torch.randn(4, 1, 8, 8, generator=generator())
    sigma = torch.rand(4, generator=generator()) + 0.5
    classes = torch.tensor([[0, 2], [1, 0], [2, 1], [1, 2]])
    all_of_them = teacher.denoise_classes(noised, sigma)
    expected = all_of_them[torch.arange(4)[:, None], classes]
    torch.testing.assert_close(estimates(teacher, noised, sigma, classes), expected)
    student = torch.cat([all_of_them, teacher.denoise(noised, sigma)[:, None]], dim=1)
    assert teacher_losses(student, teacher, noised, sigma, classes).max() < 1e-10
    student[torch.arange(4), 3 - classes.sum(1)] += 1  # the class that is not asked for
    assert teacher_losses(student, teacher, noised, sigma, classes).max() < 1e-10


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 4), st.integers(1, 3))
def test_parts_of_a_batch_are_the_batch(size: int, plain: int, processes: int, parts: int) -> None:
    """Every row is in one part, on the same side of `plain`, with its own labels."""
    plain, place = min(plain, size), torch.arange(size)
    batch = NoisedBatch(place, place, place, place, plain, place[:, None], None)
    seen = []
    for first in range(processes * parts):
        part = batch.part(slice(first, None, processes * parts))
        assert (part.x[: part.plain] < plain).all() and (part.x[part.plain :] >= plain).all()
        seen += part.x.tolist()
    assert sorted(seen) == list(range(size))


def test_images_that_do_not_fit_the_device_are_gathered_ahead(monkeypatch) -> None:
    data = load("digits", "validation")
    resident = Batches(data, 32, 0, torch.device("cpu"))
    monkeypatch.setattr(batches, "fits", lambda *_: False)
    streamed = Batches(data, 32, 0, torch.device("cpu"))
    assert resident.resident and not streamed.resident
    for step in (0, 1, 2, 7, 8):
        for a, b in zip(resident(step), streamed(step), strict=True):
            assert torch.equal(a, b)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="off_data=2"):
        ObjectiveConfig(off_data=2)
    for std in (0, -1):
        with pytest.raises(ValueError, match=f"std={std} must be positive"):
            NoiseConfig(std=std)
    with pytest.raises(ValueError, match=r"mean=9 must be 3 std or more from -11.51 and 11.51"):
        NoiseConfig(mean=9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "optimal", "network": replace(DEFAULT.network, conditioning="label")},
         "--teacher needs"),
        ({"teacher": "optimal", "augment": "geometry"}, "--augment geometry"),
        ({"geometry_probability": 2.0}, "--geometry-probability 2.0"),
        ({"network": NetworkConfig(augment_features=3)}, "--network.augment-features 3"),
        ({"objective": ObjectiveConfig(teacher_classes=11), "network": UNetConfig(),
          "teacher": "optimal"}, "--objective.teacher-classes 11 must be at most"),
        ({"network": NetworkConfig(conditioning="none")}, "--network.conditioning none"),
        ({"rdc": RDCConfig(ClassifierConfig(estimator="posterior"))},
         "--rdc.classifier.estimator posterior needs"),
        ({"weight_decay": -1.0}, "--weight-decay -1.0 must be at least 0"),
        ({"seed": -1}, "--seed -1 must be at least 0"),
        ({"seed": 2**64}, "--seed 18446744073709551616 must be at most"),
        ({"ema_half_lives": (math.nan,)}, "--ema-half-lives"),
        ({"channels": 1}, "--channels 1 needs --resize"),
        ({"teacher": "optimal", "objective": ObjectiveConfig(image_share=1.0)},
         "--objective.image-share 1.0 leaves nothing"),
        ({"objective": ObjectiveConfig(off_data=0.2)}, "--objective.off-data 0.2 needs --teacher"),
        ({"objective": ObjectiveConfig(teacher_classes=2)},
         "--objective.teacher-classes 2 needs --teacher"),
        ({"objective": ObjectiveConfig(label_dropout=0.7), "geometry_probability": 0.9},
         "--objective.label-dropout, --geometry-probability: not used with"),
        ({"objective": ObjectiveConfig(class_noise=NoiseConfig(mean=0.1))},
         "--objective.class-noise: not used with"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(DEFAULT, **changes)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (UNetConfig(), "--network.image-size 32, but digits has 8"),
        (replace(DEFAULT.network, num_classes=7), "--network.num-classes 7"),
    ],
)
def test_networks_that_do_not_fit_the_data_are_refused(
    network: UNetConfig, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        main(replace(DEFAULT, out=tmp_path, network=network))


def test_a_teacher_of_other_images_is_refused(tmp_path: Path) -> None:
    random_denoiser(torch.float32).save_pretrained(tmp_path)
    config = replace(DEFAULT, teacher=str(tmp_path))
    with pytest.raises(ValueError, match=r"--teacher .* 3 classes"):
        build_teacher(config, load("digits", "validation"), torch.device("cpu"))


def test_a_teacher_of_the_classes_in_another_order_is_refused(tmp_path: Path) -> None:
    tiny_denoiser(classes=("one", "zero", "two")).save_pretrained(tmp_path)
    data = Dataset.of(torch.zeros(3, 1, 8, 8), [0, 1, 2], ("zero", "one", "two"))
    config = replace(DEFAULT, teacher=str(tmp_path))
    with pytest.raises(ValueError, match=r"--teacher .* in the order \('one', 'zero', 'two'\)"):
        build_teacher(config, data, torch.device("cpu"))


def run_record(out: Path) -> dict:
    return json.loads((out / "training.json").read_text())


@pytest.mark.slow
def test_one_and_two_processes_train_the_same_network(tmp_path: Path) -> None:
    """Plain and distilled rows, one process under accelerate and two as torchrun starts them."""
    one, pair = tmp_path / "one", tmp_path / "two"
    flags = [*TINY_FLAGS, "--teacher", "optimal", "--objective.off-data", "0.2"]
    with two(tmp_path / "printed", "training.train", *flags, "--out", pair) as children:
        launcher = ["--cpu", "--num_processes", "1", "-m", "training.train", *flags, "--out", one]
        assert run(tmp_path / "launcher", "accelerate.commands.launch", *launcher) == 0
    assert [child.exitcode for child in children] == [0, 0], printed(tmp_path / "printed" / "0")
    first, second = run_record(one), run_record(pair)
    assert (first["processes"], second["processes"]) == (1, 2)
    for a, b in zip(first["history"], second["history"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    weights, others = (load_file(out / "model.safetensors") for out in (one, pair))
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-3, atol=1e-4)
    assert first["data_fingerprint"] == second["data_fingerprint"]
    assert Denoiser.from_pretrained(one).config.class_names == tuple("0123456789")


@pytest.mark.slow
def test_two_processes_measure_one_network(tmp_path: Path) -> None:
    """Each has running statistics of its own images; those of the main process are saved."""
    out = tmp_path / "run"
    flags = ["--architecture", "cnn-2", "--batch-size", "16", "--steps", "4", "--validate-every",
             "2", "--validation-images", "8"]  # fmt: skip
    module = "tests.support.measured_statistics"
    with two(tmp_path / "printed", module, *flags, "--out", out) as children:
        pass
    assert [child.exitcode for child in children] == [0, 0], printed(tmp_path / "printed" / "0")
    record = run_record(out)
    assert [each["apart"] for each in (record, *record["history"])] == [0.0, 0.0, 0.0]


@pytest.mark.slow
def test_label_conditional_network_trains(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = [*TINY_FLAGS, "--network.conditioning", "label"]
    assert rdc_command(["train", *flags, "--out", str(out)]) == 0
    losses = [entry["loss"] for entry in run_record(out)["history"]]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
    assert not Denoiser.from_pretrained(out).multihead


@pytest.mark.slow
def test_cnn_trains(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert rdc_command(["train-classifier", "--steps", "60", "--out", str(out)]) == 0
    assert run_record(out)["validation_accuracy"] > 0.8
    assert ImageClassifier.from_pretrained(out).config.class_names == tuple("0123456789")


@pytest.mark.parametrize(("answers", "expected"), [(0.0, 1e6), (1e-12, 1e-6)])
def test_fitted_temperatures_are_possible_ones(tmp_path: Path, answers, expected) -> None:
    """Equal logits have no best temperature; almost equal ones that are right have a tiny one."""
    flags = ["--out", str(tmp_path), *TINY_FLAGS, "--rdc.classifier.temperature"]
    config = tyro.cli(TrainConfig, args=[*flags, "10" if answers == 0 else "0.001"])
    task = DenoiserTask(config, load("digits", "validation"), torch.device("cpu"))
    labels = torch.arange(10)
    task.save(task.averaged, tmp_path, answers * torch.eye(10), labels)
    saved = RobustDiffusionClassifier.from_pretrained(tmp_path)
    assert saved.config.classifier.temperature == expected


def test_a_denoiser_that_makes_images_noisier_is_reported(tmp_path: Path) -> None:
    """Digits, and images that are noise."""
    data = load("digits", "validation")
    config = tyro.cli(TrainConfig, args=["--out", str(tmp_path), *TINY_FLAGS])
    task = DenoiserTask(config, data, torch.device("cpu"))
    assert task.warnings(Denoiser.from_pretrained("digits"), data) == []
    noise = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    (warning,) = task.warnings(OptimalDenoiser(noise, torch.arange(10)), data)  # type: ignore[arg-type]
    assert warning.startswith("DiffPure with 20 steps: purified images are noisier")


CLASSIFIER_FLAGS = [
    "--network.conditioning", "classifier", "--network.patch", "2", "--augment", "flip-shift",
    "--objective.image-share", "0.25", "--rdc.classifier.estimator", "posterior",
]  # fmt: skip


def test_a_classifier_of_noised_images_learns_beside_the_denoiser(tmp_path: Path) -> None:
    """A quarter of the rows denoise at their own noise levels, the others learn the class."""
    config = tyro.cli(TrainConfig, args=["--out", str(tmp_path), *TINY_FLAGS, *CLASSIFIER_FLAGS])
    task = DenoiserTask(config, load("digits", "train"), torch.device("cpu"))
    batch = task.batch(0)
    assert batch.plain == 4 and len(batch.x) == 16
    part = batch.part(slice(1, None, 2))
    denoised, logits, _ = task.module(part)
    assert denoised.shape == (2, 1, 8, 8) and logits is not None and logits.shape == (6, 10)
    losses = task.losses(task.module, batch, slice(1, None, 2))
    assert losses.shape == (8,)
    expected = torch.nn.functional.cross_entropy(logits, part.labels[2:], reduction="none")
    torch.testing.assert_close(losses[2:], expected)
    losses.mean().backward()
    assert all(p.grad is not None for p in task.module.parameters())
    task.save(task.averaged, tmp_path, None, batch.labels)
    saved = RobustDiffusionClassifier.from_pretrained(tmp_path)
    assert isinstance(saved.classifier, AmortizedDiffusionClassifier)
    assert saved(some_images(1, (1, 8, 8), dtype=torch.float32)).shape == (1, 10)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.999, 1.0])
def test_a_classifier_needs_rows_of_both_kinds(share: float) -> None:
    network = replace(DEFAULT.network, conditioning="classifier")
    objective = ObjectiveConfig(image_share=share)
    with pytest.raises(ValueError, match=r"--objective\.image-share"):
        TrainConfig(out=Path("unused"), network=network, objective=objective)
