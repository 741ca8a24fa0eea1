"""A small convolutional network: what diffusion classifiers are compared with on digits."""

from torch import Tensor, nn


class CNN(nn.Module):
    """Two stages of two 3x3 convolutions, `width` and `2 width` channels, and a linear layer.

    Images (B, `channels`, `image_size`, `image_size`) to logits (B, `num_classes`). The map before
    the linear layer is a quarter of the image's size; it is flattened, not averaged.
    """

    def __init__(self, width: int, image_size: int, channels: int, num_classes: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width} must be at least 1")
        if image_size < 4:
            raise ValueError(f"image_size={image_size} must be at least 4: it is halved twice")
        self.layers = nn.Sequential(*_stage(channels, width), *_stage(width, 2 * width))
        self.head = nn.Linear(2 * width * (image_size // 4) ** 2, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """The map before the linear layer: (B, 2 width, H // 4, W // 4)."""
        return self.layers(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, K) of that map, or what the linear layer sees (B, F)."""
        features = features.flatten(1)
        return features if pre_logits else self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def _stage(channels_in: int, channels_out: int) -> list[nn.Module]:
    convs = ((channels_in, channels_out), (channels_out, channels_out))
    layers = [
        layer
        for a, b in convs
        for layer in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
    ]
    return [*layers, nn.MaxPool2d(2)]
