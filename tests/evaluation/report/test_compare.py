"""Comparisons: only runs on the same images, under the same norm and budget."""

from pathlib import Path

from evaluation.report.compare import groups, paired_tests
from evaluation.report.load import Run, load
from evaluation.results.statistics import mcnemar
from tests.support.fake_runs import BROKEN, Fake, make


def run(folder: Path, fake: Fake) -> Run:
    return load([make(folder, fake)])[0][0]


def test_pairs_are_of_the_same_images_norm_and_budget(tmp_path: Path) -> None:
    fakes = {
        "a": Fake("a", halved=0.1), "b": Fake("b", eps=(0.2, 0.3), halved=0.2),
        "c": Fake("c", "l2"), "d": Fake("d", fingerprint="e2" * 32), "e": Fake("e", images=10),
        "f": Fake("f", checks=(BROKEN,)),
    }  # fmt: skip
    runs = [run(tmp_path / name, fake) for name, fake in fakes.items()]
    first, *others = groups(runs)
    assert [r.name for r in first.runs] == ["a", "b", "c", "f"]
    assert [[r.name for r in group.runs] for group in others] == [["d"], ["e"]]
    found = paired_tests(first)
    assert [(p.first.name, p.second.name, p.eps) for p in found] == [
        ("a", "b", 0.0), ("a", "b", 0.2),
    ]  # fmt: skip
    right = [[survived(r, 0.2, image) for image in range(12)] for r in runs[:2]]
    assert found[1].p == mcnemar(*right)
    only = sum(a and not b for a, b in zip(*right, strict=True))
    assert found[1].only_first == only
    assert found[1].only_first - found[1].only_second == sum(right[0]) - sum(right[1]) != 0


def survived(run: Run, eps: float, image: int) -> bool:
    return all(r.right for r in run.records if r.image == image and r.eps in (0, eps))
