"""Settings of the trainers and of the programs about their runs."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rdc.classifier_config import Estimator, RDCConfig
from rdc.networks.unet_config import UNetConfig
from rdc.runs.settings import flag
from training.objective_config import ClassifierObjectiveConfig, ObjectiveConfig

GEOMETRY = 8
"""features that tell the network what `augment.geometry` did"""
LARGEST_SEED = 2**64 - 1
"""largest number that seeds PyTorch's generators"""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings that every trainer has."""

    out: Path
    """folder for the trained model, `training.json`, `history.jsonl` and the checkpoints"""
    data: str = "digits"
    """"digits", a folder split/class/*.png, a CIFAR Python archive, an .npz, or a folder of
    parquet"""
    resize: int | None = None
    """resize and crop the images of a folder to this side; by default they are taken as they are"""
    channels: Literal[1, 3] = 3
    """gray or color images, where they are resized"""
    steps: int = 2000
    batch_size: int = 256
    """images per step, over all processes"""
    accumulate: int = 1
    """parts into which each process cuts its share of a step, where memory is short"""
    learning_rate: float = 2e-3
    warmup: int = 50
    """steps of linear warm-up; a cosine brings the rate to 0 afterwards"""
    weight_decay: float = 0.01
    clip: float = 1.0
    """largest norm of the gradient"""
    ema_half_lives: tuple[float, ...] = (50_000,)
    """half-lives in images; of several averages the one that validates best is saved"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    """compile the network with torch.compile: minutes at the start, faster steps"""
    seed: int = 0
    validate_every: int = 500
    """steps between measurements on the validation split"""
    validation_images: int = 1000
    """images of these measurements; the last one takes the whole split"""
    checkpoint_every: int = 500
    resume: Literal["never", "auto"] = "never"
    """auto: continue the run in `out` from its last checkpoint, or start it"""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulate", "validate_every", "checkpoint_every")
        require_at_least(self, 1, *counts, "validation_images", "resize")
        require_at_least(self, 0, "warmup", "weight_decay", "seed")
        if self.seed > LARGEST_SEED:
            raise ValueError(f"--seed {self.seed} must be at most {LARGEST_SEED}")
        if self.channels != 3 and self.resize is None:
            raise ValueError(
                f"--channels {self.channels} needs --resize: other images are taken as they are"
            )
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{flag(name)} {getattr(self, name)} must be positive")
        if not self.ema_half_lives or not all(each >= 0 for each in self.ema_half_lives):
            raise ValueError(f"--ema-half-lives {self.ema_half_lives}: one or more, none negative")


def require_at_least(config: object, least: int, *names: str) -> None:
    """Refuse settings, of those with these names, that are numbers below `least`."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise ValueError(f"{flag(name)} {value} must be at least {least}")


def rate(step: int, config: RunConfig) -> float:
    """Learning rate in [0, 1]: linear warm-up, then half a cosine down to 0."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class NetworkConfig(UNetConfig):
    """`rdc.UNetConfig`, by default with the size, channels and number of classes of the data.

    The other settings are checked once these are known: see `network_for`.
    """

    image_size: int | None = None  # type: ignore[assignment]
    """None takes what the data have"""
    channels: int | None = None  # type: ignore[assignment]
    """None takes what the data have"""
    num_classes: int | None = None  # type: ignore[assignment]
    """None takes what the data have"""

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Settings of one training run; the defaults train a small network on digits.

    `teacher`: "none" denoises images; "optimal" distills the exact denoiser of the training images;
    anything else is a denoiser as `Denoiser.from_pretrained` takes it.
    `init`: "none" starts from random weights, anything else from a denoiser of the same trunk.
    """

    network: Annotated[UNetConfig, tyro.conf.arg(constructor=NetworkConfig)] = field(
        default_factory=lambda: NetworkConfig(
            width=16, width_multipliers=(1, 2), blocks_per_level=1, attention_resolutions=(),
            head_blocks=1, head_width=8,
        )
    )  # fmt: skip
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    rdc: RDCConfig = field(default_factory=RDCConfig)
    """classifier and maximization that are saved with the network; the temperature is fitted"""
    teacher: str = "none"
    init: str = "none"
    augment: Literal["none", "flip", "flip-shift", "geometry"] = "none"
    """flip: mirror half of the images; flip-shift: also shift those that teach a classifier by up
    to an eighth; geometry: mirror, zoom, turn, stretch and move some, which the network is told
    (for small data sets)"""
    geometry_probability: float = 0.12

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher != "none" and self.network.conditioning != "multihead":
            raise ValueError("--teacher needs --network.conditioning multihead: a head per class")
        if self.augment == "flip-shift" and not self.classifies:
            raise ValueError(
                "--augment flip-shift needs --network.conditioning classifier; use flip"
            )
        if self.network.conditioning == "none":
            raise ValueError(
                "--network.conditioning none: without classes nothing tells how well the network "
                "learns; give label, whose estimate without a label is the unconditional one"
            )
        if self.rdc.classifier.estimator == "posterior" and not self.classifies:
            raise ValueError(
                "--rdc.classifier.estimator posterior needs --network.conditioning classifier"
            )
        if self.classifies and not 0 < self.objective.image_share < 1:
            raise ValueError(
                f"--objective.image-share {self.objective.image_share} must be between 0 and 1: "
                "the rest of each batch teaches the classifier"
            )
        plain = round(self.objective.image_share * self.batch_size)
        if self.classifies and not 0 < plain < self.batch_size:
            raise ValueError(
                f"--objective.image-share {self.objective.image_share} of --batch-size "
                f"{self.batch_size} leaves no image to denoise, or none to classify; give a larger "
                "batch or another share"
            )
        if not 0 <= self.geometry_probability <= 1:
            raise ValueError(
                f"--geometry-probability {self.geometry_probability} must be in [0, 1]"
            )
        self._require_use()
        if self.teacher != "none" and self.augment == "geometry":
            raise ValueError("--augment geometry: a teacher knows no augmented images; use flip")
        classes = self.network.num_classes  # None until the data are known
        if classes and self.objective.teacher_classes > classes:
            raise ValueError(
                f"--objective.teacher-classes {self.objective.teacher_classes} must be at most the "
                f"number of classes, {classes}"
            )
        told = GEOMETRY if self.augment == "geometry" else 0
        if self.network.augment_features not in (0, told):
            raise ValueError(
                f"--network.augment-features {self.network.augment_features}: --augment sets it, "
                f"here to {told}; leave it out"
            )
        object.__setattr__(self, "network", replace(self.network, augment_features=told))

    def _require_use(self) -> None:
        """Refuse settings that nothing would read."""
        objective, taught = self.objective, self.teacher != "none"
        usual = type(objective)()
        unread = {
            "objective.class-noise": not self.classifies
            and objective.class_noise != usual.class_noise,
            "objective.label-dropout": self.network.conditioning != "label"
            and objective.label_dropout != usual.label_dropout,
            "geometry-probability": self.augment != "geometry"
            and self.geometry_probability != type(self).geometry_probability,
        }
        if names := [f"--{name}" for name, given in unread.items() if given]:
            raise ValueError(f"{', '.join(names)}: not used with these settings; leave out")
        if taught and objective.image_share == 1:
            raise ValueError(
                f"--objective.image-share {objective.image_share} leaves nothing to --teacher; "
                "give less than 1"
            )
        if objective.teacher_classes and not taught:
            raise ValueError(
                f"--objective.teacher-classes {objective.teacher_classes} needs --teacher"
            )
        if objective.off_data and not (taught or self.classifies):
            raise ValueError(
                f"--objective.off-data {objective.off_data} needs --teacher or "
                "--network.conditioning classifier: an image's own rows stay on the data"
            )

    @property
    def classifies(self) -> bool:
        """True if the network has a classifier of noised images."""
        return self.network.conditioning == "classifier"


@dataclass(frozen=True, kw_only=True)
class ClassifierTrainConfig(RunConfig):
    """Settings of one run; the defaults train a small network on digits.

    `architecture`: "cnn-<width>", "wrn-<depth>-<widen>", or any name of timm's; `stem`: "small" for
    images far below 224 pixels. `augment`: "shift" by an eighth; "flip-shift" also mirrors half.
    """

    architecture: str = "cnn-32"
    stem: Literal["small", "original"] = "small"
    objective: ClassifierObjectiveConfig = field(default_factory=ClassifierObjectiveConfig)
    augment: Literal["none", "shift", "flip-shift"] = "none"
    steps: int = 600
    batch_size: int = 128
    ema_half_lives: tuple[float, ...] = (5_000,)


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """Choose RDC's settings on held-out images under attack.

    Candidates are all combinations of what is listed; first the classifier's, then, with the best
    one of these, the maximization's. What is not listed stays as the model has it.

    The best is the one with most images right under every attack (PGD on the margin by the true
    gradient and, for the maximization, also straight through it and on the classifier alone); of
    equals, the one with most images right as they are.
    """

    model: str
    """an RDC model as `RobustDiffusionClassifier.from_pretrained` takes it"""
    out: Path
    """folder for the model with the chosen settings, and `calibration.json`; new, empty, or of a
    calibration that is to continue"""
    data: str = "digits"
    """"digits", a folder split/class/*.png, a CIFAR Python archive, an .npz, or a folder of
    parquet"""
    images: int = 500
    """held-out images for the accuracy and the temperature"""
    resize: bool = False
    """convert images of another shape to the model's: gray or color, resized, cropped"""
    attacked: int = 100
    """number of these images that are attacked"""
    eps: float = 8 / 255
    """L-infinity, on the [0, 1] scale"""
    steps: int = 20
    estimator: tuple[Estimator, ...] = ()
    """losses or posterior, which needs a network with a classifier; by default the model's own"""
    levels: tuple[int, ...] = (8, 16)
    """noise levels between sigma_min and sigma_max; posterior takes sigma_min alone"""
    draws: tuple[int, ...] = ()
    """noises per level; by default the model's own"""
    sigma_min: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7)
    sigma_max: tuple[float, ...] = (1.5, 3.0)
    budget: tuple[float, ...] = (4 / 255, 8 / 255, 16 / 255)
    maximization_steps: tuple[int, ...] = (5,)
    """besides 0, no maximization, which is always a candidate"""
    maximization_sigma: tuple[float, ...] = (0.4, 0.7)
    """lowest noise level of the maximization; the highest is half as large again"""
    batch_size: int = 50

    def __post_init__(self) -> None:
        require_at_least(self, 1, "images", "attacked", "steps", "batch_size")
        if not 0 <= self.eps <= 1:
            raise ValueError(f"--eps {self.eps} must be in [0, 1], the scale of the images")
        for name in ("levels", "sigma_min", "sigma_max"):
            if not getattr(self, name):
                raise ValueError(f"{flag(name)} needs at least one value")


@dataclass(frozen=True)
class CurvesConfig:
    """Draw learning curves of runs, each a folder with `history.jsonl`."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path = Path("curves.png")
    """picture to write, in the format of its suffix"""
    over: Literal["flop", "images", "step"] = "flop"
    """horizontal axis; flop counts forward and backward passes, attacks and teachers"""
