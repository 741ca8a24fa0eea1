"""Heads of the UNet: images of every class at once, or logits."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rdc.networks.blocks import Block, Style, conv3x3, group_norm
from rdc.networks.unet_config import UNetConfig


class Heads(nn.Module):
    """`count` outputs of the same features: (B, features, H, W) -> (B, count, C, H, W).

    `head_blocks` and `head_width` are those of each head; without blocks the heads differ only in
    the last convolution. All heads are computed at once, as the groups of grouped convolutions.
    With patches the outputs are `patch` times as high and wide as the features.
    """

    def __init__(self, config: UNetConfig, count: int, style: Style) -> None:
        super().__init__()
        self.count, self.patch = count, config.patch
        features, depth = config.width * config.width_multipliers[0], config.head_blocks
        width, groups = (count * config.head_width, count) if depth else (features, 1)
        self.stem = conv3x3(features, width) if depth else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, width, 4 * config.width, groups=groups, style=style) for _ in range(depth)
        )
        self.norm = group_norm(width, heads=groups, eps=style.eps)
        channels = count * config.channels * config.patch**2
        self.out = conv3x3(width, channels, groups=groups, zero=True)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        h = self.stem(features)
        for block in self.blocks:
            h = block(h, embedding)
        return rearrange(
            self.out(F.silu(self.norm(h))), "b (k c p q) h w -> b k c (h p) (w q)",
            k=self.count, p=self.patch, q=self.patch,
        )  # fmt: skip


class LinearHead(nn.Module):
    """Logits (B, K) of features (B, width, H, W): normalized, averaged over the pixels, linear."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(F.silu(self.norm(features)).mean((2, 3)))
