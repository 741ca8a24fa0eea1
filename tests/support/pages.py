"""HTML pages as trees, for tests that read them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "img"}


@dataclass
class Node:
    """An element of a page."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list["Node | str"] = field(default_factory=list)
    parent: "Node | None" = None

    @property
    def text(self) -> str:
        parts = [child if isinstance(child, str) else child.text for child in self.children]
        return "".join(parts).strip()

    def all(self, tag: str, class_: str | None = None) -> list["Node"]:
        found = [node for node in self.walk() if node.tag == tag]
        return [n for n in found if class_ is None or class_ in (n.attributes.get("class") or "")]

    def walk(self) -> Iterator["Node"]:
        for child in self.children:
            if isinstance(child, Node):
                yield child
                yield from child.walk()

    def struck(self) -> bool:
        return bool(self.all("s")) and self.text == "".join(s.text for s in self.all("s"))


class Tree(HTMLParser):
    """A page as nodes; tags that do not match are an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.root = self.here = Node("root")
        self.feed(page)
        self.close()
        assert self.here is self.root

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs), parent=self.here)
        self.here.children.append(node)
        if tag not in VOID:
            self.here = node

    def handle_endtag(self, tag: str) -> None:
        assert self.here.tag == tag and self.here.parent is not None
        self.here = self.here.parent

    def handle_data(self, data: str) -> None:
        self.here.children.append(data)


def read(page: Path) -> Node:
    return Tree(page.read_text(encoding="utf-8")).root


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    """Have reports of words written: pictures take nearly all of their time."""
    for where in ("figures.confusions", "confidence_figures.reliabilities", "draw"):
        patch.setattr(f"evaluation.report.page.{where}", lambda *_: b"")
    patch.setattr("evaluation.report.page.confidence_figures.risks", lambda *_: b"")
