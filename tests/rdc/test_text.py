"""Text that is safe to show."""

import ast

from hypothesis import given
from hypothesis import strategies as st

from rdc.text import printable


@given(st.text())
def test_shown_text_is_printable_and_says_what_was_there(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    if "\\" not in text:
        quoted = shown.replace('"', r"\"")
        assert ast.literal_eval(f'"{quoted}"') == text


def test_escapes_are_pythons() -> None:
    assert printable("naïve 猫 a.png") == "naïve 猫 a.png"
    assert printable("\x1b[2J\r\n\u202e") == r"\x1b[2J\r\n\u202e"
    assert printable(b"\xff.png".decode("utf-8", "surrogateescape")) == r"\udcff.png"
