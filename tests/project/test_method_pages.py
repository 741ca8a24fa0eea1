"""Every parameter of a method is in its page's table, with its default."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rdc
from purification import PurifierConfig
from purification.guidance import AGDM, GDMP, ClassifierGuidance, ContrastiveGuidance

METHODS = Path(__file__).parents[2] / "docs" / "methods"
PARAMETERS: dict[str, Callable[..., Any]] = {
    "agdm": AGDM,
    "contrastive": ContrastiveGuidance,
    "coup": ClassifierGuidance,
    "diffpure": PurifierConfig,
    "diffusion-classifier": rdc.ClassifierConfig,
    "gdmp": GDMP,
    "likelihood-maximization": rdc.MaximizationConfig,
    "rdc": rdc.RobustDiffusionClassifier,
}


def described(page: Path) -> dict[str, Any]:
    """Defaults by parameter in a table of three columns; `inspect.Parameter.empty` without one."""
    rows = re.findall(r"^\| `(\w+)` \| (?:`([^`]+)` )?\| [^|]+ \|$", page.read_text("utf-8"), re.M)
    return {name: eval(text) if text else inspect.Parameter.empty for name, text in rows}


@pytest.mark.parametrize("page", PARAMETERS)
def test_the_table_of_parameters_is_that_of_the_code(page: str) -> None:
    parameters = inspect.signature(PARAMETERS[page]).parameters
    expected = {name: parameter.default for name, parameter in parameters.items()}
    assert described(METHODS / f"{page}.md") == expected
