"""Networks of the diffusers library as denoisers; see `DiffusersDenoiser`."""

from pathlib import Path
from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor, nn

from rdc.config import read_json, rule_of_names
from rdc.denoiser import of_each_class, per_image
from rdc.images import check_precision

PREDICTIONS = ("epsilon", "v_prediction", "sample")


class DiffusersDenoiser(nn.Module):
    """A `UNet2DModel` of diffusers, trained on images in [-1, 1], as a denoiser.

        rdc.DiffusersDenoiser.from_pretrained("folder")  # what `save_pretrained` wrote
        rdc.DiffusersDenoiser(pipeline.unet, pipeline.scheduler)

    The network is asked at the scheduler's time t whose sigma_t = sqrt((1 - abar_t) / abar_t) is
    nearest to sigma, for the VP state x / sqrt(1 + sigma^2). Its answer F is what the scheduler's
    `prediction_type` says:

        epsilon        D = x - sigma F                                   (Ho et al. 2020, eq. 15)
        v_prediction   D = x / (1 + sigma^2) - F sigma / sqrt(1 + sigma^2)   (Salimans & Ho 2022)
        sample         D = F

    `scheduler` is any of diffusers that has betas, whatever their schedule; of its settings only
    those of training count. A time without signal (`rescale_betas_zero_snr`) is never asked for.

    `null_label`: of a network with class embeddings, the label that was trained to mean "no class",
        which answers `denoise` and is not a class; diffusers does not store it. Without one
        `denoise` raises a ValueError, and likelihood maximization needs another denoiser.
    `class_names` is empty, or names the classes in the order of the labels.

    The network is used as it is: a live one should be in evaluation mode. Implements
    `OneClassAtATime`, with K rows per image for all classes.
    """

    def __init__(
        self,
        network: Any,
        scheduler: Any,
        *,
        null_label: int | None = None,
        class_names: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        _require_network(network)
        self.network = network
        self.prediction = _prediction(network, scheduler)
        sigmas = _noise_levels(scheduler)
        # Not a buffer, which a change of precision would round.
        self._boundaries = (sigmas[1:] + sigmas[:-1]) / 2
        count = network.config.num_class_embeds or 0
        if null_label is not None and not 0 <= null_label < count:
            raise ValueError(
                f"null_label={null_label} must be one of the network's {count} class embeddings; "
                "leave it out where no label stands for no class"
            )
        self.null_label = null_label
        self.labels = [label for label in range(count) if label != null_label]
        named, right = rule_of_names(class_names, len(self.labels))
        if not named:
            raise ValueError(f"class_names={class_names!r} must be {right}")
        self.class_names = tuple(class_names)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, null_label: int | None = None, class_names: tuple[str, ...] = ()
    ) -> Self:
        """Load a pipeline's folder, or one that holds the network and the scheduler side by side.

        In evaluation mode, weights frozen. Nothing is unpickled, and nothing downloaded; raises
        FileNotFoundError where a part is missing and ValueError where it is not whole, or not a
        network of images.
        """
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(
                f"folder={str(folder)!r} is not a folder; for a repository of the Hugging Face hub "
                "give the parts of diffusers.DDPMPipeline.from_pretrained(...) to DiffusersDenoiser"
            )
        _require_pixels(root)
        network = _load_network(_part(root, "unet"))
        scheduler = _load_scheduler(_part(root, "scheduler"))
        denoiser = cls(network, scheduler, null_label=null_label, class_names=class_names)
        return denoiser.eval().requires_grad_(False)

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        config = self.network.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return config.in_channels, height, width

    @property
    def rows_per_image(self) -> int:
        return max(1, self.num_classes)

    def forward(self, x: Tensor, sigma: Tensor | float, *, labels: Tensor | None = None) -> Tensor:
        """Denoised images (B, C, H, W); `labels` (B,) are the network's."""
        check_precision(x, self.network.dtype)
        sigma = per_image(sigma, x)
        times = torch.bucketize(sigma.double().contiguous(), self._boundaries.to(sigma.device))
        sigma = rearrange(sigma, "b -> b 1 1 1")
        c_in = (1 + sigma.square()).rsqrt()
        answer = self.network(c_in * x, times, class_labels=labels, return_dict=False)[0]
        # Where the variance was learned, too, it is behind the prediction.
        answer = answer[:, : x.shape[1]].to(x.dtype)
        if self.prediction == "epsilon":
            return x - sigma * answer
        if self.prediction == "v_prediction":
            return c_in.square() * x - c_in * sigma * answer
        return answer

    def denoise(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """Unconditional E[x0 | x, sigma]: (B, C, H, W)."""
        if not self.labels:
            return self(x, sigma)
        if self.null_label is None:
            raise ValueError(
                "null_label=None: the network was trained with classes and its files do not say "
                "which label means none of them; give null_label=, or maximize and purify with an "
                "unconditional network"
            )
        return self(x, sigma, labels=torch.full((len(x),), self.null_label, device=x.device))

    def denoise_class(self, x: Tensor, sigma: Tensor | float, labels: Tensor) -> Tensor:
        """E[x0 | x, sigma, y] for one class of each image, labels (B,): (B, C, H, W)."""
        if not self.labels:
            raise ValueError(
                "denoiser: its network has num_class_embeds=None and knows no classes: it purifies "
                "and maximizes likelihoods, but classification needs a class-conditional network"
            )
        return self(x, sigma, labels=torch.tensor(self.labels, device=x.device)[labels])

    def denoise_classes(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """E[x0 | x, sigma, y] for every class y: (B, K, C, H, W)."""
        return of_each_class(self.denoise_class, x, sigma, self.num_classes)


def _diffusers() -> Any:
    # diffusers takes seconds to import, and only its networks need it.
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            "networks of diffusers need that library: pip install diffusers"
        ) from error
    return diffusers


def _require_network(network: Any) -> None:
    if not isinstance(network, _diffusers().UNet2DModel):
        raise TypeError(
            f"network: a {type(network).__name__} must be a UNet2DModel of diffusers, such as "
            "pipeline.unet"
        )
    config = network.config
    if config.time_embedding_type == "fourier":
        raise ValueError(
            "network: time_embedding_type='fourier' is told the noise level itself; only networks "
            "that are told a time of DDPM can be read"
        )
    if config.class_embed_type is not None:
        raise ValueError(
            f"network: class_embed_type={config.class_embed_type!r} must be None: classes are "
            "labels with an embedding each (num_class_embeds)"
        )
    if config.sample_size is None:
        raise ValueError(
            "network: sample_size=None does not say how large its images are; for images of 32x32, "
            "network.register_to_config(sample_size=32)"
        )


def _prediction(network: Any, scheduler: Any) -> str:
    """The network's target, one of PREDICTIONS; a learned variance may follow in the channels."""
    prediction = scheduler.config.get("prediction_type")
    if prediction not in PREDICTIONS:
        raise ValueError(f"scheduler: prediction_type={prediction!r} must be one of {PREDICTIONS}")
    learned = str(scheduler.config.get("variance_type")).startswith("learned")
    given, answered = network.config.in_channels, network.config.out_channels
    if answered != given * (2 if learned else 1):
        raise ValueError(
            f"network: out_channels={answered} must be in_channels={given}, or twice as many where "
            "the scheduler has variance_type='learned' or 'learned_range'"
        )
    return prediction


def _noise_levels(scheduler: Any) -> Tensor:
    """sigma of every time of training, float64; infinite at a time without signal."""
    kept = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(kept, Tensor):
        raise ValueError(
            f"scheduler: a {type(scheduler).__name__} has no betas; give one like DDPMScheduler "
            "with the settings of training"
        )
    # In float32 they are what the network was trained with, so they are not computed anew.
    kept = kept.detach().cpu().double()
    sigmas = ((1 - kept) / kept).sqrt()
    if not (sigmas.diff() >= 0).all():
        raise ValueError("scheduler: its noise levels do not rise from one time to the next")
    return sigmas


def _part(root: Path, name: str) -> Path:
    """A pipeline's part is in a folder of its own, and in old repositories beside the others."""
    return root / name if (root / name).is_dir() else root


def _require_pixels(root: Path) -> None:
    """Refuse pipelines whose network denoises something else than images."""
    if not (root / "model_index.json").is_file():
        return
    parts = {
        name: value
        for name, value in _read(root / "model_index.json").items()
        if isinstance(value, list) and value[:1] != [None]
    }
    others = sorted(set(parts) - {"unet", "scheduler"})
    if others:
        raise ValueError(
            f"folder={str(root)!r}: its pipeline also has {others}: such a network does not "
            "denoise images by themselves; only pipelines of unet and scheduler can be read"
        )


def _load_network(folder: Path) -> Any:
    """The network with all of its weights, and none that it has no use for."""
    kind = _read(folder / "config.json").get("_class_name")
    if kind != "UNet2DModel":
        raise ValueError(f"{folder / 'config.json'}: _class_name={kind!r} must be 'UNet2DModel'")
    try:
        network, info = _diffusers().UNet2DModel.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, local_files_only=True
        )
    except OSError as error:
        raise FileNotFoundError(
            f"{folder}: {error} Only safetensors are read; files of torch.save can be loaded with "
            "diffusers, and the network given to DiffusersDenoiser"
        ) from error
    # diffusers leaves the memory of missing weights as it finds it, and only logs that.
    missing, unexpected = (sorted(info[f"{kind}_keys"]) for kind in ("missing", "unexpected"))
    if missing or unexpected:
        raise ValueError(
            f"{folder}: its tensors are not those of its network; missing {missing}, unexpected "
            f"{unexpected}"
        )
    tensors = network.state_dict().items()
    broken = [name for name, tensor in tensors if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{folder}: NaN or infinity in {broken}")
    return network


def _load_scheduler(folder: Path) -> Any:
    path = folder / "scheduler_config.json"
    config = _read(path)
    kind = getattr(_diffusers(), str(config.get("_class_name")), None)
    if not isinstance(kind, type) or not issubclass(kind, _diffusers().SchedulerMixin):
        raise ValueError(f"{path}: _class_name={config.get('_class_name')!r} is no scheduler")
    return kind.from_config(config)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; a pipeline's save_pretrained writes it, with all its parts"
        )
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must be a JSON object")
    return values
