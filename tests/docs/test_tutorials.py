"""What a reader types from the tutorials works: every block runs, in order, and prints what the page shows."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import documentation
from documentation import Block

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [
    "start.md",
    *(f"tutorials/{name}.md" for name in ("judging", "reinforcement", "unlearning", "verification", "your-own-study")),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the examples, as a checkout has them."""
    (tmp_path / "examples").symlink_to(DOCS.parent / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_tutorial_is_run():
    assert sorted(PAGES) == sorted(["start.md", *(f"tutorials/{path.name}" for path in (DOCS / "tutorials").iterdir())])
    assert all(
        block.run or block.language == "text" for page in PAGES[1:] for block in documentation.blocks(DOCS / page)
    )


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(folder, page):
    quick = [block for block in documentation.blocks(DOCS / page) if not block.slow]
    assert documentation.run(quick) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if documentation.blocks(DOCS / page)[-1].slow])
def test_a_page_runs_to_its_end(folder, page):
    assert documentation.run(documentation.blocks(DOCS / page)) >= 3


def test_what_a_page_shows_must_be_printed():
    def page(shown):
        return [
            Block("page.md", 1, "python", "", "print('supported: +1.5 of 10, at least')\n"),
            Block("page.md", 5, "text", "", shown),
        ]

    for shown in ("supported: -12 of 9, at least", "supported: 1 ...", "..."):
        assert documentation.run(page(shown)) == 1
    for shown in ("refuted: +1.5 of 10, at least", "supported: 1", "supported: 1 in ..."):
        with pytest.raises(AssertionError, match=re.escape(f"page.md:5: not printed: {shown}")):
            documentation.run(page(shown))


def test_an_exit_code_that_a_page_does_not_announce_fails(folder):
    block = Block("page.md", 1, "sh", "", "equipoise study show nothing\n")
    with pytest.raises(AssertionError, match=r"page\.md:1: equipoise study show nothing ended with 2"):
        documentation.run([block])
    assert documentation.run([replace(block, text=f"{block.text.strip()}   # exit code 2\n")]) == 1
