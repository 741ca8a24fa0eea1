"""Attacks and certificates: how robust a classifier is, from above and from below.

`evaluate(model, images, labels, eps=8 / 255)` attacks any model, and `compare` puts several
evaluations side by side; `certify` bounds any model's robustness from below. They are imported on
first use, so that the programs start quickly.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation.api import evaluate as evaluate
    from evaluation.certification.certify import certify as certify
    from evaluation.evaluation import Comparison as Comparison
    from evaluation.evaluation import Evaluation as Evaluation
    from evaluation.evaluation import compare as compare

__all__ = ["Comparison", "Evaluation", "certify", "compare", "evaluate"]
HOMES = {
    "evaluate": "evaluation.api",
    "certify": "evaluation.certification.certify",
    "compare": "evaluation.evaluation",
    "Comparison": "evaluation.evaluation",
    "Evaluation": "evaluation.evaluation",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)


class _Package(ModuleType):
    """Module type that keeps `evaluation.evaluate` and `evaluation.certify` functions.

    Their programs, `python -m evaluation.evaluate`, are modules of the same names, which Python
    puts in the functions' place when somebody imports them.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
