"""What the pages say is there: links, commands, imports, formulas, and every public name in the reference."""

import ast
import importlib
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

import documentation
from equipoise.cli import _app
from equipoise.study import registry

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "AGENTS.md", "CONTRIBUTING.md")),
    *(path for path in sorted(DOCS.rglob("*.md")) if "results" not in path.parts),
]
SYSTEMS = sorted((DOCS / "systems").glob("*.md"))


@pytest.fixture(scope="module")
def site():
    """The module that draws the site, a script and no part of the package."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "scripts" / "docs_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def known(site):
    return site.modules()


def test_every_public_name_is_documented(site, known):
    assert site.undocumented(known) == []


def test_what_is_not_documented_is_found(site, tmp_path):
    (tmp_path / "bare.py").write_text('"""A module."""\n\ndef shown(): ...\n\ndef _hidden(): ...\n\nclass Plain: ...\n')
    bare = site.Module("equipoise.bare", tmp_path / "bare.py")
    assert site.undocumented({"equipoise.bare": bare}) == ["equipoise.bare.shown", "equipoise.bare.Plain"]


def test_every_public_name_has_its_place_in_the_reference(site, known):
    pages = site.reference(known)
    assert set(pages) == {module.page for module in known.values()} and len(pages) == len(known)
    assert all(f"::: {module.name}\n" in pages[module.page] for module in known.values())
    navigation = repr(site.reference_nav(known))
    assert not [page for page in pages if repr(page) not in navigation]
    for name in ("equipoise", *(module.name for module in known.values() if module.name.count(".") == 1)):
        offered = getattr(importlib.import_module(name), "__all__", ()) if known[name].is_package else ()
        rows = re.findall(r"^\| \[`(\w+)`\]", pages[known[name].page], re.MULTILINE)
        assert rows == [word for word in sorted(offered) if not word.startswith("_")], name


def test_every_method_is_in_the_gallery(site, known):
    rows = [method for page in SYSTEMS for method in site.methods_of(page.read_text(encoding="utf-8"))]
    names = [method.name for method in rows]
    assert len(set(names)) == len(names) and all(method.formula for method in rows)
    registered = {name for each in site.registries(known) for name in each}
    assert registered <= set(names) and {"sago", "npo", "graddiff"} <= registered
    for name in registry.names():
        arms = registry.load(name).build().arms
        assert {arm.name for arm in arms if arm.kind in ("method", "baseline")} <= set(names), name
    drawn = site.gallery()
    assert all(re.search(rf"^\| `{re.escape(name)}` \| \w", drawn, re.MULTILINE) for name in names)


def test_a_verdict_stands_beside_both_arms(site):
    claims = registry.load("sago").build().claims
    entry = {"claims": [{"text": claims[0].text, "verdict": "refuted"}]}
    said = site._judged(claims, entry)
    assert said == {"sago": ["refuted against `sum`"], "sum": ["of `sago` against it: refuted"]}


@pytest.mark.parametrize("page", SYSTEMS, ids=lambda path: path.stem)
def test_the_page_of_a_system(page):
    """Opens with the formula, links method and study, says how it differs from the paper, ends with what it cannot do."""
    text = page.read_text(encoding="utf-8")
    opening = text.split("\n## ")[0]
    assert re.match(r"# .+\n> .*[=≥≤]", opening)
    assert re.search(r"\]\(\.\./\.\./src/equipoise/(?!studies)\w+/\w+\.py\)", opening)
    assert f"](../../src/equipoise/studies/{page.stem.replace('-', '_')}.py)" in opening
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert {"How it differs from the paper", "Formulas", "The study"} <= set(headings)
    assert headings[-1] == "What it cannot do"


def test_two_hops_to_every_equation():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    systems = registry.systems()
    assert {page.stem for page in SYSTEMS} == set(systems)
    assert all(f"(docs/systems/{name}.md)" in readme for name in systems)


@pytest.mark.parametrize("name", registry.systems())
def test_each_study_of_a_system_is_on_its_page(name):
    text = (DOCS / "systems" / f"{name}.md").read_text(encoding="utf-8")
    for study in registry.systems()[name]:
        assert f"](../../src/equipoise/studies/{study.replace('-', '_')}.py)" in text
        assert re.search(rf"^equipoise study run {study}\b(?!-)", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(site, known, page):
    drawn = {DOCS / uri for uri in site.reference(known)}
    for target in re.findall(
        r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    ):
        path = (page.parent / target.split("#")[0]).resolve()
        assert target.startswith(("https://", "#")) or path.exists() or path in drawn, target


def test_every_command_of_the_pages_is_one():
    """The options of each `equipoise` line exist; those of a study are looked up in its declaration."""
    app, count = _app(), 0
    for block in (block for page in PAGES for block in documentation.blocks(page)):
        for words, expected in block.commands:
            _, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
            count += 1
            name = bound.arguments.get("name", "")
            if words[:2] == ["study", "run"] and name in registry.names() and not expected:
                options = bound.arguments.get("options", {})
                registry.load(name).options({key.replace("-", "_"): options[key] for key in options}, text=True)
    assert count > 40


def test_every_import_of_the_pages_is_there():
    """Names of the package that Python blocks import: read, resolved, and nothing is run."""
    count = 0
    for block in (block for page in PAGES for block in documentation.blocks(page) if block.language == "python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and re.match(r"equipoise\b(?!.*DOMAIN)", node.module or ""):
                module = importlib.import_module(node.module)
                there = [
                    hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                    for alias in node.names
                ]
                assert all(there), f"{block.where}: {ast.unparse(node)}"
                count += 1
    assert count > 15


def test_the_map_shows_every_room(site, known):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    rows, beside = site.layers(project)
    packages = {name.removeprefix("equipoise.") for name in known if name.count(".") == 1}
    assert {room for row in rows for room in row} | set(beside) == packages
    assert (
        rows[-1] == ["core"] and rows[beside["study"][1] + 1] == ["core"] and ["studies"] in rows[: beside["study"][0]]
    )
    drawn = site.house(project, known, lambda page: page)
    assert drawn.count("<rect") == len(packages) and 'href="reference/unlearning/index.md"' in drawn
