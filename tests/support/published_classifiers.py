"""CIFAR classifiers in their own terms: an oracle, written apart from the library.

The wide ResNet with the names that RobustBench and TRADES share (Zagoruyko & Komodakis 2016), the
variant of Gowal et al. 2020 with RobustBench's, and the ResNet with kuangliu's (He et al. 2016,
bottlenecks with the stride in the 3x3 convolution).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.convShortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        if self.convShortcut is not None:
            x = self.convShortcut(active)
        return x + self.conv2(F.relu(self.bn2(self.conv1(active))))


class NetworkBlock(nn.Module):
    def __init__(self, count: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        rest = (BasicBlock(outputs, outputs, 1) for _ in range(count - 1))
        self.layer = nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """`unused`: with the group that TRADES makes, and never uses."""

    def __init__(self, depth: int, widen: int, classes: int, *, unused: bool = False) -> None:
        super().__init__()
        count, widths = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = conv(3, 16, 3)
        self.block1 = NetworkBlock(count, widths[0], widths[1], 1)
        if unused:
            self.sub_block1 = NetworkBlock(count, widths[0], widths[1], 1)
        self.block2 = NetworkBlock(count, widths[1], widths[2], 2)
        self.block3 = NetworkBlock(count, widths[2], widths[3], 2)
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.avg_pool2d(F.relu(self.bn1(x)), 8).flatten(1))


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + (-x).exp())


class DeepMindBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.batchnorm_0, self.relu_0 = nn.BatchNorm2d(inputs), Swish()
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, stride, bias=False)
        self.batchnorm_1, self.relu_1 = nn.BatchNorm2d(outputs), Swish()
        self.conv_1 = conv(outputs, outputs, 3)
        self.shortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu_0(self.batchnorm_0(x))
        if self.shortcut is not None:
            x = self.shortcut(active)
        (n, c, h, w), before = active.shape, 2 - self.conv_0.stride[0]
        padded = active.new_zeros(n, c, h + 1 + before, w + 1 + before)
        padded[:, :, before : before + h, before : before + w] = active
        return x + self.conv_1(self.relu_1(self.batchnorm_1(self.conv_0(padded))))


class DeepMindGroup(nn.Module):
    def __init__(self, count: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        rest = (DeepMindBlock(outputs, outputs, 1) for _ in range(count - 1))
        self.block = nn.Sequential(DeepMindBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class DMWideResNet(nn.Module):
    """Images in [0, 1], which it normalizes itself; older files have `mean` and `std` in them."""

    mean: Tensor
    std: Tensor

    def __init__(self, depth: int, widen: int, classes: int, *, stored: bool = True) -> None:
        super().__init__()
        for name, values in (("mean", (0.4914, 0.4822, 0.4465)), ("std", (0.2471, 0.2435, 0.2616))):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=stored)
        count, widths = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
        self.init_conv = conv(3, 16, 3)
        pairs = zip(widths, widths[1:], (1, 2, 2), strict=False)
        self.layer = nn.Sequential(*(DeepMindGroup(count, a, b, s) for a, b, s in pairs))
        self.batchnorm, self.relu = nn.BatchNorm2d(widths[3]), Swish()
        self.logits = nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.init_conv((x - self.mean) / self.std))
        return self.logits(self.relu(self.batchnorm(x)).mean((2, 3)))


class ImageNormalizer(nn.Module):
    """The first part of RobustBench's `normalize_model`."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.get_buffer("mean")) / self.get_buffer("std")


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.extend([conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(h)))))
        return F.relu(h + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, counts: tuple[int, int, int, int], classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 3), nn.BatchNorm2d(64)
        inputs = 64
        for level, count in enumerate(counts):
            width, stride = 64 * 2**level, 1 if level == 0 else 2
            blocks = [Bottleneck(inputs, width, stride)]
            blocks += [Bottleneck(4 * width, width, 1) for _ in range(count - 1)]
            self.add_module(f"layer{level + 1}", nn.Sequential(*blocks))
            inputs = 4 * width
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for level in range(1, 5):
            x = self.get_submodule(f"layer{level}")(x)
        return self.linear(F.avg_pool2d(x, 4).flatten(1))
