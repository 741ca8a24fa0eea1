"""The identity of a model changes with all that its answers depend on, and with nothing else."""

import copy
import logging
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evaluation.identity import identity
from purification import build
from rdc import Defense
from rdc.noise import Noise
from tests.support.tiny import tiny_denoiser

FACTOR = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    steps: int = 3
    names: tuple[str, ...] = ("a",)


class Configured(nn.Module):
    """A module whose answers depend on attributes of many kinds."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.settings = changes.get("settings", Settings())
        self.options = changes.get("options", SimpleNamespace(rate=0.5))
        self.draws = changes.get("noise", Noise("frozen", seed=1))
        self.mean = changes.get("mean", torch.zeros(2))
        self.others = changes.get("others", [nn.Linear(1, 1, bias=False)])
        nn.init.ones_(self.others[0].weight)
        self.logger = logging.getLogger("tests")
        self._cache = changes.get("cache")


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": Settings(steps=4)},
        {"settings": Settings(names=("a", "b"))},
        {"options": SimpleNamespace(rate=0.25)},
        {"noise": Noise("frozen", seed=2)},
        {"mean": torch.ones(2)},
        {"others": [nn.Linear(1, 2, bias=False)]},
    ],
)
def test_settings_are_found_in_attributes_of_all_kinds(changes: dict[str, Any]) -> None:
    before, after = identity(Configured(), "model"), identity(Configured(**changes), "model")
    assert {key for key in before if before[key] != after[key]} == {"settings of the model"}


def test_use_and_copies_change_nothing() -> None:
    model = Configured()
    before = identity(model, "model")
    model.draws.normal(torch.zeros(2, 1, 4, 4), 3)
    model._cache = torch.ones(3)
    model.logger.addHandler(logging.NullHandler())
    model.register_forward_hook(lambda *_: None)
    assert identity(model, "model") == before == identity(copy.deepcopy(model), "model")


def scaled(images: Tensor, model: nn.Module | None = None, factor: float = 1.0) -> Tensor:
    return FACTOR * factor * (model(images) if model else images)


def test_functions_are_told_apart_by_what_they_refer_to(monkeypatch) -> None:
    def around(model: nn.Module, factor: float):
        return lambda images: scaled(model(images), factor=factor)

    def with_default(factor: float):
        def model(images: Tensor, *, factor: float = factor) -> Tensor:
            return factor * images

        return model

    one, other = Configured(), Configured(mean=torch.ones(2))
    models = {
        "closure": around(one, 1.0), "model": around(other, 1.0), "factor": around(one, 2.0),
        "partial": partial(scaled, model=one), "keyword": partial(scaled, model=one, factor=2.0),
        "default": with_default(1.0), "other default": with_default(2.0),
        "method": one.forward, "of another": other.forward,
    }  # fmt: skip
    found = {name: identity(model, "model") for name, model in models.items()}
    assert len({tuple(each.values()) for each in found.values()}) == len(models)
    assert found["closure"] == identity(around(Configured(), 1.0), "model")
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert found["closure"] != identity(around(one, 1.0), "model")


def test_a_network_in_a_private_attribute_of_an_object_is_found() -> None:
    class Mine:
        def __init__(self, weight: float) -> None:
            self._network = nn.Linear(1, 2, bias=False)
            nn.init.constant_(self._network.weight, weight)

        def __call__(self, images: Tensor) -> Tensor:
            return self._network(images.flatten(1)[:, :1])

    one, other = (identity(Mine(weight), "model") for weight in (1.0, 2.0))
    assert one == identity(Mine(1.0), "model")
    assert {key for key in one if one[key] != other[key]} == {"settings of the model"}


def test_settings_of_purifiers_are_found() -> None:
    """Deep in the model, under any wrapper."""

    def settings(seed: int = 0, **changes: Any) -> str:
        options = {"preset": "cifar10-linf", "steps": 3, "t_star": 0.1, **changes}
        purifier = build("diffpure", tiny_denoiser(), seed=seed, **options)
        defense = nn.Sequential(Defense(purifier, nn.Flatten()), nn.Identity())
        return identity(defense, "model")["settings of the model"]

    found = [settings(), settings(t_star=0.2), settings(steps=2), settings(seed=1)]
    assert len(set(found)) == 4 and settings() == found[0]


def test_sources_are_those_of_the_users_code() -> None:
    key = "source of the model"
    plain = nn.Sequential(nn.Flatten())
    assert identity(plain, "model")[key] == identity(nn.Identity(), "model")[key]
    assert identity(nn.Sequential(Configured()), "model")[key] != identity(plain, "model")[key]
