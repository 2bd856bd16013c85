"""`equipoise study`, word by word: all that each command prints, and what it hands to the library."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from equipoise.cli import main
from equipoise.cli import study as command
from equipoise.core import progress
from equipoise.core.errors import BadInput
from equipoise.study import registry
from equipoise.study.execute import Conducted

SOURCE = '''
from pathlib import Path
from typing import Annotated, Literal
from pydantic import Field
from equipoise.study import Arm, Claim, Outcome, Select, Study, better, cheaper, study

@study("tides", paper="arXiv:1", trades="ebb for flow")
def tides(moon: Literal["new", "full"] = "new", steps: Annotated[int, Field(ge=1, description="how long")] = 4,
          sea_level: float = 0.5, names: tuple[str, ...] = (), depth: int | None = None) -> Study:
    """Tides über alles.

    More of them.
    """
    return Study(
        seeds=3, budget="optimizer_steps", scale="a bay", run=run,
        select=Select("height", seeds=2, matched="calm", level=0.25),
        arms=[Arm("low", kind="baseline", pull=1, way="out", grid={"rate": [1, 2], "turn": [0.5]}),
              Arm("none", kind="control", fixed="nothing to tune"),
              Arm("high", grid={"rate": [3, 4]})],
        outcomes=[Outcome("height", better="higher", unit="m", description="of the water"),
                  Outcome("calm", better="lower", chance=0.5)],
        claims=[Claim("high is higher", source="abstract", test=better("height", arm="high", rival="low", units=("seed",))),
                Claim("high is cheap", source="table 1", primary=False,
                      test=cheaper("optimizer_steps", arm="high", rival="low", by=1.5, reason="tides turn")),
                Claim("the sea is deep", source="card", untested="needs 8 seas")])

def run(run):
    pass
'''

SHOWN = """\
tides: Tides über alles.
trades ebb for flow; arXiv:1
a bay
3 seeds, equal optimizer_steps
settings chosen on 2 tuning seeds by height on the validation split where calm reaches 0.25

Arms
  low (baseline)  pull=1, way=out; rate of 1, 2; turn of 0.5
  none (control)  ; one setting: nothing to tune
  high (method)  rate of 3, 4

Outcomes
  height in m, higher is better  of the water
  calm, lower is better, chance 0.5

Claims
  high is higher
    abstract; height of high against low at the end of the path: better
  high is cheap
    table 1; optimizer_steps of high against low: more than 1.5 times cheaper
  the sea is deep
    card; untested: needs 8 seas

Options
  --moon one of new, full  default new
  --steps integer from 1  default 4
  --sea-level number  default 0.5
  --names array  default []
  --depth integer or null  default None
"""


@pytest.fixture
def tides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tides.py").write_text(SOURCE, encoding="utf-8")
    registry._import_file.cache_clear()
    return registry.load("tides.py")


def study(*words):
    return main(["study", *map(str, words)])


def test_show_is_everything_a_study_declares(tides, capsys):
    assert study("show", "tides.py") == 0
    assert capsys.readouterr().out == SHOWN
    assert study("show", "tides.py", "--json") == 0
    out = capsys.readouterr().out
    assert "über" in out
    options = [
        {"name": "moon", "type": "one of new, full", "default": "new", "description": ""},
        {"name": "steps", "type": "integer from 1", "default": 4, "description": "how long"},
        {"name": "sea_level", "type": "number", "default": 0.5, "description": ""},
        {"name": "names", "type": "array", "default": [], "description": ""},
        {"name": "depth", "type": "integer or null", "default": None, "description": ""},
    ]
    arms = [
        {
            "name": "low",
            "kind": "baseline",
            "settings": {"pull": 1, "way": "out"},
            "grid": {"rate": [1, 2], "turn": [0.5]},
        },
        {"name": "none", "kind": "control", "settings": {}, "grid": {}, "fixed": "; one setting: nothing to tune"},
        {"name": "high", "kind": "method", "settings": {}, "grid": {"rate": [3, 4]}},
    ]
    tests = [line.strip().partition("; ")[2] for line in SHOWN.splitlines() if line.startswith("    ")]
    texts = [
        ("high is higher", "abstract", True),
        ("high is cheap", "table 1", False),
        ("the sea is deep", "card", False),
    ]
    assert json.loads(out) == {
        "name": "tides",
        "summary": "Tides über alles.",
        "trades": "ebb for flow",
        "paper": "arXiv:1",
        "scale": "a bay",
        "seeds": 3,
        "budget": "optimizer_steps",
        "select": SHOWN.splitlines()[4],
        "arms": [{"fixed": "", **arm} for arm in arms],
        "outcomes": [
            {"name": "height", "better": "higher", "chance": None, "unit": "m"},
            {"name": "calm", "better": "lower", "chance": 0.5, "unit": ""},
        ],
        "claims": [
            {"text": text, "source": source, "test": test, "judged": judged}
            for (text, source, judged), test in zip(texts, tests, strict=True)
        ],
        "options": options,
    }


def test_show_tells_what_the_published_study_took(tides, tmp_path, capsys):
    def shown(**recorded):
        options = {"moon": "new", "steps": 4, "sea_level": 0.5, "names": [], "depth": None} | recorded.pop(
            "options", {}
        )
        entry = {"claims": [], "options": options, **recorded}
        (tmp_path / "verdicts.json").write_text(json.dumps({"tides": entry}), encoding="utf-8")
        assert study("show", "tides.py") == 0
        return capsys.readouterr().out

    took = {"core_seconds": 3720, "runs": 126, "tuning_runs": 20, "preparations": 1}
    assert shown() == SHOWN
    before, line, after = shown(recorded=took).partition(
        "the recorded study took 31 min of two cores: 126 runs, 20 tuning runs, 1 preparation; default options\n"
    )
    assert line and before + after == SHOWN and before.count("\n") == 5
    took = {"core_seconds": 118, "runs": 1, "tuning_runs": 0, "preparations": 0}
    line = "the recorded study took 59 s of two cores: 1 run; moon full, depth 3\n"
    assert line in shown(recorded=took, options={"moon": "full", "depth": 3})
    assert study("show", "tides.py", "--json") == 0
    recorded = json.loads(capsys.readouterr().out)["recorded"]
    assert recorded.pop("options")["depth"] == 3 and recorded == took


def test_what_a_study_does_not_declare_leaves_no_trace(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = (
        SOURCE.replace('"tides"', '"plain"').replace('matched="calm", level=0.25', "").replace('scale="a bay", ', "")
    )
    (tmp_path / "plain.py").write_text(source, encoding="utf-8")
    registry._import_file.cache_clear()
    assert study("show", "plain.py") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "plain: Tides über alles.",
        "trades ebb for flow; arXiv:1",
        "3 seeds, equal optimizer_steps",
        "settings chosen on 2 tuning seeds by height on the validation split",
    ]
    source = source.replace('select=Select("height", seeds=2, ),', "")
    for grid in (', grid={"rate": [1, 2], "turn": [0.5]}', ', grid={"rate": [3, 4]}'):
        source = source.replace(grid, "")
    (tmp_path / "plain.py").write_text(source, encoding="utf-8")
    registry._import_file.cache_clear()
    assert study("show", "plain.py") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:8] == [
        "3 seeds, equal optimizer_steps",
        "",
        "Arms",
        "  low (baseline)  pull=1, way=out",
        "  none (control)  ; one setting: nothing to tune",
        "  high (method)  ",
    ]


def test_list_tells_what_was_published_and_what_is_broken(tides, tmp_path, monkeypatch, capsys):
    found = {
        "gone": registry.FoundStudy("gone", "entry point gone = x", None, ValueError("no sea")),
        "tides": registry.FoundStudy("tides", "tides.py", tides),
    }
    monkeypatch.setattr(registry, "found", lambda: found)
    assert study("list") == 0
    assert capsys.readouterr().out == (
        "gone   cannot be loaded (entry point gone = x): no sea\ntides  ebb for flow; not published yet\n"
    )
    verdicts = tmp_path / "verdicts.json"
    verdicts.write_text(json.dumps({"others": {"claims": [{"verdict": "supported"}]}}))
    assert study("list") == 0
    assert capsys.readouterr().out.splitlines()[1] == "tides  ebb for flow; not published yet"
    claims = [{"verdict": state} for state in ("undecided", "supported", "undecided")]
    verdicts.write_text(json.dumps({"tides": {"claims": claims}}))
    assert study("list") == 0
    assert capsys.readouterr().out.splitlines()[1] == "tides  ebb for flow; 1 supported, 2 undecided"
    assert study("list", "--json") == 0
    out = capsys.readouterr().out
    assert "über" in out
    assert json.loads(out) == [
        {"name": "gone", "origin": "entry point gone = x", "problem": "no sea"},
        {
            "name": "tides",
            "trades": "ebb for flow",
            "summary": "Tides über alles.",
            "paper": "arXiv:1",
            "origin": "tides.py",
            "verdicts": {"supported": 1, "undecided": 2},
        },
    ]
    monkeypatch.setattr(registry, "found", dict)
    assert study("list") == 0
    assert capsys.readouterr().out == ""


@pytest.fixture
def conducted(tides, monkeypatch):
    """`run` and `report` without their work: what they ask for, and an end that a test can choose."""
    seen = SimpleNamespace(end={}, asked=None, rendered=None, quiet=None)

    def run_study(declaration, given, **asked):
        seen.declaration, seen.given, seen.asked, seen.quiet = declaration, given, asked, progress.is_quiet()
        seen.done = Conducted(study=tides.build(**given), out=asked["out"], **seen.end)
        return seen.done

    def rendered(study, folders, out, **how):
        seen.rendered = (study.name, folders, out, how)

    monkeypatch.setattr("equipoise.study.execute.run_study", run_study)
    monkeypatch.setattr(command, "_judge_and_render", rendered)
    return seen


def test_run_hands_on_what_was_typed_and_its_defaults(tides, conducted, capsys):
    assert study("run", "tides.py") == 0
    show = conducted.asked.pop("show")
    assert show.title == "tides" and not conducted.quiet and conducted.declaration is tides
    usual = {"moon": "new", "steps": 4, "sea_level": 0.5, "names": [], "depth": None}
    assert conducted.given == usual
    out = Path("equipoise-out/study/tides")
    defaults = {
        "out": out,
        "seeds": None,
        "arms": None,
        "engine": "local",
        "workers": None,
        "threads": 1,
        "stall": 600.0,
        "budget": None,
        "fail_fast": False,
        "keep_going": False,
        "fresh": False,
        "retry": False,
        "command": "equipoise study run tides.py",
    }
    assert conducted.asked == defaults
    assert conducted.rendered == ("tides", [out], out, {"json": False, "done": conducted.done})
    words = "--seeds 2 --arms low,,high, --workers 3 --threads 2 --stall 9 --budget calls=5 --fail-fast --fresh --retry"
    words += " --engine inline --quiet --json -o here --moon full --set sea-level=1.5 --set steps=6 --names a,b"
    assert study("run", "tides.py", *words.split()) == 0
    del conducted.asked["show"]
    assert conducted.quiet
    assert conducted.given == {"moon": "full", "steps": 6, "sea_level": 1.5, "names": ["a", "b"], "depth": None}
    assert conducted.asked.pop("budget").limits == {"calls": 5}
    assert conducted.asked == {
        "out": Path("here"),
        "seeds": 2,
        "arms": ["low", "high"],
        "engine": "inline",
        "workers": 3,
        "threads": 2,
        "stall": 9.0,
        "fail_fast": True,
        "keep_going": False,
        "fresh": True,
        "retry": True,
        "command": 'equipoise study run tides.py --moon full --steps 6 --sea-level 1.5 --names \'["a", "b"]\' '
        "--seeds 2 --arms low,,high, --threads 2",
    }
    assert conducted.rendered[1:3] == ([Path("here")], Path("here")) and conducted.rendered[3]["json"] is True
    assert study("run", "tides.py", "--seed-list", "3, 0", "--seeds", "1") == 2
    assert capsys.readouterr().err == "equipoise: Give --seeds or --seed-list, not both.\n"
    assert study("run", "tides.py", "--seed-list", "3, 0") == 0
    assert conducted.asked["seeds"] == [3, 0]
    assert conducted.asked["command"] == "equipoise study run tides.py --seed-list '3, 0'"
    assert study("run", "tides.py", "--seeds", "1") == 0
    assert conducted.asked["seeds"] == 1 and conducted.asked["command"].endswith(" --seeds 1")


def test_the_stored_command_makes_the_same_results_where_options_are_called_as_flags(tmp_path, monkeypatch, conducted):
    """Typed anew it gives the study and the run what they had."""
    asked = "threads: int = 1, seeds: int = 0, budget: str = '', help: int = 0, set: str = '', name: str = 'a', "
    asked += "step_size: str = ''"
    text = SOURCE.replace('moon: Literal["new", "full"] = "new"', asked + ', moon: Literal["new", "full"] = "new"')
    (tmp_path / "flags.py").write_text(text.replace("tides", "flags"), encoding="utf-8")
    declared = registry.load(str(tmp_path / "flags.py"))
    monkeypatch.setattr(registry, "load", lambda name: declared)
    seen = conducted

    def run_study(declaration, given, **asked):
        seen.given, seen.asked = given, asked
        return Conducted(study=declared.build(**given), out=asked["out"])

    monkeypatch.setattr("equipoise.study.execute.run_study", run_study)
    given = ["threads=3", "seeds=7", "budget=x=y", "help=1", "set= two words", "name=b", "step-size=-x", "steps=5"]
    assert study("run", "flags.py", *(word for each in given for word in ("--set", each)), "--threads", "2") == 0
    first, how = conducted.given, conducted.asked
    assert (first["threads"], first["seeds"], first["step_size"], how["threads"], how["seeds"]) == (3, 7, "-x", 2, None)
    assert how["command"].startswith("equipoise study run flags.py --set threads=3 --set seeds=7 ")
    assert how["command"].endswith(" --set step_size=-x --steps 5 --threads 2")
    assert study(*shlex.split(how["command"])[2:]) == 0
    assert conducted.given == first and {**conducted.asked, "show": 0} == {**how, "show": 0}


def test_the_end_of_a_run_is_its_exit_code(conducted, capsys):
    broken = {f"run-{number}": ("failed", "why") for number in range(6)}
    conducted.end = {"failed": broken}
    assert study("run", "tides.py") == 1
    assert capsys.readouterr().err == "6 not done: run-0, run-1, run-2, run-3, run-4\n"
    conducted.end = {"failed": broken, "budget": "The budget is reached."}
    assert study("run", "tides.py") == 3
    assert capsys.readouterr().err == "The budget is reached.\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "0"], "--seeds is the number of test seeds, at least 1; got 0."),
        (
            ["--seed-list", "1,x"],
            "--seed-list takes whole numbers with commas between, as in --seed-list 0,3; got '1,x'.",
        ),
        (["--set", "steps"], "--set takes NAME=VALUE, as in --set steps=50; got 'steps'."),
    ],
)
def test_wrong_requests_of_run(conducted, capsys, words, said):
    assert study("run", "tides.py", *words) == 2
    assert capsys.readouterr().err == f"equipoise: {said}\n" and conducted.asked is None


def test_a_file_is_no_output_folder(tmp_path, capsys):
    (tmp_path / "report.html").write_text("x")
    for words in (["report", str(tmp_path / "report.html")], ["compare", str(tmp_path / "report.html"), str(tmp_path)]):
        assert study(*words) == 2
        assert "report.html holds no study.json; give the --out folder of" in capsys.readouterr().err


def test_report_reads_folders_of_one_study(tides, conducted, tmp_path, monkeypatch, capsys):
    stored = {
        Path("a"): {"study": "tides", "options": {"steps": 5}},
        Path("b"): {"study": "tides", "options": {"steps": 5}, "seeds": 1},
        Path("c"): {"study": "tides", "options": {"steps": 6}},
        Path("d"): {"study": "waves", "options": {"steps": 5}},
    }
    monkeypatch.setattr("equipoise.study.store.read_study", stored.__getitem__)
    assert study("report", "a", "b", "--study", "tides.py") == 0
    assert conducted.rendered == ("tides", (Path("a"), Path("b")), Path("a"), {"json": False, "publish": None})
    assert study("report", "b", "--study", "tides.py", "--publish", "--out", "there", "--json") == 0
    verdicts = tides.source.parent / "verdicts.json"
    assert conducted.rendered == ("tides", (Path("b"),), Path("there"), {"json": True, "publish": verdicts})
    assert study("report") == 2
    said = "Name at least one output folder: equipoise study report equipoise-out/study/NAME"
    assert capsys.readouterr().err == f"equipoise: {said}\n"
    assert study("report", "a", "b", "c", "--study", "tides.py") == 2
    said = "c and a hold different studies: options {'steps': 6} and {'steps': 5}."
    assert capsys.readouterr().err == f"equipoise: {said}\n"
    assert study("report", "a", "d", "--study", "tides.py") == 2
    assert capsys.readouterr().err == "equipoise: d and a hold different studies: study waves and tides.\n"
    assert study("report", "a") == 2  # no file is run that is not named
    assert capsys.readouterr().err.startswith("equipoise: a holds results of 'tides', which is no installed study.")


def test_compare_prints_its_lines_and_the_notes_of_both(tides, monkeypatch, capsys):
    side = {
        name: SimpleNamespace(folder=name, results=SimpleNamespace(notes=[f"{name}\x1b 1", f"{name} 2"]))
        for name in "ab"
    }
    asked = []

    def compare(declaration, a, b):
        asked.append((declaration, a, b))
        return SimpleNamespace(**side)

    monkeypatch.setattr("equipoise.study.store.read_study", lambda folder: {"study": "tides"})
    monkeypatch.setattr("equipoise.study.compare.compare", compare)
    monkeypatch.setattr("equipoise.study.compare.lines", lambda compared: iter(["one", "two\x1b"]))
    monkeypatch.setattr("equipoise.study.compare.as_json", lambda compared: {"größer": "\x9b", "than": 1})
    assert study("compare", "x", "y", "--study", "tides.py") == 0
    out, error = capsys.readouterr()
    assert out == "one\ntwo\\u001b\n" and error == "a: a\\u001b 1\na: a 2\nb: b\\u001b 1\nb: b 2\n"
    assert study("compare", "x", "y", "--study", "tides.py", "--json") == 0
    out, error = capsys.readouterr()
    assert json.loads(out) == {"größer": "\x9b", "than": 1} and "größer" in out and "\\u009b" in out and error == ""
    assert asked == [(tides, Path("x"), Path("y"))] * 2


def test_index_writes_a_line_of_every_study_that_can_be_loaded(tides, tmp_path, monkeypatch, capsys):
    found = {
        "gone": registry.FoundStudy("gone", "entry point", None, ValueError("no sea")),
        "tides": registry.FoundStudy("tides", "tides.py", tides),
    }
    reports = [SimpleNamespace(study="waves"), SimpleNamespace(study="tides")]
    (tmp_path / "verdicts.json").write_text(json.dumps({"tides": {"claims": []}}))
    asked = []
    monkeypatch.setattr(registry, "found", lambda: found)
    monkeypatch.setattr("equipoise.study.index_page.reports_in", lambda folders: asked.append(folders) or reports)
    monkeypatch.setattr("equipoise.study.index_page.entry_of", lambda *entry: entry)
    monkeypatch.setattr("equipoise.study.index_page.index", lambda entries, out: asked.append(entries) or out)
    assert study("index", "docs", "more", "-o", "site/index.html") == 0
    out, error = capsys.readouterr()
    assert out == "site/index.html\n"
    assert error == "gone is left out: it cannot be loaded (entry point): no sea\n"
    assert asked == [(Path("docs"), Path("more")), [(tides, {"claims": []}, reports[1:], Path("site"))]]
    assert study("index") == 0
    assert capsys.readouterr().out == "equipoise-out/index.html\n" and asked[2] == ()


def test_verdicts_are_printed_and_last_the_report(tides, tmp_path, monkeypatch, capsys):
    """Text of others can steer no terminal; a claim without a verdict of its own is exploratory; notes go to stderr."""

    def verdict(text, state, *, judged=True, test: str | None = "a test"):
        return SimpleNamespace(
            claim=SimpleNamespace(text=text, judged=judged, test=test), state=state, reason=f"of {text}"
        )

    verdicts = [
        verdict("up\x1b", "supported"),
        verdict("beside", "refuted", judged=False),
        verdict("later", "untested", judged=False, test=None),
    ]
    built = tides.build()
    runs = [SimpleNamespace(key="r1", state="complete"), SimpleNamespace(key="r2", state="failed")]
    asked = []

    def load(folders, of):
        asked.append((folders, of))
        return SimpleNamespace(runs=runs, notes=["from the store"])

    monkeypatch.setattr("equipoise.study.results.load", load)
    monkeypatch.setattr("equipoise.study.judging.judge", lambda of, results: SimpleNamespace(verdicts=verdicts))
    monkeypatch.setattr("equipoise.study.report.render", lambda of, results, judgement, out: out / "report.html")
    monkeypatch.setattr(
        "equipoise.study.summary_text.publish", lambda path, of, results, judgement: asked.append((path, results.notes))
    )
    monkeypatch.setattr(
        "equipoise.study.summary_text.published_entry", lambda *given: asked.append(given) or {"paper": "ü\x9b"}
    )
    command._judge_and_render(built, [tmp_path], Path("out"), json=False)
    out, error = capsys.readouterr()
    told = [
        "supported: up\\u001b",
        "  of up\\u001b",
        "exploratory: beside",
        "  of beside",
        "untested: later",
        "  of later",
    ]
    assert out.splitlines() == [*told, "out/report.html"]
    assert error == "from the store\n" and asked == [([tmp_path], built)]
    done = Conducted(built, tmp_path, notes=["from the run\x1b"])
    command._judge_and_render(built, [tmp_path], Path("out"), json=True, done=done, publish=Path("verdicts.json"))
    out, error = capsys.readouterr()
    runs_told = {"r1": "complete", "r2": "failed"}
    assert json.loads(out) == {"paper": "ü\x9b", "runs": runs_told, "report": "out/report.html"}
    assert "ü\\u009b" in out and error == ""
    assert asked[2] == (Path("verdicts.json"), ["from the store", "from the run\x1b"])
    assert asked[3][0] is built and asked[3][1].runs is runs and asked[3][2].verdicts is verdicts
    command._judge_and_render(built, [tmp_path], Path("out"), json=False, done=done)
    assert capsys.readouterr().err == "from the store\nfrom the run\\u001b\n"


def test_options_are_named_as_in_python():
    assert command._given([" sea-level =a=b", "x="], {"sea-level": "1", "moon": "new"}) == {
        "sea_level": "a=b",
        "moon": "new",
        "x": "",
    }
    assert command._words(" a, ,b c,") == ["a", "b c"] and command._words("") == []
    with pytest.raises(BadInput, match=r"got '=?x'"):
        command._given(["x"], {})


def test_show_names_the_first_seed_where_it_is_not_zero(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "late.py").write_text(
        SOURCE.replace('"tides"', '"late"').replace("seeds=3,", "seeds=3, first_seed=40,")
    )
    registry._import_file.cache_clear()
    assert study("show", "late.py") == 0
    assert "\n3 seeds from 40 on, equal optimizer_steps\n" in capsys.readouterr().out


def test_a_run_that_was_stopped_before_any_was_complete_has_no_report(conducted, capsys):
    broken = {"run-1": ("failed", "why")}
    for complete, said in ((0, "equipoise: They fail alike.\n"), (1, "They fail alike.\n")):
        conducted.end = {"failed": broken, "stopped": "They fail alike.", "complete": complete}
        assert study("run", "tides.py", "--keep-going") == 1 and conducted.asked["keep_going"] is True
        assert capsys.readouterr().err == said and (conducted.rendered is not None) is (complete > 0)
    conducted.end = {"complete": 1, "stopped": "They fail alike."}
    assert study("run", "tides.py") == 0 and capsys.readouterr().err == ""
