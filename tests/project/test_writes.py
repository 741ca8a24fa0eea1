"""Files are written whole: through `rdc.runs.atomic`, or appended to a run's log."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRITERS = {"write_text", "write_bytes", "savefig", "save", "save_file", "savez", "dump"}
ALLOWED = {
    "rdc/runs/atomic.py",  # the one place
    "rdc/runs/run_log.py",  # appends lines, and cuts a torn one
}
WHOLE = ("replacing(", "TemporaryDirectory(")
"""Beginnings of the `with` statements inside which files may be written piece by piece."""


def writes(source: str) -> Iterator[ast.Call]:
    """Calls that write a file and do not stand in a block of `WHOLE`."""

    def visit(node: ast.AST, safe: bool) -> Iterator[ast.Call]:
        if isinstance(node, ast.With):
            safe = safe or any(mark in ast.unparse(item) for item in node.items for mark in WHOLE)
        if isinstance(node, ast.Call) and not safe and is_write(node) and not in_memory(node):
            yield node
        for child in ast.iter_child_nodes(node):
            yield from visit(child, safe)

    tree = ast.parse(source)
    buffers = {
        ast.unparse(node.targets[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.value).endswith("BytesIO()")
    }

    def in_memory(call: ast.Call) -> bool:
        return any(ast.unparse(each) in buffers for each in call.args)

    return visit(tree, False)


def is_write(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    modes = [each.value for each in call.args if isinstance(each, ast.Constant)]
    opens = name == "open" and any(str(mode)[:1] in "wxa" for mode in modes if mode)
    # A module's or an optimizer's own `save` is looked at where it is defined.
    owners = ("self", "conversion", "task", "each")
    own = name == "save" and ast.unparse(call.func).split(".")[0] in owners
    return (name in WRITERS and not own) or opens


def test_the_search_finds_writes() -> None:
    bad = "def f(p):\n    p.write_text('x')\n    open(p, 'wb')\n    np.save(p, 1)\n"
    good = "with replacing(p) as q, q.open('wb') as f:\n    np.save(f, 1)\nopen(p)\np.open('rb')\n"
    good += "m = BytesIO()\nnp.save(m, 1)\n"
    assert len(list(writes(bad))) == 3 and list(writes(good)) == []


@pytest.mark.parametrize("package", ["rdc", "purification", "training", "evaluation"])
def test_nothing_is_written_in_place(package: str) -> None:
    found = [
        f"{path}:{call.lineno} {ast.unparse(call)[:60]}"
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in ALLOWED
        for call in writes(path.read_text(encoding="utf-8"))
    ]
    assert found == []
