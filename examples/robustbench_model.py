"""Check which defenses RobustBench would accept: `python examples/robustbench_model.py`."""

import warnings

import tyro
from pyautoattack import checks

import rdc
from purification import DiffusionPurifier, PurifierConfig
from rdc import RobustDiffusionClassifier as RDC
from rdc.data import load

SETTINGS = PurifierConfig("sde", t_star=0.1, steps=10)


def main(images: int = 16) -> None:
    """Run the checks of AutoAttack, RobustBench's attack, on defenses of some test digits."""
    data = load("digits", "test").subset(slice(images))
    models: dict = {"CNN": rdc.ImageClassifier.from_pretrained("digits-cnn")}
    for noise in ("frozen", "fresh"):
        models[f"RDC, {noise}"] = ours = RDC.from_pretrained("digits", noise=noise)
        purifier = DiffusionPurifier(ours.denoiser, SETTINGS, noise=noise)
        models[f"DiffPure, {noise}"] = rdc.Defense(purifier, models["CNN"])
    for name, model in models.items():
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            checks.check_randomized(model, data.images, data.labels)
            checks.check_range_output(model, data.images)  # logits, not probabilities
            checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # it would go on counting
            checks.check_dynamic(model, data.images)  # switches debuggers and coverage off
        said = [str(warning.message).split("!")[0] for warning in found]
        print(f"{name:<17}{'; '.join(said) or 'nothing to object'}")
    print(
        "RobustBench lists no defense that draws noise or optimizes to answer. Frozen noise passes "
        "the check and is noise all the same: report what evaluation.evaluate measures, not a rank."
    )


if __name__ == "__main__":
    tyro.cli(main)
