"""RDC against an ordinary CNN on real digits, both attacked: `python -m evaluation.demo`.

Prints a table and draws one picture. With more images and several eps it is the curve of README.
Another model brings its data: `--model NAME --data PATH`.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from evaluation.gradient_modes import surrogates
from evaluation.picture import draw
from evaluation.results.statistics import clopper_pearson
from evaluation.robustness import attack, correct
from rdc import OptimalDenoiser, RobustDiffusionClassifier
from rdc.commands.program import run_program
from rdc.data import Dataset, Split, load
from rdc.hub.checkpoint import CONFIG, packaged_models
from rdc.images import to_x
from rdc.networks.image_classifier import ImageClassifier
from rdc.runs.device import default_device
from rdc.runs.provenance import provenance

SHOWN = 4
"""Images in the picture."""


@dataclass(frozen=True)
class DemoConfig:
    """Clean and robust accuracy (PGD, L-infinity, exact gradients, noise known to the attacker)."""

    model: str = "digits"
    """RDC: packaged name, directory or hub id"""
    cnn: str | None = None
    """what it is compared with: an image classifier; by default the packaged one called as the
    model with "-cnn" behind, or digits-cnn"""
    data: str = "digits"
    """data set, as `training.train` takes it"""
    images: int = 16
    """how many images of the split, from its start"""
    split: Split = "test"
    eps: tuple[float, ...] = (0.2,)
    """budgets on the [0, 1] scale"""
    steps: int = 40
    optimal: bool = False
    """add the exact denoiser of the training images, with and without maximization"""
    seed: int = 0
    picture: Path | None = Path("demo.png")
    json: Path | None = None
    """write the numbers and where they come from to this file"""


def main(config: DemoConfig) -> None:
    """Attack every model at every eps, print the table, draw the picture."""
    # On these settings it has the direction of double backward (a test says so), at half the price.
    options = {"seed": config.seed, "second_order": "central_difference"}
    rdc = RobustDiffusionClassifier.from_pretrained(config.model, **options)
    shape = rdc.denoiser.image_shape
    cnn = ImageClassifier.from_pretrained(compared_with(config))
    if cnn.image_shape != shape:
        raise ValueError(
            f"--cnn {compared_with(config)} takes images {cnn.image_shape}, but --model "
            f"{config.model} takes {shape}; give a classifier of the same images"
        )
    data = load(config.data, config.split, shape=shape).subset(slice(config.images))
    if rdc.denoiser.class_names not in ((), data.class_names):
        raise ValueError(
            f"--data {config.data} has the classes {data.class_names}, but --model {config.model} "
            f"knows {rdc.denoiser.class_names}; give the data that it was trained on"
        )
    models: dict[str, nn.Module] = {"CNN": cnn, "diffusion classifier": rdc.classifier, "RDC": rdc}
    if config.optimal:
        train = load(config.data, "train", shape=shape)
        best = RobustDiffusionClassifier(
            OptimalDenoiser(to_x(train.images), train.labels), rdc.config, **options
        )
        models |= {"optimal classifier": best.classifier, "optimal RDC": best}
    device = default_device()
    for model in models.values():
        model.to(device)
    there = replace(data, pixels=data.pixels.to(device), labels=data.labels.to(device))

    print(
        f"{len(data)} {config.split} images of {config.data}; PGD-{config.steps}, L-infinity; "
        "robust accuracy in %, 95 % intervals"
    )
    progress = tqdm(total=len(models) * len(config.eps), unit="attack", leave=False)
    rows, attacked = {}, {}
    for name, model in models.items():
        rows[name], attacked[name] = measure(model, there, config, progress)
    progress.close()
    print(table(rows, config))
    if config.picture is not None:
        draw(
            cnn, rdc, there.subset(slice(SHOWN)), attacked["CNN"][:SHOWN], attacked["RDC"][:SHOWN],
            title=f"White-box attacks, L-infinity {max(config.eps):g}; the true class is green",
            path=config.picture,
        )  # fmt: skip
        print(f"wrote {config.picture}")
    if config.json is not None:
        record = {"config": asdict(config), **provenance(data), "results": rows}
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(record, indent=2, default=str) + "\n")
        print(f"wrote {config.json}")


def compared_with(config: DemoConfig) -> str:
    """The image classifier beside RDC, by name."""
    if config.cnn is not None:
        return config.cnn
    own = f"{config.model}-cnn"
    return own if own in packaged_models(CONFIG) else "digits-cnn"


def measure(
    model: nn.Module, data: Dataset, config: DemoConfig, progress: tqdm
) -> tuple[dict, Tensor]:
    """Clean accuracy, accuracy under each attack and their worst per image, seconds per image.

    And the attacked images (B, C, H, W) of the largest budget.
    """
    started = time.perf_counter()
    clean = correct(model, data.images, data.labels)
    seconds = (time.perf_counter() - started) / len(data)
    row: dict = {"clean": summary(clean), "seconds_per_image": seconds, "eps": {}}
    known, attacked = surrogates(model), {}
    for eps in config.eps:
        attacked[eps], right = attack(
            model, data.images, data.labels, eps=eps, steps=config.steps,
            surrogates=known, seed=config.seed,
        )  # fmt: skip
        worst = torch.stack(list(right.values())).all(0)
        attacks = {name: summary(survived) for name, survived in right.items() if name != "none"}
        row["eps"][str(eps)] = {"worst": summary(worst), **attacks}
        progress.update()
    return row, attacked[max(config.eps)]


def summary(right: Tensor) -> dict:
    """An accuracy with its interval."""
    count, total = int(right.sum()), len(right)
    low, high = clopper_pearson(count, total)
    return {"accuracy": count / total, "low": low, "high": high, "images": total}


def table(rows: dict[str, dict], config: DemoConfig) -> str:
    """The worst case per image for every model and eps, then RDC's attacks one by one."""
    head = "".join(f"{f'eps {eps:g}':>19}" for eps in config.eps)
    lines = [f"{'':<22}{'clean':>8}{head}{'s/image':>10}"]
    for name, row in rows.items():
        cells = "".join(f"{cell(row['eps'][str(eps)]['worst']):>19}" for eps in config.eps)
        clean = f"{100 * row['clean']['accuracy']:.1f}"
        lines.append(f"{name:<22}{clean:>8}{cells}{row['seconds_per_image']:>10.4f}")
        attacks = row["eps"][str(config.eps[0])]
        if len(attacks) > 2:
            for attack_name in [key for key in attacks if key != "worst"]:
                cells = "".join(
                    f"{cell(row['eps'][str(eps)][attack_name]):>19}" for eps in config.eps
                )
                lines.append(f"{f'  {attack_name} alone':<22}{'':>8}{cells}")
    return "\n".join(lines)


def cell(value: dict) -> str:
    return f"{100 * value['accuracy']:.1f} [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"


if __name__ == "__main__":
    sys.exit(run_program(main))
