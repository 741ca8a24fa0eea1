"""A denoiser is the only thing the methods know: E[x0 | x, sigma], with and without the class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from rdc import vp
from rdc.config import ADDED, require, require_type, rule_of_names
from rdc.gradients import gradient
from rdc.hub.checkpoint import Pretrained
from rdc.images import check_precision
from rdc.networks.unet import Outputs, UNet
from rdc.networks.unet_config import UNetConfig


@runtime_checkable
class DenoiserLike(Protocol):
    """Interface of all denoisers. x: (B, C, H, W) = image in [-1, 1] + sigma * noise."""

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
        """Network rows that one image of `denoise_classes` costs: 1, or one for each class, which
        `denoise_class` then answers (see `OneClassAtATime`)."""
        ...

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Unconditional estimate (B, C, H, W)."""
        ...

    def denoise_classes(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """One estimate per class (B, K, C, H, W)."""
        ...


CLASSIFYING = ("image_shape", "num_classes", "class_names", "rows_per_image", "denoise_classes")
"""Members of `DenoiserLike` that a diffusion classifier uses."""
PURIFYING = ("image_shape", "denoise")
"""Members of it that purifiers and likelihood maximization use."""


def require_parts(denoiser: object, names: Sequence[str]) -> None:
    """Refuse a denoiser without these attributes and methods of `DenoiserLike`.

    `image_shape` is one of `names`. A test by the protocols would ask for more than is used.
    """
    if missing := [name for name in names if not hasattr(denoiser, name)]:
        raise ValueError(
            f"denoiser: {type(denoiser).__name__} has no {', '.join(missing)}; wrap a network of "
            "your own as docs/purification.md shows, or give a rdc.Denoiser"
        )
    shape = denoiser.image_shape  # type: ignore[attr-defined]
    if not isinstance(shape, tuple) or len(shape) != 3:  # a list equals no tensor's shape
        raise ValueError(
            f"denoiser: image_shape={shape!r} must be a tuple of three numbers: channels, height "
            "and width"
        )


@runtime_checkable
class OneClassAtATime(DenoiserLike, Protocol):
    """A denoiser that can be asked for one class of each image, at the price of one row."""

    def denoise_class(self, x: Tensor, sigma: Tensor | float, labels: Tensor) -> Tensor:
        """Estimate for the class labels (B,) of each image (B, C, H, W)."""
        ...


@runtime_checkable
class NoisyClassifier(DenoiserLike, Protocol):
    """A denoiser that also classifies noised images."""

    def class_log_posterior(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """log p(y | x, sigma) for every class: (B, K)."""
        ...


def per_image(sigma: Tensor | float, x: Tensor) -> Tensor:
    """sigma, a scalar or (B,), for each image of x and in its precision: (B,)."""
    return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))


def of_each_class(
    estimate: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    sigma: Tensor | float,
    count: int,
) -> Tensor:
    """estimate(x, sigma, labels) of every class of every image: (B, `count`, C, H, W).

    All classes of all images x (B, C, H, W) are rows of one batch.
    """
    labels = torch.arange(count, device=x.device).repeat(len(x))
    rows = repeat(x, "b c h w -> (b k) c h w", k=count)
    found = estimate(rows, per_image(sigma, x).repeat_interleave(count), labels)
    return rearrange(found, "(b k) c h w -> b k c h w", k=count)


Preconditioning = Literal["edm", "ve", "vp-continuous", "vp-discrete"]


@dataclass(frozen=True)
class DenoiserConfig:
    """A network, and how it becomes a denoiser.

    `sigma_data`: standard deviation of the images on [-1, 1], EDM's only data constant.
    `class_names` is empty, or names the K classes in the order of the labels.
    `preconditioning`: what the network was trained to be told and to answer. "edm" is EDM's own;
        in "ve" the network answers with minus the noise and is told ln(sigma / 2) (Karras et al.
        2022, table 1, for Song et al.'s VE process); networks of the VP process predict the noise,
        and are told the time as 999 t in "vp-continuous" (Song et al. 2021), as the nearest of
        DDPM's 1000 in "vp-discrete".
    """

    network: UNetConfig = field(default_factory=UNetConfig)
    sigma_data: float = 0.5
    class_names: tuple[str, ...] = ()
    preconditioning: Preconditioning = field(default="edm", metadata=ADDED)

    def __post_init__(self) -> None:
        require(
            self,
            sigma_data=(1e-3 <= self.sigma_data <= 1e3, "from 0.001 to 1000"),
            class_names=rule_of_names(self.class_names, self.network.num_classes),
        )


class Denoiser(
    nn.Module,
    Pretrained,
    library_name="rdc",
    pipeline_tag="unconditional-image-generation",
    tags=["diffusion"],
):
    """A UNet under a preconditioning (Karras et al. 2022, eq. 7 and table 1).

        D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)

    `sigma` is a scalar or (B,). Implements `DenoiserLike` for every kind of network: a multi-head
    network answers `denoise_classes` with one pass, a label-conditional one with K rows per image;
    one without classes raises a ValueError.
    """

    config_class = DenoiserConfig

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        require_type(config, DenoiserConfig)
        self.config = config
        # Convolutions are 1.2x faster this way on a CPU and more on a GPU's tensor cores.
        self.network = UNet(config.network).to(memory_format=torch.channels_last)

    @property
    def summary(self) -> str:
        """A short description: kind, architecture and preconditioning."""
        return f"denoiser, {self.config.network.architecture}, {self.config.preconditioning}"

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
    def has_classifier(self) -> bool:
        """True if the network classifies noised images."""
        return self.config.network.conditioning == "classifier"

    @property
    def rows_per_image(self) -> int:
        return 1 if self.multihead else max(1, self.num_classes)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        *,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
        outputs: Outputs = "all",
    ) -> Tensor:
        """Denoised images as the network gives them, or its logits; see `UNet.forward`."""
        check_precision(x, self.network.stem.weight.dtype)
        sigma = per_image(sigma, x)
        *factors, c_noise = self._precondition(sigma)
        c_skip, c_out, c_in = (rearrange(factor, "b -> b 1 1 1") for factor in factors)
        residual = self.network(c_in * x, c_noise, labels=labels, augment=augment, outputs=outputs)
        if outputs == "logits":
            return residual.to(x.dtype)
        if residual.ndim == 5:
            c_skip, c_out, x = c_skip[:, None], c_out[:, None], x[:, None]
        return c_skip * x + c_out * residual.to(x.dtype)

    def _precondition(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in and c_noise (Karras et al. 2022, table 1), all (B,)."""
        if self.config.preconditioning == "edm":
            variance = self.config.sigma_data**2
            total = sigma.square() + variance
            c_out = sigma * self.config.sigma_data * total.rsqrt()
            return variance / total, c_out, total.rsqrt(), sigma.log() / 4
        if self.config.preconditioning == "ve":
            return torch.ones_like(sigma), sigma, torch.ones_like(sigma), (sigma / 2).log()
        # The network sees the VP state x / sqrt(1 + sigma^2) and predicts the noise in it.
        exact = sigma.double()  # float32 would lose the last digits of a time up to 999
        discrete = self.config.preconditioning == "vp-discrete"
        c_noise = vp.index(exact) if discrete else (vp.TIMES - 1) * vp.time(exact)
        return torch.ones_like(sigma), -sigma, (1 + sigma.square()).rsqrt(), c_noise.to(sigma)

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Unconditional E[x0 | x, sigma]: (B, C, H, W)."""
        return self(x, sigma, outputs="unconditional")

    def denoise_class(self, x: Tensor, sigma: Tensor | float, labels: Tensor) -> Tensor:
        """E[x0 | x, sigma, y] for one class of each image, labels (B,): (B, C, H, W).

        With a classifier, by Bayes and Tweedie's formula: D(x, sigma) + sigma^2 grad log p(y | x,
        sigma), as Dhariwal and Nichol (2021, eq. 10) guide a sampler.
        """
        self._require_classes()
        if self.has_classifier:
            return self.denoise(x, sigma) + self._guidance(x, sigma, labels)
        if not self.multihead:
            return self(x, sigma, labels=labels)
        return self.denoise_classes(x, sigma)[torch.arange(len(x), device=x.device), labels]

    def denoise_classes(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x0 | x, sigma, y] for every class y: (B, K, C, H, W)."""
        self._require_classes()
        if self.multihead:
            return self(x, sigma, outputs="classes")
        if self.has_classifier:  # one pass of the decoder for all classes
            guidance = of_each_class(self._guidance, x, sigma, self.num_classes)
            return self.denoise(x, sigma)[:, None] + guidance
        return of_each_class(self.denoise_class, x, sigma, self.num_classes)

    def class_log_posterior(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """log p(y | x, sigma) of the network's classifier: (B, K)."""
        if not self.has_classifier:
            raise ValueError(
                "denoiser: its network has no classifier of noised images; train one with "
                "conditioning='classifier'"
            )
        return self(x, sigma, outputs="logits").log_softmax(1)

    def _guidance(self, x: Tensor, sigma: Tensor | float, labels: Tensor) -> Tensor:
        """sigma^2 grad log p(y | x, sigma) for labels (B,): (B, C, H, W)."""
        with torch.inference_mode(False):  # whose tensors the gradient could not save
            sigma = per_image(sigma, x).clone()
            labels = labels.clone()
        score = gradient(
            lambda rows: self.class_log_posterior(rows, sigma).gather(1, labels[:, None])[:, 0], x
        )
        return sigma.square()[:, None, None, None] * score

    def _require_classes(self) -> None:
        if self.config.network.conditioning == "none":
            raise ValueError(
                "denoiser: its network has conditioning='none' and knows no classes: it purifies "
                "and maximizes likelihoods, but classification needs a class-conditional network"
            )
