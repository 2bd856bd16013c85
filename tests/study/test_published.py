"""What is made from the published verdicts is up to date, and says so when it is not."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from equipoise.core.errors import BadInput
from equipoise.study.summary_text import gathered, verdicts_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("published", ROOT / "scripts" / "published.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_index_and_verdicts_are_those_of_the_reports(script: ModuleType) -> None:
    assert list(script.stale()) == [], "run: python scripts/published.py"
    table = script.README.read_text(encoding="utf-8").split(script.BEGIN)[1].split(script.END)[0]
    systems = script.registry.systems()
    assert table.count("](https://arxiv.org/abs/") + table.count("| several papers |") == len(systems)
    published = {path.parent.name for path in script.RESULTS.glob("*/verdicts.json")}
    assert table.count("none yet") == len(systems.keys() - published)


def test_a_further_study_is_in_the_row_of_its_system(script: ModuleType) -> None:
    entry = {"claims": [{"verdict": "refuted"}, {"verdict": "supported"}]}
    (row,) = [line for line in script.table({"sppo-tiny": entry}).splitlines() if "sppo" in line]
    assert row.endswith("| none yet; `sppo-tiny`: 1 supported, 1 refuted |")


def test_another_verdict_makes_all_three_stale(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The same command finds it and mends it."""
    results = tmp_path / "docs" / "results"
    (tmp_path / "src" / "equipoise" / "studies").mkdir(parents=True)
    entry = json.loads((script.RESULTS / "sago" / "verdicts.json").read_text(encoding="utf-8"))
    for claim in entry["sago"]["claims"]:
        claim["verdict"] = "supported"
    (results / "sago").mkdir(parents=True)
    for name in ("report.html", "results.parquet"):
        (results / "sago" / name).write_bytes((script.RESULTS / "sago" / name).read_bytes())
    (results / "sago" / "verdicts.json").write_text(verdicts_json(entry), encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(script.README.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "RESULTS", results)
    monkeypatch.setattr(script, "README", readme)
    monkeypatch.setattr(script, "INDEX", results / "index.html")
    monkeypatch.setattr(script, "VERDICTS", tmp_path / "src" / "equipoise" / "studies" / "verdicts.json")
    monkeypatch.setattr("sys.argv", ["published.py", "--check"])
    assert script.main() == 1
    told = capsys.readouterr().out.splitlines()
    assert sorted(line.split(" is ")[0] for line in told) == sorted(
        ["README.md", "docs/results/index.html", "src/equipoise/studies/verdicts.json"]
    )
    monkeypatch.setattr("sys.argv", ["published.py"])
    assert script.main() == 0 and script.stale() == {}
    claims = len(entry["sago"]["claims"])
    assert f"arxiv.org/abs/2604.14808) | {claims} supported |" in readme.read_text(encoding="utf-8")
    assert readme.read_text(encoding="utf-8").count("| none yet |") == len(script.registry.systems()) - 1
    assert 'href="sago/report.html"' in (results / "index.html").read_text(encoding="utf-8")


def test_verdicts_are_gathered_once_each_and_never_of_a_preview(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(verdicts_json({"a": {"claims": [{"verdict": "refuted", "preview": False}]}}), encoding="utf-8")
    two.write_text(verdicts_json({"b": {"claims": []}}), encoding="utf-8")
    assert list(gathered([two, one])) == ["b", "a"]
    assert verdicts_json(gathered([two, one])) == verdicts_json(gathered([one, two]))
    with pytest.raises(BadInput, match="verdicts of 'a', which another file holds"):
        gathered([one, one])
    two.write_text(verdicts_json({"b": {"claims": [{"verdict": "undecided", "preview": True}]}}), encoding="utf-8")
    with pytest.raises(BadInput, match="preview of 'b'"):
        gathered([one, two])
