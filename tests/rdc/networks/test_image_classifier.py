"""Image classifiers: our own networks and timm's, from [0, 1] images to logits."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rdc import ImageClassifier, ImageClassifierConfig
from rdc.images import to_x
from rdc.networks.wide_resnet import WideResNet
from tests.support.oracle import some_images

CONFIG = ImageClassifierConfig(
    "cnn-4", 32, 3, 5, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), class_names=tuple("abcde")
)
# One member of each family, and the side of its last map for images of 32 pixels.
TIMM = {
    "resnet18": 4,
    "densenet121": 4,
    "regnetx_002": 2,
    "efficientnet_b0": 2,
    "mobilenetv3_small_050": 2,
    "convnext_atto": 4,
    "vit_tiny_patch16_224": 8,
    "deit_tiny_patch16_224": 8,
}
# timm takes seconds to import.
EVERY = ["cnn-4", "wrn-10-1", *(pytest.param(name, marks=pytest.mark.slow) for name in TIMM)]


def images(count: int = 2) -> Tensor:
    return some_images(count, (3, 32, 32), dtype=torch.float32)


@lru_cache
def build(architecture: str) -> ImageClassifier:
    """A classifier in evaluation mode, after batch norm has seen some images; do not change it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ImageClassifier(replace(CONFIG, architecture=architecture))
    with torch.no_grad():
        model(images(8))
    return model.eval().requires_grad_(False)


def meta(architecture: str, **changes: Any) -> ImageClassifier:
    """The same without its weights."""
    with torch.device("meta"):
        return ImageClassifier(replace(CONFIG, architecture=architecture, **changes))


def parameters(model: nn.Module) -> int:
    return sum(weights.numel() for weights in model.parameters())


# --- every architecture ---


@pytest.mark.slow
@pytest.mark.parametrize("architecture", EVERY)
def test_round_trip(architecture: str, tmp_path: Path) -> None:
    model = build(architecture)
    model.save_pretrained(tmp_path)
    loaded = ImageClassifier.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(images()), model(images()))
    assert not {"mean", "std"} & set(load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("architecture", EVERY)
def test_logits_are_a_linear_layer_of_the_features(architecture: str) -> None:
    model = build(architecture)
    features, logits = model.features(images(4)), model(images(4))
    assert features.ndim == 2 and logits.shape == (4, 5)
    network: Any = model.network
    head = network.get_classifier() if architecture in TIMM else network.head
    torch.testing.assert_close(logits, F.linear(features, head.weight.flatten(1), head.bias))
    assert (logits[0] - logits[1]).abs().max() > 1e-6


@pytest.mark.parametrize("architecture", EVERY)
def test_normalization_is_inside_and_images_have_gradients(architecture: str) -> None:
    model, x = build(architecture), images().requires_grad_()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CONFIG.mean, CONFIG.std))
    assert torch.equal(model(x), model.network((x - mean) / std))
    (gradient,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x)
    assert gradient.isfinite().all() and (gradient.flatten(1).abs().amax(1) > 0).all()
    gradient.view(len(gradient), -1)  # as attack libraries do


@pytest.mark.slow
@pytest.mark.parametrize("architecture", TIMM)
def test_a_small_stem_keeps_a_map_of_small_images(architecture: str) -> None:
    network: Any = build(architecture).network
    maps = network.forward_features(images())
    sides = maps.shape[2:] if maps.ndim == 4 else [int((maps.shape[1] - 1) ** 0.5)] * 2
    assert list(sides) == [TIMM[architecture]] * 2


@pytest.mark.slow
def test_the_original_stem_is_timms_own() -> None:
    import timm

    timms = timm.create_model("resnet18", num_classes=5)
    config = replace(CONFIG, architecture="resnet18", stem="original")
    model = ImageClassifier(config)
    model.network.load_state_dict(timms.state_dict(), strict=True)
    torch.testing.assert_close(model.eval().network(images()), timms.eval()(images()))


@pytest.mark.slow
def test_the_original_stem_takes_other_sizes() -> None:
    """Also of a transformer, whose positions belong to one size: 48 pixels are 3 x 3 patches."""
    config = replace(CONFIG, architecture="vit_tiny_patch16_224", image_size=48, stem="original")
    network: Any = ImageClassifier(config).network
    assert network.forward_features(torch.zeros(1, 3, 48, 48)).shape == (1, 1 + 9, 192)


@pytest.mark.slow
def test_one_channel_and_tiny_images() -> None:
    config = ImageClassifierConfig("resnet18", 8, 1, 10)
    assert ImageClassifier(config)(some_images(2, (1, 8, 8), dtype=torch.float32)).shape == (2, 10)


# --- our own ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "count"), [("wrn-28-10", 36_479_194), ("wrn-16-4", 2_748_890)]
)
def test_wide_residual_networks_have_their_published_size(architecture: str, count: int) -> None:
    """Zagoruyko & Komodakis 2016: 36.5 M and 2.7 M parameters for CIFAR-10."""
    model = meta(architecture, num_classes=10, class_names=())
    assert parameters(model) == count
    maps = model.network.forward_features(torch.empty(1, 3, 32, 32, device="meta"))  # type: ignore
    assert maps.shape == (1, 64 * int(architecture.split("-")[2]), 8, 8)


def test_a_wide_residual_network_by_hand() -> None:
    """WRN-10-1 has one block per group, each with a convolution as its shortcut but the first."""
    network = WideResNet(10, 1, 3, 5).double().eval()
    x = some_images(2, (3, 8, 8))
    weights = network.state_dict()

    def normed(h: Tensor, name: str) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.relu(F.batch_norm(h, *(weights[f"{name}.{part}"] for part in parts)))

    def conv(h: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(h, weight, stride=stride, padding=weight.shape[-1] // 2)

    h = conv(x, "stem")
    for group, stride in enumerate((1, 2, 2)):
        block = f"groups.{group}.0"
        active = normed(h, f"{block}.norm1")
        shortcut = h if group == 0 else conv(active, f"{block}.shortcut", stride)
        inner = normed(conv(active, f"{block}.conv1", stride), f"{block}.norm2")
        h = shortcut + conv(inner, f"{block}.conv2")
    logits = normed(h, "norm").mean((2, 3)) @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(network(x), logits)


def test_the_packaged_classifier_sees_what_it_was_trained_on() -> None:
    """Its training images were 2 x - 1; mean and deviation 1/2 are the same, bit for bit."""
    model = ImageClassifier.from_pretrained("digits-cnn")
    assert parameters(model) == 67_946
    assert (model.image_shape, model.num_classes) == ((1, 8, 8), 10)
    assert model.class_names == tuple("0123456789")
    levels = torch.rand(1000, 1, 8, 8)
    assert torch.equal(model.normalize(levels), to_x(levels))


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "image_size=0 must be 1 to 4096"),
        ({"channels": 2}, "channels=2 must be 1 or 3"),
        ({"num_classes": 1}, "num_classes=1 must be 2 to 100000"),
        ({"mean": (0.5, 0.5)}, r"mean=\(0.5, 0.5\) must be in \[0, 1\]: one for all .*, or 3"),
        ({"mean": (127.5,)}, r"mean=\(127.5,\) must be in \[0, 1\]"),
        ({"std": (0.0,)}, r"std=\(0.0,\) must be positive: one for all channels, or 3"),
        ({"std": ()}, r"std=\(\) must be positive"),
        ({"stem": "tiny"}, "stem='tiny' must be one of"),
        ({"class_names": ("a",)}, r"class_names=\('a',\) must be empty, or 5 different names"),
        ({"class_names": "abcde"}, "class_names='abcde' must be empty, or 5 different names"),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("resnet81", {}, r"architecture='resnet81' is unknown; close to it: \['resnet18'.*cnn-<"),
        ("hf_hub:timm/resnet18", {}, "is unknown"),
        ("cnn-0", {}, "width=0 must be at least 1"),
        ("cnn-4", {"image_size": 3}, "image_size=3 must be at least 4"),
        ("wrn-27-10", {}, r"depth=27 must be 6 n \+ 4: 10, 16"),
        ("wrn-28-0", {}, "widen=0 must be at least 1"),
        ("vgg11", {}, "architecture='vgg11' cannot be .* stem='small' .* try stem='original'"),
        ("repvgg_a0", {}, "its first layer is not one convolution"),
        ("vit_tiny_patch16_224", {"image_size": 30}, "image_size=30: patches of 4 pixels"),
        (
            "vit_tiny_patch16_224",
            {"image_size": 30, "stem": "original"},
            "patches of 16 .* try another",
        ),
        ("deit_tiny_distilled_patch16_224", {}, "ends in a tuple, not in one linear layer"),
    ],
)
def test_architectures_that_do_not_fit_are_refused(architecture, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        meta(architecture, **changes)


def test_images_of_another_precision_than_the_weights_are_refused() -> None:
    model = ImageClassifier(CONFIG).eval()
    with pytest.raises(
        ValueError, match=r"^images: torch\.float64, but .*; give images\.to\(torch\.fl"
    ):
        model(images().double())
    assert model(images().half()).dtype == torch.float32  # that of mean and standard deviation
    model.compile(backend="eager", fullgraph=True)
    assert model(images()).shape == (2, 5)
