"""Text from files and arguments, made safe to show."""


def printable(text: object) -> str:
    """`text` with every character that cannot be printed as its Python escape: ESC becomes `\\x1b`.

    Names of classes, files and attacks come from outside. A control character among them would move
    a terminal's cursor, and a newline would break a table.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )
