"""One page over all systems: what each trades, its last verdicts and its scale, with a link to its report."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from equipoise.core import page
from equipoise.study.summary_text import STATES, State


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the index. `counts`: verdict -> number of claims, empty before a study was run; `link`: a relative path."""

    name: str
    paper: str
    trades: str
    counts: Mapping[str, int] = field(default_factory=dict)
    scale: str = ""
    link: str = ""


def index(entries: Iterable[Entry], path: Path) -> Path:
    """Write the index page; raises BadInput for a link that leaves the folder's neighbourhood (a scheme, a host)."""
    listed = sorted(entries, key=lambda entry: entry.name)
    totals: dict[State, int] = {state: sum(entry.counts.get(state, 0) for entry in listed) for state in STATES}
    columns = (
        page.Column("system"),
        page.Column("what it trades"),
        *(page.Column(state, True) for state in STATES),
        page.Column("scale"),
    )
    rows = tuple(
        (
            page.Link(entry.name, entry.link) if entry.link else entry.name,
            page.Cell(entry.trades, entry.paper),
            *(str(entry.counts[state]) if entry.counts.get(state) else "·" for state in STATES),
            entry.scale or "not yet weighed",
        )
        for entry in listed
    )
    weighed = sum(bool(entry.counts) for entry in listed)
    html = page.page(
        "Equipoise",
        "Published methods that buy one thing with another, weighed under matched budgets; every verdict is printed, "
        "whatever it is.",
        (page.Section("Systems", (page.Table("All systems with their published verdicts", columns, rows),)),),
        kicker="All studies",
        badges=[page.Badge(state, f"{n} {state}") for state, n in totals.items() if n],
        facts=[("Systems", str(len(listed))), ("Weighed", str(weighed))],
    )
    return page.write_page(path, html)
