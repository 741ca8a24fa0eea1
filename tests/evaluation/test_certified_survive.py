"""Certificates against attacks: what is certified at r is not broken within r."""

import pytest
import torch

from evaluation import certify
from evaluation.certification import SmoothedClassifier
from evaluation.defense_config import DefenseConfig
from evaluation.defenses import build, build_base
from evaluation.suite_config import Sizes
from evaluation.suites import run, suite
from rdc import ImageClassifier
from rdc.data import load

SIGMA = 0.25
DIGITS = load("digits", "test").subset(slice(4))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "denoised"])
def test_certified_digits_survive_every_attack_of_the_suite(kind):
    radius = 0.8 * SIGMA
    config = DefenseConfig(kind, sigma=SIGMA, noisy_copies=4)
    base = build_base(config, data="digits").eval()
    found = certify(base, DIGITS.images, DIGITS.labels, sigma=SIGMA, radii=(radius,), samples=400)
    rows = [each.image for each in found.certificates if each.certified(radius)]
    assert len(rows) >= 3
    images, labels = DIGITS.images[rows], DIGITS.labels[rows]

    attacked_model = build(config, data="digits").eval()  # g with frozen noise, which attacks know
    judge = SmoothedClassifier(base, sigma=SIGMA, samples=40)
    assert judge.predict(images) == labels.tolist()
    entries = suite(
        attacked_model, "l2", Sizes(steps=3, targets=1, queries=20, eot_samples=2),
        transfer=ImageClassifier.from_pretrained("digits-trades"),
    )  # fmt: skip
    assert {"exact/apgd-margin", "mean/exact/apgd-margin", "square", "random"} <= entries.keys()

    def answers(name: str, eps: float) -> list[int | None]:
        attacked = run(
            entries[name], images, labels, eps=eps, norm="l2", max_rows=64, seeds=rows
        )[-1].detach()  # fmt: skip
        distances = (attacked - images).flatten(1).norm(dim=1)
        assert (distances <= eps * (1 + 1e-5)).all() and (attacked != images).any()
        return judge.predict(attacked)

    for name in entries:
        for answer, label in zip(answers(name, radius), labels.tolist(), strict=True):
            assert answer in (label, None), f"{name} breaks a certified image"
    # The same attacks do break them beyond the certificate.
    far = answers("mean/exact/apgd-margin", 10 * SIGMA)
    assert any(a not in (y, None) for a, y in zip(far, labels.tolist(), strict=True))


def test_an_image_without_a_certificate_can_be_broken():
    """A linear classifier: certified below the distance of its boundary, other answers beyond."""
    linear = torch.nn.Linear(64, 2)
    boundary = torch.nn.Sequential(torch.nn.Flatten(), linear)
    with torch.no_grad():
        linear.weight.copy_(torch.stack([-torch.ones(64), torch.ones(64)]))
        linear.bias.copy_(torch.tensor([32.0, -32.0]))
    image = torch.full((1, 1, 8, 8), 0.52)  # at the distance 8 * 0.02
    found = certify(boundary, image, torch.tensor([1]), sigma=SIGMA, radii=(0.1, 0.2))
    assert found.certificates[0].certified(0.1) and not found.certificates[0].certified(0.2)
    smoothed = SmoothedClassifier(boundary, sigma=SIGMA, samples=1000)
    assert smoothed.predict(image - 0.1 / 8) != [0]
    assert smoothed.predict(image - 2 * 0.16 / 8) == [0]
