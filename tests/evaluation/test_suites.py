"""Suites: their attacks, by what names, on which draws, in which order, on which images."""

import hashlib
from dataclasses import replace
from typing import Any

import pytest
import torch
import tyro
from torch import Tensor

from evaluation.attacks.apgd import apgd
from evaluation.attacks.ensembles import standard, stochastic
from evaluation.attacks.eot import Expectation
from evaluation.attacks.losses import margin
from evaluation.attacks.stadv import stadv
from evaluation.config import EvaluateConfig
from evaluation.defense_config import KINDS, METHODS, DefenseConfig
from evaluation.defenses import build, default_transfer_model, networks, weights
from evaluation.entries import Entry, broken
from evaluation.eps import budget, written
from evaluation.gradient_modes import noises
from evaluation.results.records import Record
from evaluation.suite_config import SIZES, Sizes, SuiteConfig
from evaluation.suites import MEAN, black_box, run, suite
from evaluation.sweep_config import SweepConfig
from purification import DiffusionPurifier
from rdc import Defense, ImageClassifier
from rdc.data import load
from rdc.hub.checkpoint import PACKAGED
from rdc.norms import size
from tests.support.victims import IMAGES, LABELS, Linear, NoisyImages, labels_of

SMALL = Sizes(steps=3, targets=2, queries=12, eot_samples=1)
RANDOM = replace(SMALL, eot_samples=3)
PURIFIED = DefenseConfig(kind="diffpure", t_star=0.1, steps=2)
NAMED: list[Any] = [kind for kind in KINDS if kind != "module"]
"""Kinds of defenses that need no code of their own."""
WITHOUT_GRADIENT = {"square", "random"}
DIGITS = load("digits", "test").subset(slice(2))


def cnn(name: str = "digits-cnn") -> ImageClassifier:
    return ImageClassifier.from_pretrained(name)


def test_plain_classifier_under_one_gradient_and_none() -> None:
    entries = suite(cnn(), "linf", SMALL, transfer=cnn("digits-trades"))
    white = {"apgd-ce", "apgd-margin", "apgd-t", "low-frequency"}
    assert set(entries) == {
        *(f"exact/{name}" for name in white), *WITHOUT_GRADIENT, "transfer/apgd-margin"
    }  # fmt: skip
    assert set(suite(cnn(), "stadv", SMALL)) == {"exact/stadv"}


def test_every_surrogate_of_a_purifier_on_its_frozen_draw_and_on_means() -> None:
    """The classifier behind the purifier draws nothing: its mean is what it is."""
    entries = suite(build(PURIFIED, data="digits"), "linf", RANDOM, transfer=cnn())
    frozen = {name for name in entries if not name.startswith(MEAN)}
    means = {name.removeprefix(MEAN) for name in entries.keys() - frozen}
    assert {name.split("/")[0] for name in frozen} == {
        "exact", "bpda", "classifier", "transfer", *WITHOUT_GRADIENT
    }  # fmt: skip
    drawing = {n for n in frozen if not n.startswith(("classifier/", "transfer/"))}
    assert means == {*drawing, "diffhammer"}
    assert all(entry.draws == (3 if n.startswith(MEAN) else 1) for n, entry in entries.items())
    moved = suite(build(PURIFIED, data="digits"), "stadv", RANDOM, transfer=cnn())
    assert set(moved) == {
        "exact/stadv", "bpda/stadv", "classifier/stadv", "transfer/stadv",
        "mean/exact/stadv", "mean/bpda/stadv",
    }  # fmt: skip


def test_gradients_come_before_black_boxes_and_cheap_ones_first() -> None:
    """A black box that came first would hide that gradients find nothing."""
    names = list(suite(build(PURIFIED, data="digits"), "linf", RANDOM, transfer=cnn()))
    assert names == sorted(names, key=black_box)
    assert names[:3] == ["classifier/apgd-margin", "bpda/apgd-margin", "exact/apgd-margin"]


def test_the_gradient_of_fewer_steps_where_a_purifier_has_many() -> None:
    many = replace(PURIFIED, steps=21)
    assert "surrogate/apgd-ce" in suite(build(many, data="digits"), "linf", SMALL)
    assert "surrogate/apgd-ce" not in suite(build(PURIFIED, data="digits"), "linf", SMALL)


def test_several_models_for_transfer_by_name() -> None:
    sources = {"cnn": cnn(), "diffpure": build(PURIFIED, data="digits")}
    names = suite(cnn(), "linf", RANDOM, transfer=sources)
    assert {name for name in names if "transfer/" in name} == {
        "transfer/cnn/apgd-margin", "transfer/diffpure/apgd-margin",
        "mean/transfer/diffpure/apgd-margin",
    }  # fmt: skip
    assert all(black_box(name) for name in names if "transfer/" in name)


def test_corruptions_in_place_of_attacks() -> None:
    entries = suite(cnn(), "corruption", SMALL)
    assert list(entries) == ["noise", "blur", "jpeg", "brightness", "contrast"]
    options = {"norm": "corruption", "max_rows": 8, "seeds": [0, 1]}
    for entry in entries.values():
        (found,) = run(entry, DIGITS.images, DIGITS.labels, eps=3, **options)
        assert found.shape == DIGITS.images.shape and not torch.equal(found, DIGITS.images)


def verdict(image: int, wrong: bool, unseen: tuple[int, ...] = (), attack: str = "a") -> Record:
    return Record(
        image=image, label=3, eps=0.1, attack=attack, frozen=5 if wrong else 3,
        frozen_confidence=1.0, predictions=unseen, confidences=(1.0,) * len(unseen), linf=0.1,
        l2=0.1, seconds=1.0,
    )  # fmt: skip


def test_what_leaves_an_attack_nothing_to_win() -> None:
    """A wrong answer on the frozen draw; wrong answers of all draws for attacks on means."""
    frozen, mean = Entry(Linear(), apgd, 1, 1), Entry(Linear(), apgd, 1, 1, draws=2)
    corrupted = replace(frozen, adversarial=False)
    before = [verdict(0, True, (3, 5)), verdict(1, False, (5, 5)), verdict(2, True, (5, 5))]
    again = verdict(2, True, (5, 5), attack="b")
    assert broken(frozen, [*before, again]) == {0: before[0], 2: before[2]}
    assert broken(mean, [*before, again]) == {1: before[1], 2: before[2]}
    assert broken(corrupted, before) == {}


def left(model, entries, *, every_attack: bool) -> tuple[Tensor, int]:
    """Images that withstand all attacks (20,) bool, and the number of images attacked in total."""
    labels, seeds = labels_of(Linear(4)), list(range(20))
    before: list[Record] = []
    tried = 0
    for entry in entries.values():
        done = set() if every_attack else set(broken(entry, before))
        rows = [row for row in range(20) if row not in done]
        if not rows:
            continue
        tried += len(rows)
        (found,) = run(
            entry, IMAGES[rows], labels[rows], eps=0.03, norm="linf", max_rows=64,
            seeds=[seeds[row] for row in rows], stop_when_wrong=not every_attack,
        )  # fmt: skip
        right = model(found).argmax(1) == labels[rows]
        before += [verdict(row, not bool(r)) for row, r in zip(rows, right, strict=True)]
    fallen = {record.image for record in before if not record.right}
    return torch.tensor([row not in fallen for row in range(20)]), tried


def test_images_that_stand_are_those_of_the_suite_without_shortcuts() -> None:
    """Skipping broken images saves work and leaves the same images standing."""
    model = Linear(4)
    entries = suite(model, "linf", replace(SMALL, steps=8, targets=3), transfer=Linear(4))
    standing, work = zip(
        *(left(model, entries, every_attack=every) for every in (True, False)),
        strict=True,
    )
    assert torch.equal(*standing) and 0 < standing[0].sum() < 20
    assert work[1] < work[0]


def test_diffusion_classifier_draws_by_itself() -> None:
    entries = suite(build(DefenseConfig(kind="rdc"), data="digits"), "l2", RANDOM)
    assert "mean/classifier/apgd-ce" in entries
    assert not noises(cnn())


@pytest.mark.parametrize("name", ["apgd-margin", "stadv"])
def test_images_that_another_model_gets_wrong_are_attacked_too(name: str) -> None:
    """A wrong answer of the model that a transfer attack is made on says nothing about others."""
    other = Linear()
    wrong = 1 - labels_of(other)
    norm = "stadv" if name == "stadv" else "linf"
    entry = suite(Linear(), norm, SMALL, transfer=other)[f"transfer/{name}"]
    for stop in (False, True):
        (found,) = run(entry, IMAGES, wrong, eps=0.1, norm=norm, seeds=[0] * len(IMAGES),
                       stop_when_wrong=stop)  # fmt: skip
        assert (found - IMAGES).flatten(1).abs().amax(1).gt(0).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "stadv"])
def test_black_box_is_what_asks_the_defense_for_no_gradient(norm) -> None:
    model = NoisyImages(4)
    entries = suite(model, norm, RANDOM, transfer=cnn())
    for name, entry in entries.items():
        assert black_box(name) == (entry.gradients == 0 or entry.surrogate is not model)
    assert any(map(black_box, entries)) and not all(map(black_box, entries))


def test_black_box_stages_of_ensembles() -> None:
    entries = suite(NoisyImages(4), "linf", RANDOM, attack="stochastic")
    stages = [name for entry in entries.values() for name in entry.stages]
    assert [n for n in stages if black_box(n)] == ["+square", "mean/+square"]


@pytest.mark.parametrize("name", ["linf", "l2"])
def test_every_entry_stays_within_its_budget(name) -> None:
    model, labels = NoisyImages(4, std=0.05), labels_of(Linear(4))
    for key, entry in suite(model, name, RANDOM, transfer=Linear(4)).items():
        (found,) = run(
            entry, IMAGES, labels, eps=0.1, norm=name, max_rows=64, seeds=list(range(20))
        )
        assert size(found - IMAGES, name).max() <= 0.1 + 1e-6, key
        assert not torch.equal(found, IMAGES), key


def test_frozen_entries_call_the_model_as_anybody_does() -> None:
    """An entry of one draw knows the very draw of a plain call; one of a mean sees others."""
    model, seen = NoisyImages(4), []
    plain, drawn = model.noise.normal, []

    def normal(like: Tensor, count: int) -> Tensor:
        found = plain(like, count)
        drawn.append(found)
        return found

    model.noise.normal = normal  # type: ignore[method-assign]
    frozen = plain(IMAGES[:1], 1)
    entries = suite(model, "linf", RANDOM)
    for name in ("exact/apgd-margin", "mean/exact/apgd-margin"):
        drawn.clear()
        run(entries[name], IMAGES, LABELS, eps=0.1, norm="linf", max_rows=64, seeds=list(range(20)))
        seen.append(all(torch.equal(d.expand_as(d), frozen.expand_as(d)) for d in drawn))
    assert seen == [True, False]


class Counted(NoisyImages):
    """Counts the images of its calls: without a gradient, and with one."""

    def __init__(self) -> None:
        super().__init__(4)
        self.calls = [0, 0]

    def forward(self, images: Tensor) -> Tensor:
        self.calls[torch.is_grad_enabled()] += len(images)
        return super().forward(images)


@pytest.mark.parametrize(
    ("attack", "norm", "draws"),
    [("adaptive", "linf", 2), ("adaptive", "stadv", 2), ("standard", "linf", 1),
     ("stochastic", "l2", 2)],
)  # fmt: skip
def test_no_attack_takes_more_passes_than_its_entry_says(attack, norm, draws: int) -> None:
    """Images that withstand cost the most; points that new draws find in one place cost less."""
    model, images = Counted(), IMAGES[:2]
    labels = labels_of(model, images)
    for name, entry in suite(model, norm, Sizes(12, 2, 110, draws), attack=attack).items():
        model.calls = [0, 0]
        run(entry, images, labels, eps=1e-4, norm=norm, seeds=[0, 1])
        forwards, gradients = (calls / 2 / entry.draws for calls in model.calls)
        assert gradients <= entry.gradients and forwards <= entry.forwards, name
        assert gradients >= 0.8 * entry.gradients and forwards >= 0.4 * entry.forwards, name


def test_few_steps_of_stadv_are_longer() -> None:
    """Steps of 0.01 would move by 0.02 within a budget of 0.3."""
    model, options = cnn(), {"eps": 0.3, "seeds": [0, 1]}
    entry = suite(model, "stadv", SMALL)["exact/stadv"]
    (found,) = run(entry, DIGITS.images, DIGITS.labels, norm="stadv", max_rows=8, **options)
    longer, short = (
        stadv(model, DIGITS.images, DIGITS.labels, steps=3, step_size=size, **options)
        for size in (2.5 * 0.3 / 3, 0.01)
    )
    assert torch.equal(found, longer)
    assert (margin(model(longer), DIGITS.labels) > margin(model(short), DIGITS.labels)).all()


def test_standard_is_the_ensemble_of_that_name_stage_by_stage() -> None:
    model, seeds = Linear(4), list(range(20))
    labels = labels_of(model)
    (entry,) = suite(model, "linf", SMALL, attack="standard").values()
    assert entry.stages == ("apgd-ce", "+apgd-t", "+fab-t", "+square")
    found = run(entry, IMAGES, labels, eps=0.03, norm="linf", max_rows=64, seeds=seeds)
    whole = standard(model, IMAGES, labels, eps=0.03, seeds=seeds, steps=3, targets=2, queries=12)
    assert torch.equal(found[-1], whole.images)
    right = [int((model(images).argmax(1) == labels).sum()) for images in found]
    assert right == sorted(right, reverse=True) and 0 < right[-1] < 20


def test_stochastic_attacks_the_frozen_draw_and_the_mean() -> None:
    model, seeds = NoisyImages(4, std=0.05), list(range(20))
    frozen, means = suite(model, "linf", RANDOM, attack="stochastic").values()
    assert means.stages == ("mean/apgd-ce", "mean/+apgd-margin", "mean/+apgd-t", "mean/+square")
    assert (frozen.draws, means.draws) == (1, 3)
    found = run(means, IMAGES, LABELS, eps=0.03, norm="linf", max_rows=64, seeds=seeds)
    whole = stochastic(
        Expectation(model, draws=3), IMAGES, LABELS, eps=0.03, seeds=seeds, steps=3, targets=2,
        queries=12,
    )  # fmt: skip
    assert torch.equal(found[-1], whole.images)


def test_what_an_ensemble_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attack='standard' .* for stadv give 'adaptive'"):
        suite(Linear(), "stadv", SMALL, attack="standard")
    with pytest.raises(ValueError, match=r"draws=3 \(--suite.eot-samples\): .*'stochastic'"):
        suite(NoisyImages(), "linf", RANDOM, attack="standard")
    with pytest.raises(ValueError, match=r"attack='stochastic' .* give 'standard'"):
        suite(Linear(), "linf", SMALL, attack="stochastic")


def test_a_part_of_the_suite_by_pattern() -> None:
    only = ("*/apgd-margin", "square")
    entries = suite(NoisyImages(), "linf", RANDOM, only=only)
    assert set(entries) == {"exact/apgd-margin", "mean/exact/apgd-margin", "square"}
    with pytest.raises(ValueError, match=r"only=\('pgd',\) \(--suite.only\): fits .*exact/apgd-ce"):
        suite(Linear(), "linf", SMALL, only=("pgd",))


def test_corruptions_by_pattern() -> None:
    assert list(suite(Linear(), "corruption", SMALL, only=("jp*",))) == ["jpeg"]
    with pytest.raises(ValueError, match=r"only=\('jpg',\) \(--suite.only\): fits none .*jpeg"):
        suite(Linear(), "corruption", SMALL, only=("jpg",))


def test_a_sweep_has_all_corruptions() -> None:
    """Its patterns and transfer models are those of attacks."""
    sweep = SweepConfig(data="somewhere/else")
    made = {each.norm: (each.suite.only, each.transfer) for _, each in sweep.evaluations()}
    assert all(made["linf"]) and made["corruption"] == ((), None)


def test_sizes_by_kind_of_attack() -> None:
    assert SuiteConfig().sizes("adaptive") == SIZES["adaptive"]
    assert SuiteConfig(steps=7).sizes("stochastic") == replace(SIZES["stochastic"], steps=7)
    with pytest.raises(ValueError, match="queries=0 must be at least 1"):
        SuiteConfig(queries=0)


def test_budgets_as_people_write_them() -> None:
    flags = ["--out", "x", "--norm", "l2", "--eps", "8/255", "0.5", "--attack", "standard"]
    found = tyro.cli(EvaluateConfig, args=flags)
    assert found.eps == (8 / 255, 0.5) and found.attack == "standard"
    assert [written(eps) for eps in (8 / 255, 0.5, 0.2, 1 / 7)] == [
        "8/255",
        "0.5",
        "0.2",
        "0.142857",
    ]
    for text in ("8/0", "eight", "8/255/2", "1e400"):
        with pytest.raises(ValueError, match=f"'{text}' is neither"):
            budget(text)


def test_transfer_comes_from_a_network_that_the_defense_does_not_have() -> None:
    for kind in NAMED:
        config = DefenseConfig(kind=kind, classifier="digits-cnn")
        name = default_transfer_model(config, "digits")
        own = networks(config)
        assert name == next((n for n in ("digits-cnn", "digits-trades") if n not in own), None)
    assert (
        default_transfer_model(DefenseConfig("classifier", classifier="digits-trades"), "digits")
        == "digits-cnn"
    )
    assert default_transfer_model(DefenseConfig(), "somewhere/else") is None


def test_weights_of_every_network_of_a_defense() -> None:
    assert networks(DefenseConfig("classifier")) == ["digits-cnn"]
    assert networks(DefenseConfig("rdc")) == ["digits"]
    assert networks(DefenseConfig("maximization")) == ["digits", "digits-cnn"]
    assert networks(DefenseConfig("agdm")) == ["digits", "digits-cnn", "digits-trades"]
    (found,) = weights(["digits-cnn"]).values()
    content = (PACKAGED / "digits-cnn" / "model.safetensors").read_bytes()
    assert found == hashlib.sha256(content).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMED)
def test_every_defense_can_be_built_by_name(kind) -> None:
    settings = DefenseConfig(kind=kind)
    if kind in METHODS:
        weight = None if kind == "diffpure" else 1.0
        settings = replace(settings, t_star=0.1, steps=2, weight=weight)
    if kind == "coup":
        settings = replace(settings, classifier="digits-trades")
    model = build(settings, data="digits")
    assert model(DIGITS.images).shape == (2, 10)
    assert torch.equal(model(DIGITS.images), model(DIGITS.images))


def test_what_replaces_a_preset() -> None:
    changed = DefenseConfig("gdmp", process="sde", t_star=0.1, steps=3, rounds=2, weight=5.0)
    model = build(changed, data="digits")
    assert isinstance(model, Defense) and isinstance(model.purifier, DiffusionPurifier)
    purifier = model.purifier
    assert (purifier.config.process, purifier.config.steps, purifier.config.rounds) == ("sde", 3, 2)
    assert purifier.weights == [5.0]
