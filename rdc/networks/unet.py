"""The UNet that every method shares: label-conditional, or one trunk with a head per class.

The family is DDPM++ as EDM uses it (Song et al., ICLR 2021; Karras et al., NeurIPS 2022): residual
blocks with GroupNorm and a noise-level embedding, self-attention at chosen resolutions, skips from
encoder to decoder. The published members of the family are architectures of the same network.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.config import ADDED, require
from rdc.networks.blocks import (
    STYLES,
    Architecture,
    Block,
    NoiseEmbedding,
    PyramidLevel,
    Resample,
    conv3x3,
)
from rdc.networks.heads import Heads, LinearHead

Conditioning = Literal["label", "multihead", "classifier", "none"]
Outputs = Literal["all", "classes", "unconditional", "logits"]


@dataclass(frozen=True)
class UNetConfig:
    """Settings that determine the network's layers and their sizes.

    `conditioning`: "label" feeds the class to every block; "multihead" runs the trunk once and
    answers with one output per class and one unconditional output (Chen et al. 2024, appendix B);
    "classifier" is unconditional and classifies noised images with a linear layer on the encoder
    (`outputs="logits"`); "none" knows no classes, and `num_classes` is 0.
    `width_multipliers`: one resolution level per entry, each half the size of the one before.
    `head_blocks`: residual blocks inside each head, `head_width` channels wide; 0 is the published
    network, whose classes differ only in the last 3x3 convolution.
    `augment_features`: numbers that describe how a training image was augmented; 0 without.
    `patch`: side of the squares of pixels that become channels of the trunk's input and output
    (Shi et al., CVPR 2016): the trunk works at `image_size / patch`, to which `width_multipliers`
    and `attention_resolutions` then refer. Only for the architecture "rdc".
    `architecture`: "rdc" is ours; "ddpmpp" and "ncsnpp" are those of Song et al. 2021 as EDM trains
    them, "adm" is that of Dhariwal & Nichol 2021 (`blocks.STYLES` has the differences).
    """

    image_size: int = 32
    channels: int = 3
    num_classes: int = 10
    conditioning: Conditioning = "multihead"
    width: int = 128
    width_multipliers: tuple[int, ...] = (1, 2, 2)
    blocks_per_level: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    attention_head_width: int = 64
    head_blocks: int = 0
    head_width: int = 16
    dropout: float = 0.0
    augment_features: int = 0
    architecture: Architecture = field(default="rdc", metadata=ADDED)
    patch: int = field(default=1, metadata=ADDED)

    def __post_init__(self) -> None:
        multipliers = self.width_multipliers
        smallest = 2 ** (len(multipliers) - 1) * max(self.patch, 1)
        unconditional = self.conditioning == "none"
        fits = 8 <= self.image_size <= 256 and self.image_size % smallest == 0
        require(
            self,
            image_size=(
                fits,
                f"8 to 256 and divisible by {smallest}: the patch, and 2 per level after the first",
            ),
            channels=(self.channels in (1, 3), "1 or 3"),
            num_classes=(
                self.num_classes == 0 if unconditional else 2 <= self.num_classes <= 100_000,
                "0 where conditioning is 'none'" if unconditional else "2 to 100000",
            ),
            conditioning=(
                self.conditioning in get_args(Conditioning),
                f"one of {get_args(Conditioning)}",
            ),
            width=(8 <= self.width <= 4096 and self.width % 8 == 0, "a multiple of 8, 8 to 4096"),
            width_multipliers=(
                len(multipliers) > 0 and all(1 <= each <= 64 for each in multipliers),
                "one or more integers, 1 to 64",
            ),
            blocks_per_level=(1 <= self.blocks_per_level <= 32, "1 to 32"),
            attention_head_width=(1 <= self.attention_head_width <= 2**18, "1 to 262144"),
            head_blocks=(0 <= self.head_blocks <= 32, "0 to 32"),
            head_width=(1 <= self.head_width <= 4096, "1 to 4096"),
            dropout=(0 <= self.dropout < 1, "in [0, 1)"),
            augment_features=(0 <= self.augment_features <= 1000, "0 to 1000"),
            architecture=(self.architecture in STYLES, f"one of {get_args(Architecture)}"),
            patch=(
                self.patch == 1 or (self.patch > 1 and self.architecture == "rdc"),
                "1, or more where architecture is 'rdc'",
            ),
        )


class UNet(nn.Module):
    """The raw network F inside a `Denoiser`.

    x: (B, C, H, W), already scaled by c_in; c_noise: (B,). What comes back depends on
    `conditioning`; see `forward`.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.style = STYLES[config.architecture]
        embedding = 4 * config.width
        told = config.width * self.style.noise_widths if self.style.labels_first else embedding
        self.embed_noise = NoiseEmbedding(config.width, embedding, self.style)
        if config.augment_features:
            # Without a bias: an image that was left alone adds nothing.
            self.embed_augment = nn.Linear(config.augment_features, told, bias=False)
        skips = self._build_encoder()
        if config.conditioning == "classifier":
            self.linear_head = LinearHead(skips[-1], config.num_classes)
        self._build_decoder(skips)
        if config.conditioning == "label":
            # Row K stands for "no label": the unconditional estimate.
            self.embed_label = nn.Embedding(config.num_classes + 1, told)
        if config.conditioning == "multihead":
            self.class_heads = self._heads(config.num_classes)
            self.unconditional_head = self._heads(1)
        else:
            self.head = self._heads(1)

    def _build_encoder(self) -> list[int]:
        """The way down; the widths of its skips, from the image on."""
        config = self.config
        given = config.channels * config.patch**2
        self.stem = conv3x3(given, config.width)
        skips, channels = [config.width], config.width
        encoder: list[Block] = []
        pyramid: list[PyramidLevel] = []
        above = given
        for level, width in enumerate(self._widths):
            if level > 0:
                down, channels = self._resampling(channels, level, "down")
                encoder.append(down)
                skips.append(channels)
                if self.style.pyramid:
                    pyramid.append(PyramidLevel(above, channels, self.style.filter))
                    above = channels
            for _ in range(config.blocks_per_level):
                encoder.append(self._block(channels, width, attend=self._attends(level)))
                skips.append(width)
                channels = width
        self.encoder, self.pyramid = nn.ModuleList(encoder), nn.ModuleList(pyramid)
        return skips

    def _build_decoder(self, skips: list[int]) -> None:
        """The middle and the way up."""
        channels, lowest = skips[-1], len(self._widths) - 1
        middle = self.style.middle_attention or (self._attends(lowest), self._attends(lowest))
        self.middle = nn.ModuleList(self._block(channels, channels, attend=at) for at in middle)
        decoder: list[Block] = []
        for level in range(lowest, -1, -1):
            if level < lowest:
                up, channels = self._resampling(channels, level, "up")
                decoder.append(up)
            last = self.config.blocks_per_level
            for index in range(last + 1):
                attend = self._attends(level) and (index == last or not self.style.sparse_decoder)
                width = self._widths[level]
                decoder.append(self._block(channels + skips.pop(), width, attend=attend))
                channels = width
        self.decoder = nn.ModuleList(decoder)

    def _heads(self, count: int) -> Heads:
        config = self.config
        return Heads(
            self._widths[0], 4 * config.width, count=count, channels=config.channels,
            patch=config.patch, depth=config.head_blocks, width=config.head_width, style=self.style,
        )  # fmt: skip

    @property
    def _widths(self) -> list[int]:
        return [self.config.width * multiplier for multiplier in self.config.width_multipliers]

    def _attends(self, level: int) -> bool:
        size = self.config.image_size // self.config.patch
        return size // 2**level in self.config.attention_resolutions

    def _resampling(self, channels: int, level: int, how: Resample) -> tuple[Block, int]:
        """A block that arrives at a level, and its width."""
        width = self._widths[level] if self.style.widening else channels
        return self._block(channels, width, attend=False, resample=how), width

    def _block(
        self, channels_in: int, channels_out: int, *, attend: bool, resample: Resample = "none"
    ) -> Block:
        config = self.config
        return Block(
            channels_in,
            channels_out,
            4 * config.width,
            resample=resample,
            attention_head_width=config.attention_head_width if attend else None,
            dropout=config.dropout,
            style=self.style,
        )

    def encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features at the lowest resolution, and those of all levels for the decoder."""
        x = F.pixel_unshuffle(x, self.config.patch)
        above, pyramid = x, iter(self.pyramid)
        x = self.stem(x)
        skips = [x]
        for block in self.encoder:
            x = block(x, embedding)
            if self.style.pyramid and block.resample == "down":
                x = above = (x + next(pyramid)(above)) * self.style.skip_scale
            skips.append(x)
        for block in self.middle:
            x = block(x, embedding)
        return x, skips

    def decode(self, x: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """Features shared by all heads: (B, width, H, W)."""
        skips = list(skips)
        for block in self.decoder:
            if block.resample != "up":
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, embedding)
        return x

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        *,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
        outputs: Outputs = "all",
    ) -> Tensor:
        """Label-conditional: (B, C, H, W) for `labels` (B,), or unconditionally without labels.

        Multi-head: (B, K + 1, C, H, W), the last one unconditional; `outputs` leaves out the heads
        that are not needed: (B, K, C, H, W) for "classes", (B, C, H, W) for "unconditional".
        Without classes, or with a classifier: (B, C, H, W); the classifier's `outputs="logits"` are
        (B, K) and leave out the decoder.
        `augment` (B, augment_features) says how the images were augmented; by default not at all.
        """
        embedding = F.silu(self._embed(c_noise, labels, augment))
        encoded, skips = self.encode(x, embedding)
        if outputs == "logits":
            return self.linear_head(encoded)
        features = self.decode(encoded, skips, embedding)
        if self.config.conditioning != "multihead":
            return self.head(features, embedding)[:, 0]
        if outputs == "classes":
            return self.class_heads(features, embedding)
        unconditional = self.unconditional_head(features, embedding)
        if outputs == "unconditional":
            return unconditional[:, 0]
        return torch.cat([self.class_heads(features, embedding), unconditional], dim=1)

    def _embed(self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """Noise level, label and augmentation: (B, 4 width)."""
        extras: list[Tensor] = [] if augment is None else [self.embed_augment(augment)]
        if self.config.conditioning == "label":
            if labels is None:
                labels = torch.full_like(c_noise, self.config.num_classes, dtype=torch.int64)
            extras.append(self.embed_label(labels))
        if self.style.labels_first:
            return self.embed_noise(c_noise, extras)
        embedding = self.embed_noise(c_noise)
        return sum(extras, embedding)
