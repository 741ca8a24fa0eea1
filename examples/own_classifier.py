"""An own CNN, alone, behind DiffPure and beside RDC: `python examples/own_classifier.py`."""

import torch
import tyro
from torch import nn

import evaluation
import rdc
from purification import build


def main(images: int = 8, steps: int = 5) -> None:
    """Train a CNN, then compare it and its defenses on `images` digits, in attacks of `steps`."""
    train, test = (rdc.data.load("digits", split) for split in ("train", "test"))
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten()
    cnn = nn.Sequential(rdc.Normalize(0.3, 0.4), *layers, nn.Linear(512, 10))
    optimizer = torch.optim.Adam(cnn.parameters(), lr=2e-3)
    for _ in range(300):
        rows = torch.randint(len(train), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(cnn(train.images[rows]), train.labels[rows]).backward()
        optimizer.step()

    denoiser = rdc.Denoiser.from_pretrained("digits")
    defended = rdc.Defense(build("diffpure", denoiser, preset="cifar10-linf", steps=5), cnn)
    model = rdc.RobustDiffusionClassifier.from_pretrained("digits")
    models = {"CNN": cnn.eval(), "DiffPure + CNN": defended.eval(), "RDC": model}
    # Weak and quick; without `steps` and `only`, the full adaptive suite.
    quick = {"eps": 0.1, "steps": steps, "only": ["*/apgd-margin"], "checks": False}
    arrays = test.images[:images].numpy(), test.labels[:images].numpy()
    found = [evaluation.evaluate(each, *arrays, name=name, progress=True, **quick)
             for name, each in models.items()]  # fmt: skip
    print(compared := evaluation.compare(found))
    print("report:", compared.report("report"))


if __name__ == "__main__":
    tyro.cli(main)
