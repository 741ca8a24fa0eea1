"""Suites of attacks on a defense: through every useful gradient, and without one."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import partial
from typing import Any

from torch import Tensor, nn

from evaluation.attacks.apgd import apgd, checkpoints
from evaluation.attacks.corruptions import CORRUPTIONS, corrupt
from evaluation.attacks.diffhammer import LOSSES, diffhammer
from evaluation.attacks.eight_bits import OnGrid, inside
from evaluation.attacks.ensembles import STANDARD, STOCHASTIC, Attacked, standard, stochastic
from evaluation.attacks.eot import Expectation
from evaluation.attacks.fab import HALVINGS
from evaluation.attacks.lagrange import MULTIPLIERS, lagrange
from evaluation.attacks.losses import cross_entropy, margin, targeted_dlr
from evaluation.attacks.low_frequency import low_frequency
from evaluation.attacks.random_search import PER_DRAW, random_search
from evaluation.attacks.square import BLOCK, square
from evaluation.attacks.stadv import stadv
from evaluation.entries import Entry
from evaluation.gradient_modes import noises, require_frozen, surrogates
from evaluation.suite_config import Kind, Sizes, Threat
from rdc import Defense, LikelihoodMaximizer

MEAN = "mean/"
"""Prefix of attacks on means over draws; the others attack the frozen draw."""
TRANSFER = "transfer/"
"""Prefix of attacks made on another model."""


def suite(
    model: nn.Module,
    norm: Threat,
    sizes: Sizes,
    *,
    attack: Kind = "adaptive",
    transfer: nn.Module | Mapping[str, nn.Module] | None = None,
    only: tuple[str, ...] = (),
    through: Callable[[nn.Module], Mapping[str, nn.Module]] = surrogates,
) -> dict[str, Entry]:
    """The attacks on a defense by name; those whose names fit a pattern of `only`, if it has some.

    "adaptive": "gradient/attack" for APGD on the margin and on the cross-entropy through every
    surrogate, for APGD aimed at classes and steps of low frequency through the exact gradient, and
    for the Lagrange attack where likelihood is maximized; "square" and "random", without gradients;
    and "transfer/...", made on the model `transfer`, or on several by name. "stadv" has an attack
    of its own kind in their place. With several draws, the ones called "mean/..." attack means over
    draws, wherever something draws, "mean/diffhammer" those of a purifier.
    "standard": AutoAttack's ensemble on the frozen draw, by its stages; a "+" stands for
    all stages before. "stochastic": the same, and the ensemble for random defenses.
    The threat "corruption" has corruptions in place of attacks, of strength 1 to 5.

    The order is that of the cascade: gradients before black boxes, which would otherwise hide that
    gradients find nothing; then cheap ones first.
    """
    require_frozen(model)
    if transfer is not None and (attack != "adaptive" or norm == "corruption"):
        raise ValueError(
            f"transfer (--transfer): attack={attack!r} (--attack) with norm={norm!r} (--norm) "
            "makes no transfer attack; leave it out, or give 'adaptive' and another norm"
        )
    if norm == "corruption":
        found = corruptions(model)
    elif attack == "adaptive":
        found = adaptive(model, norm, sizes, transfer, through)
    else:
        found = ensembles(model, norm, sizes, attack)
    kept = {
        name: entry
        for name, entry in found.items()
        if not only or any(fnmatch(name, pattern) for pattern in only)
    }
    if not kept:
        raise ValueError(f"only={only} (--suite.only): fits none of the attacks {list(found)}")
    return kept


def adaptive(
    model: nn.Module,
    norm: Threat,
    sizes: Sizes,
    transfer: nn.Module | Mapping[str, nn.Module] | None,
    through: Callable[[nn.Module], Mapping[str, nn.Module]],
) -> dict[str, Entry]:
    """Attacks on the frozen draw and on means over draws, and those made on transfer models."""
    found = on_frozen_draw(model, norm, sizes, through(model))
    found |= {
        MEAN + name: entry.on_means(sizes.eot_samples)
        for name, entry in found.items()
        if sizes.eot_samples > 1 and noises(entry.surrogate)
    }
    found |= hammered(model, norm, sizes)
    sources = {"": transfer} if isinstance(transfer, nn.Module) else transfer or {}
    for source, other in sources.items():
        found |= transferred(other, norm, sizes, source)
    return dict(sorted(found.items(), key=lambda item: black_box(item[0])))


def on_frozen_draw(
    model: nn.Module, norm: Threat, sizes: Sizes, through: Mapping[str, nn.Module]
) -> dict[str, Entry]:
    """Attacks on the frozen draw; those by gradient through each of some models."""
    steps, trials = sizes.steps, max(1, sizes.queries // 10)
    found: dict[str, Entry] = {}
    if norm == "stadv":
        attacks: dict[str, Callable] = {"stadv": partial(displaced, steps=steps)}
    else:
        losses = {"margin": margin, "ce": cross_entropy}
        attacks = {f"apgd-{k}": partial(apgd, loss=loss, steps=steps) for k, loss in losses.items()}
    for kind, attack in attacks.items():
        for name, surrogate in through.items():
            judges = name != "classifier"
            found[f"{name}/{kind}"] = Entry(
                surrogate, attack, steps, 3, judges=judges, redraws=redraws(steps, norm)
            )
    if norm == "stadv":
        return found
    aimed = partial(apgd, loss=targeted_dlr, targets=sizes.targets, steps=steps)
    return {
        **found,
        "exact/apgd-t": Entry(
            model, aimed, sizes.targets * steps, 2 * sizes.targets + 2,
            redraws=redraws(steps, norm, runs=sizes.targets),
        ),
        "exact/low-frequency": Entry(
            model, partial(coarse, steps=steps), steps, 1, redraws=steps + 1
        ),
        **lagrange_attacks(model, steps),
        "square": Entry(model, partial(square, queries=sizes.queries), 0, sizes.queries + 3,
                        redraws=-(-sizes.queries // BLOCK)),
        "random": Entry(model, partial(random_search, trials=trials), 0, trials + 1,
                        redraws=trials // PER_DRAW),
    }  # fmt: skip


def redraws(steps: int, norm: Threat, *, runs: int = 1) -> int:
    """Forward passes for new draws: of stadv in each step, of APGD at checkpoints."""
    return steps if norm == "stadv" else 3 * runs * len(checkpoints(steps))


def hammered(model: nn.Module, norm: Threat, sizes: Sizes) -> dict[str, Entry]:
    """DiffHammer on the draws of a purifier; nothing for other defenses."""
    draws = sizes.eot_samples
    if norm == "stadv" or draws == 1 or not isinstance(model, Defense) or model.copies > 1:
        return {}
    if not noises(model.purifier):
        return {}
    runs = len(LOSSES)
    steps, judged = runs * sizes.steps, redraws(sizes.steps, norm, runs=runs) + 2 * runs + 1
    attack = partial(diffhammer, steps=sizes.steps)
    # Per step a call for each draw and one gradient, here shared out among the draws.
    return {MEAN + "diffhammer": Entry(model, attack, -(-steps // draws), steps + judged, draws)}


def corruptions(model: nn.Module) -> dict[str, Entry]:
    """Common corruptions, which ask no model."""
    return {
        kind: Entry(model, partial(corrupted, kind=kind), 0, 0, adversarial=False)
        for kind in CORRUPTIONS
    }


def corrupted(
    victim: Expectation, images: Tensor, labels: Tensor, *, eps: float, **options: Any
) -> Tensor:
    """`corrupt` as an attack whose budget is the strength."""
    return corrupt(images, strength=eps, **options)  # type: ignore[arg-type]


def lagrange_attacks(model: nn.Module, steps: int) -> dict[str, Entry]:
    """The Lagrange attack on likelihood maximization; nothing for other defenses."""
    if not isinstance(model, Defense) or not isinstance(model.purifier, LikelihoodMaximizer):
        return {}
    if not model.purifier.config.steps:
        return {}
    attack = partial(lagrange, surrogate=model.classifier, penalty=model.purifier.loss, steps=steps)
    runs = len(MULTIPLIERS)
    entry = Entry(model, attack, runs * steps, runs * (steps + 2) + 1, redraws=runs * steps)
    return {"classifier/lagrange": entry}


def coarse(victim: Expectation, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """`low_frequency` on blocks of an eighth of the image's side, at least two pixels."""
    side = min(images.shape[2:])
    block = min(max(2, side // 8), side)
    return low_frequency(victim, images, labels, block=block, **options)


def displaced(
    victim: Expectation, images: Tensor, labels: Tensor, *, eps: float, steps: int, **options: Any
) -> Tensor:
    """`stadv` with steps that also reach the budget where they are few."""
    step_size = max(0.01, 2.5 * eps / steps)
    return stadv(victim, images, labels, eps=eps, steps=steps, step_size=step_size, **options)


def transferred(model: nn.Module, norm: Threat, sizes: Sizes, source: str = "") -> dict[str, Entry]:
    """Attacks made on another model, such as a purifier of the same family, named `source`.

    Where that draws, and with several draws, also on means over them.
    """
    steps, name = sizes.steps, TRANSFER + (f"{source}/" if source else "")
    if norm == "stadv":
        return {
            name + "stadv": Entry(model, partial(displaced, steps=steps), steps, 2, judges=False)
        }
    entry = Entry(
        model, partial(apgd, loss=margin, steps=steps), steps, 3, judges=False,
        redraws=redraws(steps, norm),
    )  # fmt: skip
    found = {name + "apgd-margin": entry}
    if sizes.eot_samples > 1 and noises(model):
        found[MEAN + name + "apgd-margin"] = entry.on_means(sizes.eot_samples)
    return found


def ensembles(model: nn.Module, norm: Threat, sizes: Sizes, attack: Kind) -> dict[str, Entry]:
    """AutoAttack on the frozen draw, and for "stochastic" the ensemble on means over draws."""
    if norm == "stadv":
        raise ValueError(
            f"attack={attack!r} (--attack): made for linf and l2; for stadv give 'adaptive'"
        )
    if attack == "standard" and sizes.eot_samples > 1:
        raise ValueError(
            f"draws={sizes.eot_samples} (--suite.eot-samples): AutoAttack would judge a random "
            "defense by single draws; give 1, the frozen draw, or attack='stochastic' (--attack)"
        )
    if attack == "stochastic" and sizes.eot_samples == 1:
        raise ValueError(
            "attack='stochastic' (--attack): needs a defense that draws, and draws "
            "(--suite.eot-samples) of at least 2; for others give 'standard'"
        )
    steps, targets, queries = sizes.steps, sizes.targets, sizes.queries
    options = {"steps": steps, "targets": targets, "queries": queries}
    aimed = targets * steps

    def stages(names: tuple[str, ...], prefix: str) -> tuple[str, ...]:
        first, *rest = names
        return (prefix + first, *(f"{prefix}+{name}" for name in rest))

    found = {
        "standard": Entry(
            model, partial(standard, **options), steps + 2 * aimed,
            queries + targets * (steps + HALVINGS + 2) + 17,  # FAB judges each step and halving
            stages=stages(STANDARD, ""),
        )
    }  # fmt: skip
    if attack == "stochastic":
        judged = redraws(steps, "linf", runs=2 + targets)
        found["stochastic"] = Entry(
            model, partial(stochastic, **options), 2 * steps + aimed,
            queries - (-queries // BLOCK) + judged + 2 * targets + 16,
            sizes.eot_samples, stages(STOCHASTIC, MEAN),
        )  # fmt: skip
    return found


def black_box(attack: str) -> bool:
    """True for attacks, by their names in the records, that need no gradient of the defense."""
    path = attack.removeprefix(MEAN)
    return path.startswith(TRANSFER) or path.removeprefix("+") in ("square", "random")


def run(
    entry: Entry,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Threat,
    max_rows: int = 256,
    seeds: list[int],
    stop_when_wrong: bool = False,
    round: bool = False,
) -> list[Tensor]:
    """The attacked images (B, C, H, W) of one entry: after each of its stages, if it has some.

    `stop_when_wrong`: see `Expectation`; `round`: the images have 8 bits.
    """
    kind = OnGrid if round else Expectation
    victim = kind(
        entry.surrogate, draws=entry.draws, max_rows=max_rows,
        stop_when_wrong=stop_when_wrong and entry.judges, judges=entry.judges,
    )  # fmt: skip
    options = {"norm": norm} if norm in ("linf", "l2") else {}
    found = entry.attack(victim, images, labels, eps=eps, seeds=seeds, **options)
    stages = list(found.stages.values()) if isinstance(found, Attacked) else [found]
    return [inside(stage, images, eps, norm) for stage in stages] if round else stages
