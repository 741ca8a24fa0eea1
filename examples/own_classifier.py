"""An own CNN on own arrays, alone, behind DiffPure, and RDC beside it: attacked and compared."""

import torch
from torch import nn

import evaluation
import rdc
from purification import build

images, steps = 8, 5  # test images, and steps of each attack: more take longer and say more

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
quick = {"eps": 0.1, "steps": steps, "only": ["*/apgd-margin"], "checks": False, "progress": True}
arrays = test.images[:images].numpy(), test.labels[:images].numpy()
found = [evaluation.evaluate(each, *arrays, name=name, **quick) for name, each in models.items()]
print(compared := evaluation.compare(found))
print("report:", compared.report("report"))
