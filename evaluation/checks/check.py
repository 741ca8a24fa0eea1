"""The result of one check."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

from evaluation.results.fields import STATE, TEXT, require_fields

P = ParamSpec("P")
Finding = tuple[bool | None, str] | tuple[bool | None, str, str]
"""`passed` and `detail` of a `Check`, and what to do on failure, which then joins the detail."""

OF_RECORDS = ("accuracy falls with eps", "white box beats black box", "recorded inside the budget")
"""names of the checks that look at records alone; all others ask the model"""
KINDS = {"name": TEXT, "passed": STATE, "detail": TEXT}


@dataclass(frozen=True)
class Check:
    """`passed` is None where the check does not apply; `detail` says why.

    Otherwise `detail` is a sentence with the measured figures, and on failure what to do.
    """

    name: str
    passed: bool | None
    detail: str

    @classmethod
    def from_json(cls, found: Any, where: str = "checks") -> "Check":
        """The check of a file's values; ValueError, beginning with `where`, for another kind."""
        require_fields(found, KINDS, where)
        return cls(**found)


def check(name: str) -> Callable[[Callable[P, Finding]], Callable[P, Check]]:
    """Decorator that makes a function returning a `Finding` the check of this name.

    A model that answers with an error, such as NaN or no way back to the images, fails the check.
    """

    def decorate(function: Callable[P, Finding]) -> Callable[P, Check]:
        @wraps(function)
        def named(*args: P.args, **options: P.kwargs) -> Check:
            try:
                passed, detail, *remedy = function(*args, **options)
            except (ValueError, FloatingPointError) as error:
                passed, detail, remedy = False, f"could not be measured: {error}", []
            return Check(name, passed, "; ".join([detail, *(remedy if passed is False else [])]))

        return named

    return decorate


def failed(checks: Iterable[Check]) -> list[str]:
    """The names of the checks that failed."""
    return [check.name for check in checks if check.passed is False]


def asked(checks: Iterable[Check]) -> bool:
    """True where the model itself was checked."""
    return any(check.name not in OF_RECORDS for check in checks)


def headline(checks: Sequence[Check]) -> str:
    """The first line of every report."""
    if names := failed(checks):
        return f"CHECKS FAILED: {', '.join(names)}"
    applied = sum(check.passed is True for check in checks)
    if not applied:
        return "checks were not run"
    left = f" ({len(checks) - applied} do not apply)" if applied < len(checks) else ""
    if not asked(checks):
        return f"the model was not checked; {applied} checks of the records passed{left}"
    return f"all {applied} checks passed{left}"
