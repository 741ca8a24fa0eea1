"""A defence: a purifier in front of a classifier."""

from torch import Tensor, nn


class Defense(nn.Module):
    """`classifier(purifier(images))`: [0, 1] images (B, C, H, W) to logits (B, K).

    `purifier` maps [0, 1] images to [0, 1] images, `classifier` maps them to logits. Because a
    defence is an ordinary module, attack libraries take it as it is.
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.purifier = purifier
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.purifier(images))
