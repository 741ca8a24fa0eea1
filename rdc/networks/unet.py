"""The UNet that every method shares: label-conditional, or one trunk with a head per class.

The family is DDPM++ as EDM uses it (Song et al., ICLR 2021; Karras et al., NeurIPS 2022): residual
blocks with GroupNorm and a noise-level embedding, self-attention at chosen resolutions, skips from
encoder to decoder. The published members of the family are architectures of the same network.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdc.networks.blocks import STYLES, Block, NoiseEmbedding, PyramidLevel, Resample, conv3x3
from rdc.networks.heads import Heads, LinearHead
from rdc.networks.unet_config import UNetConfig

Outputs = Literal["all", "classes", "unconditional", "logits"]


class UNet(nn.Module):
    """The raw network F inside a `Denoiser`: x (B, C, H, W), scaled by c_in, and c_noise (B,)."""

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
            self.class_heads = Heads(config, config.num_classes, self.style)
            self.unconditional_head = Heads(config, 1, self.style)
        else:
            self.head = Heads(config, 1, self.style)

    def _build_encoder(self) -> list[int]:
        """Build the encoder; returns the widths of its skips, from the image on."""
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
        """Build the blocks in the middle and the decoder."""
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
