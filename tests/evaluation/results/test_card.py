"""The card's text about an evaluation: what was attacked, how, and whether to trust it."""

from dataclasses import replace

from evaluation.checks.check import Check
from evaluation.results.card import measurement, text
from evaluation.results.metrics import Accuracy
from evaluation.results.summary import Summary


def accuracy(mean: float) -> Accuracy:
    return Accuracy(mean, mean - 0.06, mean + 0.04, 40)


def both(frozen: float, fresh: float) -> dict[str, Accuracy]:
    return {"frozen": accuracy(frozen), "fresh": accuracy(fresh)}


SUMMARY = Summary(
    config={
        "data": "/data/digits", "split": "test", "eps": [0.1], "seed": 7, "attack": "adaptive",
        "defense": {"kind": "rdc", "model": "runs/mine", "weight": None},
        "suite": {"steps": 40, "eot_samples": 2}, "eval_draws": 20,
    },
    provenance={
        "command": "python -m evaluation.evaluate --out x", "commit": "abc123",
        "data_fingerprint": "d1" * 32, "python": "3.11", "packages": {},
    },
    weights={"runs/mine": "5b" * 32, "digits-cnn": "7c" * 32},
    class_names=("0", "1"),
    norm="linf",
    accuracies={
        0.0: {"none": both(0.95, 0.9)},
        0.1: {"exact/apgd-ce": both(0.5, 0.6), "worst": both(0.45, 0.55)},
    },
    checks=(
        Check("finite differences", True, "largest error 2e-7"),
        Check("planted weakness", None, "not run"),
    ),
    calls_per_image={"gradients": 168, "forwards": 114},
    seconds_per_image=0.1,
)  # fmt: skip


def test_attack_settings_and_weights_are_named() -> None:
    found = text(SUMMARY)
    assert found.startswith(
        "by `python -m evaluation.evaluate --out x` at commit abc123: 40 images of the test split "
        "of `digits`, attacked within L-infinity budgets on images in [0, 1], seed 7.\n\n"
    )
    assert "- defense: kind rdc, model runs/mine\n" in found
    assert "- attacks: kind adaptive, steps 40, eot_samples 2\n" in found
    assert "| accuracy in % [95 % interval] | frozen | fresh |\n|---|---|---|\n" in found
    assert "\n| clean | 95.0 [89, 99] | 90.0 [84, 94] |\n" in found
    assert "\n| eps 0.1, exact/apgd-ce | 50.0 [44, 54] | 60.0 [54, 64] |\n" in found
    assert "\n| eps 0.1, worst of these, image by image | 45.0 [39, 49] | 55.0" in found
    assert "- finite differences: passed. largest error 2e-7\n" in found
    assert "- planted weakness: not judged. not run" in found
    assert "**" not in found and "{" not in found
    assert measurement(SUMMARY).weights == ("5b" * 32, "7c" * 32)


def test_failed_checks_come_before_the_figures() -> None:
    found = text(replace(SUMMARY, checks=(Check("planted weakness", False, "an error of 0.7"),)))
    warning = "**Checks of this measurement failed (planted weakness): the accuracies under attack"
    assert 0 < found.index(warning) < found.index("| clean |")
    assert "- planted weakness: FAILED. an error of 0.7" in found


def test_measurements_without_checks_or_attacks_say_so() -> None:
    clean = {0.0: SUMMARY.accuracies[0.0]}
    found = text(replace(SUMMARY, checks=(), accuracies=clean))
    assert "No checks of this measurement were recorded." in found
    assert found.endswith("Robust accuracy: not measured.")
