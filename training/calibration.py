"""RDC's settings for a denoiser: `python -m training.calibration --model runs/x --out runs/x-rdc`.

Noise levels and maximization are chosen on held-out images under PGD on the margin; the temperature
minimizes the cross-entropy of the posterior (`fit_temperature`). A killed calibration continues.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rdc import Denoiser, RDCConfig, RobustDiffusionClassifier
from rdc.classifier import build_classifier
from rdc.classifier_config import ClassifierConfig, MaximizationConfig
from rdc.commands.program import run_program
from rdc.data import Dataset, load
from rdc.margin import margin
from rdc.runs.atomic import write_json
from rdc.runs.device import default_device
from rdc.runs.exclusive import exclusive
from rdc.runs.fingerprints import data_fingerprint, weights_hash
from rdc.runs.provenance import provenance
from rdc.runs.run_log import RunLog
from rdc.runs.settings import SETTINGS, require_own_folder
from training.adversarial import perturb, random_start
from training.config import CalibrationConfig
from training.objective_config import ClassifierObjectiveConfig
from training.temperature import fit_temperature

RECORD = "calibration.json"
MEASURED = "measured"
"""Folder, in that of the model, of the figures so far."""
INTEGRAL = ("levels", "draws", "sigma_min", "sigma_max")


@dataclass(frozen=True)
class Figures:
    """Measured shares of the images in [0, 1] of a candidate, and its temperature."""

    robust: float
    clean: float
    temperature: float


class Calibration:
    """Measurements of candidates for one denoiser on held-out images."""

    def __init__(self, config: CalibrationConfig, denoiser: Denoiser, data: Dataset) -> None:
        self.config, self.denoiser = config, denoiser
        device = next(denoiser.parameters()).device
        self.images, self.labels = data.images.to(device), data.labels.to(device)

    def classifier(self, config: ClassifierConfig) -> Figures:
        """The figures of a diffusion classifier, and the temperature that fits it."""
        model = build_classifier(self.denoiser, replace(config, temperature=1.0))
        logits = self.logits(model)
        temperature = fit_temperature(logits.cpu(), self.labels.cpu())
        clean = (logits.argmax(1) == self.labels).double().mean().item()
        return Figures(self.robust(model, [model]), clean, temperature)

    def rdc(self, config: RDCConfig) -> Figures:
        """The figures of RDC; the temperature stays."""
        options: Any = {"second_order": "central_difference"}
        model = RobustDiffusionClassifier(self.denoiser, config, **options)
        straight = RobustDiffusionClassifier(self.denoiser, config, gradient="bpda")
        clean = (self.logits(model).argmax(1) == self.labels).double().mean().item()
        robust = self.robust(model, [model, straight, model.classifier])
        return Figures(robust, clean, config.classifier.temperature)

    def robust(self, model: nn.Module, surrogates: list[nn.Module]) -> float:
        """Share of the attacked images that `model` has right as they are and after each attack.

        Attacks are PGD on the margin, one on each surrogate.
        """
        config = self.config
        attack = ClassifierObjectiveConfig(
            kind="pgd", eps=config.eps, attack_steps=config.steps, relative_step=2.5 / config.steps
        )
        generator = torch.Generator(self.images.device).manual_seed(0)
        # Drawn at once, so that an image's start does not depend on the size of a batch.
        starts = random_start(self.images[: config.attacked], attack, generator)
        right = 0
        parts = torch.arange(len(starts)).split(config.batch_size)
        for rows in tqdm(parts, desc="attacks", unit="batch", leave=False):
            images, labels = self.images[rows], self.labels[rows]
            survived = self.right(model, images, labels)
            for surrogate in surrogates:
                # Where a softmax is saturated, the cross-entropy would have no gradient.
                attacked = perturb(
                    surrogate, images, labels=labels, config=attack, start=starts[rows],
                    loss=margin,
                )  # fmt: skip
                survived &= self.right(model, attacked, labels)
            right += int(survived.sum())
        return right / len(starts)

    @torch.no_grad()
    def right(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return model(images).argmax(1) == labels

    @torch.no_grad()
    def logits(self, model: nn.Module) -> Tensor:
        parts = self.images.split(self.config.batch_size)
        bar = tqdm(parts, desc="clean images", unit="batch", leave=False)
        return torch.cat([model(part) for part in bar])


class Measured:
    """Figures of candidates, each measured once; those of an earlier start are in the log."""

    def __init__(self, log: RunLog) -> None:
        self.log = log
        self.figures = dict(
            log.read(lambda found: (key(found["candidate"]), Figures(**found["figures"])))
        )
        self.new = 0
        """number of candidates that this start has measured"""

    def of(self, candidate: Any, measure: Callable[[Any], Figures]) -> Figures:
        """The figures of a candidate (a dataclass)."""
        settings = asdict(candidate)
        if key(settings) not in self.figures:
            found = self.figures[key(settings)] = measure(candidate)
            self.new += 1
            self.log.append([{"candidate": settings, "figures": asdict(found)}])
        return self.figures[key(settings)]


def key(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def classifiers(config: CalibrationConfig, given: ClassifierConfig) -> list[ClassifierConfig]:
    """Candidates for the classifier, each once."""
    found: list[ClassifierConfig] = []
    draws = config.draws or (given.draws,)
    for estimator in config.estimator or (given.estimator,):
        # A posterior reads neither levels nor sigma_max.
        one = estimator == "posterior"
        levels = (given.levels,) if one else config.levels
        highest = (given.sigma_max,) if one else config.sigma_max
        for values in product(levels, draws, config.sigma_min, highest):
            settings: Any = dict(zip(INTEGRAL, values, strict=True))
            found.append(replace(given, estimator=estimator, **settings))
    return found


def maximizations(config: CalibrationConfig, given: MaximizationConfig) -> list[MaximizationConfig]:
    """Candidates for the maximization as listed; steps have a quarter of the budget."""
    listed = product(config.maximization_steps, config.budget, config.maximization_sigma)
    return [
        replace(
            given, rule="momentum", steps=steps, budget=budget, step_size=budget / 4,
            sigma_min=low, sigma_max=1.5 * low,
        )
        for steps, budget, low in listed
    ]  # fmt: skip


def main(config: CalibrationConfig) -> None:
    """Measure all candidates, print them, save the model with the best ones."""
    with exclusive(config.out):
        calibrate(config)


def calibrate(config: CalibrationConfig) -> None:
    """Do the work of `main`, alone in the folder."""
    require_own_folder(config.out, file=f"{MEASURED}/{SETTINGS}", beside=[MEASURED])
    given = RobustDiffusionClassifier.from_pretrained(config.model)
    denoiser = given.denoiser
    assert isinstance(denoiser, Denoiser)  # nothing else can be loaded
    data = load(config.data, "validation", shape=denoiser.image_shape, resize=config.resize)
    data = data.of_classes(denoiser.class_names).subset(slice(config.images))
    calibration = Calibration(config, denoiser.to(default_device()), data)
    # Before hours of measurements: a candidate may be impossible.
    candidates = classifiers(config, given.config.classifier)
    if "posterior" in {each.estimator for each in candidates} and not denoiser.has_classifier:
        raise ValueError(
            f"--estimator posterior: {config.model} has no classifier of noised images; leave it "
            "out, or give a model that was trained with --network.conditioning classifier"
        )
    ways = maximizations(config, given.config.maximization)
    measured = measured_before(config, given.config, data)

    found: dict[Any, Figures] = {}
    for candidate in tqdm(candidates, desc="classifiers"):
        figures = found[candidate] = measured.of(candidate, calibration.classifier)
        tqdm.write(line(candidate, figures, "estimator", *INTEGRAL))
    best = max(found, key=lambda c: (found[c].robust, found[c].clean))
    temperature = float(f"{found[best].temperature:.4g}")
    chosen = RDCConfig(replace(best, temperature=temperature), given.config.maximization)
    tried = {replace(chosen.maximization, steps=0): found[best]}
    for candidate in tqdm(ways, desc="maximizations"):
        whole = replace(chosen, maximization=candidate)
        figures = tried[candidate] = measured.of(whole, calibration.rdc)
        tqdm.write(line(candidate, figures, "steps", "budget", "sigma_min"))
    chosen = replace(
        chosen, maximization=max(tried, key=lambda c: (tried[c].robust, tried[c].clean))
    )
    RobustDiffusionClassifier(denoiser.cpu(), chosen).save_pretrained(config.out)
    facts = provenance(data, finished=None if measured.new else config.out / RECORD)
    write_json(config.out / RECORD, record(config, facts, chosen, found | tried))
    print(f"wrote {config.out}")


def measured_before(config: CalibrationConfig, given: RDCConfig, data: Dataset) -> Measured:
    """The figures of an earlier start with the same settings, model and images."""
    inputs = {
        f"weights of {config.model}": weights_hash(config.model),
        "validation data": data_fingerprint(data),
        # Figures of earlier versions were under another one, and cannot be compared.
        "attack": "margin",
    }
    settings = {**asdict(config), "out": None, "given": asdict(given)}
    return Measured(RunLog(config.out / MEASURED, settings, inputs=inputs))


def record(
    config: CalibrationConfig,
    facts: dict[str, Any],
    chosen: RDCConfig,
    found: dict[Any, Figures],
) -> dict[str, Any]:
    """The content of `calibration.json`."""
    return {
        "config": asdict(config),
        **facts,
        "chosen": asdict(chosen),
        "candidates": [
            {**asdict(candidate), **asdict(figures)} for candidate, figures in found.items()
        ],
    }


def line(candidate: Any, figures: Figures, *names: str) -> str:
    """A candidate by the settings that were listed, and its figures."""
    values = {name: getattr(candidate, name) for name in names}
    shown = {k: v if isinstance(v, str) else f"{v:.4g}" for k, v in values.items()}
    settings = "  ".join(f"{name} {value:<6}" for name, value in shown.items())
    clean, robust = 100 * figures.clean, 100 * figures.robust
    return f"{settings}  clean {clean:5.1f} %  under attack {robust:5.1f} %"


if __name__ == "__main__":
    sys.exit(run_program(main))
