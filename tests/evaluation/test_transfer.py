"""Models on which images for a transfer attack are made."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evaluation.config import EvaluateConfig
from evaluation.defense_config import DefenseConfig
from evaluation.defenses import hashes, transfer_source
from evaluation.evaluate import options
from evaluation.gradient_modes import noises
from evaluation.runner import Runner
from evaluation.suite_config import SuiteConfig
from evaluation.suites import suite
from evaluation.target import target_of
from rdc import Defense, ImageClassifier
from rdc.networks.image_classifier import ImageClassifierConfig

PURIFIED = DefenseConfig(kind="diffpure", t_star=0.1, steps=2)


def test_another_purifier_or_another_denoiser_on_the_same_networks() -> None:
    assert transfer_source(PURIFIED, "digits-cnn") is None
    assert transfer_source(PURIFIED, "a/hub-id") is None
    assert transfer_source(PURIFIED, "gdmp") == replace(PURIFIED, kind="gdmp", seed=1)
    other = transfer_source(PURIFIED, "diffpure:other")
    assert other == replace(PURIFIED, model="other", seed=1)
    rdc = transfer_source(replace(PURIFIED, copies=4), "diffusion")
    assert rdc == DefenseConfig(kind="diffusion", seed=1)  # it has no purifier's settings
    assert "weights of digits" in hashes(PURIFIED, "gdmp", data="digits")


def test_a_purifier_is_attacked_in_place_of_the_defense(tmp_path) -> None:
    """The purifier's noise has another seed than the defense's."""
    config = EvaluateConfig(
        out=tmp_path, defense=PURIFIED, transfer="gdmp", images=2,
        suite=SuiteConfig(steps=1, queries=2, eot_samples=2),
    )  # fmt: skip
    target = target_of(config, torch.device("cpu"))
    assert isinstance(target.transfer, Defense)
    seeds = [{noise.seed for noise in noises(model)} for model in (target.model, target.transfer)]
    assert seeds == [{0}, {1}]
    sizes = config.suite.sizes("adaptive")
    names = suite(target.model, "linf", sizes, transfer=target.transfer)
    assert {"transfer/apgd-margin", "mean/transfer/apgd-margin"} <= set(names)


def test_a_model_that_no_attack_would_use_is_refused(tmp_path) -> None:
    config = EvaluateConfig(
        out=tmp_path, attack="standard", defense=DefenseConfig("classifier"),
        transfer="digits-trades", images=2,
    )  # fmt: skip
    target = target_of(config, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"--transfer.* makes no transfer attack"):
        Runner(target, options(config))


@pytest.mark.parametrize("strengths", [(6.0,), (0.1,), (1.0, 2.5)])
def test_corruptions_have_five_strengths(tmp_path, strengths) -> None:
    with pytest.raises(ValueError, match="strengths of corruptions are 1 to 5"):
        EvaluateConfig(out=tmp_path, norm="corruption", eps=strengths)


def test_a_default_transfer_model_for_other_images_is_left_out_and_said(tmp_path: Path) -> None:
    names = tuple(map(str, range(10)))
    model = ImageClassifier(ImageClassifierConfig("cnn-4", 16, 1, 10, class_names=names))
    model.save_pretrained(tmp_path / "large")
    config = EvaluateConfig(
        out=tmp_path, defense=DefenseConfig("classifier", classifier=str(tmp_path / "large")),
        images=2, resize=True,
    )  # fmt: skip
    target = target_of(config, torch.device("cpu"))
    assert target.transfer is None and target.settings["transfer"] is None
    assert any("no transfer attack: digits-cnn takes" in note for note in target.data.notes)
    with pytest.raises(ValueError, match=r"--transfer digits-cnn takes images"):
        target_of(replace(config, transfer="digits-cnn"), torch.device("cpu"))


def test_the_number_of_images_is_that_of_the_split(tmp_path: Path) -> None:
    config = EvaluateConfig(out=tmp_path, images=10_000)
    assert target_of(config, torch.device("cpu")).settings["images"] == 500
