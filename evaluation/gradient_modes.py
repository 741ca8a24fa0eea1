"""Models that an attacker who knows a defense differentiates in its place."""

from itertools import chain

from torch import nn

from purification import DiffusionPurifier
from rdc import Defense
from rdc.noise import Noise


def surrogates(model: nn.Module) -> dict[str, nn.Module]:
    """The model under every gradient that is worth trying, cheap ones first.

    "classifier": the classifier alone, whose attacked images are then shown to the defense. "bpda":
    the identity for the purifier, the attack that papers have used. "surrogate": for purifiers of
    more than `surrogate_steps` steps, the gradient of a process of so many, as Lee & Kim (ICCV
    2023) attack. "detached_guidance": for guided purifiers, the exact gradient without that of the
    guidance. "exact": the true gradient through every step; a plain classifier has no other.

    A purifier makes the loss rugged, so that the true gradient is not always the most harmful one.
    All share the model's own frozen noise.
    """
    require_frozen(model)
    if not isinstance(model, Defense):
        return {"exact": model}
    purifier = model.purifier
    modes = ["bpda"]
    if isinstance(purifier, DiffusionPurifier):
        steps = len(purifier.process)
        modes += ["surrogate"] * (purifier.config.surrogate_steps < steps)
        modes += ["detached_guidance"] * bool(purifier.terms)
    found = {mode: under(model, mode) for mode in [*modes, "exact"]}
    return {"classifier": model.classifier, **found}


def under(model: Defense, gradient: str) -> Defense:
    """The same defense under another gradient mode of its purifier."""
    purifier = model.purifier.with_gradient(gradient)  # type: ignore[operator]
    return Defense(purifier, model.classifier, copies=model.copies)


def require_frozen(model: nn.Module) -> None:
    """Refuse a model with fresh noise, whose draws no attack can repeat."""
    if any(noise.mode == "fresh" for noise in noises(model)):
        raise ValueError(
            "model: noise='fresh'; attacks differentiate frozen noise, all of whose draws can be "
            "had by number (rdc.noise.using_draws); build it with noise='frozen'"
        )


def noises(model: nn.Module) -> list[Noise]:
    """Noise in the attributes of every module of `model`, alone or in a list."""
    held = [value for part in model.modules() for value in vars(part).values()]
    listed = chain.from_iterable(value for value in held if isinstance(value, list | tuple))
    return [noise for noise in chain(held, listed) if isinstance(noise, Noise)]
