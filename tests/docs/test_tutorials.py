"""What a reader types from the tutorials works: every block runs, in order, and prints what the page shows."""

from pathlib import Path

import pytest

import documentation

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["start.md", *(f"tutorials/{name}.md" for name in ("judging", "unlearning", "verification", "your-own-study"))]


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
