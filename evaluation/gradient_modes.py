"""What an attacker who knows a defense differentiates in its place."""

from torch import nn

from rdc import Defense
from rdc.noise import Noise


def surrogates(model: nn.Module) -> dict[str, nn.Module]:
    """The model under every gradient that is worth trying; a plain classifier has one.

    "exact": the true gradient through every step. "bpda": the identity for the purifier, the
    attack that papers have used. "detached_guidance": for guided purifiers, the exact gradient
    without that of the guidance. "classifier": the classifier alone, whose attacked images are then
    shown to the defense. A purifier makes the loss rugged, so that the true gradient is not always
    the most harmful one. All share the model's own frozen noise.
    """
    if not isinstance(model, Defense):
        return {"exact": model}
    if any(noise.mode == "fresh" for noise in noises(model)):
        raise ValueError(
            "model: noise='fresh'; attacks differentiate frozen noise, all of whose draws can be "
            "had by number (rdc.noise.copies); build it with noise='frozen'"
        )
    modes = ["exact", "bpda"]
    if getattr(model.purifier, "terms", ()):
        modes.append("detached_guidance")
    found: dict[str, nn.Module] = {mode: under(model, mode) for mode in modes}
    return {**found, "classifier": model.classifier}


def under(model: Defense, gradient: str) -> Defense:
    """The same defense under another gradient mode of its purifier."""
    purifier = model.purifier.with_gradient(gradient)  # type: ignore[operator]
    return Defense(purifier, model.classifier, copies=model.copies)


def noises(model: nn.Module) -> list[Noise]:
    """The noise of every module that draws."""
    found = (getattr(part, "noise", None) for part in model.modules())
    return [noise for noise in found if isinstance(noise, Noise)]
