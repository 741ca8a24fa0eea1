"""Published networks, built apart from the library at tiny width, convert to the same outputs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rdc import Denoiser, DiffusionClassifier, UNetConfig, vp
from rdc.converters import convert, edm, guided_diffusion, score_sde
from rdc.converters.unpickle import Node, read
from rdc.converters.weights import Published
from rdc.denoiser import DenoiserConfig
from rdc.networks.blocks import low_pass
from tests.support.published_edm import EDMPrecond, VEPrecond, VPPrecond, pickled
from tests.support.published_vp import DDPMpp, UNetModel, checkpoint

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
SIGMAS = (0.002, 0.1, 0.6, 3.0, 80.0)

COMMON = {"img_resolution": 16, "img_channels": 3, "use_fp16": True, "augment_dim": 9}
SONG = {"model_type": "SongUNet", "model_channels": 16, "channel_mult": [1, 2, 2], "num_blocks": 1,
        "attn_resolutions": [8], "dropout": 0.13, "decoder_type": "standard"}  # fmt: skip
EDM: dict[str, dict[str, Any]] = {
    "ddpmpp": COMMON | SONG | {"embedding_type": "positional", "encoder_type": "standard",
                               "channel_mult_noise": 1, "resample_filter": [1, 1]},
    "ncsnpp": COMMON | SONG | {"embedding_type": "fourier", "encoder_type": "residual",
                               "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]},
    "adm": COMMON | {"model_type": "DhariwalUNet", "model_channels": 64, "channel_mult": [1, 2],
                     "num_blocks": 1, "attn_resolutions": [4], "img_resolution": 8},
}  # fmt: skip
ADM = UNetConfig(
    image_size=8, num_classes=0, conditioning="none", width=128, width_multipliers=(1, 2),
    blocks_per_level=1, attention_resolutions=(4,), architecture="adm",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def tiny_adm(monkeypatch: pytest.MonkeyPatch) -> None:
    """guided-diffusion's network, small. Its groups need a width of 128."""
    monkeypatch.setattr(guided_diffusion, "NETWORK", ADM)


def precise(published: Published) -> Denoiser:
    """The denoiser in float64, before the rounding of its file."""
    assert isinstance(published.config, DenoiserConfig)
    denoiser = Denoiser(published.config).double().eval()
    denoiser.load_state_dict(published.weights)
    return denoiser


def assert_same(got: Tensor, expected: Tensor) -> None:
    """Root mean square difference within the tolerance of the type.

    In pixels of [-1, 1], or relative where the estimate of an untrained network is larger.
    """
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    distance, size = (got - expected).square().mean().sqrt(), expected.square().mean().sqrt()
    assert distance <= TOLERANCE[got.dtype] * max(1.0, size.item()), distance


def noisy(sigma: Tensor, size: int) -> Tensor:
    x = torch.rand(len(sigma), 3, size, size, dtype=sigma.dtype) * 2 - 1
    return x + sigma.view(-1, 1, 1, 1) * torch.randn_like(x)


# --- EDM ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classes"), [("ddpmpp", 0), ("ddpmpp", 4), ("ncsnpp", 4), ("adm", 0), ("adm", 4)]
)
def test_edm(name: str, classes: int, tmp_path: Path) -> None:
    network = EDMPrecond(**EDM[name], label_dim=classes, sigma_data=0.4).eval()
    (tmp_path / "edm.pkl").write_bytes(pickled(network))
    convert(tmp_path / "edm.pkl", "edm", tmp_path / "out")
    denoiser = Denoiser.from_pretrained(tmp_path / "out")
    assert denoiser.config.network.architecture == name
    assert_agrees(denoiser, network, torch.tensor(SIGMAS))

    (tmp_path / "edm.pkl").write_bytes(pickled(network.double()))
    denoiser = precise(edm.convert(read(tmp_path / "edm.pkl")))
    assert_agrees(denoiser, network, torch.tensor(SIGMAS, dtype=torch.float64))


def assert_agrees(denoiser: Denoiser, network: EDMPrecond, sigma: Tensor) -> None:
    x = noisy(sigma, denoiser.image_shape[1])
    without = network(x, sigma)  # the zero label, where there are labels
    assert_same(denoiser.denoise(x, sigma), without)
    assert_same(denoiser.denoise(x[1:2], float(sigma[1])), without[1:2])
    if not network.label_dim:
        return
    labels = torch.arange(len(x)) % network.label_dim
    expected = network(x, sigma, torch.eye(network.label_dim, dtype=x.dtype)[labels])
    assert_same(denoiser.denoise_class(x, sigma, labels), expected)
    every = denoiser.denoise_classes(x[:2], sigma[:2])
    assert_same(every[[0, 1], [0, 1]], expected[:2])
    assert (expected - without)[1:].abs().amax((1, 2, 3)).min() > 1e-3


BASELINES = {
    "vp-continuous": (VPPrecond, "ddpmpp", {"beta_d": 19.9, "beta_min": 0.1, "M": 1000}),
    "ve": (VEPrecond, "ncsnpp", {"sigma_min": 0.02, "sigma_max": 100}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BASELINES)
def test_edm_baselines(name: str, tmp_path: Path) -> None:
    kind, architecture, process = BASELINES[name]
    network = kind(**EDM[architecture])
    network._init_kwargs |= process
    sigma = torch.tensor((0.02, 0.1, 0.6, 3.0, 80.0), dtype=torch.float64)
    (tmp_path / "edm.pkl").write_bytes(pickled(network.double()))
    published = convert(tmp_path / "edm.pkl", "edm", tmp_path / "out").published
    assert isinstance(published.config, DenoiserConfig)
    assert published.config.preconditioning == name
    assert_agrees(precise(published), network, sigma)
    loaded = Denoiser.from_pretrained(tmp_path / "out")
    assert loaded.config == published.config
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, published.weights[key].float())


def test_edm_baselines_of_another_process_are_refused(tmp_path: Path) -> None:
    network = VPPrecond(**EDM["ddpmpp"])
    network._init_kwargs["beta_d"] = 10.0
    (tmp_path / "edm.pkl").write_bytes(pickled(network))
    with pytest.raises(ValueError, match=r"its beta_d=10\.0 is not that of EDM, 19\.9"):
        edm.convert(read(tmp_path / "edm.pkl"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classes"), [("ddpmpp", 4), ("ncsnpp", 0), ("adm", 4)])
def test_plain_state_dictionaries_of_edm(name: str, classes: int, tmp_path: Path) -> None:
    """The files have no arguments, as RDC's code saves them: names and shapes determine all."""
    network = EDMPrecond(**EDM[name], label_dim=classes).eval()
    torch.save(network.state_dict(), tmp_path / "edm_cifar.pt")
    conversion = convert(tmp_path / "edm_cifar.pt", "edm", tmp_path / "out")
    (tmp_path / "edm.pkl").write_bytes(pickled(network))
    pickle = edm.convert(read(tmp_path / "edm.pkl"))
    plain = conversion.published
    assert isinstance(plain.config, DenoiserConfig) and isinstance(pickle.config, DenoiserConfig)
    same_dropout = replace(plain.config.network, dropout=pickle.config.network.dropout)
    assert same_dropout == pickle.config.network
    assert any("plain state dictionary" in note for note in plain.notes)
    assert_agrees(Denoiser.from_pretrained(tmp_path / "out"), network, torch.tensor(SIGMAS))


STATES: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"a": torch.ones(1)}, r"not of an EDM network: .* have the sizes \[\]; it starts"),
    "digits": ({f"enc.{'9' * 5000}x": torch.ones(1)}, r"have the sizes \[\]"),
    "sizes": ({"enc.32x32_conv.weight": torch.ones(1), "enc.8x8_down.skip.weight": torch.ones(1)},
              r"have the sizes \[8, 32\]"),
    "stem": ({"enc.32x32_conv.weight": torch.ones(1)}, r"must have 4 dimensions, but is \(1,\)"),
    "block": ({"enc.32x32_conv.weight": torch.ones(8, 3, 3, 3)}, r"conv0\.weight must .*missing"),
    "widths": ({"enc.32x32_conv.weight": torch.ones(8, 3, 3, 3),
                "enc.32x32_block0.conv0.weight": torch.ones(12, 8, 3, 3)}, r"widths \[12\] are"),
    "blocks": ({"enc.32x32_conv.weight": torch.ones(8, 3, 3, 3),
                "enc.32x32_block0.conv0.weight": torch.ones(8, 8, 3, 3),
                "enc.32x32_block999999999.x": torch.ones(1)}, "blocks_per_level=1000000000 mu"),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_other_state_dictionaries_are_refused_by_edm(name: str) -> None:
    state, message = STATES[name]
    with pytest.raises(ValueError, match=message):
        edm.convert(state)


def test_edm_says_what_it_left_out(tmp_path: Path) -> None:
    def notes(**changes: Any) -> str:
        (tmp_path / "a.pkl").write_bytes(pickled(EDMPrecond(**EDM["ddpmpp"] | changes)))
        return " ".join(edm.convert(read(tmp_path / "a.pkl")).notes)

    assert "augmentation were left out" in notes()
    assert "augmentation" not in notes(augment_dim=0)
    assert "half precision" in notes()
    assert "half" not in notes(use_fp16=False)
    assert "all-zero label, is untrained" in notes(label_dim=3)
    assert "untrained" not in notes()


# --- the VP process: noise-predicting networks ---


def marginal(t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean factor and deviation of score_sde's VP process at time t."""
    exponent = -0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1
    return exponent.exp(), (1 - (2 * exponent).exp()).sqrt()


def assert_agrees_in_time(denoiser: Denoiser, network: nn.Module, dtype: torch.dtype) -> None:
    t = torch.tensor([1e-3, 0.03, 0.1, 0.5, 1.0], dtype=torch.float64)
    mean, deviation = marginal(t)
    sigma = deviation / mean
    x = (torch.rand(5, 3, 32, 32, dtype=torch.float64) * 2 - 1).to(dtype)
    state = x * mean.to(dtype).view(-1, 1, 1, 1)
    state += deviation.to(dtype).view(-1, 1, 1, 1) * torch.randn_like(x)
    noise = network(state, (999 * t).to(dtype))
    mean, deviation = (v.to(dtype).view(-1, 1, 1, 1) for v in (mean, deviation))
    expected = (state - deviation * noise) / mean
    assert_same(denoiser.denoise(state / mean, sigma.to(dtype)), expected)
    for level in range(5):
        got = denoiser.denoise((state / mean)[level, None], float(sigma[level]))
        assert_same(got, expected[level, None])


@pytest.mark.slow
def test_score_sde(tmp_path: Path) -> None:
    """The averages of a checkpoint, not its last weights."""
    last, average = DDPMpp(8, 2), DDPMpp(8, 2).eval()
    with torch.enable_grad():
        torch.save(checkpoint(last, average), tmp_path / "checkpoint_8.pth")
    convert(tmp_path / "checkpoint_8.pth", "score-sde", tmp_path / "out")
    denoiser = Denoiser.from_pretrained(tmp_path / "out")
    assert denoiser.config.network.blocks_per_level == 2
    assert denoiser.config.preconditioning == "vp-continuous"
    assert_agrees_in_time(denoiser, average, torch.float32)
    precise_one = precise(score_sde.convert(average.double().state_dict()))
    assert_agrees_in_time(precise_one, average, torch.float64)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_score_sde_plain(prefix: str) -> None:
    network = DDPMpp(8, 1).eval()
    state = {prefix + name: value for name, value in network.state_dict().items()}
    published = score_sde.convert(state)
    assert "whether of averages, it does not say" in published.notes[1]
    assert_agrees_in_time(precise(published), network.double(), torch.float64)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_adm")
@pytest.mark.parametrize("classes", [0, 4])
def test_guided_diffusion(classes: int, tmp_path: Path) -> None:
    network = UNetModel(128, (1, 2), 1, attention=(2,), classes=classes).eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    convert(tmp_path / "model.pt", "guided-diffusion", tmp_path / "out")
    denoiser = Denoiser.from_pretrained(tmp_path / "out")
    assert denoiser.config.preconditioning == "vp-discrete"
    assert_agrees_at_indices(denoiser, network, torch.float32, classes)
    network = network.double()
    denoiser = precise(guided_diffusion.convert(network.state_dict()))
    assert_agrees_at_indices(denoiser, network, torch.float64, classes)


def assert_agrees_at_indices(
    denoiser: Denoiser, network: nn.Module, dtype: torch.dtype, classes: int
) -> None:
    indices = torch.tensor([0, 9, 150, 400])
    kept = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))[indices]
    sigma = (1 / kept - 1).sqrt().to(dtype)
    kept = kept.to(dtype).view(-1, 1, 1, 1)
    state = kept.sqrt() * noisy(sigma, 8)
    x = state / kept.sqrt()

    def estimate(network: nn.Module, labels: Tensor | None) -> Tensor:
        noise = network(state, indices, labels)[:, :3]
        return (state - (1 - kept).sqrt() * noise) / kept.sqrt()

    assert_same(denoiser.denoise(x, sigma), estimate(network, None))
    if classes:
        labels = torch.arange(4) % classes
        expected = estimate(network, labels)
        assert_same(denoiser.denoise_class(x, sigma, labels), expected)
        assert_same(denoiser.denoise_classes(x[:1], sigma[:1])[:, 0], expected[:1])


def test_times_keep_their_digits_in_float32() -> None:
    """The network receives the time of its sigma, rounded once."""
    denoiser = precise(score_sde.convert(DDPMpp(8, 1).state_dict())).float()
    told = []
    denoiser.network.register_forward_pre_hook(lambda module, given: told.append(given[1]))
    sigma = torch.tensor([0.3, 5.0, 60.0, 150.0])
    denoiser.denoise(torch.zeros(4, 3, 32, 32), sigma)
    assert torch.equal(told[0], (999 * vp.time(sigma.double())).float())
    assert not torch.equal(told[0], 999 * vp.time(sigma))


def test_discrete_times_are_the_nearest() -> None:
    kept = torch.from_numpy(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    sigmas = (1 / kept - 1).sqrt()
    assert torch.equal(vp.index(sigmas), torch.arange(1000))
    assert torch.equal(vp.index(sigmas.float()), torch.arange(1000))
    between = sigmas[:-1] + 0.49 * sigmas.diff()
    assert torch.equal(vp.index(between), torch.arange(999))
    assert vp.index(torch.tensor([0.0, 1e9])).tolist() == [0, 999]


# --- networks without classes ---


def test_unconditional_networks_say_that_they_know_no_classes() -> None:
    config = replace(ADM, width=8, attention_resolutions=())
    denoiser = Denoiser(DenoiserConfig(config))
    x = torch.zeros(2, 3, 8, 8)
    assert (denoiser.num_classes, denoiser.rows_per_image) == (0, 1)
    assert denoiser.denoise(x, 1.0).shape == x.shape
    with pytest.raises(ValueError, match="conditioning='none' and knows no classes"):
        denoiser.denoise_classes(x, 1.0)
    with pytest.raises(ValueError, match="conditioning='none' and knows no classes"):
        denoiser.denoise_class(x, 1.0, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="conditioning='none' and knows no classes"):
        DiffusionClassifier(denoiser)(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(("classes", "message"), [(3, "num_classes=3 must be 0"), (1, "must be 0")])
def test_classes_and_conditioning_must_agree(classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ADM, num_classes=classes)


# --- published sizes, on the meta device ---


def on_meta(make: Any, *args: Any, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return make(*args, **arguments)


def contents(module: nn.Module) -> dict[str, Tensor]:
    """Zeros in the place of its tensors, which cost no memory either."""
    return {name: torch.zeros(()).expand(t.shape) for name, t in module.state_dict().items()}


def count(module: nn.Module) -> int:
    return sum(weights.numel() for weights in module.parameters())


def node(module: nn.Module) -> Node:
    """The `Node` that the reader makes of a pickled module."""
    made = Node()
    made.class_name = type(module).__name__
    tensors = contents(module)
    for name in [name for name in tensors if name == "resample_filter"]:
        tensors[name] = low_pass((1, 3, 3, 1) if tensors[name].shape[-1] == 4 else (1, 1))
    inner = {
        "_parameters": {name: tensor for name, tensor in tensors.items() if "." not in name},
        "_buffers": {},
        "_modules": {name: node(child) for name, child in module.named_children()},
    }
    made.__setstate__(module.__dict__ | inner)
    return made


CIFAR = {"img_resolution": 32, "img_channels": 3, "augment_dim": 9, "model_type": "SongUNet",
         "model_channels": 128, "channel_mult": [2, 2, 2], "num_blocks": 4,
         "attn_resolutions": [16]}  # fmt: skip
IMAGENET = {"img_resolution": 64, "img_channels": 3, "label_dim": 1000, "num_blocks": 3,
            "model_type": "DhariwalUNet", "model_channels": 192, "channel_mult": [1, 2, 3, 4],
            "attn_resolutions": [32, 16, 8]}  # fmt: skip
VE = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2,
      "resample_filter": [1, 3, 3, 1]}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "millions"),
    [(CIFAR, 55.7), (CIFAR | {"label_dim": 10}, 55.7), (CIFAR | VE, 56.4), (IMAGENET, 295.9)],
    ids=["cifar-uncond-vp", "cifar-cond-vp", "cifar-uncond-ve", "imagenet-64"],
)
def test_edm_at_its_published_size(arguments: dict, millions: float) -> None:
    network = on_meta(EDMPrecond, **arguments)
    assert round(count(network) / 1e6, 1) == millions
    published = edm.convert({"ema": node(network)})
    assert_fits(published)
    assert isinstance(published.config, DenoiserConfig)
    assert published.config.network.num_classes == arguments.get("label_dim", 0)


def test_score_sde_at_its_published_size() -> None:
    network = on_meta(DDPMpp, 128, 8)
    assert count(network) == 106_632_579
    assert len(list(network.parameters())) == 956
    published = score_sde.convert(contents(network))
    assert count(assert_fits(published)) == 106_632_579


@pytest.mark.slow
def test_guided_diffusion_at_its_published_size() -> None:
    network = on_meta(UNetModel, 256, (1, 1, 2, 2, 4, 4), 2, attention=(8, 16, 32))
    assert len(network.state_dict()) == 566
    assert count(network) == 552_814_086
    published = guided_diffusion.convert(contents(network))
    variance = 3 * 256 * 9 + 3
    assert count(assert_fits(published)) == 552_814_086 - variance


def assert_fits(published: Published) -> Denoiser:
    denoiser = on_meta(Denoiser, published.config)
    shapes = {name: value.shape for name, value in denoiser.state_dict().items()}
    assert {name: value.shape for name, value in published.weights.items()} == shapes
    assert isinstance(denoiser, Denoiser)
    return denoiser
