"""Tables over several runs: all accuracies, paired tests, what else differs."""

from collections.abc import Sequence

from evaluation.report.compare import SIGNIFICANT, Group, Pair, differences, pairs
from evaluation.report.figures import NORMS
from evaluation.report.load import Run, spoken
from evaluation.report.markup import Html, between, join, table, tag
from evaluation.results.metrics import WORST, Accuracy
from evaluation.results.protocols import PROTOCOLS
from evaluation.results.records import CLEAN

MOST_PAIRS = 12
"""Rows of paired tests that are shown unasked."""


def protocol_name(protocol: str) -> str:
    return PROTOCOLS[protocol].title if protocol in PROTOCOLS else protocol


def struck(content: object, run: Run) -> Html:
    """A figure of a run; struck through where a check of it failed."""
    return tag("s", content, title="a check of this run failed") if run.failed else join(content)


def figure(share: Accuracy) -> Html:
    """Accuracy in % above its interval, with a decimal where so many images carry one."""
    digits = 1 if share.images >= 1000 else 0
    low, high = 100 * share.low, 100 * share.high
    interval = f"[{low:.{digits}f}, {high:.{digits}f}]"
    return join(f"{100 * share.mean:.1f}", " ", tag("small", interval))


def number(run: Run, eps: float, attack: str, protocol: str, *, class_: str = "number") -> Html:
    """The cell of an accuracy; empty where the run has none."""
    known = run.summary.accuracies.get(eps, {})
    if protocol not in known.get(attack if eps else CLEAN, {}):
        return tag("td", "-", class_=class_)
    share = run.share(eps, attack, protocol)
    return tag("td", struck(figure(share), run), class_=class_)


def headline(group: Group) -> Html:
    """Protocols and, in them, defenses down; norms and, in them, budgets across."""
    columns = [(norm, eps) for norm in group.norms for eps in (0.0, *group.budgets(norm))]
    norms = [
        tag("th", NORMS.get(norm, norm), colspan=1 + len(group.budgets(norm)), class_="first")
        for norm in group.norms
    ]
    budgets = [tag("th", spoken(eps), class_=edge(eps)) for _, eps in columns]
    found = table(
        head=[tag("tr", tag("th"), *norms), tag("tr", tag("th", "defense"), *budgets)],
        bodies=[rows(group, protocol, columns) for protocol in group.protocols],
        caption=f"Accuracy in % [95 % interval], n = {group.runs[0].images} images in every cell; "
                "clean, and the worst of the attacks for each image within a budget",
    )  # fmt: skip
    return join(found, meanings(group))


def meanings(group: Group) -> Html:
    """What the protocols of a table are."""
    judged = " or ".join(map(str, sorted({run.draws for run in group.runs if run.draws})))
    items = [
        tag(
            "li",
            tag("b", PROTOCOLS[name].title),
            ": ",
            PROTOCOLS[name].meaning.format(draws=judged),
            ".",
        )
        for name in group.protocols
        if name in PROTOCOLS
    ]
    return tag("ul", *items, class_="soft")


def edge(eps: float) -> str:
    return "number" if eps else "number first"


def rows(group: Group, protocol: str, columns: list[tuple[str, float]]) -> list[Html]:
    title = tag("th", protocol_name(protocol), colspan=1 + len(columns))
    found = [tag("tr", title, class_="protocol")]
    for defense in group.defenses:
        runs = {run.norm: run for run in group.runs if run.defense == defense}
        if any(protocol in run.protocols for run in runs.values()):
            cells = [
                number(runs[norm], eps, WORST, protocol, class_=edge(eps))
                if norm in runs
                else tag("td", "-", class_=edge(eps))
                for norm, eps in columns
            ]
            found.append(tag("tr", tag("th", label(defense, runs), class_="name"), *cells))
    return found


def label(defense: str, runs: dict[str, Run]) -> Html:
    broken = [NORMS.get(norm, norm) for norm, run in runs.items() if run.failed]
    if not broken:
        return join(defense)
    return join(defense, " ", tag("small", f"checks failed: {', '.join(broken)}", class_="failed"))


def paired(group: Group) -> Html:
    """Paired tests of every two defenses; empty where no two sound runs share a norm."""
    found = {norm: pairs(group, norm) for norm in group.norms}
    every = [pair for part in found.values() for pair in part]
    if not every:
        return Html("")
    limit = SIGNIFICANT / len(every)
    apart = [pair for pair in every if pair.p < limit]
    overlap = sum(pair.overlap for pair in every if pair.p >= limit)
    how = (
        "How many images only the first of two defenses gets right, how many only the second, and "
        "the p-value of McNemar's exact test that both are equally accurate: same images, frozen "
        f"noise, worst of the attacks. Bold: p below {SIGNIFICANT:g} / {len(every)} = {limit:.2g}, "
        f"corrected for the number of tests (Bonferroni); {len(apart)} of {len(every)} are. In "
        f"{overlap} of the others the 95 % intervals overlap too: which of the two has the higher "
        "accuracy there says nothing."
    )
    if any(run.failed for run in group.runs):
        how += " Runs whose checks failed are left out."
    tables = [pair_table(part, norm, limit) for norm, part in found.items() if part]
    rows = len({(pair.first.name, pair.second.name) for pair in every})
    if rows > MOST_PAIRS:
        tables = [tag("details", tag("summary", f"Show {rows} pairs of runs"), *tables)]
    return join(tag("h3", "Paired tests"), tag("p", how, class_="soft"), *tables)


def pair_table(found: list[Pair], norm: str, limit: float) -> Html:
    budgets = sorted({pair.eps for pair in found})
    by_runs: dict[tuple[str, str], dict[float, Pair]] = {}
    for pair in found:
        by_runs.setdefault((pair.first.name, pair.second.name), {})[pair.eps] = pair
    heads = [tag("th", spoken(eps), class_="number") for eps in budgets]
    body = []
    for of in by_runs.values():
        one = next(iter(of.values()))
        name = f"{one.first.defense} : {one.second.defense}"
        cells = [pair_cell(of[eps], limit) if eps in of else tag("td", "-", class_="number")
                 for eps in budgets]  # fmt: skip
        body.append(tag("tr", tag("th", name, class_="name"), *cells))
    caption = f"{NORMS.get(norm, norm)}: images that only one gets right, p below"
    head = tag("tr", tag("th", "first : second"), *heads)
    return table(head=[head], bodies=[body], caption=caption)


def pair_cell(pair: Pair, limit: float) -> Html:
    p = "p < 0.0001" if pair.p < 1e-4 else f"p = {pair.p:.2g}"
    counts = join(f"{pair.only_first} : {pair.only_second} ", tag("small", p))
    return tag("td", tag("b", counts) if pair.p < limit else counts, class_="number")


def unequal(runs: Sequence[Run]) -> Html:
    """Settings and versions that a comparison should know of; empty where all are the same."""
    found = differences(runs)
    if not found:
        return Html("")
    items = []
    for name, values in found.items():
        said = [
            join(tag("code", value), " ", users(names, runs)) for value, names in values.items()
        ]
        items.append(tag("li", tag("code", name), ": ", between("; ", said)))
    return join(
        tag("h3", "What else differs"),
        tag("p", "These settings or versions are not the same in all of these runs; a difference "
                 "in accuracy may be theirs. What only the defense or the machine needs is not "
                 "listed."),
        tag("ul", *items),
    )  # fmt: skip


def users(names: list[str], runs: Sequence[Run]) -> Html:
    """Who has a value; the majority is not listed by name."""
    if len(names) > len(runs) / 2:
        return join(f"({len(names)} of {len(runs)} runs)")
    return join("(", ", ".join(names), ")")
