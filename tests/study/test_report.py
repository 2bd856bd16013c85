"""The report of a made-up study that has everything in it, looked at as text and as a table."""

import dataclasses
import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.study import Claim, Outcome, Study, better, not_worse
from equipoise.study.judging import Effect, Judgement, Summary
from equipoise.study.report import _cost_chart, _end, _View, render
from equipoise.study.results import Results, items_schema, measurements_schema
from equipoise.study.summary_text import counts, place_words, publish, published, published_counts, summary_values
from equipoise.study.table import check_rates, tidy
from judging_results import Book, declare
from made_study import STEPS, N, rendered_from_one_seed, shown


def count_of(results: Results, arm: str, outcome: str) -> str:
    """The count at the end of the path over all seeds, straight from the table."""
    rows = [
        row
        for row in results.measurements.to_pylist()
        if (row["arm"], row["outcome"], row["at"]) == (arm, outcome, '{"step": 200}') and "test" in row["where"]
    ]
    return f"{sum(row['numerator'] for row in rows):,.0f} of {sum(row['of'] for row in rows):,.0f}"


def test_every_claim_stands_there_with_its_verdict_numbers_margin_and_reason(made: tuple) -> None:
    study, _, judgement, path = made
    page = shown(path)
    for verdict in judgement.verdicts:
        start = page.index(verdict.claim.source + " " + verdict.claim.text)
        before, after = page[max(0, start - 60) : start], page[start : start + 900]
        assert ("known in advance" if verdict.claim.source.startswith("card") else verdict.state) in before
        for run in verdict.runs:
            assert run in page
        if verdict.claim.test is not None:
            assert study.scale in after
    assert "Margin 0.02: the spread between two seeds of one arm." in page
    assert "An advantage above 0.02: +0.076 [+0.045, +0.107] over 10 seeds and 200 items at 98.33 %." in page
    assert "[−0.013, +0.021]" in page  # a true minus
    assert "Not tested here: needs 8 GPUs." in page
    assert page.index("Verdicts") < page.index("What was traded") < page.index("Known in advance and exploratory")


def test_both_views_paths_costs_selection_runs_settings_and_command(made: tuple) -> None:
    _, results, judgement, path = made
    page = shown(path)
    for words in (
        "at equal budget (optimizer_steps)",
        "retain_accuracy where forget_accuracy reaches 0.4",
        "lower is better ↓, chance 0.25",
        count_of(results, "sum", "forget_accuracy"),
        "Work per run",
        "Spent by the whole study",
        "Each arm tried 3 settings on 2 tuning seeds",
        "untrained has one setting: nothing is trained",
        "loss is nan at step 63 <b>see</b> train.log",
        "gave up",
        "58 of 60 complete",
        results.environment["command"],
        "torch 2.13.0",
        judgement.design[0],
        judgement.notes[0],
    ):
        assert words in page, words
    assert page.count("✓ chosen") == 5
    assert "Preview" not in page


def test_every_figure_has_a_text_a_table_and_its_run_folders(made: tuple) -> None:
    source = made[3].read_text(encoding="utf-8")
    figures = re.findall(r'<figure class="plot".*?</figure>', source, flags=re.DOTALL)
    assert len(figures) == 2 + 3 + 4  # two views, three paths, four costs
    for figure in figures:
        assert len(re.search(r'role="img" aria-label="([^"]+)"', figure)[1]) > 60
        assert "<table" in figure and "sago-p1-s0" in figure


class _Outline(HTMLParser):
    """Headings, figures with the run folders beside them, tables, ids and what can be pressed, in reading order."""

    VOID = frozenset({"meta", "br", "hr", "link", "input", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, dict]] = []
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.figures: list[dict] = []
        self.cards: list[dict] = []
        self.tables: list[dict] = []
        self.buttons: list[dict] = []
        self.colours_alone: list[dict] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = {name: value or "" for name, value in attrs}
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.ids += [of["id"]] if "id" in of else []
        self.references += of.get("aria-labelledby", "").split() + (
            [of["href"][1:]] if of.get("href", "").startswith("#") else []
        )
        entry = {**of, "tag": tag, "text": "", "runs": [], "columns": 0, "rows": 0, "label": ""}
        for kind, stored in (("figure", self.figures), ("article", self.cards), ("table", self.tables)):
            if tag == kind:
                stored.append(entry | {"card": self.cards[-1] if self.inside("article") else None})
                entry = stored[-1]
        if tag == "button":
            self.buttons.append(entry)
        if "badge" in of.get("class", "").split():
            self.colours_alone.append(entry)
        if tag == "div" and of.get("role") == "img":
            self.figures[-1]["label"] = of["aria-label"]
        if tag == "th":
            self.tables[-1]["columns" if of.get("scope") == "col" else "rows"] += of.get("scope") in ("col", "row")
        if tag not in self.VOID:
            self.open.append((tag, entry))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Shapes in a legend: nothing is inside them."""

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for _, entry in self.open:
            entry["text"] += data
        if self.inside("code") and any("names" in of.get("class", "") for _, of in self.open):
            for tag, entry in self.open:
                if tag in ("figure", "article"):
                    entry["runs"].append(data)

    def inside(self, tag: str) -> bool:
        return any(name == tag for name, _ in self.open)


@pytest.fixture(scope="module")
def outline(made: tuple) -> _Outline:
    reader = _Outline()
    reader.feed(re.sub(r"<script.*?</script>", "", made[3].read_text(encoding="utf-8"), flags=re.DOTALL))
    return reader


def test_every_figure_names_the_run_folders_that_it_was_made_from(made: tuple, outline: _Outline) -> None:
    _, results, judgement, _ = made
    complete = [r.key for r in results.runs if r.role == "test" and r.state == "complete"]
    assert len(outline.figures) == 13 and len(complete) == 58
    at_level = [key for s in judgement.summaries if "forget_accuracy" in s.at for key in s.runs]
    for figure in outline.figures:
        if figure["class"] == "bare":  # in the card of a verdict, which names the runs of the verdict
            verdict = next(v for v in judgement.verdicts if v.claim.text in figure["card"]["text"])
            assert sorted(figure["card"]["runs"]) == sorted(verdict.runs) and verdict.runs
        elif "reaches" in figure["text"]:
            assert sorted(figure["runs"]) == sorted(at_level)
        else:
            assert sorted(figure["runs"]) == sorted(complete), figure["text"][:60]


def test_a_page_can_be_used_without_eyes_and_without_a_mouse(outline: _Outline) -> None:
    assert outline.headings[0] == 1 and outline.headings.count(1) == 1
    assert all(later <= before + 1 for before, later in zip(outline.headings, outline.headings[1:], strict=False))
    assert len(outline.ids) == len(set(outline.ids)) and set(outline.references) <= set(outline.ids)
    for table in outline.tables:
        assert table["aria-labelledby"] in outline.ids and table["columns"] > 1 and table["rows"] > 0
    for figure in outline.figures:
        assert len(figure["label"]) > 60
    for button in outline.buttons:
        assert button["type"] == "button" and button["aria-pressed"] == "false" and button["text"].strip()
    for badge in outline.colours_alone:  # a word beside the colour, and not only a sign
        assert re.search(r"[a-z]{4,}", badge["text"]), badge


def test_a_hostile_name_is_text_everywhere(made: tuple) -> None:
    path = made[3]
    source = path.read_text(encoding="utf-8")
    assert "<script>alert" not in source
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in source
    assert "<script" not in (path.parent / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r'(?:src|href)="([^#][^"]*)"', re.sub(r"<script.*?</script>", "", source, flags=re.DOTALL))
    assert linked == ["https://arxiv.org/abs/2604.14808"]


def test_the_page_is_light(made: tuple) -> None:
    assert made[3].stat().st_size < 1_200_000


def test_the_same_results_give_the_same_bytes(made: tuple, tmp_path: Path) -> None:
    study, results, judgement, path = made
    again = render(study, results, judgement, tmp_path)
    for name in ("report.html", "report.md", "results.parquet"):
        assert (again.parent / name).read_bytes() == (path.parent / name).read_bytes()


def test_the_frontier_draws_means_over_seeds(made: tuple) -> None:
    _, results, _, path = made
    specs = re.findall(
        r'<script type="application/json" id="[^"]+">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL
    )
    frontier = next(json.loads(spec) for spec in specs if "ideal" in spec)
    frame = results.measurements.to_pandas()
    frame = frame[(frame["arm"] == "sago") & (frame["where"] == '{"split": "test"}')]
    means = frame.groupby(["outcome", "at"])["value"].mean()
    drawn = next(layer for layer in frontier["layer"] if layer["mark"]["type"] == "line")["data"]["values"]
    drawn = [row for row in drawn if row["arm"] == "sago"]
    assert len(drawn) == len(STEPS)
    for row, step in zip(drawn, STEPS, strict=True):
        at = json.dumps({"step": step})
        assert row["x"] == pytest.approx(means["forget_accuracy", at], rel=1e-5)
        assert row["y"] == pytest.approx(means["retain_accuracy", at], rel=1e-5)
    seeds = next(layer for layer in frontier["layer"] if layer["mark"].get("size") == 18)["data"]["values"]
    last = frame[(frame["at"] == json.dumps({"step": 200})) & (frame["outcome"] == "retain_accuracy")]
    assert [row["y"] for row in seeds if row["arm"] == "sago"] == pytest.approx(list(last.sort_values("seed")["value"]))


def test_bands_are_t_intervals(made: tuple) -> None:
    from scipy import stats

    _, results, _, path = made
    specs = re.findall(
        r'<script type="application/json" id="[^"]+">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL
    )
    figures = [spec for spec in map(json.loads, specs) if any(each["mark"]["type"] == "area" for each in spec["layer"])]
    row = next(row for row in figures[1]["data"]["values"] if row["arm"] == "sum" and row["x"] == 60)
    frame = results.measurements.to_pandas()
    chosen = frame[(frame["arm"] == "sum") & (frame["outcome"] == "retain_accuracy") & (frame["at"] == '{"step": 60}')]
    values = chosen[chosen["where"] == '{"split": "test"}']["value"]
    expected = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    assert (row["y1"], row["y2"]) == pytest.approx(expected, rel=1e-4)


def test_results_table_stands_alone(made: tuple) -> None:
    study, results, _, path = made
    import pandas as pd
    import pyarrow.parquet as parquet

    table = parquet.read_table(path.parent / "results.parquet")
    frame = pd.read_parquet(path.parent / "results.parquet")
    pd.testing.assert_frame_equal(frame, tidy(study, results).to_pandas())
    assert len(frame) == results.measurements.num_rows
    row = frame[(frame["run"] == "sago-p1-s4") & (frame["outcome"] == "retain_accuracy") & (frame["step"] == 200)]
    row = row[row["where"] == '{"split": "test"}'].iloc[0]
    assert row["value"] == row["numerator"] / row["of"] and bool(row["chosen"]) and row["kind"] == "method"
    assert json.loads(row["settings"]) == {"combine": "sago", "rate": 3e-4}
    assert frame.loc[frame["arm"] == "untrained", "step"].isna().all()
    about = json.loads(table.schema.metadata[b"equipoise"])
    assert {run["run"]: run["state"] for run in about["runs"]}["pcgrad_global-p1-s7"] == "failed"
    assert about["environment"]["torch"] == "2.13.0"


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("numerator", 66.4, "66.4 of 200"),
        ("numerator", 201.0, "201 of 200"),
        ("value", 0.123456, "0.123456 is not attainable"),
        ("numerator and value", 201.0, "201 of 200"),
        ("numerator and value", -1.0, "-1 of 200"),
        ("numerator and value", 66.4, "66.4 of 200"),
        ("of", 0.5, "of 0.5"),
        ("missing", -1, "-1 missing"),
    ],
)
def test_an_unattainable_rate_is_refused_before_anything_is_written(
    made: tuple, tmp_path: Path, column: str, value: float, words: str
) -> None:
    study, results, judgement, _ = made
    columns = results.measurements.to_pydict()
    if column == "numerator and value":  # consistent with each other, and still no count
        columns["numerator"][40], columns["value"][40] = value, value / N
    else:
        columns[column][40] = value
    changed = dataclasses.replace(results, measurements=pa.table(columns, schema=results.measurements.schema))
    check_rates(results)
    with pytest.raises(WorkFailed, match=r"is not attainable as") as refused:
        render(study, changed, judgement, tmp_path / "out")
    assert words in str(refused.value) and results.runs[columns["run"][40]].key in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("numerator", "of", "value"), [(1.0, 1.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, math.nan)])
def test_a_rate_of_one_answer_or_none_is_attainable(made: tuple, numerator: float, of: float, value: float) -> None:
    columns = made[1].measurements.to_pydict()
    columns["numerator"][40], columns["of"][40], columns["value"][40] = numerator, of, value
    check_rates(dataclasses.replace(made[1], measurements=pa.table(columns, schema=made[1].measurements.schema)))


def test_a_summary_with_an_impossible_count_is_refused(made: tuple, tmp_path: Path) -> None:
    study, results, judgement, _ = made
    wrong = dataclasses.replace(judgement.summaries[0], numerator=12.5, of=40.0)
    with pytest.raises(WorkFailed, match=r"forget_accuracy of sum cannot be printed: 12.5 of 40"):
        render(study, results, dataclasses.replace(judgement, summaries=(wrong, *judgement.summaries[1:])), tmp_path)


def test_a_value_that_its_own_answers_do_not_give_is_refused(tmp_path: Path) -> None:
    """7 of 10 right answers beside a stored 0.335: the count would be printed beside a value that it cannot give."""
    from judging_results import Book, declare

    def stored(value: float, answers: list[float]) -> Results:
        book = Book(study)
        for arm in ("sago", "pcgrad"):
            for seed in range(5):
                book.score(arm, seed, "accuracy", [1.0] * 6 + [0.0] * 4, at={"step": 1})
                book.measure(arm, seed, "accuracy", 0.6, at={"step": 1})
        book.score("sago", 5, "accuracy", answers, at={"step": 1})
        book.measure("sago", 5, "accuracy", value, at={"step": 1})
        return book.results()

    study = declare()
    right = [1.0] * 7 + [0.0] * 3
    for value, answers in (
        (0.7, right),
        (0.75, [1.0] * 6 + [0.0] * 2 + [math.nan]),  # an answer that is missing is in neither
        (0.335, [0.5, *right]),  # scores that are not right or wrong are no count
        (math.nan, right),
    ):
        check_rates(stored(value, answers))
    with pytest.raises(WorkFailed, match=r"sago-0-5: accuracy = 0.335, but 7 of its 10 answers are right at step 1"):
        render(study, stored(0.335, right), judged_by_rules(study, stored(0.335, right)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def judged_by_rules(study: Study, results: Results) -> Judgement:
    from equipoise.study.judging import judge

    return judge(study, results)


def test_undefined_is_said_and_zero_of_zero_is_no_rate(made: tuple, tmp_path: Path) -> None:
    study, results, judgement, _ = made
    columns = results.measurements.to_pydict()
    columns["value"][40], columns["numerator"][40], columns["of"][40] = math.nan, 0.0, 0.0
    changed = dataclasses.replace(results, measurements=pa.table(columns, schema=results.measurements.schema))
    undefined = dataclasses.replace(
        judgement.summaries[0], estimate=math.nan, lower=math.nan, upper=math.nan, numerator=0.0, of=0.0
    )
    path = render(
        study, changed, dataclasses.replace(judgement, summaries=(undefined, *judgement.summaries[1:])), tmp_path
    )
    assert "sum baseline undefined undefined – 10 step 200" in shown(path)


def test_a_preview_says_so_and_is_not_published(made: tuple, tmp_path: Path) -> None:
    study, results, judgement, _ = made
    runs = [r if r.seed < 3 or r.role == "tuning" else dataclasses.replace(r, state="absent") for r in results.runs]
    kept = pa.array([runs[i].seed < 3 for i in results.measurements["run"].to_pylist()])
    few = dataclasses.replace(results, runs=runs, measurements=results.measurements.filter(kept))
    verdicts = tuple(dataclasses.replace(v, state="undecided", preview=True) for v in judgement.verdicts[:1])
    preview = dataclasses.replace(judgement, verdicts=verdicts)
    path = render(study, few, preview, tmp_path)
    page, short = shown(path), (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Preview. 3 of 10 seeds are complete." in page and "undecided (preview)" in page and "3 of 10 seeds" in short
    with pytest.raises(WorkFailed, match="3 of 10 seeds are complete"):
        publish(tmp_path / "all.json", study, few, preview)
    assert not (tmp_path / "all.json").exists()
    assert published(tmp_path / "verdicts.json")["sago"]["claims"][0]["preview"]  # beside the report, and says so


def test_runs_of_other_code_are_said_so_and_not_published(made: tuple, tmp_path: Path) -> None:
    study, results, judgement, path = made
    assert "Each claim was declared before any result." in shown(path)
    edited = dataclasses.replace(results, other_code=True)
    page = shown(render(study, edited, judgement, tmp_path))
    assert "declared before any result" not in page
    assert "torch or transformers), so the claims may be younger than the results." in page
    assert "**Other code:**" in (tmp_path / "report.md").read_text(encoding="utf-8")
    publish(tmp_path / "all.json", study, results, judgement)
    with pytest.raises(WorkFailed, match="another version of the code"):
        publish(tmp_path / "other.json", study, edited, judgement)
    assert not (tmp_path / "other.json").exists()


def test_one_seed_is_said_and_no_interval_is_drawn_from_it(made: tuple, tmp_path: Path) -> None:
    path = rendered_from_one_seed(made, tmp_path)
    source, page = path.read_text(encoding="utf-8"), shown(path)
    specs = re.findall(r'<script type="application/json" id="[^"]+">(.*?)</script>', source, re.DOTALL)
    layers = [layer for spec in specs for layer in json.loads(spec)["layer"]]
    assert len(specs) == 8 and not [layer for layer in layers if "transform" in layer]
    assert "One seed: how much another would differ is not known" in page
    assert page.lower().count("one seed, so no intervals") == 3 and "95 % interval over seeds" not in page
    assert "| one seed |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_head_says_what_is_weighed_and_links_the_paper(made: tuple, tmp_path: Path) -> None:
    study, results, judgement, _ = made
    told = dataclasses.replace(study, summary="Sign-aligned gradients against the sum.")
    head = shown(render(told, results, judgement, tmp_path))[:400]
    assert "sago Sign-aligned gradients against the sum. What it trades: forgetting for retention." in head
    assert "Paper arXiv:2604.14808 Seeds 10 of 10" in head


def test_what_all_arms_share_is_said_once_below_their_table(made: tuple) -> None:
    page = shown(made[3])
    assert "Multiple choice on what is to be forgotten; 0 missing." in page  # the last place differs
    table = page[page.index("forget_accuracy, lower is better ↓, chance 0.25 arm") :][:200]
    assert "arm value 95 % interval over seeds counted all seeds seeds at sum baseline" in table


def test_nothing_stored_still_gives_a_page(made: tuple, tmp_path: Path) -> None:
    study, _, judgement, _ = made
    empty = Results("sago", {}, {}, [], {}, measurements_schema().empty_table(), items_schema().empty_table())
    verdicts = tuple(
        dataclasses.replace(
            v,
            state="undecided" if v.claim.test else "untested",
            reason="no complete run",
            effects=(),
            runs=(),
            details={},
        )
        for v in judgement.verdicts
    )
    path = render(study, empty, Judgement("sago", verdicts, (), (), ()), tmp_path)
    assert "0 of 0 runs complete" in shown(path) and "No complete run." in shown(path)


def test_markdown_for_a_pull_request(made: tuple) -> None:
    short = (made[3].parent / "report.md").read_text(encoding="utf-8")
    rows = [line for line in short.splitlines() if line.startswith("| **")]
    assert [re.match(r"\| \*\*(\w+)", row)[1] for row in rows] == [
        "supported",
        "refuted",
        "undecided",
        "untested",
        "exploratory",
    ]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
    assert "+0.076 (98.3\u00a0% interval +0.045 to +0.107; 10 seeds, 200 items)" in rows[0]
    sago = next(s for s in made[2].summaries if (s.arm, s.outcome) == ("sago", "retain_accuracy"))
    numbers = f"{sago.estimate:.3f} | {sago.lower:.3f} to {sago.upper:.3f}"
    assert f"| sago | {numbers} | {count_of(made[1], 'sago', 'retain_accuracy')} | 3 | 10 |" in short


def test_markdown_shows_the_matched_view_and_how_many_seeds_came_to_it(made: tuple, tmp_path: Path) -> None:
    study, results, judgement, path = made
    short = (path.parent / "report.md").read_text(encoding="utf-8")
    matched_part = short[short.index("**retain\\_accuracy where forget\\_accuracy reaches 0.4**") :]
    assert "| sago | 0.731 | 0.717 to 0.745 | 10 |" in matched_part and "by their fate" not in short
    assert "untrained" not in matched_part.split("Made by")[0]
    few = tuple(
        dataclasses.replace(s, seeds=9, runs=s.runs[1:]) if s.arm == "sago" and "forget_accuracy" in s.at else s
        for s in judgement.summaries
    )
    page = shown(render(study, results, dataclasses.replace(judgement, summaries=few), tmp_path))
    short = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| sago | 0.731 | 0.717 to 0.745 | 9 of 10 |" in short and "they decide nothing" in short
    assert "came to the level (sago 9 of 10)" in page


def test_verdicts_are_published_and_read_back(made: tuple, tmp_path: Path) -> None:
    study, results, judgement, _ = made
    costly = dataclasses.replace(results.runs[0], threads=4)
    taught = dataclasses.replace(results.runs[0], role="preparation", cost={"work": {"build": {"seconds": 1000.0}}})
    results = dataclasses.replace(results, runs=[costly, *results.runs[1:]], preparations=[taught])
    path = tmp_path / "verdicts.json"
    assert published(path) == {}
    path.write_text('{"other": {"claims": [{"verdict": "refuted"}]}}', encoding="utf-8")
    undefined = dataclasses.replace(judgement.verdicts[0].effects[0], lower=math.nan)
    first = dataclasses.replace(judgement.verdicts[0], effects=(undefined,))
    publish(path, study, results, dataclasses.replace(judgement, verdicts=(first, *judgement.verdicts[1:])))
    entries = published(path)
    assert (
        published_counts(entries["sago"])
        == counts(judgement)
        == {"supported": 1, "refuted": 1, "undecided": 1, "untested": 1}
    )
    assert published_counts(entries["other"]) == {"refuted": 1}
    [effect] = entries["sago"]["claims"][0]["effects"]
    assert effect["estimate"] == 0.076 and effect["lower"] is None and effect["seeds"] == 10
    needed = 1000 + sum(run.threads * phase["seconds"] for run in results.runs for phase in run.cost["work"].values())
    assert entries["sago"]["recorded"] == {
        "core_seconds": round(needed),
        "runs": sum(run.role == "test" for run in results.runs),
        "tuning_runs": sum(run.role == "tuning" for run in results.runs),
        "preparations": 1,
    }
    assert not re.search(r"20\d\d-\d\d|/work|/tmp", path.read_text(encoding="utf-8").replace("2604", ""))
    before = path.read_bytes()
    publish(path, study, results, dataclasses.replace(judgement, verdicts=(first, *judgement.verdicts[1:])))
    assert path.read_bytes() == before
    for broken in ("{", "[]", '{"a": 1}'):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(BadInput, match="published verdicts"):
            published(path)


def test_a_cost_claim_is_drawn_as_a_factor(made: tuple) -> None:
    from equipoise.study.claims import cheaper
    from equipoise.study.report import _effect_chart
    from equipoise.study.summary_text import effect_numbers, effect_test, margin_sentence

    test = cheaper("seconds", arm="sago", rival="sum", by=1.5, reason="less is noise")
    effect = Effect(
        "seconds: sago against sum",
        math.log(2),
        math.log(1.6),
        math.log(2.5),
        0.95,
        9,
        10,
        0,
        "log ratio",
        (math.log(2.2),),
        math.log(1.5),
        "arm",
        test,
    )
    assert effect_test(effect, Claim("c", source="s", test=better("seconds", arm="sago", rival="sum"))) is None
    assert effect_test(effect, Claim("c", source="s", test=test)) is test
    assert effect_numbers(effect, test) == "2.00 times less (95\u00a0% interval 1.60 to 2.50; 10 seeds)"
    assert margin_sentence(effect, test) == "Held against a factor of 1.5: less is noise."
    assert _effect_chart(effect, test).rows[0][1:4] == pytest.approx((2.0, 1.6, 2.5))


def test_margins_stand_on_the_side_that_the_rule_says() -> None:
    from equipoise.study.claims import equal
    from equipoise.study.report import _effect_chart

    effect = Effect("a: x against y", 0.01, -0.02, 0.04, 0.95, 9, 10, 0, "", (0.0, 0.02), 0.05, "neither")
    for rule, at in ((better, [0.0, 0.05]), (not_worse, [0.0, -0.05]), (equal, [-0.05, 0.0, 0.05])):
        test = rule("a", arm="x", rival="y", margin=0.05, reason="r")
        layers = _effect_chart(effect, test).spec["layer"]
        uprights = [
            layer["data"]["values"][0]["x"] for layer in layers if layer["mark"]["type"] == "rule" and "data" in layer
        ]
        assert sorted(uprights) == sorted(at)


def test_a_long_path_is_thinned_and_keeps_its_ends(made: tuple, tmp_path: Path) -> None:
    from equipoise.study.tracks import MOST_PLACES, tracks_of

    study, results, _, _ = made
    pair = [next(r for r in results.runs if r.key == key) for key in ("sago-p1-s0", "sum-p1-s0")]
    walked = [(i, step) for i, steps in enumerate((5000, 3400)) for step in range(steps)]
    blank = dict.fromkeys(results.measurements.column_names, 0) | {"where": "", "outcome": "perplexity"}
    rows = [
        blank | {"run": i, "at": json.dumps({"step": step}), "value": step / 2, "order": step} for i, step in walked
    ]
    one = dataclasses.replace(results, runs=pair, measurements=pa.Table.from_pylist(rows))
    [track] = tracks_of(study, one, pair)
    assert track.places[0] == 0 and track.places[-1] == 4999 and len(track.values["sago"]) == MOST_PLACES
    assert all(track.values["sago"][place] == {0: place / 2} for place in track.values["sago"])
    assert track.ends("sago") == {0: 4999 / 2} and track.ends("sum") == {0: 3399 / 2}
    # What was measured under several conditions has a track for each; of splits it is the test split, which goes unsaid.
    parts = [("test", "near", 1.0), ("test", "far", 2.0), ("validation", "near", 3.0)]
    rows = [
        blank | {"where": json.dumps({"split": split, "side": side}), "at": "{}", "value": value, "order": order}
        for order, (split, side, value) in enumerate(parts)
    ]
    found = tracks_of(study, dataclasses.replace(one, measurements=pa.Table.from_pylist(rows)), pair)
    assert [(each.condition, each.ends("sago")) for each in found] == [("side near", {0: 1.0}), ("side far", {0: 2.0})]


def two_arms(rows: list[dict[str, Any]], dial: str = "step") -> tuple[Study, Results]:
    """Four seeds of two arms that all measured the same: `rows` are the keywords of Book.measure."""
    outcomes = [Outcome("right", better="higher"), Outcome("kept", better="higher")]
    claim = Claim("x", source="here", test=better("right", arm="a", rival="b"))
    study = declare(claim, outcomes=outcomes, arms=("a", "b"), seeds=4, dial=dial)
    book = Book(study)
    for arm, seed in itertools.product("ab", range(4)):
        for row in rows:
            book.measure(arm, seed, **row)
    return study, book.results()


def ends(study: Study, results: Results) -> dict[str, tuple[float, float]]:
    """Where each track of arm a ends: by its own values, and as the large mark shows it."""
    view = _View(study, results, judged_by_rules(study, results))
    return {track.title: (track.ends("a")[0], round(_end(view, "a", track)[0], 9)) for track in view.tracks}


def test_a_path_is_not_drawn_of_validation_items_and_splits_are_not_mixed() -> None:
    def of(**values: float) -> list[dict[str, Any]]:
        return [
            {"outcome": "right", "value": v, "at": {"step": 1}, "where": {"split": s} if s != "none" else None}
            for s, v in values.items()
        ]

    assert ends(*two_arms(of(none=0.5, validation=0.9))) == {"right": (0.5, 0.5)}
    assert ends(*two_arms(of(train=0.7, validation=0.9, test=0.5))) == {"right": (0.5, 0.5)}
    assert ends(*two_arms(of(near=0.2, validation=0.9, far=0.4))) == {
        "right (split near)": (0.2, 0.2),
        "right (split far)": (0.4, 0.4),
    }
    assert ends(*two_arms(of(near=0.2, validation=0.9))) == {"right": (0.2, 0.2)}
    assert ends(*two_arms(of(validation=0.9))) == {"right (split validation)": (0.9, 0.9)}


def test_the_large_mark_is_at_the_place_of_its_track(tmp_path: Path) -> None:
    """Whatever was measured first: another condition, another split, or a place with more in it."""
    test = {"split": "test"}
    rows = [
        {"outcome": "right", "value": 0.2, "at": {"step": 3}, "where": test | {"subset": "hard"}},
        {"outcome": "right", "value": 0.3, "at": {"step": 3}, "where": {"split": "train"}},
        {"outcome": "right", "value": 0.8, "at": {"step": 3, "seconds": 7}, "where": test},
        {"outcome": "kept", "value": 0.1, "at": {"step": 3}, "where": test},
        {"outcome": "kept", "value": 0.6, "at": {"step": 3, "rounds": 5}, "where": test},
    ]
    study, results = two_arms(rows)
    assert ends(study, results) == {
        "right (subset hard)": (0.2, 0.2),
        "right": (0.8, 0.8),
        "kept": (0.1, 0.1),
        "kept (rounds 5)": (0.6, 0.6),
    }
    page = shown(render(study, results, judged_by_rules(study, results), tmp_path))
    assert "split train" in page and "split test, subset hard" in page  # rows of the table, told apart
    assert "| a, split train |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_an_undefined_proportion_of_one_run_is_no_end_of_the_report(tmp_path: Path) -> None:
    study, results = two_arms([{"outcome": "right", "value": 5, "of": 10}, {"outcome": "kept", "value": 3, "of": 10}])
    columns = results.measurements.to_pydict()
    columns["value"][0] = columns["numerator"][0] = math.nan
    results.measurements = pa.table(columns, schema=results.measurements.schema)
    check_rates(results)
    judgement = judged_by_rules(study, results)
    assert not [note for note in judgement.notes if "is no count" in note]
    assert "missing or undefined" in judgement.verdicts[0].reason
    page = shown(render(study, results, judgement, tmp_path))
    assert "a undefined undefined" in page and "20 of 40" in page and "12 of 40" in page
    columns["numerator"][1] = 5.5  # a count that is none is told as before
    with pytest.raises(WorkFailed, match="is not attainable"):
        check_rates(dataclasses.replace(results, measurements=pa.table(columns, schema=results.measurements.schema)))


def test_a_bar_of_costs_is_the_mean_over_all_judged_runs() -> None:
    """A phase that few runs had counts for little, and one that only lost attempts had is paid for."""
    study, results = two_arms([{"outcome": "right", "value": 0.5}])
    work = {"query": {"calls": 10.0, "peak_bytes": 2.0**20}}
    runs = [dataclasses.replace(run, cost={"work": work, "spent": work}) for run in results.runs]
    repaired = work | {"repair": {"calls": 100.0}}
    runs[1] = dataclasses.replace(runs[1], cost={"work": repaired, "spent": repaired | {"lost": {"calls": 8.0}}})
    results.runs = runs
    view = _View(study, results, judged_by_rules(study, results))
    layers = _cost_chart(view, view.judged, "calls").spec["layer"]
    bars, ticks = ([(row["arm"], row["x"]) for row in layer["data"]["values"]] for layer in layers[:2])
    assert bars == [("a", 10), ("a", 25), ("a", 0), ("b", 10)] and ticks == [("a", 37)]  # (4 * 10 + 100 + 8) / 4
    peaks = _cost_chart(view, view.judged, "peak_bytes").spec["layer"][0]["data"]["values"]
    assert [row["x"] for row in peaks] == [1, 1]


def test_a_place_may_hold_a_list(tmp_path: Path) -> None:
    layers = [[1, 2], [3]]
    rows = [{"outcome": "right", "value": i + 0.1, "at": {"step": 1, "layers": each}} for i, each in enumerate(layers)]
    study, results = two_arms(rows)
    assert ends(study, results) == {"right (layers [1, 2])": (0.1, 0.1), "right (layers [3])": (1.1, 1.1)}
    render(study, results, judged_by_rules(study, results), tmp_path)


def test_the_real_judge_and_this_report_agree(made: tuple, tmp_path: Path) -> None:
    from equipoise.study.judging import judge

    study, results, _, _ = made
    columns = results.measurements.to_pydict()
    columns["missing"] = [0] * len(columns["missing"])
    whole = dataclasses.replace(results, measurements=pa.table(columns, schema=results.measurements.schema))
    judgement = judge(study, whole)
    page = shown(render(study, whole, judgement, tmp_path))
    assert "retain_accuracy where forget_accuracy reaches 0.4" in page
    assert "Where each run crossed forget_accuracy" in page
    for verdict in judgement.verdicts:
        for effect in verdict.effects:
            assert effect.label in page
    sago = next(s for s in judgement.summaries if (s.arm, s.outcome) == ("sago", "forget_accuracy"))
    assert f"sago {sago.estimate:.3f}" in page


def test_the_place_of_a_column_is_that_of_the_arm_in_the_middle() -> None:
    def summary(estimate: float, half: float, seeds: int = 10) -> Summary:
        nothing = (math.nan, math.nan, 0, ())
        return Summary("a", "o", "", "", estimate, estimate - half, estimate + half, seeds, *nothing)

    narrow, usual, wide = summary(1.0, 1e-6), summary(0.59491, 0.012), summary(0.5, 0.3)
    rows = summary_values([narrow, usual, wide, summary(0.25, math.nan), summary(0.25, 0.1, seeds=1)])
    assert [value for value, _, _ in rows] == ["1.000", "0.595", "0.500", "0.250", "0.250"]
    assert [between for _, between, _ in rows][1:] == ["0.583 to 0.607", "0.200 to 0.800", "no spread", "one seed"]


def test_places_in_words():
    assert place_words('{"network":"plain","split":"test"}') == "network plain"
    assert place_words('{"radius":0.6}') == "radius 0.6" and place_words("") == ""
