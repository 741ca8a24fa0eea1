"""Settings of the UNet."""

from dataclasses import dataclass, field
from typing import Literal

from rdc.config import ADDED, require

Conditioning = Literal["label", "multihead", "classifier", "none"]
Architecture = Literal["rdc", "ddpmpp", "ncsnpp", "adm"]


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
            patch=(
                self.patch == 1 or (self.patch > 1 and self.architecture == "rdc"),
                "1, or more where architecture is 'rdc'",
            ),
        )
