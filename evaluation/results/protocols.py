"""Protocols: rules that make one score of what a defense answers for an image.

A random defense may be right on 95 % of clean images under a fresh draw and on 36 % when any of 20
answers may be the wrong one. A figure needs its protocol beside it, and the clean accuracy under
the same protocol.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from evaluation.results.records import Record

FROZEN = "frozen"
FRESH = "fresh"
EIGHT_BITS = "8 bits"


@dataclass(frozen=True)
class Protocol:
    """`score` is that of one record, in [0, 1].

    `name` stands in files and tables, `title` in the report; `meaning` has a place for the number
    of unseen {draws}.
    """

    name: str
    title: str
    meaning: str
    score: Callable[[Record], float]


def majority(record: Record) -> bool:
    """True where most unseen draws give the label; of equal classes the first counts."""
    return max(record.predictions, key=record.predictions.count) == record.label


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            FROZEN, "Frozen noise",
            "the noise that the defense draws for an image is fixed and known to the attacker; for "
            "a defense without noise, its answer", lambda record: record.right,
        ),
        Protocol(
            FRESH, "Fresh noise",
            "mean over {draws} draws per image that no attack has seen",
            lambda record: record.share,
        ),
        Protocol("majority", "Majority", "the vote of these {draws} draws", majority),
        Protocol(
            "worst draw", "Worst draw",
            "right only where all {draws} draws are; the attacker may send an image again",
            lambda record: record.share == 1,
        ),
        Protocol(
            EIGHT_BITS, "8-bit images",
            "fixed, known noise, and pixels rounded to multiples of 1/255 as files store them; "
            "attacks did not aim at this unless they ran with --suite.round",
            lambda record: record.frozen_8_bit == record.label,
        ),
    )
}  # fmt: skip
"""All protocols by name."""


def applicable(records: Iterable[Record]) -> list[Protocol]:
    """The protocols that the records allow: those on unseen draws and on 8 bits need answers."""
    records = list(records)
    drawn = all(record.predictions for record in records)
    rounded = all(record.frozen_8_bit is not None for record in records)
    allowed = {FROZEN: True, EIGHT_BITS: rounded}
    return [p for p in PROTOCOLS.values() if allowed.get(p.name, drawn)]
