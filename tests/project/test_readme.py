"""README and docs do what they say: their Python runs, their commands and links exist."""

import re
import shlex
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.support.programs import read_command

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def of_pages(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda p: p.relative_to(ROOT).as_posix())


every_page = of_pages(PAGES)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text and the number of lines above the text."""

    language: str
    text: str
    above: int


def blocks(markdown: str) -> list[Block]:
    fences = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", markdown, re.MULTILINE | re.DOTALL)
    return [Block(f[1], f[2], markdown[: f.start(2)].count("\n")) for f in fences]


def commands(markdown: str) -> list[list[str]]:
    """Words of every command in the blocks that are not Python; comments and prompts dropped."""
    shell = [block.text for block in blocks(markdown) if block.language != "python"]
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if _plain(line)]
    return [w for w in words if w]


def _plain(line: str) -> bool:
    """True if the line has balanced quotes; a line of output ("can't") need not."""
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return False
    return True


def make_targets(markdown: str) -> set[str]:
    return {
        word
        for command in commands(markdown)
        if command[0] == "make"
        for word in command[1:]
        if re.fullmatch(r"[a-z][\w-]*", word)
    }


def modules(markdown: str) -> set[str]:
    """Names of the modules that the page runs with `python -m` or `accelerate launch ... -m`."""
    return {module for module, _ in programs(markdown)}


def programs(markdown: str) -> list[tuple[str, list[str]]]:
    """The modules that commands run, and what they are told; `rdc` is the module of that name."""
    found = []
    for command in commands(markdown):
        if command[0] == "rdc":
            found.append(("rdc", command[1:]))
        elif "-m" in command[:-1]:
            at = command.index("-m")
            found.append((command[at + 1], command[at + 2 :]))
    return found


EXAMPLE = """
# Title
```bash
$ make demo   # a comment; make nothing
make -j2 test VENV=x
accelerate launch --num_processes 2 \\
    -m training.train --out x
it can't be parsed
rdc info digits
```
Text that says `make lunch`.
```python
x = 1
```
"""


def test_the_reader_sees_every_command() -> None:
    assert make_targets(EXAMPLE) == {"demo", "test"}
    assert programs(EXAMPLE) == [
        ("training.train", ["--out", "x"]), ("rdc", ["info", "digits"])
    ]  # fmt: skip
    assert links("[a](x.md#b) ![c](d.png) [e](https://f) `[g](h)`") == {"x.md", "d.png"}
    (python,) = (block for block in blocks(EXAMPLE) if block.language == "python")
    assert (python.text, EXAMPLE.splitlines()[python.above]) == ("x = 1\n", "x = 1")


def python_blocks(page: Path) -> list[Block]:
    return [block for block in blocks(page.read_text("utf-8")) if block.language == "python"]


def run(page: Path) -> dict[str, object]:
    """Names that the page's blocks leave behind; tracebacks show the page's line numbers."""
    namespace: dict[str, object] = {"__name__": "readme"}
    with torch.random.fork_rng(devices=[]):
        for block in python_blocks(page):
            exec(compile("\n" * block.above + block.text, str(page), "exec"), namespace)
    return namespace


def test_readme_shows_how_the_library_is_used() -> None:
    assert python_blocks(README)


@pytest.mark.slow
@of_pages([page for page in PAGES if python_blocks(page)])
def test_python_blocks_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All blocks of a page share a namespace and an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    assert len(run(page)) > 2  # beside __name__ and __builtins__


def test_a_broken_block_is_found_by_its_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 0\n```\n\n```python\n\n1 / x\n```\n")
    with pytest.raises(ZeroDivisionError) as found:
        run(page)
    assert found.traceback[-1].lineno == 6


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    declared = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    named = {name for page in PAGES for name in make_targets(page.read_text(encoding="utf-8"))}
    assert make_targets(README.read_text(encoding="utf-8")), (
        "README.md names no make target; it must say how the tests and the demo are run"
    )
    assert named <= declared


@every_page
def test_modules_exist(page: Path) -> None:
    missing = {name for name in modules(page.read_text(encoding="utf-8")) if not runnable(name)}
    assert missing == set()


def ours(page: Path) -> list[tuple[str, list[str]]]:
    """The page's commands that are programs of the checkout, complete with their arguments."""
    return [
        (module, arguments)
        for module, arguments in programs(page.read_text(encoding="utf-8"))
        if (ROOT / module.split(".")[0]).is_dir()
        and not {"--help", "--version", "..."} & set(arguments)
    ]


@pytest.mark.slow
@of_pages([page for page in PAGES if ours(page)])
def test_programs_know_their_flags(page: Path) -> None:
    for module, arguments in ours(page):
        main, _ = read_command(module, arguments)  # raises where it does not understand
        assert callable(main)


@pytest.mark.parametrize("arguments", [["--no-such-flag"], ["--eps", "much"]])
def test_unknown_flags_are_seen(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=arguments[0]):
        read_command("evaluation.demo", arguments)


@every_page
def test_links_lead_to_files(page: Path) -> None:
    targets = links(page.read_text(encoding="utf-8"))
    assert {target for target in targets if not (page.parent / target).exists()} == set()


def links(markdown: str) -> set[str]:
    """Targets of links and pictures that are files of the checkout, without their anchors."""
    targets = re.findall(r"(?<!`)\[[^]]*\]\(([^)]+)\)", markdown)
    return {t.partition("#")[0] for t in targets if not t.startswith(("http", "#"))}


@pytest.mark.parametrize(
    "package",
    ["rdc", "purification", "purification.guidance", "evaluation", "evaluation.certification"],
)
def test_public_names_are_in_the_reference(package: str) -> None:
    """The pages of docs/reference list modules; a name is on the page of the module it is from."""
    pages = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    listed = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    module = import_module(package)
    homes = {name: getattr(module, name).__module__ for name in module.__all__}
    assert {name: home for name, home in homes.items() if home not in listed} == {}


def runnable(module: str) -> bool:
    """True if `python -m module` finds a file of the checkout, or an installed package."""
    path = ROOT.joinpath(*module.split("."))
    local = (ROOT / module.split(".")[0]).is_dir()
    if local:
        return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    return find_spec(module.split(".")[0]) is not None


@pytest.mark.parametrize(
    ("module", "exists"),
    [("rdc", True), ("training.train", True), ("venv", True), ("rdc.nothing", False),
     ("training", False), ("no_such_package", False)],
)  # fmt: skip
def test_runnable_tells_modules_apart(module: str, exists: bool) -> None:
    assert runnable(module) == exists
