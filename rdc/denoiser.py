"""A denoiser is the only thing the methods know: E[x0 | x, sigma], with and without the class."""

from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from rdc.backbone import UNet, UNetConfig
from rdc.checkpoint import Pretrained
from rdc.config import require


@runtime_checkable
class DenoiserLike(Protocol):
    """What every method asks of a denoiser. x: (B, C, H, W) = image in [-1, 1] + sigma * noise."""

    @property
    def num_classes(self) -> int: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of the labels, or empty."""
        ...

    @property
    def rows_per_image(self) -> int:
        """Network rows that one image of `denoise_classes` costs."""
        ...

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Unconditional estimate (B, C, H, W)."""
        ...

    def denoise_classes(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """One estimate per class (B, K, C, H, W)."""
        ...


@dataclass(frozen=True)
class DenoiserConfig:
    """`sigma_data`: standard deviation of the images on [-1, 1], EDM's only data constant.

    `class_names` is empty, or names the K classes in the order of the labels.
    """

    network: UNetConfig = field(default_factory=UNetConfig)
    sigma_data: float = 0.5
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names, count = self.class_names, self.network.num_classes
        named = not names or len(names) == len(set(names)) == count
        require(
            self,
            sigma_data=(self.sigma_data > 0, "positive"),
            class_names=(named, f"empty, or {count} different names: one per class"),
        )


class Denoiser(nn.Module, Pretrained, library_name="rdc", license="apache-2.0"):
    """A UNet under EDM's preconditioning (Karras et al. 2022, eq. 7 and table 1).

        D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)

    `sigma` is a scalar or (B,). Implements `DenoiserLike` for both kinds of network: a multi-head
    network answers `denoise_classes` with one pass, a label-conditional one with K rows per image.
    """

    config_class = DenoiserConfig

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        # Convolutions are 1.2x faster this way on a CPU and more on a GPU's tensor cores.
        self.network = UNet(config.network).to(memory_format=torch.channels_last)

    @property
    def num_classes(self) -> int:
        return self.config.network.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        network = self.config.network
        return network.channels, network.image_size, network.image_size

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.config.class_names

    @property
    def multihead(self) -> bool:
        return self.config.network.conditioning == "multihead"

    @property
    def rows_per_image(self) -> int:
        return 1 if self.multihead else self.num_classes

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        *,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
        outputs: Literal["all", "classes", "unconditional"] = "all",
    ) -> Tensor:
        """Denoised images as the network gives them; see `UNet.forward` for the shapes."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        variance = self.config.sigma_data**2
        total = sigma.square() + variance
        c_skip = rearrange(variance / total, "b -> b 1 1 1")
        c_out = rearrange(sigma * self.config.sigma_data * total.rsqrt(), "b -> b 1 1 1")
        c_in = rearrange(total.rsqrt(), "b -> b 1 1 1")
        residual = self.network(
            c_in * x, sigma.log() / 4, labels=labels, augment=augment, outputs=outputs
        )
        if residual.ndim == 5:
            c_skip, c_out, x = c_skip[:, None], c_out[:, None], x[:, None]
        return c_skip * x + c_out * residual.to(x.dtype)

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Unconditional E[x0 | x, sigma]: (B, C, H, W)."""
        return self(x, sigma, outputs="unconditional")

    def denoise_class(self, x: Tensor, sigma: Tensor | float, labels: Tensor) -> Tensor:
        """E[x0 | x, sigma, y] for one class of each image, labels (B,): (B, C, H, W)."""
        if not self.multihead:
            return self(x, sigma, labels=labels)
        return self.denoise_classes(x, sigma)[torch.arange(len(x), device=x.device), labels]

    def denoise_classes(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x0 | x, sigma, y] for every class y: (B, K, C, H, W)."""
        if self.multihead:
            return self(x, sigma, outputs="classes")
        count = self.num_classes
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        labels = torch.arange(count, device=x.device).repeat(len(x))
        rows = repeat(x, "b c h w -> (b k) c h w", k=count)
        denoised = self(rows, sigma.repeat_interleave(count), labels=labels)
        return rearrange(denoised, "(b k) c h w -> b k c h w", k=count)
