"""Preparation of what attacks are given: precision, graphs, modes; attacks on few classes."""

import inspect
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from evaluation import attacks
from evaluation.attacks.apgd import apgd
from evaluation.attacks.ensembles import standard
from evaluation.attacks.fab import fab
from evaluation.attacks.lagrange import lagrange
from evaluation.attacks.losses import targeted_dlr, targeted_margin
from evaluation.attacks.low_frequency import low_frequency
from evaluation.attacks.pgd import pgd
from evaluation.attacks.random_search import random_search
from evaluation.attacks.square import square
from evaluation.attacks.stadv import stadv
from rdc.data import load
from rdc.norms import size

BALL = {
    "pgd": partial(pgd, steps=2),
    "apgd": partial(apgd, steps=2),
    "fab": partial(fab, steps=2, targets=1),
    "square": partial(square, queries=3),
    "random": partial(random_search, trials=3),
    "low": partial(low_frequency, steps=2, block=2),
    "lagrange": partial(
        lagrange, surrogate=lambda x: x.flatten(1)[:, :3], penalty=lambda x: x.mean((1, 2, 3)),
        steps=2, multipliers=(0.5,),
    ),
    "standard": lambda *args, **options: standard(
        *args, steps=2, targets=1, queries=3, **options
    ).images,
}  # fmt: skip
EVERY = {**BALL, "stadv": partial(stadv, steps=2)}
every = pytest.mark.parametrize("name", EVERY)
IMAGES = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


class Plain(nn.Module):
    """Three classes; notes the precision of its images, and if a graph came with them."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(16, 3, generator=generator).to(dtype)
        self.seen: set[torch.dtype] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add(images.dtype)
        return (images - images.mean((1, 2, 3), keepdim=True)).flatten(1) @ self.weight


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_of_16_bits_keep_to_the_budget(name: str, dtype: torch.dtype) -> None:
    """The attacked images are float32; the model is called with what it takes."""
    model, images = Plain(dtype), IMAGES.to(dtype)
    found = EVERY[name](model, images, LABELS, eps=0.03)
    assert found.dtype == torch.float32 and model.seen <= {dtype}
    if name in BALL:
        assert size(found - images.float(), "linf").max() <= 0.03 + 1e-6


@every
def test_no_graph_comes_in_or_out(name: str) -> None:
    images = IMAGES.clone().requires_grad_()
    found = EVERY[name](Plain(), 1 * images, LABELS, eps=0.03)
    assert not found.requires_grad and images.grad is None
    assert not EVERY[name](Plain(), images, LABELS, eps=0).requires_grad


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_attacks_differentiate_in_every_mode(name: str, mode) -> None:
    model = Plain()
    expected = EVERY[name](model, IMAGES, LABELS, eps=0.03)
    with mode():
        found = EVERY[name](model, IMAGES.clone(), LABELS.clone(), eps=0.03)
    assert torch.equal(found, expected) and not found.is_inference()


@every
def test_rounding_beyond_the_box_is_forgiven(name: str) -> None:
    images = IMAGES.clone()
    images[0, 0, 0, :2] = torch.tensor([1 + 1e-6, -1e-6])
    expected = EVERY[name](Plain(), images.clamp(0, 1), LABELS, eps=0.03)
    assert torch.equal(EVERY[name](Plain(), images, LABELS, eps=0.03), expected)
    images[0, 0, 0, 0] = 1.001
    with pytest.raises(ValueError, match=r"from -1e-06 to 1.001 must lie in \[0, 1\]"):
        EVERY[name](Plain(), images, LABELS, eps=0.03)


@every
def test_batch_normalization_in_training_mode_is_refused(name: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match=r"model: 0 is in training mode.*model.eval\(\)"):
        EVERY[name](model, IMAGES, LABELS, eps=0.03)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    EVERY[name](model.eval(), IMAGES, LABELS, eps=0.03)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@every
def test_arrays_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"images: ndarray; give a torch.Tensor"):
        EVERY[name](Plain(), IMAGES.numpy(), LABELS, eps=0.03)
    with pytest.raises(ValueError, match=r"labels: list; give a torch.Tensor"):
        EVERY[name](Plain(), IMAGES, LABELS.tolist(), eps=0.03)


def test_labels_on_another_device_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels: on meta, but images on cpu; .*labels.to"):
        pgd(Plain(), IMAGES, LABELS.to("meta"), eps=0.03)


def test_every_attack_is_prepared() -> None:
    """Every public function of `evaluation.attacks` that takes a model, images and labels."""
    modules = [module for _, module in inspect.getmembers(attacks, inspect.ismodule)]
    functions = {
        function
        for module in modules
        for _, function in inspect.getmembers(module, inspect.isfunction)
        if list(inspect.signature(function).parameters)[:3] == ["model", "images", "labels"]
    }
    assert len(functions) >= 9
    assert all(hasattr(function, "__wrapped__") for function in functions)


class Ridge(nn.Module):
    """The first classes of digits by ridge regression on random features."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        train = load("digits", "train")
        known = train.labels < classes
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(64, 100, generator=generator) / 4
        hidden = self._hidden(train.images[known])
        goal = nn.functional.one_hot(train.labels[known], classes).float() - 0.1
        self.last = torch.linalg.solve(hidden.T @ hidden + torch.eye(100), hidden.T @ goal)

    def _hidden(self, images: Tensor) -> Tensor:
        return ((images - 0.5).flatten(1) @ self.first).relu()

    def forward(self, images: Tensor) -> Tensor:
        return 10 * self._hidden(images) @ self.last


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 6])
def test_aiming_at_a_class_works_with_few_classes(classes: int) -> None:
    """The DLR loss breaks as many images as the targeted margin, but for one: 27 to 3 are left.

    Over z_1 - z_3, three classes would have 10 left in place of 5.
    """
    model, data = Ridge(classes), load("digits", "test")
    known = (data.labels < classes).nonzero()[:30, 0]
    images, labels = data.images[known], data.labels[known]
    options = {"eps": 0.6, "norm": "l2", "targets": 9, "steps": 10}
    left = [
        int((model(apgd(model, images, labels, loss=loss, **options)).argmax(1) == labels).sum())
        for loss in (targeted_dlr, targeted_margin)
    ]
    assert left[0] <= left[1] + 1 and 0 < left[1] < 30
