"""Command lines of all programs: flags from a dataclass, errors of users in one line."""

import dataclasses
import os
import re
import sys
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rdc.text import printable

Main = Callable[[Any], int | None]

USAGE_ERROR = 2
"""Exit status where the user has to change something; 1 says that a part of the work failed."""
TRACEBACK = "--traceback"
PACKAGES = ("rdc", "purification", "training", "evaluation", "benchmarks")
CHECKOUT = Path(__file__).parents[2]
RENAMED = {
    "--checked": "--check-images", "--chunk": "--max-rows", "--image-size": "--resize",
    "--judged": "--eval-draws", "--suite.draws": "--suite.eot-samples",
}  # fmt: skip
"""Former flags, deprecated, and their names today."""
MAIN_PROCESS_SECONDS = 20.0
"""Time that the main process has to print an error that all processes have."""


def run_program(
    main: Main, arguments: Sequence[str] | None = None, *, prog: str | None = None
) -> int:
    """Run a program with the arguments of a command line and return its exit status.

    Args:
        main: takes the program's settings, a dataclass that annotates its only parameter, and
            returns an exit status, or None for 0.
        arguments: by default those of this process.
        prog: name of the program in its help.

    A mistake of the user (see `is_user_error`) is printed as `error: ...` with status 2. With
    `--traceback` among the arguments its traceback is printed too. Other exceptions are raised.
    """
    import tyro

    given = list(sys.argv[1:] if arguments is None else arguments)
    rest = [each for each in given if each != TRACEBACK]
    settings = settings_type(main)
    config = tyro.cli(settings, prog=prog, args=with_current_flags(rest, settings))
    try:
        return main(config) or 0
    except Exception as error:
        if not is_user_error(error):
            raise
        if rest != given:
            traceback.print_exc()
        report_error(printable(with_flags(str(error) or repr(error), config)))
        return USAGE_ERROR


def settings_type(main: Main) -> Any:
    """The annotation of the only parameter of `main`."""
    hints = typing.get_type_hints(main, include_extras=True)
    (settings,) = (kind for name, kind in hints.items() if name != "return")
    return settings


def with_current_flags(arguments: Sequence[str], settings: type) -> list[str]:
    """The arguments with the present names of former flags, except those that `settings` has."""
    own = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(settings)}
    current = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in RENAMED and flag not in own:
            print(f"warning: {flag} is now called {RENAMED[flag]}", file=sys.stderr)
            flag = RENAMED[flag]
        current.append(flag + equals + value)
    return current


def is_user_error(error: Exception) -> bool:
    """True if other arguments, other files or more disk space would prevent the error.

    These are all OSError, and the ValueError, TypeError and FloatingPointError that a `raise` of
    this project made. Where Python or another library raised them, they are faults of the program.
    """
    if isinstance(error, OSError):
        return True
    if not isinstance(error, ValueError | TypeError | FloatingPointError):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = any(Path(last.filename).is_relative_to(CHECKOUT / name) for name in PACKAGES)
    return ours and (last.line or "").startswith("raise ")


def report_error(message: str) -> None:
    """Print `error: MESSAGE`; of several processes with the same error the main one prints it.

    The launcher ends the others once the main process has ended. One that is still there after
    `MAIN_PROCESS_SECONDS` is alone with its error, and prints it.
    """
    process = int(os.environ.get("RANK", "0"))
    if process == 0:
        print(f"error: {message}", file=sys.stderr, flush=True)
        return
    time.sleep(MAIN_PROCESS_SECONDS)
    print(f"error in process {process}: {message}", file=sys.stderr, flush=True)


def with_flags(message: str, config: Any) -> str:
    """The message of a function with a flag in place of its argument at the beginning.

    `model='x' is not a directory` becomes `--transfer='x' is not a directory` where that flag has
    the value 'x', and no other, or none but `--model`. Other messages stay as they are.
    """
    name = message.partition("=")[0]
    same = [
        (field, flag)
        for field, flag, value in flags(config)
        if name.isidentifier() and shows(message.removeprefix(f"{name}="), value)
    ]
    exact = [flag for field, flag in same if field == name]
    meant = exact or [flag for _, flag in same]
    return f"--{meant[0]}{message.removeprefix(name)}" if len(meant) == 1 else message


def shows(text: str, value: Any) -> bool:
    """True if the text begins with the value, as Python writes it or as it was typed."""
    written = "|".join(re.escape(each) for each in {repr(value), repr(str(value)), str(value)})
    return re.match(rf"({written})(?!\w)", text) is not None


def flags(config: Any, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Name, flag and value of each setting, also of nested ones; positional ones are left out."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from flags(value, f"{flag}.")
        elif not is_positional(hints[field.name]):
            yield field.name, flag, value


def is_positional(kind: Any) -> bool:
    import tyro

    marker = typing.get_args(tyro.conf.Positional[int])[1]
    return typing.get_origin(kind) is typing.Annotated and any(
        each is marker for each in typing.get_args(kind)[1:]
    )
