"""The index page: every installed study, its published verdicts, and links that lead to its reports."""

import html
import json
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from equipoise.cli import main
from equipoise.core.errors import BadInput
from equipoise.study import registry
from equipoise.study.index_page import IndexEntry, entry_of, index, reports_in
from equipoise.study.summary_text import published

HOSTILE = "<script>alert(1)</script>"


def shown(path: Path) -> str:
    source = re.sub(r"<style.*?</style>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", source)).split())


def a_report(folder: Path, study: str, options: dict) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<p>the report")
    about = {"equipoise": json.dumps({"study": study, "options": options})}
    pq.write_table(pa.table({"value": [1.0]}).replace_schema_metadata(about), folder / "results.parquet")
    return folder / "report.html"


def test_index_lists_all_systems(tmp_path):
    counts = {"supported": 1, "undecided": 2, "exploratory": 4}
    entries = [
        IndexEntry(
            "sago",
            "arXiv:1",
            "forgetting for retention",
            counts,
            "tiny",
            "sago/report.html",
            ((HOSTILE, "x/r.html"),),
            "Signs.",
        ),
        IndexEntry("mcu", "arXiv:2", HOSTILE),
    ]
    path = index(entries, tmp_path / "new" / "index.html")
    page, source = shown(path), path.read_text(encoding="utf-8")
    assert "sago forgetting for retention Signs. arXiv:1 1 0 2 0 tiny" in page
    assert f"mcu {HOSTILE} arXiv:2 – – – – not yet weighed" in page  # unknown is not 0
    assert "1 supported" in page and "2 undecided" in page and "0 refuted" not in page
    assert 'href="sago/report.html"' in source and 'href="x/r.html"' in source
    assert HOSTILE not in source and "<script" not in source
    with pytest.raises(BadInput, match="relative path"):
        index([IndexEntry("x", "", "", link="https://example.org")], path)


def test_reports_are_found_by_the_table_beside_them(tmp_path):
    sago, deep = a_report(tmp_path / "r" / "sago", "sago", {"n": 1}), a_report(tmp_path / "r" / "a" / "b", "mcu", {})
    (tmp_path / "r" / "job").mkdir()
    (tmp_path / "r" / "job" / "report.html").write_text("of a job")
    (tmp_path / "r" / "cut").mkdir()
    (tmp_path / "r" / "cut" / "report.html").write_text("x")
    (tmp_path / "r" / "cut" / "results.parquet").write_bytes(b"PAR1")
    found = reports_in([tmp_path / "r", tmp_path / "r" / "sago"])
    assert {(each.path.resolve(), each.study) for each in found} == {(sago.resolve(), "sago"), (deep.resolve(), "mcu")}
    assert len(found) == 2
    with pytest.raises(BadInput, match="no folder"):
        reports_in([tmp_path / "nothing"])
    with pytest.raises(BadInput, match="holds no report"):
        reports_in([tmp_path / "r" / "job"])


def test_the_published_report_is_the_one_of_the_published_options(tmp_path):
    declaration = registry.load("sago")
    entry = published(declaration.source.parent / "verdicts.json")["sago"]
    other = {**entry["options"], "model": "smollm2"}
    a_report(tmp_path / "results" / "a-large", "sago", other)
    a_report(tmp_path / "results" / "small", "sago", entry["options"])
    home = tmp_path / "site"
    line = entry_of(declaration, entry, reports_in([tmp_path / "results"]), home)
    assert line.link == "../results/small/report.html"
    assert line.others == (("model smollm2", "../results/a-large/report.html"),)
    stated = Counter(claim["verdict"] for claim in entry["claims"] if claim["verdict"] != "exploratory")
    assert line.counts == stated and sum(stated.values()) == 4 and line.scale == entry["scale"]
    fresh = entry_of(declaration, None, [], home)
    assert fresh.counts == {} and fresh.link == "" and fresh.trades == "forgetting for retention"


def test_as_typed(tmp_path, capsys):
    options = registry.load("sago").options()
    a_report(tmp_path / "results" / "sago", "sago", options)
    out = tmp_path / "results" / "index.html"
    assert main(["study", "index", str(tmp_path / "results"), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    source = out.read_text(encoding="utf-8")
    assert all(name in shown(out) for name in registry.names())
    links = re.findall(r'href="([^"#]+)"', source)
    named = [registry.load(name).paper for name in registry.names()]
    papers = [paper.replace("arXiv:", "https://arxiv.org/abs/") for paper in named if paper.startswith("arXiv:")]
    assert sorted(links) == sorted([*papers, "sago/report.html"])
    assert (out.parent / "sago/report.html").is_file()
    assert main(["study", "index", "--out", str(tmp_path / "alone.html")]) == 0
    assert 'href="sago' not in (tmp_path / "alone.html").read_text(encoding="utf-8")
    assert main(["study", "index", str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "equipoise-out").exists()
