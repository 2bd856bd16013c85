"""One self-contained HTML page from plain parts: for studies, for jobs, for whatever else has something to show.

A report is a tree of the frozen dataclasses below; `page` turns it into a document that opens from a file, offline.
Text is text: every string is escaped, in HTML and in the JSON of a figure, and none can hide or reorder what is read. The
page's content security policy forbids any request and any script or style but its own, named by their hashes.

A table prints the numbers of a column alike (`equipoise.core.columns`); all other numbers come as text.
"""

import base64
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from equipoise.core.columns import column
from equipoise.core.errors import BadInput
from equipoise.core.files import cache_folder, write_atomic
from equipoise.core.marks import Marks, colors
from equipoise.core.options import check_fields
from equipoise.core.plots import FONT, Chart
from equipoise.core.terminal import shown

PROSE = 60  # characters of a cell that wants the whole width of a narrow screen
State = Literal["supported", "refuted", "undecided", "untested", "preview", "failed", "complete", "chosen", "plain"]


# Parts


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph. `quiet` for what is said in passing."""

    kind: ClassVar[str] = "text"
    text: str
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence that must not be missed."""

    kind: ClassVar[str] = "note"
    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Badge:
    """A state in a word, a sign and a colour, so that none of them stands alone."""

    kind: ClassVar[str] = "badge"
    state: State
    text: str = ""

    SIGNS: ClassVar[Mapping[str, str]] = {
        "supported": "✓",
        "refuted": "✕",
        "undecided": "?",
        "untested": "–",
        "preview": "◔",
        "failed": "!",
        "complete": "✓",
        "chosen": "✓",
        "plain": "",
    }

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def sign(self) -> str:
        return self.SIGNS[self.state]

    @property
    def word(self) -> str:
        return self.text or self.state


@dataclass(frozen=True, slots=True)
class Link:
    """A link to a file beside the page, to a place on it, or to a paper (`paper_link`); pages link nowhere else."""

    kind: ClassVar[str] = "link"
    text: str
    href: str

    def __post_init__(self) -> None:
        if re.match(r"\s*(?:[a-zA-Z][a-zA-Z0-9+.-]*:|//|\\)", self.href) and not _PAPER.fullmatch(self.href):
            raise BadInput(f"A report links to files beside it, not to {self.href!r}: give a relative path.")


_ARXIV = r"(?:\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})(?:v\d+)?"
_PAPER = re.compile(rf"https://arxiv\.org/abs/{_ARXIV}")


def paper_link(paper: str) -> Link | str:
    """A paper's name (arXiv:2604.14808) as a link to its abstract; any other name as it is."""
    known = re.fullmatch(f"arXiv:({_ARXIV})", paper)
    return Link(paper, f"https://arxiv.org/abs/{known[1]}") if known else paper


@dataclass(frozen=True, slots=True)
class Cell:
    """A table cell with a second, quieter line."""

    kind: ClassVar[str] = "cell"
    text: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: numbers are set to the right, the unit stands below the title; seconds (unit "s") are written 1:20."""

    title: str
    numeric: bool = False
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text, Cell, Badge, Link or numbers, of which a column's are printed alike; None is nothing known.

    On a narrow screen rows of texts stand one below the other; rows of numbers scroll in a frame of their own, beside
    their first cells.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple["str | float | Cell | Badge | Link | None", ...], ...]
    note: str = ""
    emphasised: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise BadInput(f"Table {self.caption!r}: row {i} has {len(row)} cells for {len(self.columns)} columns.")

    @property
    def of_texts(self) -> bool:
        """Whether there is prose beside its first column, or as many columns of texts as of numbers."""
        texts = [i for i, each in enumerate(self.columns) if not each.numeric]
        prose = any(len(getattr(row[i], "text", str(row[i]))) > PROSE for row in self.rows for i in texts[1:])
        return len(texts) > 1 and (prose or 2 * len(texts) >= len(self.columns))

    @property
    def printed(self) -> "Table":
        """The same table with every number in words."""
        columns, cells = [], []
        for i, each in enumerate(self.columns):
            values = [row[i] for row in self.rows]
            numbers = [value for value in values if value is None or isinstance(value, int | float)]
            texts, unit = column(numbers, each.unit)
            words = iter(texts)
            cells.append(
                [next(words) if value is None or isinstance(value, int | float) else value for value in values]
            )
            columns.append(replace(each, unit=unit))
        return replace(self, columns=tuple(columns), rows=tuple(zip(*cells, strict=True)))


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its legend, its text alternative, its numbers and run folders.

    bare: only the drawing, where heading and numbers stand elsewhere. legend: False where a Grid shows one for all.
    """

    kind: ClassVar[str] = "figure"
    chart: Chart
    bare: bool = False
    legend: bool = True

    @property
    def table(self) -> Table:
        """The chart's numbers, without the columns that say nothing."""
        chart = self.chart
        shown = [i for i in range(len(chart.columns)) if i == 0 or any(_says(row[i]) for row in chart.rows)]
        columns = tuple(
            Column(chart.columns[i], not any(isinstance(row[i], str) for row in chart.rows), chart.units[i])
            for i in shown
        )
        rows = tuple(tuple(row[i] for i in shown) for row in chart.rows)
        return Table(f"Numbers of the figure “{chart.title}”", columns, rows)


def _says(value: str | float) -> bool:
    return bool(value) if isinstance(value, str) else not math.isnan(value)


@dataclass(frozen=True, slots=True)
class Grid:
    """Parts side by side where there is room, below a legend that they share; `small`: three and more in a row."""

    kind: ClassVar[str] = "grid"
    parts: tuple["Part", ...]
    legend: tuple[Marks, ...] = ()
    small: bool = False


@dataclass(frozen=True, slots=True)
class Details:
    """Parts behind a line that opens."""

    kind: ClassVar[str] = "details"
    summary: str
    parts: tuple["Part", ...]


@dataclass(frozen=True, slots=True)
class Names:
    """A run of short names such as folders, set in the fixed-width face."""

    kind: ClassVar[str] = "names"
    lead: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SettingsTable:
    """Names and values; nested values as JSON."""

    kind: ClassVar[str] = "settings"
    values: Mapping[str, Any]

    @property
    def lines(self) -> list[tuple[str, str]]:
        return [
            (str(k), v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str))
            for k, v in self.values.items()
        ]


@dataclass(frozen=True, slots=True)
class Command:
    """What to type. One click selects it."""

    kind: ClassVar[str] = "command"
    text: str


@dataclass(frozen=True, slots=True)
class Card:
    """A verdict or another thing that is read as one: a badge, a statement, what it rests on."""

    kind: ClassVar[str] = "card"
    badge: Badge
    title: str
    meta: str = ""
    parts: tuple["Part", ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A headed part; sections inside sections get the next lower heading."""

    kind: ClassVar[str] = "section"
    title: str
    parts: tuple["Part", ...]
    lead: str = ""


Part = (
    Text
    | Bullets
    | Note
    | Badge
    | Link
    | Table
    | Figure
    | Grid
    | Details
    | Names
    | SettingsTable
    | Command
    | Card
    | Section
)


# The page


class _Ids:
    """Unique names for what is linked to or labelled on one page, and the count of its figures."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.charts = 0

    def __call__(self, text: str) -> str:
        base = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48] or "part"
        name, i = base, 2
        while name in self.taken:
            name, i = f"{base}-{i}", i + 1
        self.taken.add(name)
        return name

    def chart(self) -> str:
        self.charts += 1
        return f"chart-{self.charts}"


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element, whatever its strings hold. Raises ValueError for nan."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII: U+2028 and lone surrogates are escaped
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


# The shapes of Vega on a square from -1 to 1, for legends.
_OUTLINES: Mapping[str, str] = {
    "square": "M-.9-.9H.9V.9H-.9Z",
    "triangle-up": "M0-1L1 .85H-1Z",
    "triangle-down": "M0 1L1-.85H-1Z",
    "triangle-right": "M1 0L-.85 1V-1Z",
    "triangle-left": "M-1 0L.85 1V-1Z",
    "diamond": "M0-1.15L1 0L0 1.15L-1 0Z",
    "cross": "M-.35-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z",
    "circle": "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1-1 0Z",
}


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("equipoise.core"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: (
            value if isinstance(value, Markup) else shown(value) if isinstance(value, str) else value
        ),
    )
    environment.filters["script_json"] = script_json
    environment.filters["dashes"] = lambda dash: " ".join(f"{length * 0.17:g}" for length in dash)
    environment.globals["outlines"] = _OUTLINES
    return environment


@functools.cache
def _asset(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


def _stylesheet() -> str:
    def block(theme: Literal["light", "dark"]) -> str:
        return "".join(f"--{name}:{value};" for name, value in colors(theme).items())

    light, dark = block("light"), block("dark")
    return (
        f":root{{color-scheme:light dark;--font:{FONT};{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n" + _asset("page.css")
    )


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script (0.9 MB).

    Making it takes vl-convert two seconds, so it is kept in the cache folder under its version, with its checksum; a
    cache that cannot be written, or whose checksum differs, only costs the two seconds again.
    """
    folder = cache_folder()
    cached = folder / f"vega-{importlib.metadata.version('vl-convert-python')}.js"
    try:
        digest, _, text = cached.read_text(encoding="utf-8").partition("\n")
        if digest == hashlib.sha256(text.encode()).hexdigest():
            return text
    except (OSError, UnicodeDecodeError):
        pass
    import vl_convert

    # A script element ends at "</script" and changes its rules at "<!--", also inside a string of the script.
    text = re.sub(
        r"<(?=/script|!--)",
        r"\\x3c",
        vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
        flags=re.IGNORECASE,
    )
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(cached, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def page(
    title: str,
    lead: str,
    parts: Sequence[Part],
    *,
    kicker: str = "",
    badges: Sequence[Badge] = (),
    facts: Sequence[tuple[str, str | Link]] = (),
    footer: str = "",
) -> str:
    """A whole HTML document. kicker: what kind of page it is; badges, and name and value pairs, stand below the lead.

    Top-level sections make the table of contents. Scripts are there only when a figure is.
    """
    ids = _Ids()
    tops = [(ids(part.title) if isinstance(part, Section) else "", part) for part in parts]
    body = Markup(_environment().get_template("parts.html.j2").render(tops=tops, ids=ids))
    style = _stylesheet()
    scripts = [_bundle(), _asset("page.js")] if ids.charts else []
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src {_hash(style)}",
            f"script-src {' '.join(map(_hash, scripts)) or repr('none')}",
            "connect-src 'none'",
            "img-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            lead=lead,
            kicker=kicker,
            badges=badges,
            facts=facts,
            footer=footer,
            contents=[(name, part.title) for name, part in tops if isinstance(part, Section)],
            body=body,
            style=Markup(style),
            scripts=[Markup(script) for script in scripts],
            policy=policy,
        )
    )


def job_page(
    title: str, lead: str, parts: Sequence[Part], command: str, *, facts: Iterable[tuple[str, str | Link]] = ()
) -> str:
    """The report of a job: its parts, then the command that made it."""
    made = Section("The command that made this", (Command(command),))
    return page(title, lead, (*parts, made), kicker="Job report", facts=tuple(facts))


def write_page(path: Path, html: str) -> Path:
    """Write a page where it is wanted, whole or not at all."""
    write_atomic(path, html.encode("utf-8", "backslashreplace"))
    return path
