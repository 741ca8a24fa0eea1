"""Building blocks of the UNets, and the settings that tell the published architectures apart."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import wraps
from math import pi, sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rdc.networks.unet_config import Architecture

Resample = Literal["none", "down", "up"]


def constant(make: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    """The tensor that `make` computes on the CPU, on the default device.

    Arithmetic on the meta device, where models are compared with their files, would import torch's
    compiler, which takes longer than all the rest of loading a model.
    """

    @wraps(make)
    def placed(count: int) -> Tensor:
        with torch.device("cpu"):
            value = make(count)
        return value.to(torch.get_default_device())

    return placed


def log_sigma_frequencies(count: int) -> Tensor:
    """Frequencies (count,) for ln(sigma) / 4, in [-1.2, 1.1] for sigma in [0.01, 80]: 0.5 to 63."""
    return torch.logspace(-0.3, 1.8, count, dtype=torch.float64).float()


@constant
def position_frequencies(count: int) -> Tensor:
    """10000^(-k / count) for k = 0 .. count - 1 (Vaswani et al. 2017)."""
    return (1 / 10_000) ** (torch.arange(count, dtype=torch.float32) / count)


@constant
def closed_position_frequencies(count: int) -> Tensor:
    """The same down to 1/10000 itself: 10000^(-k / (count - 1)) (Ho et al. 2020)."""
    return (1 / 10_000) ** (torch.arange(count, dtype=torch.float32) / (count - 1))


def random_frequencies(count: int) -> Tensor:
    """Gaussian, of standard deviation 16 periods (Tancik et al. 2020; Song et al. 2021)."""
    return 2 * pi * 16 * torch.randn(count)


@dataclass(frozen=True)
class Style:
    """Settings in which architectures differ; the defaults are our own.

    `frequencies`: those of the noise embedding. `stored`: they are part of the weights, because
        they were drawn, or because their last bits show at time labels up to 999.
    `noise_widths`: sines and cosines, in multiples of the network's width.
    `labels_first`: labels join the sines and cosines, not what the MLP makes of them.
    `adaptive`: the embedding scales and shifts the second norm; otherwise it is added before it.
    `eps`: of group norm. `skip_scale`: factor on the sum of a block and its skip.
    `filter`: taps, along each axis, of the filter that goes with every change of resolution.
    `widening`: the block that changes the resolution changes the width too, not the one after it.
    `projected`: that block's skip has a 1x1 convolution where it keeps the width, too.
    `middle_attention`: of the two blocks in the middle; None where its resolution decides.
    `sparse_decoder`: of a level's decoder blocks only the last one has attention.
    `pyramid`: the shrunk and convolved image joins the encoder at every level.
    """

    frequencies: Callable[[int], Tensor] = log_sigma_frequencies
    stored: bool = False
    noise_widths: int = 1
    labels_first: bool = False
    adaptive: bool = True
    eps: float = 1e-6
    skip_scale: float = sqrt(0.5)
    filter: tuple[int, ...] = (1, 1)
    widening: bool = True
    projected: bool = False
    middle_attention: tuple[bool, bool] | None = None
    sparse_decoder: bool = False
    pyramid: bool = False


OURS = Style()
# Song et al. 2021, appendix H, as Karras et al. 2022 (table 1, appendix F) also use them.
DDPMPP = Style(
    frequencies=closed_position_frequencies, stored=True, labels_first=True, adaptive=False,
    widening=False, projected=True, middle_attention=(True, False), sparse_decoder=True,
)  # fmt: skip
NCSNPP = replace(
    DDPMPP, frequencies=random_frequencies, noise_widths=2, filter=(1, 3, 3, 1), pyramid=True
)
# Dhariwal & Nichol 2021, section 3.
ADM = Style(
    frequencies=position_frequencies, stored=True, eps=1e-5, skip_scale=1.0, widening=False,
    middle_attention=(True, False),
)  # fmt: skip
STYLES: dict[Architecture, Style] = {"rdc": OURS, "ddpmpp": DDPMPP, "ncsnpp": NCSNPP, "adm": ADM}


def conv3x3(channels_in: int, channels_out: int, *, groups: int = 1, zero: bool = False):
    """A size-preserving convolution; `zero` starts it at 0, so that its block starts as a skip."""
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, groups=groups)
    return zeroed(conv) if zero else conv


def zeroed(module: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def group_norm(channels: int, *, heads: int = 1, eps: float = OURS.eps) -> nn.GroupNorm:
    """Group norm of at most 32 groups of at least 4 channels; one group per head inside heads."""
    groups = heads if heads > 1 else min(32, channels // 4)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, eps=eps)


class NoiseEmbedding(nn.Module):
    """The noise level as sines and cosines, then a small MLP: (B,) to (B, `out`).

    `extras` (B, `style.noise_widths` * width) are added to the sines and cosines.
    """

    frequencies: Tensor

    def __init__(self, width: int, out: int, style: Style = OURS) -> None:
        super().__init__()
        width *= style.noise_widths
        frequencies = style.frequencies(width // 2)
        self.register_buffer("frequencies", frequencies, persistent=style.stored)
        self.mlp = nn.Sequential(nn.Linear(width, out), nn.SiLU(), nn.Linear(out, out))

    def forward(self, c_noise: Tensor, extras: Iterable[Tensor] = ()) -> Tensor:
        angles = c_noise[:, None] * self.frequencies.to(c_noise.dtype)
        return self.mlp(sum(extras, torch.cat([angles.cos(), angles.sin()], dim=1)))


class Attention(nn.Module):
    """Self-attention over pixels, with its own residual connection."""

    def __init__(self, channels: int, head_width: int, style: Style = OURS) -> None:
        super().__init__()
        self.heads = max(1, channels // head_width)
        while channels % self.heads:
            self.heads -= 1
        self.skip_scale = style.skip_scale
        self.norm = group_norm(channels, eps=style.eps)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        q, k, v = rearrange(
            self.qkv(self.norm(x)), "b (n e c) h w -> n b e (h w) c", n=3, e=self.heads
        )
        y = F.scaled_dot_product_attention(q, k, v)
        y = rearrange(y, "b e (h w) c -> b (e c) h w", h=h, w=w)
        return (x + self.proj(y)) * self.skip_scale


class Block(nn.Module):
    """Residual block: norm, SiLU, conv; the embedding's part, norm, SiLU, conv; attention.

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
        style: Style = OURS,
    ) -> None:
        super().__init__()
        self.resample: Resample = resample
        self.style = style
        self.resampled = Resampled(resample, style.filter)
        self.norm1 = group_norm(channels_in, heads=groups, eps=style.eps)
        self.conv1 = conv3x3(channels_in, channels_out, groups=groups)
        self.affine = nn.Linear(embedding, (2 if style.adaptive else 1) * channels_out)
        self.norm2 = group_norm(channels_out, heads=groups, eps=style.eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(channels_out, channels_out, groups=groups, zero=True)
        project = channels_in != channels_out or (style.projected and resample != "none")
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if project else nn.Identity()
        self.attention = (
            Attention(channels_out, attention_head_width, style)
            if attention_head_width
            else nn.Identity()
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(self.resampled(F.silu(self.norm1(x))))
        told = self.affine(embedding)[:, :, None, None]
        if self.style.adaptive:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + told)
        h = self.conv2(self.dropout(F.silu(h)))
        x = (self.skip(self.resampled(x)) + h) * self.style.skip_scale
        return self.attention(x)


class Resampled(nn.Module):
    """Maps at half or twice their size, under the separable filter with these taps.

    Without `pad` the map has the border that the filter needs.
    """

    kernel: Tensor

    def __init__(self, how: Resample, taps: tuple[int, ...], *, pad: bool = True) -> None:
        super().__init__()
        self.how = how
        self.padding = len(taps) // 2 - 1 if pad else 0
        self.box = taps == (1, 1)
        self.register_buffer("kernel", low_pass(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "none":
            return x
        if self.box:
            down = self.how == "down"
            return F.avg_pool2d(x, 2) if down else F.interpolate(x, scale_factor=2.0)
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        if self.how == "down":
            return F.conv2d(x, kernel, stride=2, padding=self.padding, groups=channels)
        return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=self.padding, groups=channels)


class PyramidLevel(nn.Module):
    """The image, or the level above, convolved and at half its size.

    The convolution pads by what the filter needs, so that the filter itself sees no padding.
    """

    def __init__(self, channels_in: int, channels_out: int, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=len(taps) // 2)
        self.resampled = Resampled("down", taps, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.resampled(self.conv(x))


def low_pass(taps: tuple[int, ...]) -> Tensor:
    """The filter over both axes, of sum 1: (taps, taps)."""
    # In Python: some of torch's operations on the meta device import its compiler, for seconds.
    rows = [[above * left / sum(taps) ** 2 for left in taps] for above in taps]
    return torch.tensor(rows, dtype=torch.float32)
