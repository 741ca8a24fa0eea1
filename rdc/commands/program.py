"""Command lines of all programs: flags from a dataclass, errors of users in one line."""

import dataclasses
import os
import re
import select
import signal
import sys
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from rdc.runs.settings import flag
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
    main: Main, arguments: Sequence[str] | None = None, *, kind: Any = None, prog: str | None = None
) -> int:
    """Run a program with the arguments of a command line and return its exit status.

    main: takes the program's settings, and returns an exit status, or None for 0.
    arguments: by default those of this process.
    kind: dataclass of the settings; by default the annotation of the only parameter of `main`.
    prog: name of the program in its help.

    A mistake of the user (see `is_user_error`) is printed as `error: ...` with status 2. With
    `--traceback` among the arguments its traceback is printed too. Other exceptions are raised.
    After Ctrl-C, and where nobody reads the output any more, the status is that of the signal.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    rest = [each for each in given if each != TRACEBACK]
    config = None
    try:
        config = settings(kind or settings_type(main), rest, prog)
        status = main(config) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        if rest != given:
            traceback.print_exc()
        if not int(os.environ.get("RANK", "0")):
            print("\nstopped by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            # What is left to print would fail once more at the end of the process.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        if not is_user_error(error):
            wait_for_main_process()  # often the main one ended, and this one lost its connection
            raise
        if rest != given:
            traceback.print_exc()
        report_error(printable(explained(error, config)))
        return USAGE_ERROR


def reader_is_gone() -> bool:
    """True where standard output is a pipe whose reader, such as `head`, has ended."""
    pipes = select.poll()
    pipes.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in pipes.poll(0))


def settings(kind: Any, arguments: Sequence[str], prog: str | None = None) -> Any:
    """The settings of a program, of the class `kind`, from its command line.

    Raises:
        ValueError: the parser refuses the arguments; one line says why and which flag may be meant.
        SystemExit: the help was asked for, and printed.
    """
    import tyro

    printed, current = StringIO(), with_current_flags(arguments, kind)
    try:
        with redirect_stderr(printed):
            return tyro.cli(kind, prog=prog, args=current)
    except SystemExit as ended:
        if ended.code != USAGE_ERROR:
            raise
    raise ValueError(refusal(printed.getvalue()))


def refusal(frame: str) -> str:
    """The parser's refusal in one line, from the frame of several paragraphs that it draws."""
    _, _, inside = re.sub(r"[│╭╮╰╯]", "", frame).partition("\n")  # after the title
    paragraphs = [" ".join(each.split()) for each in re.split(r"[─-]{5,}", inside)]
    reason, *others = [each for each in paragraphs if each] or ["the arguments are refused"]
    if ours := re.match(r"Error parsing ([\w.]+): (?:\w+: )?(.*)", reason):
        # Refused by a settings class: the parser names the class, or the flags' prefix if nested.
        prefix = "" if ours[1][0].isupper() else f"{ours[1]}."
        names = re.compile(r"(^|; )(\w+)=")
        reason = names.sub(lambda name: f"{name[1]}{flag(prefix + name[2])}=", ours[2])
    found = {each.partition(":")[0]: each.partition(":")[2].split() for each in others}
    if "Perhaps you meant" in found:
        reason += f"; did you mean {found['Perhaps you meant'][0]}?"
    if "Unrecognized options" in found:
        reason += f"; unrecognized options: {' '.join(found['Unrecognized options'])}"
    return f"{reason.rstrip('.')}; --help shows all flags"


def settings_type(main: Main) -> Any:
    """The annotation of the only parameter of `main`."""
    hints = typing.get_type_hints(main, include_extras=True)
    (settings,) = (kind for name, kind in hints.items() if name != "return")
    return settings


def with_current_flags(arguments: Sequence[str], kind: type) -> list[str]:
    """The arguments with the present names of former flags, except those that `kind` has."""
    own = {flag(field.name) for field in dataclasses.fields(kind)}
    current = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in RENAMED and name not in own:
            print(f"warning: {name} is now called {RENAMED[name]}", file=sys.stderr)
            name = RENAMED[name]
        current.append(name + equals + value)
    return current


def is_user_error(error: Exception) -> bool:
    """True if other arguments, other files or more disk space would prevent the error.

    These are all OSError, and the ValueError, TypeError and FloatingPointError that a `raise` of
    this project made. Where Python or another library raised them, they are faults of the program.
    """
    if isinstance(error, OSError) or is_failed_write(error):
        return True
    if not isinstance(error, ValueError | TypeError | FloatingPointError):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = any(Path(last.filename).is_relative_to(CHECKOUT / name) for name in PACKAGES)
    return ours and (last.line or "").startswith("raise ")


def is_failed_write(error: Exception) -> bool:
    """True for the system's errors as safetensors raises them: these are no OSError."""
    return type(error).__name__ == "SafetensorError" and "I/O error" in str(error)


def explained(error: Exception, config: Any) -> str:
    """The message of an error, with the flags of the settings `config` if there are any."""
    message = str(error) or repr(error)
    reason, place = getattr(error, "strerror", None), None
    if isinstance(error, OSError) and reason:
        # Python's own text begins with the number of the error.
        place = error.filename2 or error.filename
        message = f"{place}: {reason}" if isinstance(place, str | bytes | Path) else reason
    elif not is_failed_write(error):
        return with_flags(message, config) if config else message
    out = getattr(config, "out", None)
    if out is None or (place is not None and not belongs(place, out)):
        return message
    hints = typing.get_type_hints(type(config), include_extras=True)
    name = "out" if is_positional(hints["out"]) else flag("out")
    return f"{name}={out} cannot be used: {message}; give a place that can be written and has room"


def belongs(place: Any, out: Path) -> bool:
    """True for the output, what is in it or around it, and its temporary file."""
    found, out = Path(os.path.abspath(os.fsdecode(place))), Path(os.path.abspath(out))
    hidden = found.name.startswith(f".{out.name}.") and found.parent == out.parent
    return hidden or out.is_relative_to(found) or found.is_relative_to(out)


def report_error(message: str) -> None:
    """Print `error: MESSAGE`; of several processes with the same error the main one prints it.

    One of the others that is still there after waiting is alone with its error, and prints it.
    """
    process = wait_for_main_process()
    place = f" in process {process}" if process else ""
    print(f"error{place}: {message}", file=sys.stderr, flush=True)


def wait_for_main_process() -> int:
    """The number of this process; one that is not the main one waits `MAIN_PROCESS_SECONDS`.

    The launcher ends it in that time if the main process has ended.
    """
    process = int(os.environ.get("RANK", "0"))
    if process:
        time.sleep(MAIN_PROCESS_SECONDS)
    return process


def with_flags(message: str, config: Any) -> str:
    """The message of a function with a flag in place of its argument at the beginning.

    `model='x' is not a directory` becomes `--transfer='x' is not a directory` where that flag has
    the value 'x', and no other, or none but `--model`. Other messages stay as they are, also those
    of an argument that is no flag and a number: many settings have the same.
    """
    name = message.partition("=")[0]
    same = [
        (field, place, value)
        for field, place, value in settings_by_place(config)
        if name.isidentifier() and shows(message.removeprefix(f"{name}="), value)
    ]
    exact = [place for field, place, _ in same if field == name]
    meant = exact or [place for _, place, value in same if isinstance(value, str | Path)]
    return f"{flag(meant[0])}{message.removeprefix(name)}" if len(meant) == 1 else message


def shows(text: str, value: Any) -> bool:
    """True if the text begins with the value, as Python writes it or as it was typed."""
    written = "|".join(re.escape(each) for each in {repr(value), repr(str(value)), str(value)})
    return re.match(rf"({written})(?!\w)", text) is not None


def settings_by_place(config: Any, above: str = "") -> Iterator[tuple[str, str, Any]]:
    """Name, dotted place and value of each setting, also of nested ones, that is a flag."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, place = getattr(config, field.name), above + field.name
        if dataclasses.is_dataclass(value):
            yield from settings_by_place(value, f"{place}.")
        elif not is_positional(hints[field.name]):
            yield field.name, place, value


def is_positional(kind: Any) -> bool:
    import tyro

    marker = typing.get_args(tyro.conf.Positional[int])[1]
    return typing.get_origin(kind) is typing.Annotated and any(
        each is marker for each in typing.get_args(kind)[1:]
    )
