"""Defenses beside each other, on the same images, as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from evaluation.eps import written
from evaluation.results.metrics import WORST, Accuracy, scores
from evaluation.results.protocols import FROZEN, PROTOCOLS
from evaluation.results.records import CLEAN, Record
from evaluation.results.statistics import mcnemar

Results = dict[str, dict[str, dict[str, list[float]]]]
"""Scores of each image in [0, 1], by defense, threat and protocol."""


def results(runs: Iterable[tuple[str, Iterable[Record], str]]) -> Results:
    """The worst case of the images of runs, each a defense, its records and a norm.

    "clean" is the first threat.
    """
    found: Results = {}
    for defense, records, norm in runs:
        for eps, attacks in scores(records).items():
            threat = f"{norm} {written(eps)}" if eps else "clean"
            found.setdefault(defense, {})[threat] = attacks[WORST if eps else CLEAN]
    return found


def comparison(
    found: Results,
    *,
    reference: str | None = None,
    failed: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> str:
    """Two tables: accuracies under every protocol, and p-values on the frozen draw.

    `failed`: the checks that failed, by defense; these defenses are left out of the second table.
    """
    counts = {len(row[FROZEN]) for by in found.values() for row in by.values()}
    if len(counts) > 1:
        raise ValueError(f"results: of {sorted(counts)} images; compare on the same ones")
    if reference is not None and reference not in found:
        raise ValueError(f"reference={reference!r}: must be one of {list(found)}")
    threats = list(next(iter(found.values())))
    sound = {name: by for name, by in found.items() if name not in failed}
    reference = reference if reference in sound else None
    against = reference or "the best other defense"
    return "\n\n".join(
        [
            *(
                f"CHECKS FAILED: {name} ({', '.join(checks)}). Its figures are not those of the "
                "defense, and it has no p-values."
                for name, checks in failed.items()
            ),
            f"Accuracy in % [95 % interval] on {counts.pop()} images: clean, and per image the "
            "worst of all attacks. Protocols: the frozen draw, known to the attacker, or the only "
            "answer; the mean over fresh draws, the majority of their votes, the worst of them. "
            "The worst attack is chosen on the draws that judge it: fresh figures are a bit low.",
            accuracies(found, threats),
            f"P-values (McNemar, exact, frozen) that a defense is as accurate as {against}; not "
            "corrected for their number.",
            p_values(sound, threats, reference),
        ]
    )


def accuracies(found: Results, threats: list[str]) -> str:
    """A row per defense and protocol, a column per threat."""
    rows = [
        [name, protocol, *(str(Accuracy.of(by[threat][protocol])) for threat in threats)]
        for name, by in found.items()
        for protocol in PROTOCOLS
        if protocol in by["clean"]
    ]
    return markdown(["defense", "protocol", *threats], rows)


def p_values(found: Results, threats: list[str], reference: str | None) -> str:
    """A row per defense, a column per threat; beside each value whom it compares with."""
    rows = []
    for name, by in found.items():
        row = [name]
        for threat in threats:
            other = reference or best({n: b[threat] for n, b in found.items() if n != name})
            if other is None or other == name:
                row.append("")
                continue
            right = [[score == 1 for score in b[threat][FROZEN]] for b in (by, found[other])]
            row.append(f"{mcnemar(*right):.2g} ({other})")
        rows.append(row)
    return markdown(["defense", *threats], rows)


def best(found: Mapping[str, dict[str, list[float]]]) -> str | None:
    """The most accurate defense on the frozen draw; the first of equals."""
    return max(found, key=lambda name: sum(found[name][FROZEN]), default=None)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table whose columns are aligned, to be read as it is too."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| "
        + " | ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )
