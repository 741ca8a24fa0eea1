"""A CNN and RDC under torchattacks: `python examples/attack_with_torchattacks.py`."""

import torch
import torchattacks
import tyro

import rdc
from rdc.data import load


def main(images: int = 16, eps: float = 0.15, steps: int = 10) -> None:
    """PGD of torchattacks on test digits, L-infinity.

    Args:
        images: how many test digits
        eps: budget on the [0, 1] scale
        steps: of PGD
    """
    torch.manual_seed(0)  # torchattacks draws its starts from the global generator
    data = load("digits", "test").subset(slice(images))
    models = {
        "CNN": rdc.ImageClassifier.from_pretrained("digits-cnn"),
        "RDC": rdc.RobustDiffusionClassifier.from_pretrained("digits"),  # noise="frozen"
    }
    for name, model in models.items():
        attack = torchattacks.PGD(model, eps=eps, alpha=2.5 * eps / steps, steps=steps)
        attacked = attack(data.images, data.labels)
        with torch.no_grad():
            clean, right = ((model(x).argmax(1) == data.labels) for x in (data.images, attacked))
        print(f"{name}: {clean.float().mean():.0%} clean, {right.float().mean():.0%} under attack")
    print(
        f"Share of {images} digits that {steps} steps of PGD at eps {eps} leave right. A stronger "
        f"attack leaves fewer: python -m evaluation.evaluate --out results/rdc --eps {eps}"
    )


if __name__ == "__main__":
    tyro.cli(main)
