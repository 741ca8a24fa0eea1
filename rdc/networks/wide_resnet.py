"""Wide residual networks for small images (Zagoruyko & Komodakis, BMVC 2016)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class WideResNet(nn.Module):
    """WRN-`depth`-`widen`: images (B, `channels`, H, W) to logits (B, `num_classes`).

    Table 1 of the paper: a 3x3 convolution to 16 channels; three groups of n = (depth - 4) / 6
    blocks with 16, 32 and 64 times `widen` channels, the last two at half the resolution of the one
    before; the average over the map; a linear layer. Blocks are the paper's basic B(3, 3) in the
    order batch norm, ReLU, convolution; no dropout.

    deepmind: the variant of Gowal et al. 2020 (arXiv 2010.03593), which RobustBench calls
        DMWideResNet: SiLU in place of ReLU, and convolutions of stride 2 pad below and on the right
        only.
    """

    def __init__(
        self, depth: int, widen: int, channels: int, num_classes: int, *, deepmind: bool = False
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth={depth} must be 6 n + 4: 10, 16, 22, 28, 34, ...")
        if widen < 1:
            raise ValueError(f"widen={widen} must be at least 1")
        blocks = (depth - 4) // 6
        self.stem = _conv(channels, 16, 3)
        self.activation = F.silu if deepmind else F.relu
        self.groups = nn.Sequential(
            _group(16, 16 * widen, blocks, stride=1, deepmind=deepmind),
            _group(16 * widen, 32 * widen, blocks, stride=2, deepmind=deepmind),
            _group(32 * widen, 64 * widen, blocks, stride=2, deepmind=deepmind),
        )
        self.norm = nn.BatchNorm2d(64 * widen)
        self.head = nn.Linear(64 * widen, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """The map before the average: (B, 64 widen, H / 4, W / 4), rounded up."""
        return self.activation(self.norm(self.groups(self.stem(images))))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, K) of that map, or what the linear layer sees (B, 64 widen)."""
        features = features.mean((2, 3))
        return features if pre_logits else self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class Block(nn.Module):
    """Two 3x3 convolutions, each after batch norm and activation, beside a shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input, as in the
    authors' code; elsewhere it is the input itself.
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, *, deepmind: bool = False
    ) -> None:
        super().__init__()
        self.activation: Callable[[Tensor], Tensor] = F.silu if deepmind else F.relu
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = _conv(channels_in, channels_out, 3, stride, after=deepmind and stride == 2)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.conv2 = _conv(channels_out, channels_out, 3)
        same = channels_in == channels_out and stride == 1
        self.shortcut = None if same else _conv(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return shortcut + self.conv2(self.activation(self.norm2(self.conv1(active))))


class ConvPaddedAfter(nn.Conv2d):
    """A 3x3 convolution whose zeros are below and on the right only.

    At stride 2 and even sizes, it is TensorFlow's padding "SAME".
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 1, 0, 1)))


def _group(
    channels_in: int, channels_out: int, blocks: int, *, stride: int, deepmind: bool
) -> nn.Sequential:
    first = Block(channels_in, channels_out, stride, deepmind=deepmind)
    rest = (Block(channels_out, channels_out, 1, deepmind=deepmind) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _conv(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, *, after: bool = False
) -> nn.Conv2d:
    kind, padding = (ConvPaddedAfter, 0) if after else (nn.Conv2d, kernel // 2)
    conv = kind(channels_in, channels_out, kernel, stride, padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
