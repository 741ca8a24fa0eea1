"""The program `rdc convert`."""

from rdc.commands.config import Convert
from rdc.converters import ClassifierFacts, convert


def main(command: Convert) -> None:
    """Convert, and print what was found."""
    facts = None
    if command.format == "classifier":
        if command.architecture is None:
            raise ValueError("--architecture is missing: a classifier's file does not name its own")
        facts = ClassifierFacts(
            command.architecture, command.mean, command.std, command.image_size, command.stem,
            command.entry,
        )  # fmt: skip
    done = convert(command.source, command.format, command.out, classifier=facts)
    for name, value in (done.facts | {"written to": str(command.out)}).items():
        print(f"{name:<14}{value}")
    print("\n".join(done.published.notes))
