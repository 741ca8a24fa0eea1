"""A CNN and RDC under the Adversarial Robustness Toolbox: `python examples/attack_with_art.py`."""

import tyro
from art.attacks.evasion import ProjectedGradientDescent as PGD
from art.estimators.classification import PyTorchClassifier
from torch.nn import CrossEntropyLoss

import rdc
from rdc.data import load


def main(images: int = 16, eps: float = 0.15, steps: int = 10) -> None:
    """PGD of ART on test digits, L-infinity.

    Args:
        images: how many test digits
        eps: budget on the [0, 1] scale
        steps: of PGD
    """
    data = load("digits", "test").subset(slice(images))
    x, labels = data.images.numpy(), data.labels.numpy()  # float32, as the networks are
    models = {
        "CNN": rdc.ImageClassifier.from_pretrained("digits-cnn"),
        "RDC": rdc.RobustDiffusionClassifier.from_pretrained("digits"),  # noise="frozen"
    }
    for name, model in models.items():
        wrapped = PyTorchClassifier(model, CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0, 1))
        attack = PGD(wrapped, eps=eps, eps_step=2.5 * eps / steps, max_iter=steps, verbose=False)
        found = (x, attack.generate(x, labels))
        clean, right = ((wrapped.predict(given).argmax(1) == labels).mean() for given in found)
        print(f"{name}: {clean:.0%} clean, {right:.0%} under attack")
    print(
        f"Share of {images} digits that {steps} steps of PGD at eps {eps} leave right. A stronger "
        f"attack leaves fewer: python -m evaluation.evaluate --out results/rdc --eps {eps}"
    )


if __name__ == "__main__":
    tyro.cli(main)
