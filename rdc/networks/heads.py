"""Heads of the UNet: images of every class at once, or logits."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rdc.networks.blocks import Block, Style, conv3x3, group_norm


class Heads(nn.Module):
    """`count` outputs of the same features: (B, features, H, W) -> (B, count, C, H, W).

    `depth` residual blocks of `width` channels inside each head; with 0 the heads differ only in
    the last convolution. All heads are computed at once, as the groups of grouped convolutions.
    With patches the outputs are `patch` times as high and wide as the features.
    """

    def __init__(
        self,
        features: int,
        embedding: int,
        *,
        count: int,
        channels: int,
        patch: int,
        depth: int,
        width: int,
        style: Style,
    ) -> None:
        super().__init__()
        self.count, self.patch = count, patch
        channels, width = count * channels * patch**2, count * width
        self.stem = conv3x3(features, width) if depth else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, width, embedding, groups=count, style=style) for _ in range(depth)
        )
        if depth:
            self.norm = group_norm(width, heads=count, eps=style.eps)
            self.out = conv3x3(width, channels, groups=count, zero=True)
        else:
            self.norm = group_norm(features, eps=style.eps)
            self.out = conv3x3(features, channels, zero=True)

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
