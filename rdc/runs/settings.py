"""Settings lock: a run's folder belongs to the settings and inputs of its first start."""

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rdc.config import cut, read_json, short
from rdc.runs.atomic import write_json

SETTINGS = "settings.json"
INPUTS = "inputs"
MOST_NAMED = 12
"""Number of differences that an error lists."""


def lock_settings(
    folder: Path,
    settings: Any,
    *,
    inputs: Mapping[str, str] | None = None,
    file: str = SETTINGS,
    free: Collection[str] = (),
    beside: Collection[str] = (),
) -> None:
    """Write settings and inputs of a run into `folder`, or compare them with those in it.

    settings: a dataclass or a dictionary, nested or not, whose names are those of the flags.
    inputs: hashes of weights, data and other files that the flags name, by description
        (`rdc.runs.fingerprints`).
    file: name of the JSON file; the inputs are in it under "inputs".
    free: names of settings that are kept but may change.
    beside: names of files that may be in the folder before its settings are.

    All processes of a run may call this at once.

    Raises:
        ValueError: the folder has other settings or inputs; every one is named, with its flag.
            Or it has files but no settings, so that they are not of an earlier run.
    """
    given = settings if isinstance(settings, dict) else dataclasses.asdict(settings)
    now = plain({**given, INPUTS: dict(inputs or {})})
    known = folder / file
    require_own_folder(folder, file=file, beside=beside)
    if not known.exists():
        write_json(known, now)
        return
    before = read_json(known)
    if not isinstance(before, dict):
        raise ValueError(f"{known} must be a JSON object of settings; give another folder")
    changed = [*_changed_flags(before, now, free), *_changed_inputs(before, now)]
    if changed:
        changed = [*changed[:MOST_NAMED], *(["..."] if len(changed) > MOST_NAMED else [])]
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(changed)}; give the same ones "
            "to continue it, or another folder"
        )


def require_new_folder(out: Path) -> None:
    """Refuse a folder that has files, and a file."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out={str(out)!r} must be a new or an empty folder")


def require_own_folder(folder: Path, *, file: str = SETTINGS, beside: Collection[str] = ()) -> None:
    """Refuse a folder that has files but no settings: its content is not of an earlier run.

    Hidden files and those named in `beside` do not count.
    """
    if not folder.is_dir() or (folder / file).exists():
        return
    if any(path.name not in beside and path.name[0] != "." for path in folder.iterdir()):
        raise ValueError(
            f"out={folder} holds files but no {file}: it is not of an earlier run; give a new or "
            "an empty folder"
        )


def plain(value: Any) -> Any:
    """The value as it comes back from JSON: tuples are lists, paths are text."""
    return json.loads(json.dumps(value, default=str))


def flag(name: str) -> str:
    """The command line's name of a setting, by its place: "a.some_name" is --a.some-name."""
    return "--" + name.replace("_", "-")


def differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Name, old and new value of every difference between nested settings."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            place = f"{name}.{key}" if name else key
            yield from differences(before.get(key), now.get(key), place)
    elif before != now:
        yield name, before, now


def _changed_flags(before: dict, now: dict, free: Collection[str]) -> Iterator[str]:
    before, now = ({k: v for k, v in d.items() if k not in (*free, INPUTS)} for d in (before, now))
    for name, old, new in differences(before, now):
        yield f"{cut(flag(name))}: {short(old)} -> {short(new)}"


def _changed_inputs(before: dict, now: dict) -> Iterator[str]:
    """One clause per input whose hash differs; hashes are cut to their first 12 digits."""
    for name, *hashes in differences(before.get(INPUTS), now.get(INPUTS)):
        old, new = (str(value)[:12] for value in hashes)
        yield f"{cut(name)}: its content has changed ({old} -> {new})"
