"""The published algorithm of the benchmarks against closed forms, and against ours."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.published import Benchmark, PublishedConfig, main
from benchmarks.published_rdc import Published
from rdc import Denoiser, UNetConfig

pytestmark = pytest.mark.slow

NETWORK = UNetConfig(
    image_size=8, channels=1, num_classes=3, conditioning="label", width=8,
    width_multipliers=(1, 2), blocks_per_level=1, attention_resolutions=(),
)  # fmt: skip
CONFIG = PublishedConfig(
    network=NETWORK, levels=70, few=4, steps=2, images=2, decisions=4, repeats=1
)


class Shrinking:
    """D(x, sigma, y) = (y + 1) / 10, whatever the image; x / 2 without a class."""

    num_classes = 3

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / 2

    def denoise_class(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return ((labels + 1) / 10)[:, None, None, None].expand_as(x)


def published(levels: int = 70) -> Published:
    generator = torch.Generator().manual_seed(0)
    noise, draws = (torch.randn(n, 1, 2, 2, generator=generator).double() for n in (levels, 3))
    denoiser: Denoiser = Shrinking()  # type: ignore[assignment]
    sigmas = torch.tensor([0.4, 0.5, 0.6]).double()
    return Published(denoiser, levels=levels, noise=noise, draws=draws, sigmas=sigmas)


def test_its_logits_are_a_weighted_sum() -> None:
    """-(sum of the weights) times the mean square of x - (y + 1) / 10, in two calls of levels."""
    found, image = published(), torch.full((1, 1, 2, 2), 0.75).double()
    expected = -found.weights.sum() * (0.5 - torch.tensor([0.1, 0.2, 0.3]).double()).square()
    torch.testing.assert_close(found.logits(image)[0], expected)


def test_its_gradient_is_that_of_the_margin() -> None:
    """d/dx of (0.5 - 0.3)^2 - (0.5 - 0.1)^2 by x = 2 image - 1: label 2 is right, 1 is next."""
    found, image = published(), torch.full((1, 1, 2, 2), 0.75).double()
    slope = found.gradient(image, torch.tensor([2]))
    # margin = -loss_1 + loss_2
    expected = found.weights.sum() * 2 * ((0.5 - 0.3) - (0.5 - 0.2)) / 4 * 2
    torch.testing.assert_close(slope, expected.expand_as(image))


def test_its_maximization_steps_by_the_learning_rate() -> None:
    """Adam's first step is the sign of the gradient; here x goes toward sigma n."""
    found = published()
    found.draws, found.draw_sigmas = found.draws[:1], found.draw_sigmas[:1]
    image = torch.full((1, 1, 2, 2), 0.5).double()
    # loss = mean((x / 2 + s n / 2 - x)^2): at x = 0 its slope has the sign of -n
    expected = image + 0.05 * found.draws[:1].sign()
    torch.testing.assert_close(found.maximize(image), expected, rtol=0, atol=1e-6)


def test_ours_has_the_same_logits_and_gradients() -> None:
    assert Benchmark(CONFIG).check_parity() < 1e-9


def test_a_difference_would_be_found(monkeypatch) -> None:
    benchmark = Benchmark(CONFIG)
    settings = benchmark.settings()
    other = replace(settings, classifier=replace(settings.classifier, weighting="edm"))
    monkeypatch.setattr(benchmark, "settings", lambda: other)
    with pytest.raises(AssertionError, match="the two algorithms differ"):
        benchmark.check_parity()


def test_it_prints_gains_beside_agreement(tmp_path: Path, capsys) -> None:
    main(replace(CONFIG, levels=8, json=tmp_path / "speed.json"))
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    names = [row["name"] for row in rows]
    assert names[:3] == ["published", "same math", "fewer levels"]
    assert all(name in printed for name in names)
    assert rows[0]["gains"] is None and 0 <= rows[2]["agreement"] <= 1
    assert "4 in place of 8, the same decision on" in printed
    # Fewer levels and one pass for all classes: less to compute.
    predict = [row["operations"]["predict"] for row in rows]
    assert (
        predict[0] == pytest.approx(predict[1], rel=0.01) and predict[1] > predict[2] > predict[3]
    )
