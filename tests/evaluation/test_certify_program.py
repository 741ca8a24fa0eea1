"""`python -m evaluation.certify` on packaged digits, and the classifiers made for noisy images."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

from evaluation import certify
from evaluation.certification import program
from evaluation.certification.classifiers import apndc, epndc
from evaluation.certification.config import CertifyConfig
from evaluation.certification.program import SUMMARY, main
from evaluation.certification.smoothed import SmoothedClassifier
from evaluation.defense_config import DefenseConfig
from evaluation.defenses import build, build_base, networks
from purification import OneShotDenoiser
from rdc import (
    AmortizedDiffusionClassifier,
    ClassifierConfig,
    Defense,
    DiffusionClassifier,
    ImageClassifier,
    NoisedDenoiser,
    OptimalDenoiser,
    RDCConfig,
    RobustDiffusionClassifier,
)
from rdc.data import Dataset, load
from rdc.images import to_pixels, to_x
from rdc.networks.image_classifier import ImageClassifierConfig
from rdc.runs.exclusive import exclusive
from rdc.runs.fingerprints import data_fingerprint
from tests.support.oracle import some_images
from tests.support.tiny import tiny_rdc

DIGITS = load("digits", "test").subset(slice(2))
CNN = DefenseConfig("classifier")


def options(out: Path, **changes) -> CertifyConfig:
    config = CertifyConfig(out=out, sigma=0.1, defense=CNN, images=2, samples=60, radii=(0.0, 0.05))
    return replace(config, **changes)


def test_program_writes_the_table_and_continues(tmp_path, capsys, monkeypatch):
    main(options(tmp_path))
    printed = capsys.readouterr().out
    assert "2 images, at most 80 noisy copies of each" in printed
    found = json.loads((tmp_path / SUMMARY).read_text())
    assert [row["radius"] for row in found["rows"]] == [0, 0.05]
    assert found["rows"][0]["certified_accuracy"] == 1
    assert found["table"] in printed and "| certified % [95 %]" in printed
    assert found["config"]["defense"]["kind"] == "classifier" and found["images"] == 2
    records = (tmp_path / "records-000.jsonl").read_text()
    monkeypatch.setattr("rdc.runs.provenance.commit", lambda: "another")
    main(options(tmp_path))
    assert (tmp_path / "records-000.jsonl").read_text() == records
    # Nothing was measured: it stays a result of the commit that measured it.
    assert json.loads((tmp_path / SUMMARY).read_text())["commit"] == found["commit"] != "another"
    with pytest.raises(ValueError, match=r"--defense\.classifier: 'digits-cnn' -> 'digits-trades'"):
        main(options(tmp_path, defense=DefenseConfig("classifier", classifier="digits-trades")))


def test_images_of_another_size_are_resized_where_asked(tmp_path, capsys):
    names = tuple(map(str, range(10)))
    model = ImageClassifier(ImageClassifierConfig("cnn-4", 16, 1, 10, class_names=names))
    model.save_pretrained(tmp_path / "model")
    large = DefenseConfig("classifier", classifier=str(tmp_path / "model"))
    main(options(tmp_path / "out", defense=large, resize=True))
    assert "converted to 1x16x16" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"takes images .* \(1, 16, 16\), but those of --data dig"):
        main(options(tmp_path / "other", defense=large))


def test_another_start_in_the_same_folder_is_refused(tmp_path):
    with exclusive(tmp_path), pytest.raises(ValueError, match="in use by another start"):
        main(options(tmp_path))


def test_a_folder_is_refused_for_other_settings_of_the_model(tmp_path):
    model = tiny_rdc()
    model.save_pretrained(tmp_path / "model")
    pixels = to_pixels(some_images(2, (1, 8, 8))).clamp(0, 1)[:, 0].numpy()
    names = model.denoiser.class_names
    np.savez(tmp_path / "data.npz", test_images=pixels, test_labels=[0, 1], class_names=names)
    config = options(
        tmp_path / "out", defense=DefenseConfig("diffusion", model=str(tmp_path / "model")),
        data=str(tmp_path / "data.npz"),
    )  # fmt: skip
    main(config)
    other = replace(model.config, classifier=replace(model.config.classifier, levels=3))
    RobustDiffusionClassifier(model.denoiser, other).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"rdc\.json of .*: its content has changed"):
        main(config)


def test_data_of_another_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--defense.kind classifier takes images .* \(1, 8, 8\)"):
        main(options(tmp_path, data="cifar10-samples"))


def test_labels_are_matched_by_the_names_of_the_classes(tmp_path, monkeypatch):
    """The data has the classes of the model in another order."""
    names = tuple(f"digit {i}" for i in range(10))
    network = ImageClassifier.from_pretrained("digits-cnn")
    network.config = replace(network.config, class_names=names)
    turned = Dataset(DIGITS.pixels, 9 - DIGITS.labels, names[::-1], DIGITS.peak)
    monkeypatch.setattr(program, "build_base", lambda *_, **__: network)
    monkeypatch.setattr(program, "load", lambda *_, **__: turned)
    main(options(tmp_path))
    found = json.loads((tmp_path / SUMMARY).read_text())
    assert found["rows"][0]["certified_accuracy"] == 1
    given = turned.subset(slice(found["images"]))
    assert found["data_fingerprint"] == data_fingerprint(given)


def test_command_line():
    config = tyro.cli(
        CertifyConfig,
        args=["--out", "x", "--sigma", "0.25", "--method", "fixed", "--defense.kind", "apndc",
              "--radii", "0", "0.25"],
    )  # fmt: skip
    assert (config.sigma, config.method, config.radii) == (0.25, "fixed", (0, 0.25))
    assert config.defense.kind == "apndc"
    with pytest.raises(ValueError, match="max_rows=0 must be at least 1"):
        options(Path("x"), max_rows=0)


@pytest.mark.slow
def test_the_program_can_be_started():
    run = [sys.executable, "-W", "error::RuntimeWarning", "-m", "evaluation.certify", "--help"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert "--sigma" in done.stdout and "RuntimeWarning" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["epndc", "apndc", "denoised"])
def test_noised_kinds_are_built_for_their_noise(kind):
    config = DefenseConfig(kind, sigma=0.25)
    base, smoothed = build_base(config, data="digits"), build(config, data="digits")
    if kind != "epndc":
        assert isinstance(base, Defense) and isinstance(base.purifier, OneShotDenoiser)
        assert base.purifier.sigma == 0.25
    assert isinstance(smoothed, SmoothedClassifier)
    assert (smoothed.sigma, smoothed.samples, smoothed.noise.mode) == (0.25, 32, "frozen")
    noisy = DIGITS.images + 0.25 * torch.randn(
        DIGITS.images.shape, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(base(noisy).argmax(1), DIGITS.labels)
    assert networks(config) == (["digits", "digits-cnn"] if kind == "denoised" else ["digits"])
    with pytest.raises(ValueError, match="give the smoothing noise"):
        build(DefenseConfig(kind), data="digits")
    with pytest.raises(ValueError, match="is not below the classifier's largest level, 3"):
        build_base(DefenseConfig(kind, sigma=1.5), data="digits")


def test_apndc_is_the_classifier_of_the_denoised_image():
    rdc = RobustDiffusionClassifier.from_pretrained("digits")
    model = apndc(rdc, sigma=0.25)
    noisy = DIGITS.images + 0.2
    denoised = to_pixels(rdc.denoiser.denoise(to_x(noisy), 0.5))
    assert isinstance(model.classifier, DiffusionClassifier)
    levels = model.classifier.levels
    assert (levels.low, levels.high, len(levels)) == (0.5, 3.0, 12)
    assert torch.equal(model(noisy), model.classifier(denoised))


def test_epndc_is_the_classifier_on_the_noised_denoiser():
    model = epndc(RobustDiffusionClassifier.from_pretrained("digits"), sigma=0.25)
    assert isinstance(model, DiffusionClassifier)
    assert isinstance(model.denoiser, NoisedDenoiser) and model.denoiser.tau == 0.5
    assert model.config.antithetic and model.config.draws == 2
    assert (model.levels.low, model.levels.high, len(model.levels)) == (0.125, 3.0, 12)


def test_noised_kinds_of_an_amortized_classifier_are_posteriors_at_the_noise():
    """log p_tau(y | x) of an exact denoiser, tau = 0.5, at the noisy and at the denoised image."""
    x = to_x(some_images(12, seed=7))
    denoiser = OptimalDenoiser(x, torch.arange(12) % 3, bandwidth=0.2)
    posterior = ClassifierConfig(estimator="posterior", draws=4, temperature=2.0)
    rdc = RobustDiffusionClassifier(denoiser, RDCConfig(posterior))
    images = some_images(3)
    exact = epndc(rdc, sigma=0.25)
    torch.testing.assert_close(
        exact(images), denoiser.class_log_posterior(to_x(images), 0.5) / 2, rtol=1e-4, atol=1e-4
    )
    model = apndc(rdc, sigma=0.25)
    assert isinstance(model.classifier, AmortizedDiffusionClassifier)
    assert (model.classifier.config.sigma_min, model.classifier.config.draws) == (0.5, 4)
    denoised = to_pixels(denoiser.denoise(to_x(images), 0.5))
    assert torch.equal(model(images), model.classifier(denoised))


def test_certificates_of_epndc_stay_below_the_true_radius_of_a_gaussian_mixture():
    """Two Gaussians N(+-m, s^2): smoothed or not, the boundary is halfway, and so is the radius."""
    means = torch.tensor([-0.3, 0.3]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    denoiser = OptimalDenoiser(means, torch.tensor([0, 1]), bandwidth=0.2)
    config = ClassifierConfig(levels=2, sigma_min=0.125, sigma_max=3.0, draws=2, antithetic=True)
    sigma = 0.25
    model = DiffusionClassifier(NoisedDenoiser(denoiser, 2 * sigma), config)
    distances = [0.2, 0.4, 0.6]
    images = (0.5 + torch.tensor(distances) / 2).view(3, 1, 1, 1).expand(3, 1, 2, 2).contiguous()
    found = certify(
        model, images, torch.ones(3).long(), sigma=sigma, method="fixed", samples=2000, max_rows=500
    )
    for each, true in zip(found.certificates, distances, strict=True):
        assert each.selected == 1 and each.radius is not None
        assert 0.8 * true < each.radius <= true
