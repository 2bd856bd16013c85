"""Writes the table of systems in README.md from the registry and the published verdicts; --check only compares."""

import sys
from pathlib import Path

from equipoise.study import registry
from equipoise.study.summary_text import published, published_counts

README = Path(__file__).parent.parent / "README.md"
VERDICTS = Path(registry.__file__).parent.parent / "studies" / "verdicts.json"
BEGIN, END = "<!-- systems: begin -->", "<!-- systems: end -->"


def table() -> str:
    """A Markdown table: one row a system, with its paper, its trade and its published verdicts."""
    verdicts = published(VERDICTS) if VERDICTS.exists() else {}
    rows = ["| system | trades | paper | last published verdicts |", "|---|---|---|---|"]
    for name in registry.names():
        declaration = registry.load(name)
        paper = declaration.paper
        link = (
            f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})" if paper.startswith("arXiv:") else paper
        )
        rows.append(
            f"| [`{name}`](docs/systems/{name}.md) | {declaration.trades} | {link} | {_told(verdicts.get(name))} |"
        )
    return "\n".join(rows)


def _told(entry: dict | None) -> str:
    if entry is None:
        return "none yet"
    return ", ".join(f"{count} {verdict}" for verdict, count in published_counts(entry).items())


def main() -> int:
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    wanted = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" in sys.argv:
        return 0 if wanted == text else "README.md: the table of systems is out of date; run make docs"
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
