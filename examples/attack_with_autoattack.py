"""A CNN and RDC under AutoAttack: `python examples/attack_with_autoattack.py`."""

import torch
import tyro
from pyautoattack import AutoAttack

import rdc
from rdc.data import load


def main(images: int = 16, eps: float = 0.15, steps: int = 10) -> None:
    """The first attack of AutoAttack on test digits, L-infinity.

    Args:
        images: how many test digits
        eps: budget on the [0, 1] scale
        steps: of APGD; AutoAttack's own 100, and its three other attacks, take RDC hours
    """
    data = load("digits", "test").subset(slice(images))
    models = {
        "CNN": rdc.ImageClassifier.from_pretrained("digits-cnn"),
        "RDC": rdc.RobustDiffusionClassifier.from_pretrained("digits"),  # noise="frozen"
    }
    for name, model in models.items():
        # From here on debuggers and coverage see nothing: AutoAttack switches tracing off.
        attack = AutoAttack(model, eps=eps, version="custom", attacks=["apgd-ce"], seed=0)
        attack.apgd.n_iter, attack.apgd.n_restarts = steps, 1
        attacked, _ = attack.run_standard_evaluation(data.images, data.labels, batch_size=images)
        with torch.no_grad():
            clean, right = ((model(x).argmax(1) == data.labels) for x in (data.images, attacked))
        print(f"{name}: {clean.float().mean():.0%} clean, {right.float().mean():.0%} under attack")
    print(
        f"Share of {images} digits that {steps} steps of APGD at eps {eps} leave right. AutoAttack "
        "calls RDC dynamic, for the gradient steps in its answer, and itself not enough. Adaptive "
        f"attacks: python -m evaluation.evaluate --out results/rdc --eps {eps}"
    )


if __name__ == "__main__":
    tyro.cli(main)
