"""Ordinary image classifiers: our own small networks, and every architecture of timm."""

import difflib
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdc.config import require, require_type, rule_of_names
from rdc.hub.checkpoint import Pretrained
from rdc.images import check_precision
from rdc.networks.cnn import CNN
from rdc.networks.normalize import Normalize
from rdc.networks.wide_resnet import WideResNet


@dataclass(frozen=True)
class ImageClassifierConfig:
    """A network and the images that it classifies.

    `architecture`: "cnn-<width>" (`rdc.networks.cnn`), "wrn-<depth>-<widen>" or
        "dm-wrn-<depth>-<widen>" (`rdc.networks.wide_resnet`), or a name of timm's.
    `mean`, `std`: what images in [0, 1] are normalized with, one value per channel or one for all.
    `stem`: "original" is timm's network as it is, made for images of 224 pixels. "small" is for
        images far smaller: the first convolution keeps the resolution, max-pooling after it is left
        out, and patches have a quarter of their side. Our own networks are small in either case.
    `class_names` is empty, or names the K classes in the order of the labels.
    """

    architecture: str
    image_size: int
    channels: int
    num_classes: int
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    stem: Literal["small", "original"] = "small"
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts, one_each = (1, self.channels), f": one for all channels, or {self.channels}"
        require(
            self,
            image_size=(1 <= self.image_size <= 4096, "1 to 4096"),
            channels=(self.channels in (1, 3), "1 or 3"),
            num_classes=(2 <= self.num_classes <= 100_000, "2 to 100000"),
            mean=(len(self.mean) in counts and all(0 <= m <= 1 for m in self.mean),
                  f"in [0, 1]{one_each}"),
            std=(len(self.std) in counts and all(s > 0 for s in self.std), f"positive{one_each}"),
            class_names=rule_of_names(self.class_names, self.num_classes),
        )  # fmt: skip

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.channels, self.image_size, self.image_size


class ImageClassifier(
    nn.Module, Pretrained, library_name="rdc", pipeline_tag="image-classification"
):
    """[0, 1] images (B, C, H, W) to logits (B, K), a linear layer of `features`.

    The network's own tensors are those of timm's state dictionary below "network.".
    """

    config_class = ImageClassifierConfig

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__()
        require_type(config, ImageClassifierConfig)
        self.config = config
        self.network = build_network(config)
        self.normalize = Normalize(config.mean, config.std)

    @property
    def summary(self) -> str:
        """Kind and architecture, as in "classifier, resnet18"."""
        return f"classifier, {self.config.architecture}"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.config.image_shape

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names

    def features(self, images: Tensor) -> Tensor:
        """Input of the last, linear layer: (B, F)."""
        network: Any = self.network
        maps = network.forward_features(self._normalized(images))
        return network.forward_head(maps, pre_logits=True).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self._normalized(images))

    def _normalized(self, images: Tensor) -> Tensor:
        x = self.normalize(images)
        check_precision(x, next(self.network.parameters()).dtype)
        if x.requires_grad:
            # Attack libraries call `gradient.view(B, -1)`, which channels_last does not allow.
            x.register_hook(lambda gradient: None if gradient is None else gradient.contiguous())
        return x


def build_network(config: ImageClassifierConfig) -> nn.Module:
    """The network of `config.architecture` with random weights: normalized images to logits.

    It has timm's two halves, `forward_features` and `forward_head`.
    """
    size = (config.channels, config.num_classes)
    if ours := re.fullmatch(r"cnn-(\d{1,5})", config.architecture):
        # Not channels_last, which rounds otherwise: published figures rest on these bits.
        return CNN(int(ours[1]), config.image_size, *size)
    if ours := re.fullmatch(r"(dm-)?wrn-(\d{1,3})-(\d{1,3})", config.architecture):
        network = WideResNet(int(ours[2]), int(ours[3]), *size, deepmind=bool(ours[1]))
    else:
        network = _timm_network(config)
    # Convolutions are faster this way, above all on a GPU's tensor cores.
    return network.to(memory_format=torch.channels_last)


def _timm_network(config: ImageClassifierConfig) -> nn.Module:
    # timm takes seconds to import; only its architectures need it.
    import timm

    name = config.architecture
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, ["cnn-32", "wrn-28-10", *timm.list_models()])
        raise ValueError(
            f"architecture={name!r} is unknown; close to it: {close}; give cnn-<width>, "
            "wrn-<depth>-<widen>, dm-wrn-<depth>-<widen> or a name of timm.list_models()"
        )

    def create(**sizes: Any) -> Any:
        classes, channels = config.num_classes, config.channels
        return timm.create_model(
            name, pretrained=False, num_classes=classes, in_chans=channels, **sizes
        )

    network = create()
    _require_linear_head(network, name)
    try:
        sizes = _sizes(network, config)
        network = create(**sizes) if sizes else network
        if config.stem == "small" and "patch_size" not in sizes:
            _make_stem_small(network)
        _require_whole_patches(network, config.image_size)
        with torch.no_grad():
            network.eval()(torch.zeros(1, *config.image_shape))
    except Exception as error:
        why = str(error) or type(error).__name__
        remedy = "stem='original'" if config.stem == "small" else "another image_size"
        raise ValueError(
            f"architecture={name!r} cannot be built with stem={config.stem!r} and image_size="
            f"{config.image_size}: {why}; try {remedy}"
        ) from error
    return network.train()


def _require_linear_head(network: Any, name: str) -> None:
    head = network.get_classifier() if hasattr(network, "get_classifier") else network
    # A 1x1 convolution of the averaged map is a linear layer too.
    if not isinstance(head, nn.Linear | nn.Conv2d):
        raise ValueError(
            f"architecture={name!r} ends in a {type(head).__name__}, not in one linear layer; "
            "choose another"
        )


def _require_whole_patches(network: Any, image_size: int) -> None:
    """Refuse patches that do not divide the image: timm would cut the border off."""
    _, conv = _first_conv(network)
    if conv is not None and _is_patches(conv) and image_size % conv.stride[0]:
        raise ValueError(f"patches of {conv.stride[0]} pixels do not divide the image")


def _sizes(network: Any, config: ImageClassifierConfig) -> dict[str, int]:
    """Arguments for timm's `create_model` if the architecture is made for one image size only."""
    if not network.pretrained_cfg.get("fixed_input_size"):
        return {}
    _, conv = _first_conv(network)
    if config.stem == "small" and conv is not None and _is_patches(conv):
        return {"img_size": config.image_size, "patch_size": _quarter(conv)}
    return {"img_size": config.image_size}


def _make_stem_small(network: Any) -> None:
    """Exchange the first convolution and leave out the pooling, where timm has no option for it."""
    pools = [name for name, part in network.named_modules() if isinstance(part, nn.MaxPool2d)]
    if len(pools) > 1:
        raise ValueError(f"it has {len(pools)} max-poolings, not one in its stem")
    name, conv = _first_conv(network)
    if conv is None or conv.stride == (1, 1):
        raise ValueError("its first layer is not one convolution that reduces the resolution")
    patches = _is_patches(conv)
    side = _quarter(conv) if patches else 3
    small = type(conv)(
        conv.in_channels, conv.out_channels, side, stride=side if patches else 1,
        padding=0 if patches else 1, groups=conv.groups, bias=conv.bias is not None,
    )  # fmt: skip
    nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(name, small)
    for pool in pools:
        network.set_submodule(pool, nn.Identity())


def _first_conv(network: Any) -> tuple[str, nn.Conv2d | None]:
    """Name of the convolution that reads the image, by timm's own record, and the convolution."""
    name = network.pretrained_cfg.get("first_conv")
    conv = dict(network.named_modules()).get(name) if isinstance(name, str) else None
    return str(name), conv if isinstance(conv, nn.Conv2d) else None


def _is_patches(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride


def _quarter(conv: nn.Conv2d) -> int:
    """A quarter of a patch: what stride 1 and no pooling make of a ResNet's stem."""
    return max(1, conv.stride[0] // 4)
