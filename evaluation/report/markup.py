"""HTML that cannot forget to escape: what is not `Html` is text, wherever it comes from."""

import base64
from collections.abc import Iterable
from html import escape


class Html(str):
    """Markup; every other string is text and is escaped where it is put into markup."""


def join(*parts: object) -> Html:
    """Parts one after the other; None is nothing."""
    return Html(
        "".join(p if isinstance(p, Html) else escape(str(p)) for p in parts if p is not None)
    )


def tag(name: str, /, *content: object, **attributes: object) -> Html:
    """`<name attributes>content</name>`; `class_` is class, None leaves an attribute out, True
    gives its name alone.
    """
    given = {key.rstrip("_"): value for key, value in attributes.items() if value is not None}
    inside = "".join(
        f" {key}" if value is True else f' {key}="{escape(str(value))}"'
        for key, value in given.items()
    )
    end = "" if name in ("img", "meta") else f"{join(*content)}</{name}>"
    return Html(f"<{name}{inside}>{end}")


def between(separator: str, parts: Iterable[object]) -> Html:
    """Parts with a separator between them."""
    return Html(escape(separator).join(join(part) for part in parts))


def picture(png: bytes, *, alt: str, width: int, kind: str) -> Html:
    """An image inside the page, at most `width` CSS pixels wide."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return tag("img", src=source, alt=alt, width=width, class_=kind)


def table(
    *, head: list[Html], bodies: list[list[Html]], caption: object, class_: str | None = None
) -> Html:
    """A table that scrolls sideways where it is wider than the screen; rows are `<tr>`."""
    parts = [tag("caption", caption), tag("thead", *head), *(tag("tbody", *b) for b in bodies)]
    return tag("div", tag("table", *parts, class_=class_), class_="wide", tabindex="0")
