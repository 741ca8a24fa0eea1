"""`evaluation.evaluate` on a caller's own models and images."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import evaluation
from evaluation.attacks.apgd import apgd
from evaluation.journal import FolderJournal
from evaluation.report.compare import groups
from evaluation.report.load import load
from evaluation.results.records import Record, read_records
from evaluation.results.summary import Summary
from rdc import ImageClassifier
from rdc.data import Dataset
from rdc.networks.image_classifier import ImageClassifierConfig
from rdc.runs.exclusive import exclusive
from tests.support.factories import FACTORY
from tests.support.launchers import printed, run

ONLY = ("exact/apgd-margin", "square")
OPTIONS = {"eps": (0.05, 0.3), "steps": 3, "queries": 5, "only": ONLY, "batch_size": 4}


class Linear(nn.Module):
    """Three classes by the sums of columns of 4x4 images."""

    def __init__(self, scale: float = 10.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * images.mean((1, 2))[:, :3]


def configured(setting: int) -> Linear:
    model = Linear()
    model.setting = setting  # type: ignore[assignment]
    return model


PIXELS = (255 * torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))).byte()
IMAGES = PIXELS.float() / 255
LABELS = Linear()(IMAGES).argmax(1)


def evaluate(
    model=None, images: Any = IMAGES, labels: Any = LABELS, **options
) -> evaluation.Evaluation:
    return evaluation.evaluate(model or Linear(), images, labels, **{**OPTIONS, **options})


def timeless(records: list[Record]) -> list[Record]:
    return [replace(record, seconds=0) for record in records]


@pytest.fixture(scope="module")
def found() -> evaluation.Evaluation:
    return evaluate(name="mine")


def test_the_function_keeps_its_name_when_the_program_is_imported() -> None:
    importlib.import_module("evaluation.evaluate")
    from evaluation import evaluate as imported
    from evaluation.evaluate import main

    assert evaluation.evaluate is imported and imported.__module__ == "evaluation.api"
    assert callable(main) and evaluation.certify.__module__.startswith("evaluation.certification")


def test_accuracies_are_those_of_the_records(found: evaluation.Evaluation) -> None:
    assert found.accuracy("linf", 0).mean == 1
    for eps in (0.05, 0.3):
        worst = {r.image: True for r in found.records}
        for record in found.records:
            if record.eps <= eps:
                worst[record.image] &= record.right
        share = found.accuracy("linf", eps)
        assert share.mean == sum(worst.values()) / 10 and share.low <= share.mean <= share.high
    assert found.accuracy("linf", 0.3) == found.accuracy("linf", 0.1 + 0.2)
    assert found.accuracy("linf", 0.3, attack="square").mean >= found.accuracy("linf", 0.3).mean
    # The margin of a linear model falls by twice the budget in the mean of each column.
    margins = Linear()(IMAGES).topk(2).values @ torch.tensor([1.0, -1.0]) / 10
    interior = margins > 2 * 0.05
    assert all(r.right for r in found.records if r.eps == 0.05 and interior[r.image])


def test_text_and_pictures(found: evaluation.Evaluation) -> None:
    assert str(found).startswith("mine: all ") and "eps 0.05  worst" in str(found)
    assert "<b>mine</b>" in found._repr_html_()
    assert len(found.figure().axes[0].containers) == 1


def test_records_as_a_table(found: evaluation.Evaluation) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = found.to_dataframe()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == len(found.records) == 50


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (PIXELS, LABELS.tolist()),
        (IMAGES.double().numpy(), LABELS.numpy().astype(np.int32)),
        (PIXELS.numpy(), LABELS),
        (np.flip(np.flip(IMAGES.numpy(), 2).copy(), 2), LABELS),
        (Dataset(PIXELS, LABELS, ("a", "b", "c")), None),
        (TensorDataset(IMAGES, LABELS), None),
        (DataLoader(TensorDataset(PIXELS, LABELS), batch_size=3), None),
    ],
    ids=["uint8", "double", "array", "turned", "rdc", "dataset", "loader"],
)
def test_any_kind_of_data(found: evaluation.Evaluation, images, labels) -> None:
    other = evaluate(images=images, labels=labels, checks=False)
    assert timeless(other.records) == timeless(found.records)


class Named(TensorDataset):
    """A data set that names its classes as torchvision's do."""

    classes = ("fox", "dog", "cat")


@pytest.mark.parametrize(
    "wrapped",
    [Named, lambda *data: DataLoader(Subset(Named(*data), range(2)))],
    ids=["dataset", "loader of a subset"],
)
def test_names_of_classes_come_along(wrapped) -> None:
    options = {"only": "square", "eps": 0.05, "checks": False}
    found = evaluate(images=wrapped(IMAGES[:2], LABELS[:2]), labels=None, **options)
    assert found.summary.class_names == Named.classes


def test_a_folder_holds_what_memory_holds(found: evaluation.Evaluation, tmp_path: Path) -> None:
    """The function's own folder, and one that it saves later."""
    out, saved = tmp_path / "out", tmp_path / "saved"
    written = evaluate(name="mine", out=out)
    found.save(str(saved))
    for folder in (out, saved):
        assert timeless(read_records(folder)) == timeless(found.records)
        summary = Summary.read(folder / "summary.json")
        assert summary.accuracies == found.summary.accuracies == written.summary.accuracies
        assert [check.passed for check in summary.checks] == [
            check.passed for check in found.summary.checks
        ]
    files = [sorted((folder / "images").iterdir()) for folder in (out, saved)]
    assert len(files[0]) == 9
    for one, other in zip(*files, strict=True):
        assert one.name == other.name and one.read_bytes() == other.read_bytes()


def test_a_stopped_call_continues(
    found: evaluation.Evaluation, tmp_path: Path, monkeypatch
) -> None:
    calls, append = [], FolderJournal.append

    def stop(self: FolderJournal, records) -> None:
        if len(calls) == 5:
            raise KeyboardInterrupt
        append(self, records)
        calls.append(len(records))

    monkeypatch.setattr(FolderJournal, "append", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(out=tmp_path / "out")
    monkeypatch.setattr(
        FolderJournal, "append", lambda self, rows: calls.append(append(self, rows))
    )
    # Fewer rows at once may be what lets a killed run continue.
    again = evaluate(out=tmp_path / "out", max_rows=64)
    assert timeless(again.records) == sorted_like(found, timeless(again.records))
    assert len(calls) == 3 + 2 * 2 * 3  # batches, and budgets times attacks times batches


def sorted_like(found: evaluation.Evaluation, rows: list[Record]) -> list[Record]:
    by_key = {(r.eps, r.attack, r.image): r for r in timeless(found.records)}
    return [by_key[r.eps, r.attack, r.image] for r in rows]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": Linear(11.0)}, "weights of the model: its content has changed"),
        ({"model": configured(2)}, "settings of the model: its content has changed"),
        ({"model": lambda images: Linear()(images)}, "source of the model: its content"),
        ({"images": 1 - IMAGES}, "images: its content has changed"),
        ({"eps": (0.05,)}, r"--eps: \[0\.05, 0\.3\] -> \[0\.05\]"),
    ],
)
def test_a_folder_of_other_inputs_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    evaluate(out=tmp_path, checks=False)
    with pytest.raises(ValueError, match=message):
        evaluate(**{"out": tmp_path, "checks": False, **changes})


@pytest.mark.parametrize("name", ["steps", "queries", "seed", "batch_size", "eval_draws"])
def test_counts_that_are_no_whole_numbers_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=2\.5 must be a whole number"):
        evaluate(**{name: 2.5})
    with pytest.raises(ValueError, match=r"steps=2\.5 must be a whole number"):
        apgd(Linear(), IMAGES, LABELS, eps=0.1, steps=2.5)  # type: ignore[arg-type]


def test_images_that_are_won_are_left_out_by_later_attacks() -> None:
    """The worst case is that of all attacks on all images."""
    attacks = ("exact/apgd-*", "square")
    found = evaluate(eps=0.05, checks=False, only=attacks)
    whole = evaluate(eps=0.05, checks=False, only=attacks, every_attack=True)
    assert any(r.broken_by for r in found.records)
    assert not any(r.broken_by for r in whole.records)
    assert found.accuracy("linf", 0.05) == whole.accuracy("linf", 0.05)


class Possible(Linear):
    """Six classes, the first three of which have probability 0."""

    def forward(self, images: Tensor) -> Tensor:
        found = super().forward(images)
        return torch.cat([torch.full_like(found, -torch.inf), found], 1)


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "targets"), [("adaptive", 2), ("standard", 5)])
def test_classes_of_probability_0_change_nothing(attack, targets: int) -> None:
    options = {"attack": attack, "only": (), "targets": targets, "every_attack": True}
    plain = evaluate(**options)
    masked = evaluate(Possible(), labels=LABELS + 3, **options)
    assert [r.right for r in masked.records] == [r.right for r in plain.records]
    assert {each.name: each.passed for each in masked.summary.checks} == {
        each.name: None if each.name == "planted vulnerability" else each.passed
        for each in plain.summary.checks
    }


class Masked(Linear):
    """Classifies images of five gray levels; the gradient is zero everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((4 * images).round() / 4) + 0 * images.sum()


def test_gradients_try_what_only_a_black_box_broke_within_a_smaller_budget() -> None:
    """The check of gradients sees that they fail there too; the black box need not try again."""
    found = evaluate(Masked(), eps=(0.2, 0.1), checks=False, only=("exact/apgd-margin", "square"))
    records = {(r.eps, r.attack, r.image): r for r in found.records}
    fell = [
        image for (eps, attack, image), r in records.items()
        if (eps, attack) == (0.1, "square") and not r.right and r.broken_by is None
    ]  # fmt: skip
    assert fell
    for image in fell:
        gradients = records[0.2, "exact/apgd-margin", image]
        again = records[0.2, "square", image]
        assert gradients.broken_by is None
        if gradients.right:
            assert (again.broken_by, again.broken_at) == ("square", 0.1)


def test_gradients_of_an_ensemble_try_what_its_black_box_broke_within_a_smaller_budget() -> None:
    options = {"attack": "standard", "only": (), "checks": False, "targets": 2, "queries": 40}
    both = evaluate(Masked(), eps=(0.1, 0.2), **options)
    alone = evaluate(Masked(), eps=0.2, **options)
    assert both.accuracy("linf", 0.1) != both.accuracy("linf", 0.1, attack="apgd-ce")
    for attack in ("apgd-ce", "+apgd-t", "+fab-t"):
        assert both.accuracy("linf", 0.2, attack=attack) == alone.accuracy(
            "linf", 0.2, attack=attack
        )


def test_images_of_8_bits_do_not_depend_on_smaller_budgets() -> None:
    """Within half a level every attack is undone by rounding."""

    class Near(Linear):
        def forward(self, images: Tensor) -> Tensor:
            level = 255 * (images - IMAGES[:1]).flatten(1).mean(1)
            return torch.stack([torch.full_like(level, 0.2), level], 1)

    options = {"images": IMAGES[:1], "labels": [0], "checks": False, "only": "*/apgd-margin"}
    both = evaluate(Near(), eps=(0.4 / 255, 2 / 255), **options)
    assert both.accuracy("linf", 0.4 / 255, protocol="frozen").mean == 0
    assert both.accuracy("linf", 0.4 / 255, protocol="8 bits").mean == 1
    assert both.accuracy("linf", 2 / 255, protocol="8 bits").mean == 0


@pytest.mark.slow
def test_two_models_are_compared(found: evaluation.Evaluation, tmp_path: Path) -> None:
    other = evaluate(Linear(-10.0), name="wrong", checks=False)
    both = evaluation.compare([found, other])
    assert both.p_value("mine", "wrong", "linf", 0) == pytest.approx(2 * 0.5**10, rel=1)
    assert "| mine " in str(both) and "| wrong " in str(both)
    page = both.report(tmp_path / "report").read_text()
    assert "mine" in page and "wrong" in page
    for other, norm, eps in (("other", "linf", 0), ("wrong", "linf", 0.2), ("wrong", "l1", 0)):
        with pytest.raises(ValueError, match=rf"under {norm} {eps}: give one of \{{'mine'"):
            both.p_value("mine", other, norm, eps)
    with pytest.raises(ValueError, match="need different names"):
        evaluation.compare([found, found])
    for single in (found, "results"):
        with pytest.raises(ValueError, match=r"evaluations: a (Evaluation|str); give several"):
            evaluation.compare(single)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="evaluations: one is a str"):
        evaluation.compare(["results"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="of different images"):
        evaluation.compare([found, evaluate(images=1 - IMAGES, checks=False)])
    with pytest.raises(ValueError, match="under different budgets"):
        evaluation.compare([found, evaluate(eps=0.05, name="few", checks=False)])


def test_two_models_of_one_name_are_not_compared() -> None:
    quick = {"name": "a", "eps": 0.05, "only": "square", "checks": False}
    one, other = evaluate(**quick), evaluate(Linear(-10.0), norm="l2", **quick)
    with pytest.raises(ValueError, match="need different names"):
        evaluation.compare(each for each in (one, other))


def test_a_comparison_says_how_attacks_differ_and_which_checks_failed() -> None:
    class Noisy(Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images + torch.randn_like(images))

    quick = {"eps": 0.05, "only": "*/apgd-margin"}
    noisy = evaluate(Noisy(), name="noisy", steps=2, **quick)
    sound = evaluate(name="sound", steps=3, checks=False, **quick)
    both = evaluation.compare([noisy, sound])
    assert both.failed.keys() == {"noisy"} and "no memory" in both.failed["noisy"]
    text = str(both)
    assert text.startswith("Attacks differ: suite.steps is 2 for noisy, 3 for sound.")
    assert "CHECKS FAILED: noisy (" in text
    assert not [line for line in text.split("P-values")[1].splitlines() if "noisy" in line]
    with pytest.raises(ValueError, match="'noisy': checks failed: "):
        both.p_value("noisy", "sound", "linf", 0.05)


def test_names_of_models_are_those_of_reports_and_no_paths(tmp_path: Path) -> None:
    found = evaluate(name="../net/v1", only="square", checks=False)
    page = found.report(tmp_path / "a" / "report")
    assert "Robustness on given: ../net/v1" in page.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"a"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"report"}
    evaluate(name="mine", only="square", checks=False, out=tmp_path / "run7")
    assert [(run.name, run.defense) for run in load([tmp_path / "run7"])[0]] == [
        ("mine-linf", "mine")
    ]


def test_a_folder_in_use_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with exclusive(tmp_path / "used"), pytest.raises(ValueError, match="in use by another start"):
        evaluate(out=tmp_path / "used")
    with pytest.raises(FileExistsError, match="a file, not a folder; give another"):
        evaluate(out=tmp_path / "file")


def test_unknown_attacks_have_no_accuracy(found: evaluation.Evaluation) -> None:
    for eps in (0, 0.05):
        with pytest.raises(ValueError, match="attack='none such': must be one of"):
            found.accuracy("linf", eps, attack="none such")


def test_norms_in_any_order_are_compared() -> None:
    quick = {"eps": 0.05, "only": "square", "checks": False}
    runs = [("a", "linf"), ("a", "l2"), ("b", "l2"), ("b", "linf")]
    found = [evaluate(name=name, norm=norm, **quick) for name, norm in runs]
    assert evaluation.compare(found).p_value("a", "b", "linf", 0.05) == 1
    with pytest.raises(ValueError, match="under different budgets"):
        evaluation.compare(found[:3])


def test_models_with_their_classes_in_another_order_are_compared(tmp_path: Path) -> None:
    pixels = torch.arange(6 * 64, dtype=torch.uint8).view(6, 1, 8, 8)
    data = Dataset(pixels, torch.tensor([0, 1, 2, 2, 1, 0]), ("a", "b", "c"))
    found = []
    for names in (("a", "b", "c"), ("c", "a", "b")):
        model = ImageClassifier(ImageClassifierConfig("cnn-4", 8, 1, 3, class_names=names)).eval()
        found.append(evaluate(model, data, None, name=names[0], only="square", checks=False))
        found[-1].save(tmp_path / names[0])
    assert [each.summary.class_names[0] for each in found] == ["a", "c"]
    assert 0 <= evaluation.compare(found).p_value("a", "c", "linf", 0) <= 1
    assert len(groups(load([tmp_path])[0])) == 1


class Pair(Linear):
    def forward(self, images: Tensor):  # type: ignore[override]
        return super().forward(images), images


class Items(torch.utils.data.Dataset):
    """Pairs of an image and the label 0."""

    def __init__(self, *images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int):
        return self.images[row], 0


MISTAKES = {
    "values": ({"images": 255 * IMAGES}, r"images: values from .* expected \[0, 1\]"),
    "one image": ({"images": IMAGES[0, 0]}, r"images: shape \(4, 4\); give \(N, C, H, W\)"),
    "integers": ({"images": PIXELS.int()}, r"images: torch\.int32; give uint8"),
    "list": ({"images": 3, "labels": None}, "images: int; give a tensor"),
    "mapping": ({"images": {"a": IMAGES}, "labels": None}, "images: dict; give a tensor"),
    "draws": (
        {"draws": 5, "model": lambda images: torch.randn(len(images), 3)},
        "draws: the model answers differently when",
    ),
    "stochastic": (
        {"attack": "stochastic", "model": lambda images: torch.randn(len(images), 3)},
        "draws: the model answers differently when",
    ),
    "no draws": (
        {"attack": "stochastic"},
        r"attack='stochastic' .* a defense that draws, and draws",
    ),
    "no labels": ({"labels": None}, "labels: none given"),
    "few labels": ({"labels": LABELS[:3]}, r"labels: .*\(3,\); give int64 \(10,\)"),
    "soft labels": ({"labels": IMAGES[:, 0, 0]}, "give whole numbers"),
    "labels as text": ({"labels": ["cat"] * 10}, r"labels: .*; give whole numbers \(N,\)"),
    "labels of a set as text": (
        {"images": [(image, "cat") for image in IMAGES], "labels": None},
        r"labels: .*; give whole numbers \(N,\)",
    ),
    "labels of K": ({"labels": LABELS + 3}, "labels: up to 5, but the model gives 3 logits; give"),
    "text": ({"images": "digits", "labels": None}, "images: str; give a tensor"),
    "triples": (
        {"images": [(image, 0, 1) for image in IMAGES], "labels": None},
        "images: its batches are (list|tuple) of 3, and must be pairs",
    ),
    "values of a normalized image": ({"images": 2 * IMAGES - 1}, "expected .* rdc.Normalize"),
    "two labels": ({"images": TensorDataset(IMAGES, LABELS)}, "labels: images is a TensorDataset"),
    "names of a data set": (
        {
            "images": Dataset(PIXELS, LABELS, ("a", "b", "c")),
            "labels": None,
            "class_names": ("x", "y", "z"),
        },
        "class_names: images is a rdc.data.Dataset",
    ),
    "class names": ({"class_names": tuple("abcd")}, r"gives 3 logits, .* 4 classes"),
    "eps": ({"eps": 8}, "eps=8: images are in"),
    "eps beyond all images": ({"norm": "l2", "eps": 128}, r"eps=128.0 must be in \[0, 4\]"),
    "eps beyond the border": (
        {"norm": "stadv", "eps": 3, "only": ()},
        r"eps=3.0 must be in \[0, 1\], displacements",
    ),
    "eps as text": ({"eps": "8/255"}, "eps='8/255': give a number, or several"),
    "no eps": ({"eps": None}, "eps=None: give a number, or several"),
    "eps of nothing": ({"eps": ()}, r"eps=\(\): give one or more different positive budgets"),
    "eps 0": ({"eps": 0}, "eps=0: give one or more different positive budgets"),
    "no steps": ({"steps": "3"}, "steps='3' must be a whole number"),
    "no draw": ({"draws": 0}, "draws=0 must be at least 1"),
    "no seed": ({"seed": None}, "seed=None must be a whole number"),
    "no rows": ({"max_rows": None}, "max_rows=None must be a whole number"),
    "no patterns": ({"only": None}, "only=None: give a text, or several"),
    "numbers as patterns": ({"only": ["x", 3]}, r"only=\['x', 3\]: give a text, or several"),
    "long name": ({"name": "a" * 300}, "name='aaa.*: give a text of 1 to 100 characters"),
    "other images": (
        {"model": nn.Sequential(nn.Flatten(), nn.Linear(25, 3))},
        r"model: fails on an image \(channels, height, width\) \(1, 4, 4\): mat1 and mat2",
    ),
    "other images of ours": (
        {"model": ImageClassifier(ImageClassifierConfig("cnn-4", 8, 1, 3)).eval()},
        r"model takes images \(channels, height, width\) \(1, 8, 8\), but those of images",
    ),
    "endless eps": ({"eps": (0.1, float("inf"))}, r"eps=\(0.1, inf\) must be"),
    "seed": ({"seed": -1}, "seed=-1 must be 0 or more"),
    "empty": (
        {"images": Dataset(PIXELS, LABELS, ("a", "b", "c")).subset(slice(0)), "labels": None},
        "images: an empty data set; give at least one image",
    ),
    "pictures": (
        {"images": Items(Image.new("L", (4, 4))), "labels": None},
        "images: .*Image.*; give a data set whose images are tensors of one shape",
    ),
    "sizes": (
        {"images": Items(torch.rand(1, 4, 4), torch.rand(1, 5, 4)), "labels": None},
        "images: .*equal size.*; give a data set whose images are tensors of one shape",
    ),
    "attack": ({"attack": "fgsm"}, r"attack='fgsm' must be one of \('adaptive', "),
    "norm": ({"norm": "l1"}, r"norm='l1' must be one of \('linf', 'l2', "),
    "tuple": ({"model": Pair()}, "model: returns tuple; it must return a tensor"),
    "shape": ({"model": lambda images: images}, r"model: returns shape \(1, 1, 4, 4\)"),
    "one logit": (
        {"model": lambda images: images.mean((1, 2, 3))[:, None]},
        r"model: returns shape \(1, 1\) .*torch\.cat\(\[torch\.zeros_like\(z\), z\], 1\)",
    ),
    "class": ({"model": Linear}, "model: the class Linear; give an object of it"),
    "no model": ({"model": "digits-cnn"}, "model: str; give a torch.nn.Module"),
    "training": ({"model": nn.Sequential(Linear(), nn.Dropout())}, r"call model\.eval\(\)"),
    "16 bits": (
        {"model": nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).half()},
        r"model: has weights of torch\.float16, but images are torch\.float32 .*model\.float\(\)",
    ),
    "16 bits of ours": (
        {"model": ImageClassifier(ImageClassifierConfig("cnn-4", 4, 1, 3)).half().eval()},
        r"model: has weights of torch\.float16, but images are torch\.float32 .*model\.float\(\)",
    ),
    "nan": ({"model": Linear(float("nan"))}, "model: NaN in its logits, or infinity"),
    "transfer": ({"transfer": lambda x: x.mean((1, 2))}, r"transfer: gives 4 logits"),
    "no transfer of corruptions": (
        {"transfer": Linear(), "norm": "corruption", "eps": 3, "only": ()},
        r"transfer .*norm='corruption' .* makes no transfer attack",
    ),
    "no transfer attack": (
        {"transfer": Linear(), "attack": "standard", "only": ()},
        r"transfer .*: attack='standard' .* makes no transfer attack",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_before_anything_is_computed(mistake: str, tmp_path: Path) -> None:
    changes, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        evaluate(**{"out": tmp_path / "out", **changes})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("eps", [np.float32(0.25), torch.tensor(0.25), [0.25], np.array([0.25])])
def test_budgets_of_any_type_of_number(eps) -> None:
    found = evaluate(eps=eps, images=IMAGES[:1], labels=LABELS[:1], only="square", checks=False)
    assert found.summary.budgets == [0.25] and {r.attack for r in found.records} == {
        "none", "square"
    }  # fmt: skip


def test_checks_that_one_image_cannot_fail_do_not_apply() -> None:
    checks = evaluate(images=IMAGES[:1], labels=LABELS[:1]).summary.checks
    few = {check.name for check in checks if check.detail.startswith("too few images")}
    assert few == {
        "any budget", "planted vulnerability", "steps doubled", "white box beats black box",
        "accuracy falls with eps",
    } - {check.name for check in checks if "larger budgets leave out" in check.detail}  # fmt: skip
    assert all(check.passed is None for check in checks if check.name in few)


def test_a_save_that_was_killed_is_completed(
    found: evaluation.Evaluation, tmp_path: Path, monkeypatch
) -> None:
    append = FolderJournal.append
    monkeypatch.setattr(
        FolderJournal, "append", lambda self, rows: append(self, [*rows][: len(found.records) // 2])
    )
    found.save(tmp_path / "saved")
    monkeypatch.undo()
    found.save(tmp_path / "saved")
    assert read_records(tmp_path / "saved") == found.records


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:The .grad attribute")
def test_a_scripted_model_is_attacked_like_the_module() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    scripted, plain = (evaluate(model, name="a") for model in (torch.jit.script(network), network))
    assert scripted.summary.accuracies == plain.summary.accuracies


def test_failed_checks_say_why() -> None:
    found = evaluate(lambda images: Linear()(images) + torch.rand(len(images), 3)).summary
    reasons = [each.detail for each in found.checks if each.passed is False]
    assert reasons and all(reason in found.text for reason in reasons)


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        evaluate()


def test_rounding_outside_the_box_is_cut_off() -> None:
    images = IMAGES.clone()
    images[0, 0, 0, 0] = 1 + 1e-6
    assert evaluate(images=images, checks=False).summary.images == 10


@pytest.mark.parametrize(
    ("norm", "eps", "options", "message"),
    [
        ("l2", 0.3, {}, "evaluated was 'linf' at eps 0, 0.05, 0.3"),
        ("linf", 0.2, {}, r"eps=0\.2"),
        ("linf", 0.3, {"attack": "x"}, "attack='x': must be one of"),
        (
            "linf",
            0.3,
            {"protocol": "fresh"},
            r"protocol='fresh': must be one of \['frozen', '8 bits'\]",
        ),
    ],
)
def test_unknown_figures_are_named(
    found: evaluation.Evaluation, norm, eps, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        found.accuracy(norm, eps, **options)


@pytest.mark.slow
def test_a_factory_is_a_defense_for_the_program(tmp_path: Path) -> None:
    """The program runs in its own process; a factory file that has changed is refused later."""
    file, out, printer = tmp_path / "mine.py", tmp_path / "out", tmp_path / "printed"
    file.write_text(FACTORY)
    flags = [
        "--out", out, "--defense.kind", "module", "--defense.factory", f"{file}:cnn", "--images",
        "2", "--eps", "1/10", "--suite.only", "square", "--suite.queries", "5",
        "--check-images", "0",
    ]  # fmt: skip
    assert run(printer, "evaluation.evaluate", *flags) == 0, printed(printer)
    first, *_ = printed(printer)[0].splitlines()
    assert first == "module on 2 test images of digits, linf eps 0.1"
    settings = json.loads((out / "settings.json").read_text())
    assert {f"weights of {file}:cnn", f"mine.py of {file}:cnn"} < settings["inputs"].keys()
    file.write_text(FACTORY + "# changed\n")
    assert run(printer, "evaluation.evaluate", *flags) == 2
    errors = printed(printer)[1]
    assert "Traceback" not in errors
    assert f"mine.py of {file}:cnn: its content has changed" in errors
