"""Published settings by name: every one is what it says, and runs on both image sizes."""

from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from benchmarks.memory import peak_bytes
from purification import DiffusionPurifier, build
from purification.config import PurifierConfig
from purification.guidance import AGDM, GDMP, ClassifierGuidance, ContrastiveGuidance
from purification.presets import PRESETS, Method, find
from tests.support.denoisers import Scaling
from tests.support.oracle import some_images
from tests.support.tiny import tiny_denoiser

ALL: list[Any] = [(method, name) for method, presets in PRESETS.items() for name in presets]
every = pytest.mark.parametrize(("method", "name"), ALL)


class Pooling(nn.Module):
    """Images of any size to 4 logits."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 4, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) @ self.weight


def networks(method: str) -> dict[str, Any]:
    if method == "agdm":
        return {"auxiliary": Pooling()}
    if method == "coup":
        return {"classifier": Pooling()}
    bank = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    return {"classifier": Pooling(), "bank": bank} if method == "contrastive" else {}


def make(method, name: str, size: int = 32, **options: Any) -> DiffusionPurifier:
    return build(method, Scaling(size), preset=name, **{**networks(method), **options})


def test_the_methods_are_known() -> None:
    assert set(PRESETS) == set(get_args(Method))


PUBLISHED = {
    ("diffpure", "cifar10-linf"): (0.1, 100),
    ("diffpure", "cifar10-l2"): (0.075, 75),
    ("diffpure", "cifar10-stadv"): (0.125, 125),
    ("diffpure", "cifar10-resnet50"): (0.125, 125),
    ("diffpure", "imagenet-linf"): (0.15, 150),
    ("diffpure", "celebahq-linf"): (0.5, 500),
    ("gdmp", "cifar10-linf"): (0.036, 36),
    ("gdmp", "imagenet-linf"): (0.178, 45),
    ("agdm", "cifar10-linf"): (0.07, 70),
    ("coup", "cifar10-linf"): (0.1, 100),
    ("coup", "cifar10-l2"): (0.075, 75),
}


@pytest.mark.parametrize("key", PUBLISHED)
def test_times_and_steps_are_the_published_ones(key: Any) -> None:
    config = find(*key).config
    process = config.build()
    assert (config.t_star, len(process)) == PUBLISHED[key]
    assert all(a.t > b.t for a, b in pairwise(process.points))


@pytest.mark.parametrize(
    "name", ["cifar10-linf", "cifar10-l2", "cifar10-resnet50", "imagenet-linf"]
)
def test_contrastive_goes_as_far_as_diffpure(name: str) -> None:
    assert find("contrastive", name).config == find("diffpure", name).config


def test_gdmp_on_imagenet_is_the_end_of_250_respaced_steps() -> None:
    """Within one of the time indices round(i * 999 / 249), i = 44 .. 0."""
    points = find("gdmp", "imagenet-linf").config.build().points
    indices = [round(1000 * point.t) - 1 for point in points[:-1]]
    respaced = [round(i * 999 / 249) for i in range(44, -1, -1)]
    assert (indices[0], indices[-1]) == (respaced[0], respaced[-1]) == (177, 0)
    assert max(abs(a - b) for a, b in zip(indices, respaced, strict=True)) <= 1


@pytest.mark.slow
@every
@pytest.mark.parametrize("size", [32, 256])
def test_every_preset_runs(method, name: str, size: int) -> None:
    """Two steps of each round, with its table in full, and memory by states."""
    assert len(make(method, name, size).process) == find(method, name).config.build().__len__()
    purifier = make(method, name, size, steps=2, rounds=1)
    images = some_images(1, (3, size, size), dtype=torch.float32)
    purified = purifier(images)
    assert purified.shape == images.shape and torch.isfinite(purified).all()
    assert peak_bytes(purifier, images) < 40 * images.numel() * 4


@every
def test_gradient_of_every_preset_is_finite(method, name: str) -> None:
    purifier = make(method, name, 8, steps=3)
    x = some_images(2, (3, 8, 8), dtype=torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(purifier(x).square().sum(), x)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_terms_and_weights() -> None:
    kinds = {"gdmp": GDMP, "contrastive": ContrastiveGuidance, "agdm": AGDM}
    for method, kind in (kinds | {"coup": ClassifierGuidance}).items():
        purifier = make(method, "cifar10-linf")
        assert [type(term) for term in purifier.terms] == [kind]
        share = 64 if method == "contrastive" else 1
        assert purifier.weights == [find(method, "cifar10-linf").weight / share]  # type: ignore[arg-type]
    assert list(make("diffpure", "cifar10-linf").terms) == []


@pytest.mark.parametrize("name", PRESETS["contrastive"])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_contrastive_guides_however_few_the_steps(name: str, steps: int) -> None:
    images = some_images(1, (3, 8, 8), dtype=torch.float32)
    plain = make("contrastive", name, 8, steps=steps, weight=0.0)(images)
    assert not torch.equal(make("contrastive", name, 8, steps=steps)(images), plain)


def test_a_process_that_ends_before_its_guidance_is_refused() -> None:
    make("contrastive", "cifar100-linf", t_star=0.04)
    with pytest.raises(ValueError, match=r"t_star=0.039: preset='cifar100-linf' guides after 39"):
        make("contrastive", "cifar100-linf", t_star=0.039)


def test_without_a_bank_contrastive_is_coupled_as_published() -> None:
    with_bank = make("contrastive", "cifar10-linf")
    published = make("contrastive", "cifar10-linf", bank=None, steps=2)
    assert not with_bank.batch_coupled and published.batch_coupled
    assert published.weights == [500.0]
    with pytest.raises(ValueError, match="batch of 1 image"):
        published(some_images(1, (3, 32, 32), dtype=torch.float32))


@pytest.mark.parametrize(
    ("method", "argument"),
    [("agdm", "auxiliary"), ("coup", "classifier"), ("contrastive", "classifier")],
)
def test_a_missing_network_is_named(method, argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument}=None: {method} is guided by a network"):
        build(method, Scaling(32), preset="cifar10-linf")


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"preset='mnist': agdm has \['cifar10-linf'\]"):
        make("agdm", "mnist")
    with pytest.raises(ValueError, match=r"method='purify' must be one of \('diffpure'"):
        make("purify", "cifar10-linf")
    with pytest.raises(ValueError, match=r"overrides=\['step'\]: not fields of PurifierConfig"):
        make("diffpure", "cifar10-linf", step=3)


def test_options_and_overrides_arrive() -> None:
    purifier = make(
        "coup", "cifar10-l2", noise="fresh", seed=5, gradient="bpda", process="ode", steps=7
    )
    assert purifier.config == PurifierConfig("ode", t_star=0.075, steps=7, forward_noise=False)
    assert (purifier.noise.mode, purifier.noise.seed, purifier.gradient) == ("fresh", 5, "bpda")


def test_another_process_leaves_out_the_settings_of_the_presets() -> None:
    config = make("gdmp", "cifar10-linf", process="heun", steps=5, churn=2.0).config
    assert config == PurifierConfig("heun", t_star=0.036, steps=5, rounds=4, churn=2.0)
    kept = make("gdmp", "cifar10-linf", process="ddpm", steps=5).config
    assert (kept.variance, kept.clip) == ("large", True)


def test_weight_replaces_the_presets() -> None:
    denoiser = tiny_denoiser()
    assert build("gdmp", denoiser, preset="cifar10-linf").weights == [60_000.0]
    assert build("gdmp", denoiser, preset="cifar10-linf", weight=5.0).weights == [5.0]
    assert build("gdmp", denoiser, preset="cifar10-linf", weight=0.0).weights == []
    with pytest.raises(ValueError, match=r"^weight=5\.0: diffpure has no guidance"):
        build("diffpure", denoiser, preset="cifar10-linf", weight=5.0)
