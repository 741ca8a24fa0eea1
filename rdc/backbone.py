"""The UNet that every method shares: label-conditional, or one trunk with a head per class.

The family is DDPM++ as EDM uses it (Song et al., ICLR 2021; Karras et al., NeurIPS 2022): residual
blocks with GroupNorm and a noise-level embedding, self-attention at chosen resolutions, skips from
encoder to decoder.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rdc.config import require

Resample = Literal["none", "down", "up"]


@dataclass(frozen=True)
class UNetConfig:
    """Everything that fixes the network's shape.

    `conditioning`: "label" feeds the class to every block; "multihead" runs the trunk once and
    answers with one output per class and one unconditional output (Chen et al. 2024, appendix B).
    `width_multipliers`: one resolution level per entry, each half the size of the one before.
    `head_blocks`: residual blocks inside each head, `head_width` channels wide; 0 is the published
    network, whose classes differ only in the last 3x3 convolution.
    `augment_features`: numbers that describe how a training image was augmented; 0 without.
    """

    image_size: int = 32
    channels: int = 3
    num_classes: int = 10
    conditioning: Literal["label", "multihead"] = "multihead"
    width: int = 128
    width_multipliers: tuple[int, ...] = (1, 2, 2)
    blocks_per_level: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    attention_head_width: int = 64
    head_blocks: int = 0
    head_width: int = 16
    dropout: float = 0.0
    augment_features: int = 0

    def __post_init__(self) -> None:
        multipliers = self.width_multipliers
        smallest = 2 ** (len(multipliers) - 1)
        fits = 8 <= self.image_size <= 256 and self.image_size % smallest == 0
        require(
            self,
            image_size=(
                fits,
                f"8 to 256 and divisible by {smallest}, once per level after the first",
            ),
            channels=(self.channels in (1, 3), "1 or 3"),
            num_classes=(self.num_classes >= 2, "at least 2"),
            conditioning=(self.conditioning in ("label", "multihead"), "'label' or 'multihead'"),
            width=(self.width > 0 and self.width % 8 == 0, "a positive multiple of 8"),
            width_multipliers=(len(multipliers) > 0 and min(multipliers) > 0, "positive integers"),
            blocks_per_level=(self.blocks_per_level >= 1, "at least 1"),
            attention_head_width=(self.attention_head_width >= 1, "at least 1"),
            head_blocks=(self.head_blocks >= 0, "0 or more"),
            head_width=(self.head_width >= 1, "at least 1"),
            dropout=(0 <= self.dropout < 1, "in [0, 1)"),
            augment_features=(self.augment_features >= 0, "0 or more"),
        )


def conv3x3(channels_in: int, channels_out: int, *, groups: int = 1, zero: bool = False):
    """A size-preserving convolution; `zero` starts it at 0, so that its block starts as a skip."""
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, groups=groups)
    return zeroed(conv) if zero else conv


def zeroed(module: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def group_norm(channels: int, *, heads: int = 1) -> nn.GroupNorm:
    """At least 4 channels per group and at most 32 groups; one group per head inside heads."""
    groups = heads if heads > 1 else min(32, channels // 4)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, eps=1e-6)


class NoiseEmbedding(nn.Module):
    """c_noise = ln(sigma)/4 as sines and cosines of geometric frequencies, then a small MLP."""

    frequencies: Tensor

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        # c_noise spans about [-1.2, 1.1] for sigma in [0.01, 80]: periods from coarse to 0.1.
        frequencies = torch.logspace(-0.3, 1.8, width // 2, dtype=torch.float64)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, out), nn.SiLU(), nn.Linear(out, out))

    def forward(self, c_noise: Tensor) -> Tensor:
        angles = c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))


class Attention(nn.Module):
    """Self-attention over pixels, with its own residual connection."""

    def __init__(self, channels: int, head_width: int) -> None:
        super().__init__()
        self.heads = max(1, channels // head_width)
        while channels % self.heads:
            self.heads -= 1
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        q, k, v = rearrange(
            self.qkv(self.norm(x)), "b (n e c) h w -> n b e (h w) c", n=3, e=self.heads
        )
        y = F.scaled_dot_product_attention(q, k, v)
        y = rearrange(y, "b e (h w) c -> b (e c) h w", h=h, w=w)
        return (x + self.proj(y)) * sqrt(0.5)


class Block(nn.Module):
    """Residual block: norm, SiLU, conv; norm scaled and shifted by the embedding, SiLU, conv.

    `groups` > 1 keeps that many heads apart inside one convolution.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        *,
        resample: Resample = "none",
        attention_head_width: int | None = None,
        dropout: float = 0.0,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.resample: Resample = resample
        self.norm1 = group_norm(channels_in, heads=groups)
        self.conv1 = conv3x3(channels_in, channels_out, groups=groups)
        self.affine = nn.Linear(embedding, 2 * channels_out)
        self.norm2 = group_norm(channels_out, heads=groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(channels_out, channels_out, groups=groups, zero=True)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)
        self.attention = (
            Attention(channels_out, attention_head_width) if attention_head_width else nn.Identity()
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(resampled(F.silu(self.norm1(x)), self.resample))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm2(h) * (1 + scale) + shift)
        h = self.conv2(self.dropout(h))
        x = (self.skip(resampled(x, self.resample)) + h) * sqrt(0.5)
        return self.attention(x)


def resampled(x: Tensor, how: Resample) -> Tensor:
    if how == "down":
        return F.avg_pool2d(x, 2)
    if how == "up":
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return x


class Heads(nn.Module):
    """`count` outputs of the same features: (B, features, H, W) -> (B, count, C, H, W).

    All heads are computed at once, as the groups of grouped convolutions.
    """

    def __init__(self, config: UNetConfig, embedding: int, count: int) -> None:
        super().__init__()
        self.count = count
        features = config.width * config.width_multipliers[0]
        depth, width = config.head_blocks, count * config.head_width
        self.stem = conv3x3(features, width) if depth else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, width, embedding, groups=count) for _ in range(depth)
        )
        if depth:
            self.norm = group_norm(width, heads=count)
            self.out = conv3x3(width, count * config.channels, groups=count, zero=True)
        else:
            self.norm = group_norm(features)
            self.out = conv3x3(features, count * config.channels, zero=True)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        h = self.stem(features)
        for block in self.blocks:
            h = block(h, embedding)
        return rearrange(self.out(F.silu(self.norm(h))), "b (k c) h w -> b k c h w", k=self.count)


class UNet(nn.Module):
    """The raw network F of EDM's preconditioning (Karras et al. 2022, eq. 7).

    x: (B, C, H, W), already scaled by c_in; c_noise: (B,). What comes back depends on
    `conditioning`; see `forward`.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        embedding = 4 * config.width
        self.embed_noise = NoiseEmbedding(config.width, embedding)
        if config.augment_features:
            # Without a bias: an image that was left alone adds nothing.
            self.embed_augment = nn.Linear(config.augment_features, embedding, bias=False)
        self._build_trunk(embedding)
        if config.conditioning == "label":
            # Row K stands for "no label": the unconditional estimate.
            self.embed_label = nn.Embedding(config.num_classes + 1, embedding)
            self.head = Heads(config, embedding, 1)
        else:
            self.class_heads = Heads(config, embedding, config.num_classes)
            self.unconditional_head = Heads(config, embedding, 1)

    def _build_trunk(self, embedding: int) -> None:
        config = self.config
        widths = [config.width * m for m in config.width_multipliers]
        sizes = [config.image_size // 2**level for level in range(len(widths))]

        def block(channels_in: int, level: int, *, resample: Resample = "none", attend=True):
            attend = attend and sizes[level] in config.attention_resolutions
            return Block(
                channels_in,
                widths[level],
                embedding,
                resample=resample,
                attention_head_width=config.attention_head_width if attend else None,
                dropout=config.dropout,
            )

        self.stem = conv3x3(config.channels, config.width)
        skips, channels = [config.width], config.width
        encoder: list[Block] = []
        for level, width in enumerate(widths):
            if level > 0:
                encoder.append(block(channels, level, resample="down", attend=False))
                skips.append(width)
                channels = width
            for _ in range(config.blocks_per_level):
                encoder.append(block(channels, level))
                skips.append(width)
                channels = width
        self.encoder = nn.ModuleList(encoder)

        lowest = len(widths) - 1
        self.middle = nn.ModuleList([block(channels, lowest), block(channels, lowest)])
        decoder: list[Block] = []
        for level in reversed(range(len(widths))):
            if level < lowest:
                decoder.append(block(channels, level, resample="up", attend=False))
                channels = widths[level]
            for _ in range(config.blocks_per_level + 1):
                decoder.append(block(channels + skips.pop(), level))
                channels = widths[level]
        self.decoder = nn.ModuleList(decoder)

    def trunk(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Features shared by all heads: (B, width, H, W)."""
        x = self.stem(x)
        skips = [x]
        for block in self.encoder:
            x = block(x, embedding)
            skips.append(x)
        for block in self.middle:
            x = block(x, embedding)
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
        outputs: Literal["all", "classes", "unconditional"] = "all",
    ) -> Tensor:
        """Label-conditional: (B, C, H, W) for `labels` (B,), or unconditionally without labels.

        Multi-head: (B, K + 1, C, H, W), the last one unconditional; `outputs` leaves out the heads
        that are not needed: (B, K, C, H, W) for "classes", (B, C, H, W) for "unconditional".
        `augment` (B, augment_features) says how the images were augmented; by default not at all.
        """
        embedding = self.embed_noise(c_noise)
        if augment is not None:
            embedding = embedding + self.embed_augment(augment)
        if self.config.conditioning == "label":
            if labels is None:
                labels = torch.full_like(c_noise, self.config.num_classes, dtype=torch.int64)
            embedding = F.silu(embedding + self.embed_label(labels))
            return self.head(self.trunk(x, embedding), embedding)[:, 0]
        embedding = F.silu(embedding)
        features = self.trunk(x, embedding)
        if outputs == "classes":
            return self.class_heads(features, embedding)
        unconditional = self.unconditional_head(features, embedding)
        if outputs == "unconditional":
            return unconditional[:, 0]
        return torch.cat([self.class_heads(features, embedding), unconditional], dim=1)
