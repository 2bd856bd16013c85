"""One page over all studies: what each trades, its last verdicts and its scale, with links to its reports."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.core import page
from equipoise.core.errors import BadInput
from equipoise.core.files import open_regular
from equipoise.study.summary_text import STATES, State, published_counts

if TYPE_CHECKING:
    from equipoise.study.declare import Declaration


@dataclass(frozen=True, slots=True)
class Report:
    """A rendered report: the study and options that the table beside it names."""

    path: Path
    study: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A line of the index. `counts`: verdict -> number of claims, empty before a study was run; `link`: a relative path.

    `others`: further reports, as what sets them apart and a relative path. `summary`: what is weighed, in a sentence.
    """

    name: str
    paper: str
    trades: str
    counts: Mapping[str, int] = field(default_factory=dict)
    scale: str = ""
    link: str = ""
    others: tuple[tuple[str, str], ...] = ()
    summary: str = ""


def reports_in(folders: Iterable[Path]) -> list[Report]:
    """All reports below these folders, by path. Raises BadInput for a folder that is not there or holds none."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    reports: dict[Path, Report] = {}
    for folder in folders:
        if not folder.is_dir():
            raise BadInput(f"{folder} is no folder; give one that holds reports of `equipoise study report`.")
        here: dict[Path, Report] = {}
        for path in sorted(folder.rglob("report.html")):
            try:
                with open_regular(path.with_name("results.parquet")) as table:
                    metadata = parquet.read_schema(table).metadata or {}
                about = json.loads(metadata[b"equipoise"])
                here[path.resolve()] = Report(path, str(about["study"]), dict(about["options"]))
            except (OSError, KeyError, ValueError, TypeError, RecursionError, pa.ArrowException):
                continue  # the report of a job, or of something else
        if not here:
            raise BadInput(f"{folder} holds no report of a study (report.html with results.parquet beside it).")
        reports |= here
    return [reports[path] for path in sorted(reports)]


def entry_of(
    declaration: "Declaration", published: Mapping[str, Any] | None, reports: Sequence[Report], home: Path
) -> IndexEntry:
    """The line of a study: what was published of it, and its reports as seen from the folder `home`.

    The study's own link is the report with the published options (before any, with the default ones).
    """
    options = published["options"] if published else declaration.options()
    links = [(report, os.path.relpath(report.path.resolve(), home.resolve())) for report in reports]
    main = next((link for report, link in links if report.options == options), "")
    return IndexEntry(
        declaration.name,
        declaration.paper,
        declaration.trades,
        {str(state): count for state, count in published_counts(published).items()} if published else {},
        published["scale"] if published else "",
        Path(main).as_posix() if main else "",
        tuple((_apart(report.options, options), Path(link).as_posix()) for report, link in links if link != main),
        declaration.summary,
    )


def _apart(options: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """The options that set a report apart."""
    differing = [f"{name} {value}" for name, value in options.items() if value != usual.get(name)]
    return ", ".join(differing) or "the same options"


def index(entries: Iterable[IndexEntry], path: Path) -> Path:
    """Write the index page, as `index_html` makes it."""
    html = index_html(entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    return page.write_page(path, html)


def index_html(entries: Iterable[IndexEntry]) -> str:
    """The index page; raises BadInput for a link that leaves the folder's neighbourhood (a scheme, a host)."""
    listed = sorted(entries, key=lambda entry: entry.name)
    totals: dict[State, int] = {state: sum(entry.counts.get(state, 0) for entry in listed) for state in STATES}
    columns = (
        page.Column("study"),
        page.Column("what it trades"),
        page.Column("paper"),
        *(page.Column(state, True) for state in STATES),
        page.Column("scale"),
    )
    rows = tuple(
        (
            page.Link(entry.name, entry.link) if entry.link else entry.name,
            page.Cell(entry.trades, entry.summary),
            page.paper_link(entry.paper),
            *(entry.counts.get(state, 0) if entry.counts else None for state in STATES),
            entry.scale or "not yet weighed",
        )
        for entry in listed
    )
    weighed = sum(bool(entry.counts) for entry in listed)
    sections = [page.Section("Studies", (page.Table("All studies with their published verdicts", columns, rows),))]
    others = tuple((entry.name, page.Link(apart, link)) for entry in listed for apart, link in entry.others)
    if others:
        table = page.Table("Reports by what sets them apart", (page.Column("study"), page.Column("options")), others)
        lead = "The same studies with other options. Published verdicts are those above."
        sections.append(page.Section("Further reports", (table,), lead))
    return page.page(
        "Equipoise",
        "Published methods that buy one thing with another, weighed under matched budgets; every verdict is printed, "
        "whatever it is.",
        sections,
        kicker="All studies",
        badges=[page.Badge(state, f"{n} {state}") for state, n in totals.items() if n],
        facts=[("Studies", str(len(listed))), ("Weighed", str(weighed))],
    )
