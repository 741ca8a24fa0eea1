"""A CNN and RDC under foolbox: `python examples/attack_with_foolbox.py`."""

import foolbox
import torch
import tyro

import rdc
from rdc.data import load


def main(images: int = 16, eps: tuple[float, ...] = (0.05, 0.15), steps: int = 5) -> None:
    """PGD of foolbox on test digits, L-infinity.

    Args:
        images: how many test digits
        eps: budgets on the [0, 1] scale
        steps: of PGD
    """
    torch.manual_seed(0)  # foolbox draws its starts from the global generator
    data = load("digits", "test").subset(slice(images))
    models = {
        "CNN": rdc.ImageClassifier.from_pretrained("digits-cnn"),
        "RDC": rdc.RobustDiffusionClassifier.from_pretrained("digits"),  # noise="frozen"
    }
    attack = foolbox.attacks.LinfPGD(steps=steps, rel_stepsize=2.5 / steps)
    for name, model in models.items():
        wrapped = foolbox.PyTorchModel(model.eval(), bounds=(0, 1))
        clean = foolbox.accuracy(wrapped, data.images, data.labels)
        _, _, fooled = attack(wrapped, data.images, data.labels, epsilons=eps)
        right = 1 - fooled.float().mean(1)
        figures = ", ".join(f"{r:.0%} at eps {e}" for r, e in zip(right, eps, strict=True))
        print(f"{name}: {clean:.0%} clean, {figures}")
    print(
        f"Share of {images} digits that {steps} steps of PGD leave right. A stronger attack leaves "
        "fewer: python -m evaluation.evaluate --out results/rdc --eps 0.15"
    )


if __name__ == "__main__":
    tyro.cli(main)
