"""The networks of score_sde and of guided-diffusion in their own terms: an oracle, written apart.

From Song et al. 2021 (appendix H) and Dhariwal & Nichol 2021 (section 3), with the parameter names
of the published files. Both predict the noise in x_t = sqrt(abar) x0 + sqrt(1 - abar) noise.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int, *, score_sde: bool) -> nn.GroupNorm:
    groups, eps = (min(channels // 4, 32), 1e-6) if score_sde else (32, 1e-5)
    return nn.GroupNorm(groups, channels, eps)


# --- score_sde: DDPM++ ---


class NIN(nn.Module):
    """A matrix from the right on the channels of every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(channels, channels) / channels**0.5)
        self.b = nn.Parameter(torch.randn(channels) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bihw,io->bohw", x, self.W) + self.b[:, None, None]


class ScoreBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, embedding: int, how: str = "") -> None:
        super().__init__()
        self.how = how
        self.GroupNorm_0 = norm(inputs, score_sde=True)
        self.Conv_0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.Dense_0 = nn.Linear(embedding, outputs)
        self.GroupNorm_1 = norm(outputs, score_sde=True)
        self.Conv_1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs or how:
            self.Conv_2 = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = F.silu(self.GroupNorm_0(x))
        h, x = resized(h, self.how), resized(x, self.how)
        h = self.Conv_0(h) + self.Dense_0(F.silu(embedding))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        return ((self.Conv_2(x) if hasattr(self, "Conv_2") else x) + h) / np.sqrt(2.0)


class ScoreAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = norm(channels, score_sde=True)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (NIN(channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        q, k, v = self.NIN_0(h).flatten(2), self.NIN_1(h).flatten(2), self.NIN_2(h).flatten(2)
        weights = torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(x.shape[1])
        y = torch.einsum("bqk,bck->bcq", weights.softmax(-1), v).reshape(x.shape)
        return (x + self.NIN_3(y)) / np.sqrt(2.0)


def resized(x: Tensor, how: str) -> Tensor:
    """Every pixel four times, or the mean of every four."""
    if how == "up":
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    if how == "down":
        return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2]
                + x[:, :, 1::2, 1::2]) / 4  # fmt: skip
    return x


class DDPMpp(nn.Module):
    """Modules in one list, which the forward pass takes one after the other."""

    def __init__(self, width: int, blocks: int, *, multipliers=(1, 2, 2, 2), size=32) -> None:
        super().__init__()
        self.register_buffer("sigmas", torch.linspace(50, 0.01, 1000, dtype=torch.float64))
        self.width, self.blocks, self.size, self.levels = width, blocks, size, len(multipliers)
        time = 4 * width
        modules: list[nn.Module] = [nn.Linear(width, time), nn.Linear(time, time)]
        modules.append(nn.Conv2d(3, width, 3, padding=1))
        now, skips = width, [width]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                modules.append(ScoreBlock(now, width * multiplier, time))
                now = width * multiplier
                skips.append(now)
                if size >> level == 16:
                    modules.append(ScoreAttention(now))
            if level < self.levels - 1:
                modules.append(ScoreBlock(now, now, time, "down"))
                skips.append(now)
        modules += [ScoreBlock(now, now, time), ScoreAttention(now), ScoreBlock(now, now, time)]
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                modules.append(ScoreBlock(now + skips.pop(), width * multiplier, time))
                now = width * multiplier
            if size >> level == 16:
                modules.append(ScoreAttention(now))
            if level > 0:
                modules.append(ScoreBlock(now, now, time, "up"))
        modules += [norm(now, score_sde=True), nn.Conv2d(now, 3, 3, padding=1)]
        self.all_modules = nn.ModuleList(modules)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        rest = iter(self.all_modules)
        half = self.width // 2
        step = math.log(10000) / (half - 1)
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -step)
        angles = labels[:, None] * frequencies.to(labels.dtype)[None]
        embedding = next(rest)(torch.cat([angles.sin(), angles.cos()], 1))
        embedding = next(rest)(F.silu(embedding))
        x = next(rest)(x)
        skips = [x]
        for level in range(self.levels):
            for _ in range(self.blocks):
                x = next(rest)(x, embedding)
                if x.shape[-1] == 16 and self.size >= 32:
                    x = next(rest)(x)
                skips.append(x)
            if level < self.levels - 1:
                x = next(rest)(x, embedding)
                skips.append(x)
        x = next(rest)(x, embedding)
        x = next(rest)(x)
        x = next(rest)(x, embedding)
        for level in reversed(range(self.levels)):
            for _ in range(self.blocks + 1):
                x = next(rest)(torch.cat([x, skips.pop()], 1), embedding)
            if x.shape[-1] == 16:
                x = next(rest)(x)
            if level > 0:
                x = next(rest)(x, embedding)
        x = F.silu(next(rest)(x))
        x = next(rest)(x)
        assert not skips
        assert next(rest, None) is None
        return x


def checkpoint(last: nn.Module, average: nn.Module) -> dict[str, Any]:
    """A file of score_sde: its optimizer, the last weights of a DataParallel, and the averages."""
    parameters = list(last.parameters())
    optimizer = torch.optim.Adam(parameters, lr=2e-4)
    sum(weights.sum() for weights in parameters).backward()  # type: ignore[union-attr]
    optimizer.step()
    shadow = [weights.detach().clone() for weights in average.parameters()]
    return {
        "optimizer": optimizer.state_dict(),
        "model": nn.DataParallel(last).state_dict(),
        "ema": {"decay": 0.9999, "num_updates": 8, "shadow_params": shadow},
        "step": 8,
    }


# --- guided-diffusion: ADM ---


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, embedding: int, how: str = "") -> None:
        super().__init__()
        self.how = how
        first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.in_layers = nn.Sequential(norm(inputs, score_sde=False), nn.SiLU(), first)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs))
        second = nn.Conv2d(outputs, outputs, 3, padding=1)
        out = [norm(outputs, score_sde=False), nn.SiLU(), nn.Dropout(0.0), second]
        self.out_layers = nn.Sequential(*out)
        same = inputs == outputs
        self.skip_connection = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = resized(self.in_layers[1](self.in_layers[0](x)), self.how)
        h = self.in_layers[2](h)
        told = self.emb_layers(embedding)[:, :, None, None]
        h = self.out_layers[0](h) * (1 + told[:, : h.shape[1]]) + told[:, h.shape[1] :]
        return self.skip_connection(resized(x, self.how)) + self.out_layers[1:](h)


class AttentionBlock(nn.Module):
    """Heads first, then queries, keys and values of each: the "legacy" order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // 64
        self.norm = norm(channels, score_sde=False)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        flat = x.reshape(n, c, h * w)
        qkv = self.qkv(self.norm(flat)).reshape(n * self.heads, 3, c // self.heads, h * w)
        q, k, v = qkv.unbind(1)
        weights = torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(c // self.heads)
        y = torch.einsum("bqk,bck->bcq", weights.softmax(-1), v).reshape(n, c, h * w)
        return (flat + self.proj_out(y)).reshape(x.shape)


class UNetModel(nn.Module):
    """`attention`: factors of reduction at which there is attention. Twice as many channels out."""

    def __init__(self, width: int, multipliers: tuple[int, ...], blocks: int, *,
                 attention: tuple[int, ...], classes: int = 0) -> None:  # fmt: skip
        super().__init__()
        self.width, time = width, 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        if classes:
            self.label_emb = nn.Embedding(classes, time)
        first = nn.Conv2d(3, width, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        now, skips = width, [width]
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                stage = nn.ModuleList([ResBlock(now, width * multiplier, time)])
                now = width * multiplier
                if 2**level in attention:
                    stage.append(AttentionBlock(now))
                self.input_blocks.append(stage)
                skips.append(now)
            if level < len(multipliers) - 1:
                self.input_blocks.append(nn.ModuleList([ResBlock(now, now, time, "down")]))
                skips.append(now)
        middle = [ResBlock(now, now, time), AttentionBlock(now), ResBlock(now, now, time)]
        self.middle_block = nn.ModuleList(middle)
        self.output_blocks = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for index in range(blocks + 1):
                stage = nn.ModuleList([ResBlock(now + skips.pop(), width * multiplier, time)])
                now = width * multiplier
                if 2**level in attention:
                    stage.append(AttentionBlock(now))
                if level and index == blocks:
                    stage.append(ResBlock(now, now, time, "up"))
                self.output_blocks.append(stage)
        last = nn.Conv2d(now, 6, 3, padding=1)
        self.out = nn.Sequential(norm(now, score_sde=False), nn.SiLU(), last)

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        half = self.width // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        angles = timesteps[:, None].to(x.dtype) * frequencies.to(x.dtype)[None]
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1))
        if y is not None:
            embedding = embedding + self.label_emb(y)
        skips = []
        for stage in self.input_blocks:
            x = through(stage, x, embedding)
            skips.append(x)
        x = through(self.middle_block, x, embedding)
        for stage in self.output_blocks:
            x = through(stage, torch.cat([x, skips.pop()], 1), embedding)
        return self.out(x)


def through(stage: Any, x: Tensor, embedding: Tensor) -> Tensor:
    for layer in stage:
        x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
    return x
