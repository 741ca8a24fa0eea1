"""Calibration: the candidates, and their measurement for both estimators."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rdc import ClassifierConfig, MaximizationConfig
from rdc.classifier import build_classifier
from rdc.data import Dataset, load
from rdc.runs.exclusive import exclusive
from tests.support.oracle import some_images
from tests.support.tiny import NETWORK, tiny_denoiser, tiny_rdc
from training.calibration import Calibration, classifiers, main, maximizations
from training.config import CalibrationConfig

CONFIG = CalibrationConfig(
    model="x", out=Path("x"), levels=(2, 3), sigma_min=(0.5, 0.7), sigma_max=(2.0,), attacked=4,
    steps=2, batch_size=4,
)  # fmt: skip
GIVEN = ClassifierConfig(levels=9, draws=5)


def test_candidates_are_all_combinations() -> None:
    """A posterior reads one noise level; what is not listed stays as the model has it."""
    losses = classifiers(CONFIG, GIVEN)
    assert {(c.levels, c.sigma_min, c.sigma_max) for c in losses} == {
        (2, 0.5, 2.0), (2, 0.7, 2.0), (3, 0.5, 2.0), (3, 0.7, 2.0),
    }  # fmt: skip
    assert {(c.draws, c.estimator) for c in losses} == {(5, "losses")}
    posteriors = classifiers(replace(CONFIG, draws=(1, 8)), replace(GIVEN, estimator="posterior"))
    assert [(c.draws, c.sigma_min) for c in posteriors] == [(1, 0.5), (1, 0.7), (8, 0.5), (8, 0.7)]
    assert {(c.levels, c.estimator) for c in posteriors} == {(9, "posterior")}
    both = classifiers(replace(CONFIG, estimator=("losses", "posterior")), GIVEN)
    assert len(both) == len(set(both)) == 6


def test_maximizations_may_be_left_out() -> None:
    given = MaximizationConfig()
    assert maximizations(replace(CONFIG, maximization_steps=()), given) == []
    assert len(maximizations(CONFIG, given)) == 3 * 2


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["losses", "posterior"])
def test_both_estimators_are_measured(estimator, capsys) -> None:
    """The figures are shares of the images, and a temperature; the weights are random.

    One candidate can take an hour: its batches are counted.
    """
    network = replace(NETWORK, num_classes=10, conditioning="classifier")
    denoiser = tiny_denoiser(network, classes="0123456789")
    data = load("digits", "validation").subset(slice(8))
    candidate = ClassifierConfig(levels=2, sigma_min=0.5, estimator=estimator)
    figures = Calibration(CONFIG, denoiser, data).classifier(candidate)
    assert 0 <= figures.robust <= 1 and figures.clean * 8 == round(figures.clean * 8)
    assert figures.temperature > 0
    shown = capsys.readouterr().err
    assert "clean images:" in shown and "attacks:" in shown


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_certain_answers_are_attacked_like_uncertain_ones(scale: float) -> None:
    """A softmax that is saturated has no gradient, which must not pass for robustness."""
    linear = torch.nn.Linear(64, 2)
    with torch.no_grad():  # is an image brighter than 0.5?
        linear.weight[:] = scale * torch.tensor([[-1.0], [1.0]])
        linear.bias[:] = scale * 32 * torch.tensor([1.0, -1.0])
    model = torch.nn.Sequential(torch.nn.Flatten(), linear)
    images, labels = torch.full((2, 1, 8, 8), 0.45), torch.zeros(2, dtype=torch.long)
    data = Dataset(images, labels, ("dark", "bright"), peak=1)
    calibration = Calibration(replace(CONFIG, eps=0.1, steps=5), tiny_denoiser(), data)
    assert calibration.right(model, images, labels).all()
    assert calibration.robust(model, [model]) == 0


def test_an_image_is_attacked_alike_in_batches_of_any_size(monkeypatch) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    data = load("digits", "validation").subset(slice(4))
    seen: list[Tensor] = []
    monkeypatch.setattr(
        Calibration, "right", lambda _, __, images, labels: seen.append(images) or labels >= 0
    )

    def attacked(batch_size: int) -> Tensor:
        seen.clear()
        config = replace(CONFIG, batch_size=batch_size, steps=1)
        assert Calibration(config, tiny_denoiser(), data).robust(model, [model]) == 1
        return torch.cat(seen[1::2])  # before and after the attack, in turns

    torch.testing.assert_close(attacked(1), attacked(4))


def written(folder: Path) -> CalibrationConfig:
    """A model, and data with its classes in another order and its own answers as labels."""
    model, images = tiny_rdc(), some_images(12, (1, 8, 8), dtype=torch.float32)
    candidate = replace(model.config.classifier, levels=2, sigma_min=0.5, sigma_max=2.0)
    labels = build_classifier(model.denoiser, candidate)(images).argmax(1)
    assert len(labels.unique()) > 1
    model.save_pretrained(folder / "model")
    names = model.denoiser.class_names[::-1]
    pixels, numbers = images[:, 0].numpy(), (2 - labels).numpy()
    np.savez(folder / "data.npz", val_images=pixels, val_labels=numbers, class_names=names)
    return replace(
        CONFIG, model=str(folder / "model"), out=folder / "out", data=str(folder / "data.npz"),
        levels=(2,), sigma_min=(0.5,), attacked=1, steps=1,
    )  # fmt: skip


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    config = replace(written(tmp_path), maximization_steps=())
    main(config)
    record = json.loads((config.out / "calibration.json").read_text())
    assert [each["clean"] for each in record["candidates"]] == [1.0, 1.0]


@pytest.mark.slow
def test_a_killed_calibration_continues(tmp_path: Path, monkeypatch) -> None:
    """No candidate is measured twice, and the result is the same."""
    config = replace(written(tmp_path), maximization_steps=(1,), budget=(0.1, 0.2))
    main(replace(config, out=tmp_path / "whole"))
    measure, calls = Calibration.rdc, []

    def killed(self, candidate):
        calls.append(candidate)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, candidate)

    monkeypatch.setattr(Calibration, "rdc", killed)
    with pytest.raises(KeyboardInterrupt):
        main(config)
    monkeypatch.setattr(Calibration, "classifier", lambda *_: pytest.fail("it was measured"))
    main(config)
    assert len(calls) == 2 * 2 + 1 and len(set(calls)) == 2 * 2
    records = [
        json.loads((folder / "calibration.json").read_text())
        for folder in (tmp_path / "whole", config.out)
    ]
    assert records[0]["candidates"] == records[1]["candidates"]
    assert records[0]["chosen"] == records[1]["chosen"]
    monkeypatch.setattr("rdc.runs.provenance.commit", lambda: "another")
    main(config)  # of which all is measured: still a result of the commit that measured it
    again = json.loads((config.out / "calibration.json").read_text())
    assert again == records[1] and again["commit"] != "another"
    with pytest.raises(ValueError, match="--attacked: 1 -> 2"):
        main(replace(config, attacked=2))


def test_a_second_start_in_the_folder_is_refused(tmp_path: Path) -> None:
    config = written(tmp_path)
    with exclusive(config.out), pytest.raises(ValueError, match="in use by another start"):
        main(config)
    assert list(config.out.iterdir()) == []


def test_another_models_folder_is_refused_and_kept(tmp_path: Path) -> None:
    config = written(tmp_path)
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    with pytest.raises(ValueError, match=r"holds files but no measured/settings\.json"):
        main(replace(config, out=tmp_path / "model"))
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == before


def test_impossible_maximizations_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(Calibration, "classifier", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(ValueError, match=r"budget=2.0 must be in \(0, 1\]"):
        main(replace(written(tmp_path), budget=(2.0,)))


def test_a_posterior_needs_a_classifier_before_anything_is_measured(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(Calibration, "classifier", lambda *_: pytest.fail("it was measured"))
    config = replace(written(tmp_path), estimator=("losses", "posterior"))
    with pytest.raises(ValueError, match=r"--estimator posterior: .* no classifier"):
        main(config)
    assert list(config.out.iterdir()) == []


def test_the_budget_of_the_attack_is_a_possible_one() -> None:
    for eps in (-0.1, 8.0, float("nan")):
        with pytest.raises(ValueError, match=f"--eps {eps} must be in"):
            replace(CONFIG, eps=eps)


@pytest.mark.parametrize("name", ["images", "attacked", "steps", "batch_size"])
def test_counts_must_be_positive(name: str) -> None:
    changes: dict = {name: 0}
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} 0 must be at least 1"):
        replace(CONFIG, **changes)


def test_candidates_need_values() -> None:
    with pytest.raises(ValueError, match="--levels needs at least one value"):
        replace(CONFIG, levels=())
