"""Docstrings begin with a noun phrase or an imperative, never in the middle of a sentence."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("rdc", "purification", "training", "evaluation", "benchmarks", "examples", "tests")
WRONG = re.compile(
    r"(what|how|where|whether|which|who|whoever|whose|whatever|why|when|that|if|of|everything|and"
    r"|but|as|it)\b",
    re.IGNORECASE,
)


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Line number and text of every string that stands as a statement, fields' included."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text.strip()


@pytest.mark.slow
def test_docstrings_begin_with_a_noun_phrase_or_an_imperative() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, text in docstrings(path.read_text(encoding="utf-8"))
        if WRONG.match(text)
    ]
    assert wrong == []
