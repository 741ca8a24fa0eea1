"""Published settings by method and name, without the networks.

Where a paper and its released code differ, the numbers are the code's. Times t* are VP times in
(0, 1]; steps are DiffPure's, of 1/1000, where nothing else is said.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from purification.config import PurifierConfig
from rdc.choices import require_choice

Method = Literal["diffpure", "gdmp", "contrastive", "agdm", "coup"]
GUIDES: dict[Method, tuple[str, ...]] = {
    "contrastive": ("classifier", "bank"), "agdm": ("auxiliary",), "coup": ("classifier",),
}  # fmt: skip
"""Arguments of `purification.build` that guide a method."""


@dataclass(frozen=True)
class Preset:
    """The process, and the weight and the settings of the method's guidance term."""

    config: PurifierConfig
    weight: float = 0.0
    term: Mapping[str, Any] = field(default_factory=dict)


def sde(t_star: float, *, resize: bool = False) -> PurifierConfig:
    """DiffPure's reverse SDE from t*; on ImageNet it resizes 224 pixels to 256 and back."""
    return PurifierConfig("sde", t_star=t_star, resize=resize)


# Nie et al., ICML 2022, run_scripts/ of NVlabs/DiffPure. Linf budgets are 8/255 on CIFAR-10, 4/255
# on ImageNet, 16/255 on CelebA-HQ; L2 is 0.5; stadv is 0.05.
DIFFPURE = {
    "cifar10-linf": Preset(sde(0.1)),
    "cifar10-l2": Preset(sde(0.075)),
    "cifar10-stadv": Preset(sde(0.125)),
    "cifar10-resnet50": Preset(sde(0.125)),  # Linf and L2 of 1.0, the tables of other defenses
    "imagenet-linf": Preset(sde(0.15, resize=True)),
    "celebahq-linf": Preset(PurifierConfig("ddpm", t_star=0.5)),
}

# Wang et al., arXiv 2205.14969, configs/ of JinyiW/GuidedDiffusionPur.
GDMP = {
    # cifar10_MSE.yml: 4 rounds of 36 steps, fixed large variance, guide_scale 60000 at batches of
    # 100. Noise and return agree on t* here; the code noises one time further.
    "cifar10-linf": Preset(
        PurifierConfig("ddpm", t_star=0.036, rounds=4, variance="large", clip=True),
        weight=60_000.0,
        term={"distance": "mse", "reference": "noised", "eps": 8 / 255, "reference_batch": 100},
    ),
    # ImageNet_Res50.yml: the last 45 of 250 respaced steps, which begin at time index 177, with
    # guide_scale 1000 at batches of 60. Their network predicts its variance, between small and
    # large; ours do not, and small is the closer one where steps are short.
    "imagenet-linf": Preset(
        PurifierConfig("ddpm", t_star=0.178, steps=45, clip=True, resize=True),
        weight=1000.0,
        term={"distance": "mse", "reference": "clean", "eps": 4 / 255, "reference_batch": 60},
    ),
}

# Bai et al., ICML 2024, run_scripts_contrastive/ of the released code (the "rand" scripts). The
# weight belongs to negatives from a batch of 64. Where scripts leave drift_min at 40, it is 39
# here: their count begins one network call earlier.
EVERY_STEP = {"tau": 1.0, "drift_min": 0}
LATE_STEPS = {"tau": 1.0, "drift_min": 39}
CONTRASTIVE = {
    "cifar10-linf": Preset(sde(0.1), 500.0, EVERY_STEP),
    "cifar10-l2": Preset(sde(0.075), 500.0, EVERY_STEP),
    "cifar10-resnet50": Preset(sde(0.125), 500.0, EVERY_STEP),
    "cifar100-linf": Preset(sde(0.1), 500.0, LATE_STEPS),
    "cifar100-l2": Preset(sde(0.075), 500.0, LATE_STEPS),
    "gtsrb-linf": Preset(sde(0.1), 500.0, LATE_STEPS),
    "gtsrb-l2": Preset(sde(0.075), 500.0, LATE_STEPS),
    "imagenet-linf": Preset(sde(0.15, resize=True), 500.0, LATE_STEPS),
}

# Lin et al., Neural Networks 2025 (arXiv 2403.16067): t* = 0.07. No code and no scale were
# published; with weight 1 the guidance is the factor that the paper's model has.
AGDM = {"cifar10-linf": Preset(sde(0.07), 1.0)}

# arXiv 2408.05900, released scripts: the image is not noised, only led back.
COUP = {
    "cifar10-linf": Preset(
        PurifierConfig("sde", t_star=0.1, forward_noise=False), 1.0, {"label": "max"}
    ),
    "cifar10-l2": Preset(
        PurifierConfig("sde", t_star=0.075, forward_noise=False), 1.0, {"label": "max"}
    ),
}

PRESETS: dict[Method, dict[str, Preset]] = {
    "diffpure": DIFFPURE,
    "gdmp": GDMP,
    "contrastive": CONTRASTIVE,
    "agdm": AGDM,
    "coup": COUP,
}


def find(method: Method, name: str) -> Preset:
    """The preset `name` of `method`, or an error that lists what there is."""
    require_choice("method", method, Method)
    presets = PRESETS[method]
    if name not in presets:
        raise ValueError(f"preset={name!r}: {method} has {sorted(presets)}; give one of these")
    return presets[name]
