"""The page: nothing that is text becomes markup, nothing on it asks the network, numbers are printed as they are."""

import base64
import hashlib
import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from equipoise.core import page, plots
from equipoise.core.errors import BadInput

HOSTILE = '</script><script>alert("1")</script><img src=x onerror=alert(2)>\u2028&amp;'


class Reader(HTMLParser):
    """Elements with their attributes and texts, as a browser's parser would find them."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.elements[-1][0] if self.elements else "", data))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def everything(text: str) -> list[page.Part]:
    """Every kind of part, with one text wherever a text can stand."""
    chart = plots.lines(
        text, {text: [(1, 2.0), (2, math.nan)], "b": [(1, 1.0)]}, x=plots.Axis(text), y=plots.Axis(text), note=text
    )
    chart = chart.with_runs([text])
    table = page.Table(
        text,
        (page.Column(text, unit=text), page.Column("n", True), page.Column("c"), page.Column("d")),
        ((text, page.Cell(text, text), page.Badge("refuted", text), page.Link(text, "a/b.html")),),
        text,
    )
    simple: tuple[page.Part, ...] = (
        page.Text(text),
        page.Bullets((text,)),
        page.Note(text, text),
        page.Badge("supported", text),
        table,
        page.Link(text, "x.html"),
        page.Grid((page.Figure(chart),), chart.legend),
        page.Names(text, (text,)),
        page.SettingsTable({text: text, "nested": {text: [text]}}),
        page.Command(text),
        page.Figure(chart, bare=True),
    )
    card = page.Card(page.Badge("undecided"), text, text, (page.Details(text, simple),))
    return [page.Section(text, (*simple, page.Section(text, (card,), text)), text)]


def test_no_text_becomes_markup() -> None:
    benign = page.page(
        "x", "x", everything("x"), kicker="x", facts=[("x", "x")], footer="x", badges=[page.Badge("plain", "x")]
    )
    source = page.page(
        HOSTILE,
        HOSTILE,
        everything(HOSTILE),
        kicker=HOSTILE,
        facts=[(HOSTILE, HOSTILE)],
        footer=HOSTILE,
        badges=[page.Badge("plain", HOSTILE)],
    )
    ours, theirs = Reader(source), Reader(benign)
    assert [tag for tag, _ in ours.elements] == [tag for tag, _ in theirs.elements]
    assert not ours.named("img")
    assert not [name for _, attributes in ours.elements for name in attributes if name.startswith("on")]
    shown = "".join(text for tag, text in ours.texts if tag not in ("script", "style"))
    assert shown.count(HOSTILE) > 20  # it is all there, as text


def test_json_in_a_script_element_is_itself_and_nothing_else() -> None:
    embedded = str(page.script_json({"a": HOSTILE}))
    assert not re.search("[<>&\u2028\u2029]", embedded)
    assert json.loads(embedded) == {"a": HOSTILE}
    with pytest.raises(ValueError, match="not JSON compliant"):
        page.script_json(math.nan)


def test_the_policy_allows_exactly_the_scripts_and_styles_on_the_page() -> None:
    source = page.page("t", "", everything("a"))
    policy = next(
        m["content"] for m in Reader(source).named("meta") if m.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy and "unsafe" not in policy

    def hashes(pattern: str) -> set[str]:
        found = re.findall(pattern, source, flags=re.DOTALL)
        return {"sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found}

    assert hashes(r"<script>(.*?)</script>") | hashes(r"<style>(.*?)</style>") == set(
        re.findall(r"'(sha256-[^']+)'", policy)
    )
    assert "style=" not in re.sub(r"<script.*?</script>", "", source, flags=re.DOTALL)


def test_nothing_is_loaded_and_links_stay_near() -> None:
    reader = Reader(page.page("t", "", everything("a")))
    for tag, attributes in reader.elements:
        assert "src" not in attributes, tag
        assert not re.match(r"[a-z]+:|//", attributes.get("href") or ""), attributes
    assert not reader.named("link") and not reader.named("base")
    for href in ("javascript:alert(1)", "https://example.org", "//example.org/x", " JavaScript:x", "data:text/html,x"):
        with pytest.raises(BadInput, match="relative path"):
            page.Link("x", href)


def test_a_paper_is_the_only_thing_elsewhere_that_is_linked() -> None:
    source = page.page("t", "", [], facts=[("Paper", page.paper_link("arXiv:2604.14808"))])
    assert [a["href"] for a in Reader(source).named("a")][1:] == ["https://arxiv.org/abs/2604.14808"]
    assert page.paper_link("arXiv:hep-th/9901001v2") == page.Link(
        "arXiv:hep-th/9901001v2", "https://arxiv.org/abs/hep-th/9901001v2"
    )
    for name in ("", "a book", "arXiv:0000", "arXiv:2604.14808/../x", "arXiv:2604.14808?q", "arXiv:2604.14808\n"):
        assert page.paper_link(name) == name
    with pytest.raises(BadInput, match="relative path"):
        page.Link("x", "https://arxiv.org/abs/2604.14808/../..")


def test_a_page_without_figures_has_no_script() -> None:
    source = page.page("t", "lead", [page.Section("One", (page.Text("a"),))])
    assert "<script" not in source and "script-src 'none'" in source
    assert len(source) < 20_000


def test_headings_follow_each_other_and_every_name_is_unique() -> None:
    reader = Reader(page.page("t", "", everything("same")))
    levels = [int(tag[1]) for tag, _ in reader.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    names = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for key in ("aria-labelledby",):
        assert {a[key] for _, a in reader.elements if key in a} <= set(names)
    assert reader.named("html") == [{"lang": "en"}]
    assert all(a.get("aria-label") for a in reader.named("div") if a.get("role") == "img")


def test_a_table_scrolls_in_its_own_frame_and_must_be_whole() -> None:
    table = page.Table("t", (page.Column("a"), page.Column("b", True)), (("x", "1"),))
    reader = Reader(page.page("t", "", [table]))
    frame = next(a for a in reader.named("div") if a.get("class") == "scroll")
    assert frame["tabindex"] == "0" and frame["role"] == "region"
    assert [a.get("class") for a in reader.named("td")] == ["n"]
    with pytest.raises(BadInput, match="row 0 has 1 cells for 2 columns"):
        page.Table("t", (page.Column("a"), page.Column("b")), (("x",),))


def test_numbers_of_a_column_are_printed_alike() -> None:
    columns = (page.Column("arm"), page.Column("value", True), page.Column("n", True), page.Column("time", True, "s"))
    rows = (("a", 0.5, 1234, 80.2), ("b", 0.0625, 7, 5), ("c", math.nan, None, None))
    reader = Reader(page.page("t", "", [page.Table("t", columns, rows)]))
    cells = [text for tag, text in reader.texts if tag == "td" and text.strip()]
    assert cells == ["0.500", "1,234", "1:20", "0.062", "7", "0:05", "undefined", "–", "–"]
    assert ("small", "min:s") in reader.texts


def test_a_table_of_texts_names_its_cells_for_a_screen_that_stacks_them() -> None:
    texts = page.Table("t", (page.Column("side"), page.Column("answer <b>", unit="u")), (("x", "y"),))
    numbers = page.Table("t", (page.Column("arm"), page.Column("n", True), page.Column("m", True)), (("x", 1, 2),))
    stacked, scrolling = (Reader(page.page("t", "", [each])) for each in (texts, numbers))
    assert [a.get("data-title") for a in stacked.named("td")] == ["answer <b> (u)"]
    assert [a.get("data-title") for a in scrolling.named("td")] == [None, None]
    assert any(a.get("class") == "table texts" for a in stacked.named("div"))


def test_the_numbers_of_a_figure_leave_out_what_says_nothing() -> None:
    chart = plots.intervals("i", [plots.ChartRow("a", 0.25, math.nan, math.nan)], x=plots.Axis("value"))
    table = page.Figure(chart).table
    assert [each.title for each in table.columns] == ["row", "value"] and table.rows == (("a", 0.25),)
    arms = plots.marks(["a"])
    spent = plots.costs("c", arms, [plots.ChartBar("a", "run", 80.0, 90.0)], x=plots.Axis("time", unit="s"))
    printed = page.Figure(spent).table.printed
    assert printed.rows == (("a", "run", "1:20", "1:30"),) and printed.columns[2].unit == "min:s"


def test_a_broken_cache_of_the_script_is_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = page._bundle()
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path))
    monkeypatch.setattr("vl_convert.javascript_bundle", lambda _: "run('</script><!--')")
    page._bundle.cache_clear()
    try:
        assert page._bundle() == r"run('\x3c/script>\x3c!--')"
        [cached] = tmp_path.iterdir()
        cached.write_text("0" * 64 + "\nalert(1)", encoding="utf-8")
        page._bundle.cache_clear()
        assert page._bundle() == r"run('\x3c/script>\x3c!--')"
    finally:
        page._bundle.cache_clear()
    assert len(made) > 500_000


def test_a_job_page_ends_with_its_command(tmp_path: Path) -> None:
    source = page.job_page("Forgotten", "lead", [page.Section("Before and after", ())], "equipoise unlearn --out 'a b'")
    path = page.write_page(tmp_path / "report.html", source)
    assert path.read_text(encoding="utf-8") == source
    assert source.index("Before and after") < source.index("equipoise unlearn --out &#39;a b&#39;")


def test_no_text_of_others_can_reorder_or_hide_what_is_read():
    name = "user\u202egnp.exe"
    html = page.page(name, "lead", [page.Table("t", (page.Column("c"),), ((name,),)), page.Text("a\x1b[2J\u200bb")])
    assert "\u202e" not in html
    assert html.count(r"user\u202egnp.exe") == 3  # the title twice, the cell
    assert r"a\u001b[2J\u200bb" in html
    assert "&lt;b&gt;" in page.page("<b>", "", [])
