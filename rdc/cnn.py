"""An ordinary convolutional classifier: what diffusion classifiers are compared with on digits."""

from dataclasses import dataclass

from torch import Tensor, nn

from rdc.checkpoint import Pretrained
from rdc.config import require
from rdc.images import to_x


@dataclass(frozen=True)
class CNNConfig:
    """Two stages of two 3x3 convolutions, `width` and `2 width` channels, and a linear layer."""

    image_size: int = 8
    channels: int = 1
    num_classes: int = 10
    width: int = 32
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(
            self,
            image_size=(self.image_size >= 4, "at least 4: it is halved twice"),
            channels=(self.channels in (1, 3), "1 or 3"),
            num_classes=(self.num_classes >= 2, "at least 2"),
            width=(self.width >= 1, "at least 1"),
        )


class CNN(nn.Module, Pretrained, library_name="rdc", license="apache-2.0"):
    """[0, 1] images (B, C, H, W) to logits (B, K)."""

    config_class = CNNConfig

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.config = config
        width, size = config.width, config.image_size // 4

        def stage(channels_in: int, channels_out: int) -> list[nn.Module]:
            convs = ((channels_in, channels_out), (channels_out, channels_out))
            layers = [
                layer
                for a, b in convs
                for layer in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            ]
            return [*layers, nn.MaxPool2d(2)]

        self.layers = nn.Sequential(
            *stage(config.channels, width),
            *stage(width, 2 * width),
            nn.Flatten(),
            nn.Linear(2 * width * size * size, config.num_classes),
        )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.config.channels, self.config.image_size, self.config.image_size

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(to_x(images))
