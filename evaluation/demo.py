"""RDC against an ordinary CNN on real digits, both attacked: `python -m evaluation.demo`.

Prints a table and draws one picture. Another model brings its data and its budget:
`--model cifar10 --data cifar10-samples --eps 8/255`.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.arguments import given_target
from evaluation.attacks.eot import Expectation
from evaluation.attacks.pgd import pgd
from evaluation.config import DemoConfig, Options
from evaluation.entries import Entry
from evaluation.eps import written
from evaluation.evaluation import Evaluation
from evaluation.gradient_modes import surrogates
from evaluation.picture import draw
from evaluation.results.metrics import WORST
from evaluation.results.records import CLEAN
from evaluation.results.summary import accuracy_json
from evaluation.runner import Runner
from evaluation.schedule import complete
from evaluation.suite_config import SuiteConfig
from evaluation.target import fit, fit_transfer
from purification import build
from rdc import OptimalDenoiser, RobustDiffusionClassifier
from rdc.commands.program import run_program
from rdc.data import Dataset, load
from rdc.hub.checkpoint import CONFIG, packaged_models
from rdc.images import to_x
from rdc.networks.image_classifier import ImageClassifier
from rdc.runs.atomic import write_json
from rdc.runs.device import default_device
from rdc.runs.picture import check_picture
from rdc.runs.provenance import provenance

SHOWN = 4
"""Images in the picture."""


def main(config: DemoConfig) -> None:
    """Attack every model at every eps, print the table, draw the picture."""
    if config.picture is not None:
        check_picture(config.picture, "picture")
    print(
        f"{config.images} {config.split} images of {config.data}; PGD-{config.steps}, L-infinity; "
        "robust accuracy in %, 95 % intervals",
        flush=True,
    )
    networks, data = models(config, load(config.data, config.split).subset(slice(config.images)))
    found = {
        name: pgd_evaluation(model, data, name, eps=config.eps, steps=config.steps,
                             seed=config.seed, show=True)
        for name, model in networks.items()
    }  # fmt: skip
    print(table(found))
    if config.picture is not None:
        shown, eps = data.subset(slice(SHOWN)), written(max(config.eps))
        title = f"White-box attacks, L-infinity {eps}; the true class is green"
        draw(columns(found, shown, config), shown, title=title, path=config.picture)
        print(f"wrote {config.picture}")
    if config.json is not None:
        results = {name: figures(each) for name, each in found.items()}
        write_json(config.json, {"config": asdict(config), **provenance(data), "results": results})
        print(f"wrote {config.json}")


def models(config: DemoConfig, data: Dataset) -> tuple[dict[str, nn.Module], Dataset]:
    """The models by name, on the device, and the data with the labels that they have.

    Raises:
        ValueError: one of them is for other images or classes than those of the data.
    """
    # On these settings it has the direction of double backward (a test says so), at half the price.
    options: dict[str, Any] = {"seed": config.seed, "second_order": "central_difference"}
    rdc = RobustDiffusionClassifier.from_pretrained(config.model, **options)
    cnn = ImageClassifier.from_pretrained(compared_with(config))
    data = fit(rdc, data, f"--model {config.model}", f"--data {config.data}")
    fit_transfer(cnn, data, f"--cnn {compared_with(config)}", f"--data {config.data}")
    found: dict[str, nn.Module] = {"CNN": cnn, "diffusion classifier": rdc.classifier, "RDC": rdc}
    if config.optimal:
        train = load(config.data, "train").of_classes(data.class_names)
        denoiser = OptimalDenoiser(to_x(train.images), train.labels)
        best = RobustDiffusionClassifier(denoiser, rdc.config, **options)
        found |= {"optimal classifier": best.classifier, "optimal RDC": best}
    return {name: model.to(default_device()) for name, model in found.items()}, data


def compared_with(config: DemoConfig) -> str:
    """The image classifier beside RDC, by name."""
    if config.cnn is not None:
        return config.cnn
    own = f"{config.model}-cnn"
    return own if own in packaged_models(CONFIG) else "digits-cnn"


def pgd_evaluation(
    model: nn.Module,
    data: Dataset,
    name: str = "model",
    *,
    eps: tuple[float, ...],
    steps: int,
    through: Mapping[str, nn.Module] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    show: bool = False,
) -> Evaluation:
    """An evaluation with PGD through every gradient of a model, in memory and without checks.

    `through`: the models whose gradients are followed, by name, in place of all `surrogates`.
    """
    target = given_target(model, data, None, transfer=None, name=name, class_names=())
    # The random points of PGD are drawn for a whole batch, which every attack must therefore see.
    options = Options(
        eps=eps, check_images=0, batch_size=batch_size or len(data), seed=seed,
        suite=SuiteConfig(every_attack=True),
    )  # fmt: skip
    attack = partial(started_pgd, steps=steps, seed=seed)
    entries = {
        gradient: Entry(surrogate, attack, steps, 1)
        for gradient, surrogate in (through or surrogates(model)).items()
    }
    runner = Runner(target, options, entries=entries)
    (summary,) = complete([runner], show=show)
    return Evaluation(name, summary, runner)


def started_pgd(
    victim: Expectation, images: Tensor, labels: Tensor, *, seed: int, **options: Any
) -> Tensor:
    """`pgd` from random points that one seed gives for all images of a batch."""
    generator = torch.Generator().manual_seed(seed)
    return pgd(victim, images, labels, generator=generator, **options)


def table(found: dict[str, Evaluation]) -> str:
    """The worst case per image for every model and eps, then each attack alone."""
    budgets = next(iter(found.values())).summary.budgets
    head = "".join(f"{f'eps {written(eps)}':>19}" for eps in budgets)
    lines = [f"{'':<22}{'clean':>8}{head}{'s/image':>10}"]
    for name, each in found.items():
        clean = f"{100 * each.summary.accuracy(0.0).mean:.1f}"
        seconds = each.summary.seconds_per_image
        lines.append(f"{name:<22}{clean:>8}{cells(each, WORST)}{seconds:>10.4f}")
        attacks = list(each.runner.entries)
        for attack in attacks if len(attacks) > 1 else []:
            lines.append(f"{f'  {attack} alone':<22}{'':>8}{cells(each, attack)}")
    return "\n".join(lines)


def cells(each: Evaluation, attack: str) -> str:
    return "".join(f"{each.summary.accuracy(eps, attack)!s:>19}" for eps in each.summary.budgets)


def figures(each: Evaluation) -> dict[str, Any]:
    """The accuracies of a model for a JSON file."""
    summary = each.summary
    return {
        "clean": accuracy_json(summary.accuracy(0.0)),
        "seconds_per_image": summary.seconds_per_image,
        "eps": {
            written(eps): {
                attack: accuracy_json(summary.accuracy(eps, attack))
                for attack in (WORST, *each.runner.entries)
            }
            for eps in summary.budgets
        },
    }


@torch.no_grad()
def columns(found: dict[str, Evaluation], data: Dataset, config: DemoConfig) -> dict[str, Tensor]:
    """The first images as they were attacked, and what the defenses make of them: images
    (B, C, H, W) and posteriors (B, K) by title.
    """
    cnn, rdc = found["CNN"].runner.target.model, found["RDC"].runner.target.model
    assert isinstance(rdc, RobustDiffusionClassifier)
    purifier = build("diffpure", rdc.denoiser, preset="cifar10-linf", seed=config.seed)
    attacked = (harmful(found[name], max(config.eps))[: len(data)] for name in ("CNN", "RDC"))
    for_cnn, for_rdc = attacked
    maximized = rdc.purifier(for_rdc)
    return {
        "given": data.images,
        "attacked: CNN": for_cnn,
        "CNN: posterior": cnn(for_cnn).softmax(1),
        "attacked: CNN,\nthen DiffPure": purifier(for_cnn),
        "attacked: RDC": for_rdc,
        "attacked: RDC,\nthen maximization": maximized,
        "RDC: posterior": rdc.classifier(maximized).softmax(1),
    }


def harmful(each: Evaluation, eps: float) -> Tensor:
    """The most harmful image of each within a budget (B, C, H, W); the image itself if none is."""
    runner = each.runner
    kept = {unit.eps: runner.journal.kept(unit.name) for unit in runner.units}
    given, attacked = kept[0.0], kept[eps]
    assert given is not None and attacked is not None
    wrong = [r.image for r in each.records if r.attack == CLEAN and not r.right]
    images = attacked.images.clone()
    images[wrong] = given.images[wrong]
    return images


if __name__ == "__main__":
    sys.exit(run_program(main))
