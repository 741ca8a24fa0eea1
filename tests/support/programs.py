"""Command lines as the programs read them."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from rdc.commands.main import PROGRAMS
from rdc.commands.program import Main, settings, settings_type

ELSEWHERE = {"evaluation.certify": "evaluation.certification.program"}
"""Modules that must not be imported, because a function has their name."""


def read_command(module: str, arguments: Sequence[str]) -> tuple[Main, Any]:
    """The `main` that `python -m MODULE ARGUMENTS` calls, and its settings.

    Raises:
        ValueError: the program does not take the arguments.
    """
    if module == "rdc":
        if arguments[0] not in PROGRAMS:
            raise ValueError(f"{arguments[0]} is not a command of rdc")
        main, arguments = PROGRAMS[arguments[0]].load_main(), arguments[1:]
    else:
        found = import_module(ELSEWHERE.get(module, module))
        is_package = hasattr(found, "__path__")
        main = (import_module(f"{module}.__main__") if is_package else found).main
    return main, settings(settings_type(main), arguments)
