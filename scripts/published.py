"""Writes what is made from the published verdicts: the package's verdicts.json, the README's table, the index page.

    python scripts/published.py            # writes what is out of date
    python scripts/published.py --check    # only names it, and exits 1

A study's verdicts are those that its report left beside it, docs/results/NAME/verdicts.json. Where two branches disagree in
a file that is made here, take either side and run this.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equipoise.core.files import write_atomic
from equipoise.core.page import Link, paper_link
from equipoise.study import registry
from equipoise.study.index_page import entry_of, index_html, reports_in
from equipoise.study.summary_text import gathered, published_counts, tally, verdicts_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
README, INDEX = ROOT / "README.md", RESULTS / "index.html"
VERDICTS = ROOT / "src" / "equipoise" / "studies" / "verdicts.json"
BEGIN, END = "<!-- systems: begin -->", "<!-- systems: end -->"


def generated() -> dict[Path, str]:
    """Each file that is made from the verdicts, with the text that it should have."""
    verdicts = gathered(sorted(RESULTS.glob("*/verdicts.json")))
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    return {
        VERDICTS: verdicts_json(verdicts),
        README: f"{before}{BEGIN}\n{table(verdicts)}\n{END}{after}",
        INDEX: index_html(
            entry_of(
                registry.load(name),
                verdicts.get(name),
                [each for each in reports_in([RESULTS]) if each.study == name],
                RESULTS,
            )
            for name in registry.names()
        ),
    }


def table(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table: one row a system, with its paper, its trade and the published verdicts of its studies."""
    rows = ["| system | trades | paper | last published verdicts |", "|---|---|---|---|"]
    for name, studies in registry.systems().items():
        declaration = registry.load(name)
        paper = paper_link(declaration.paper)
        linked = f"[{paper.text}]({paper.href})" if isinstance(paper, Link) else paper
        counts = {each: tally(published_counts(verdicts[each])) for each in studies if each in verdicts}
        told = "; ".join([counts.pop(name, "none yet"), *(f"`{each}`: {count}" for each, count in counts.items())])
        rows.append(f"| [`{name}`](docs/systems/{name}.md) | {declaration.trades} | {linked} | {told} |")
    return "\n".join(rows)


def stale() -> dict[Path, str]:
    """Those of the generated files that are not as they should be."""
    return {
        path: text
        for path, text in generated().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def main() -> int:
    found = stale()
    if "--check" in sys.argv:
        for path in found:
            print(f"{path.relative_to(ROOT)} is out of date: python scripts/published.py")
        return 1 if found else 0
    for path, text in found.items():
        write_atomic(path, text)
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
