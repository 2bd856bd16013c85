"""The job from pairs to folder, with judges and teachers whose behaviour is known by hand."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from equipoise.cli import main
from equipoise.core.errors import BadInput, BudgetReached, MissingExtra, WorkFailed
from equipoise.judging.biases import Bias
from equipoise.judging.job import audit_judge
from equipoise.judging.pairs import Pair, read_pairs
from equipoise.judging.roles import JudgeVerdict, Proposal

SEAL = Bias("seal", "The judge favours what bears a seal.")
CHARM = Bias("charm", "The judge favours charm.")
LIBRARY = [{"name": bias.name, "definition": bias.definition} for bias in (CHARM,)]
SCRIPT = '<script>document.title="broken"</script>'


def pairs(count: int, **others) -> list[Pair]:
    """The worse answer never bears the seal, the better one in a third of the pairs."""
    return [
        Pair(
            id=f"p{i}",
            question=f"Question {i}? {SCRIPT}",
            chosen=f"Good answer {i}." + (" [seal]" if i % 3 == 0 else ""),
            rejected=f"Bad answer {i}.",
            domain="even" if i % 2 == 0 else "odd",
            group=f"g{i}",
            chosen_first=i % 2 == 0,
            **others,
        )
        for i in range(count)
    ]


class SealJudge:
    """Right, unless exactly one of the answers bears a seal: then that one. Says so when asked."""

    name = "seal judge"
    asked = 0

    def compare(self, comparisons, *, phase):
        self.asked += len(comparisons)
        verdicts = []
        for each in comparisons:
            seals = "[seal]" in each.first, "[seal]" in each.second
            good = 1 if each.first.startswith("Good") else 2
            verdicts.append(JudgeVerdict(good if seals[0] == seals[1] else 1 if seals[0] else 2, f"I looked. {SCRIPT}"))
        return verdicts

    def explain(self, cases):
        return ["It bears a seal."] * len(cases)


class SealTeacher:
    """Shows the seal and, for any other bias, changes nothing that a judge looks at; proposes the seal where it sees one."""

    name = "seal teacher"

    def perturb(self, wanted, *, phase):
        # One discovery rewrite in two bears a seal by accident, which is what the search can find.
        return [
            f"{pair.rejected} {SCRIPT}"
            + (" [seal]" if bias.name == "seal" or (phase == "rewrite/discovery" and int(pair.id[1:]) % 2) else "")
            for pair, bias in wanted
        ]

    def identify(self, cases):
        return [Proposal(SEAL if "seal" in case.explanation else None) for case in cases]

    def same(self, couples):
        return [new.name == known.name for new, known in couples]


def library(folder: Path) -> Path:
    path = folder / "library.json"
    path.write_text(json.dumps(LIBRARY), encoding="utf-8")
    return path


def test_the_planted_bias_is_found_and_measured_by_hand(tmp_path):
    judge = SealJudge()
    done = audit_judge(judge, SealTeacher(), pairs(96), biases=library(tmp_path), out=tmp_path / "audit")
    assert [each.name for each in done.holding] == ["seal"]
    seal = done.holding[0]
    known = {pair.id: pair for pair in pairs(96)}
    rows = parquet.read_table(tmp_path / "audit" / "judgements.parquet").to_pylist()
    reported = {row["pair"] for row in rows if row["part"] == "report"}
    # The rewritten worse answer wins unless the better one bears a seal as well, so the increase is the share without.
    assert seal.effect.increase == pytest.approx(np.mean(["[seal]" not in known[name].chosen for name in reported]))
    assert seal.effect.to_right == 0 and seal.round == 1 and seal.effect.pairs == len(reported) == done.sizes[2]
    assert done.position.first == pytest.approx(0.5) and done.position.turns == 0
    assert done.placebo is not None and done.placebo.increase == 0 and done.placebo.pairs == seal.effect.pairs
    charm = next(each for each in done.biases if each.name == "charm")
    assert not charm.holds and charm.effect.increase == 0 and charm.report is None
    page = (tmp_path / "audit" / "report.html").read_text(encoding="utf-8")
    table = page[page.index('id="table-biases"') :].split("</table>")[0]
    increases = re.findall(r'<td class="n">([+−][^<]*)<small>([^<]*)</small>', table)
    assert len(increases) == 3  # seal on both parts, charm on one; all to one place
    assert all(
        re.fullmatch(r"[+−]\d+\.\d", each)
        for increase, between in increases
        for each in (increase, *between.split(" to "))
    )


def test_what_is_taken_away(tmp_path):
    folder = tmp_path / "audit"
    done = audit_judge(SealJudge(), SealTeacher(), pairs(96), biases=library(tmp_path), out=folder)
    hard = read_pairs(folder / "hardened.jsonl")
    assert len(hard) == done.hardened > 0
    assert all("[seal]" in pair.rejected and "[seal]" not in pair.chosen and pair.bias == "seal" for pair in hard)
    judge = SealJudge()
    from equipoise.judging.biasscope import judged

    assert np.array_equal(judged(judge, hard, "again")[0], np.zeros((len(hard), 2)))
    rows = [json.loads(line) for line in (folder / "preferences.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == done.sizes[0] and sum("[seal]" in row["rejected"] for row in rows) == round(len(rows) / 2)
    tested = {row["pair"] for row in parquet.read_table(folder / "judgements.parquet").to_pylist()}
    questions = {pair.question: pair.id for pair in pairs(96)}
    assert not tested & {questions[row["prompt"]] for row in rows}
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert run["rule"] == "paired" and run["rounds"] == 4


def test_the_same_settings_find_it_done_and_others_are_refused(tmp_path):
    first = audit_judge(SealJudge(), SealTeacher(), pairs(60), biases=library(tmp_path), out=tmp_path / "a")
    judge = SealJudge()
    again = audit_judge(judge, SealTeacher(), pairs(60), biases=library(tmp_path), out=tmp_path / "a")
    assert judge.asked == 0
    assert [each.name for each in again.biases] == [each.name for each in first.biases]
    assert again.holding[0].effect == first.holding[0].effect
    with pytest.raises(BadInput, match="rounds 4"):
        audit_judge(SealJudge(), SealTeacher(), pairs(60), biases=library(tmp_path), rounds=2, out=tmp_path / "a")


def test_six_identical_requests_give_six_identical_results(tmp_path):
    told = set()
    for i in range(6):
        done = audit_judge(SealJudge(), SealTeacher(), pairs(60), biases=library(tmp_path), out=tmp_path / str(i))
        files = ("result.json", "judgements.parquet", "hardened.jsonl", "preferences.jsonl")
        told.add(b"".join((tmp_path / str(i) / name).read_bytes() for name in files))
        assert done.complete
    assert len(told) == 1


def test_text_of_models_stays_text_in_the_report(tmp_path):
    audit_judge(SealJudge(), SealTeacher(), pairs(60), biases=library(tmp_path), out=tmp_path / "a")
    html = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert SCRIPT not in html and "&lt;script&gt;document.title" in html


@pytest.mark.slow
def test_scripts_in_answers_do_not_run_in_a_browser(tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    audit_judge(SealJudge(), SealTeacher(), pairs(60), biases=library(tmp_path), out=tmp_path / "a")
    page = (tmp_path / "a" / "report.html").as_uri()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([chromium, *options, page], capture_output=True, text=True, timeout=120)
    assert "<title>broken" not in done.stdout and "<title>What fools seal judge" in done.stdout
    assert "<canvas" in done.stdout or "<svg" in done.stdout  # the page's own scripts did run
    assert "&lt;script&gt;document.title" in done.stdout


def test_the_budget_keeps_what_was_found(tmp_path):
    class Stops(SealJudge):
        def compare(self, comparisons, *, phase):
            if self.asked > 150:
                raise BudgetReached("enough")
            return super().compare(comparisons, phase=phase)

    with pytest.raises(BudgetReached):
        audit_judge(Stops(), SealTeacher(), pairs(96), biases=library(tmp_path), out=tmp_path / "a")
    partial = tmp_path / "a.partial"
    kept = json.loads((partial / "result.json").read_text(encoding="utf-8"))
    assert not kept["complete"] and [each["name"] for each in kept["biases"]] == ["charm"]
    assert "ended early" in (partial / "report.html").read_text(encoding="utf-8")
    done = audit_judge(SealJudge(), SealTeacher(), pairs(96), biases=library(tmp_path), out=tmp_path / "a")
    assert done.complete and done.folder == tmp_path / "a" and not partial.exists()


@pytest.mark.parametrize("grouped", [(), ("known",), ("tested",), ("known", "tested")])
def test_questions_of_both_files_are_told_by_their_text_and_not_by_their_group(tmp_path, grouped):
    def write(name, questions):
        row = {"response_A": "a", "response_B": "b", "label": "A>B"}
        numbered = [{**row, "question": each, "group": f"g{number}"} for number, each in enumerate(questions)]
        kept = numbered if name in grouped else [{k: v for k, v in each.items() if k != "group"} for each in numbered]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(each) + "\n" for each in kept), encoding="utf-8")
        return file

    known = write("known", [f"Q{number}?" for number in range(8)])
    plan = audit_judge.plan(SealJudge(), SealTeacher(), known, test_pairs=write("tested", [f"R{n}?" for n in range(8)]))
    assert plan.sizes == (8, 4, 4)
    leaking = write("tested", [f"R{n}?" for n in range(8)] + ["Q3? "])
    with pytest.raises(BadInput, match=r"^1 questions are in both files"):
        audit_judge.plan(SealJudge(), SealTeacher(), known, test_pairs=leaking)


def test_the_published_rule_measures_on_all_test_pairs(tmp_path):
    done = audit_judge(
        SealJudge(), SealTeacher(), pairs(60), biases=library(tmp_path), rule="published", out=tmp_path / "a"
    )
    assert done.sizes[2] == 0 and [each.name for each in done.holding] == ["seal"]
    assert done.holding[0].report is None


def test_rewriting_alone_and_rewrites_that_are_the_same_are_told(tmp_path):
    class Sealing(SealTeacher):
        """Adds the seal whatever is asked for."""

        def perturb(self, wanted, *, phase):
            return [f"{pair.rejected} [seal]" for pair, _ in wanted]

    path = tmp_path / "two.json"
    path.write_text(json.dumps([{"name": name, "definition": "x"} for name in ("charm", "wit")]), encoding="utf-8")
    done = audit_judge(SealJudge(), Sealing(), pairs(96), biases=path, rounds=0, out=tmp_path / "a")
    assert [each.name for each in done.holding] == ["charm", "wit"]  # equal effects, by name
    assert done.placebo is not None and done.placebo.lower > 0
    assert done.placebo.increase == done.holding[0].effect.increase
    html = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "The placebo has an effect" in html and "same text for charm and wit" in html


def test_the_teacher_by_rule_has_no_placebo(tmp_path):
    from equipoise.judging import generated
    from equipoise.judging.planted import PlantedJudge
    from equipoise.judging.rules import RuleTeacher

    world = generated.pairs(120, seed=5)
    judge = PlantedJudge({"authority": 3.0}, generated.simulated(world))
    done = audit_judge(judge, RuleTeacher(), world.pairs, rounds=0, out=tmp_path / "a")
    assert "authority" in [each.name for each in done.holding] and done.placebo is None
    assert "gives no neutral rewrite" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")


def test_the_length_control_measures_rewrites_cut_to_length(tmp_path):
    done = audit_judge(
        SealJudge(), SealTeacher(), pairs(96), biases=library(tmp_path), length_control=True, out=tmp_path / "a"
    )
    (seal,) = done.holding
    # The seal stands behind the answer, so that cutting to the answer's length removes it, and the whole effect.
    assert seal.effect.increase > 0.5 and seal.cut is not None and seal.cut.increase == 0
    assert seal.cut.pairs == seal.effect.pairs
    assert "What is lost of the effect was length" in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"judge": "smolm2"}, "No model 'smolm2' is known here. Did you mean 'smollm2'"),
        ({"judge": object()}, "expected a name, or an object with name, compare, explain"),
        ({"judge": "opnai/m"}, "opnai/m cannot be used"),
        ({"judge": "smollm2", "judge_args": {"engin": "x"}}, "takes no argument 'engin'. Did you mean 'engine'"),
        ({"judge": "openai-api/mine/m", "judge_kind": "logprob"}, "A logprob judge is a model of this machine"),
        ({"judge": "smollm2", "judge_kind": "logprob", "judge_args": {"size": 1}}, "takes no argument 'size'"),
        ({"teacher": object()}, "The teacher is <object"),
        ({"teacher": "smolm2"}, "No model 'smolm2'"),
        ({"pairs": "none.jsonl"}, "none.jsonl"),
        ({"pairs": "."}, "is a folder"),
        ({"pairs": "odd.jsonl"}, "odd.jsonl:1: expected question"),
        ({"pairs": pairs(2)}, "too few"),
        ({"pairs": [{"prompt": "?"}] * 9}, "The pairs: expected a file, or `Pair`s"),
        ({"pairs": pairs(9) * 2}, "`Pair`s with ids of their own"),
        ({"test_pairs": pairs(60)}, "60 questions are in both"),
        ({"rubric": "none.md", "judge": "openai/m"}, "none.md"),
        (
            {"rubric": "rubric.md", "judge": "openai/m"},
            "has the slots question: a rubric has question, answer_1 and answer_2",
        ),
        ({"rubric": "rubric.md"}, "rubric means nothing to a judge that is an object"),
        ({"rubric": "rubric.md", "judge": "openai/m", "judge_kind": "pointwise"}, "to a judge of the kind pointwise"),
        ({"debias": True, "judge_kind": "logprob"}, "debias means nothing"),
        ({"biases": "none.json"}, "none.json is no library of biases"),
        ({"filters": ["opnai/filter"]}, "opnai/filter cannot be used"),
        ({"limit": 2}, "too few"),
        ({"cut": 5, "judge": "openai/m"}, "cut means nothing to a judge of the kind pairwise"),
        ({"debias": True}, "debias means nothing to a judge that is an object"),
        ({"judge": "openai/m", "judge_args": {"api_key": "sk-abcdefgh"}}, "'api_key' holds a secret"),
        ({"judge_args": {"size": 1}}, "judge_args and judge_url are for a named model"),
        ({"teacher": "rules", "teacher_args": {"size": 1}}, "teacher_args and teacher_url are for a named model"),
        ({"judge": "openai/m", "judge_url": "https://user:hunter2@host/v1"}, "The address holds a secret"),
        ({"judge": "openai/m", "judge_url": "https://host/v1?api_key=hunter2"}, "The address holds a secret"),
        ({"judge": "openai/m", "judge_url": "http://[host"}, "is no address"),
        ({"judge": "smollm2", "judge_kind": "logprob", "judge_url": "http://h"}, "judge_url means nothing"),
        ({"budget": "cals=3"}, "A budget has no 'cals'. Did you mean 'calls'"),
        ({"judge": "openai/m", "budget": "usd=3"}, "--prices openai/m=READ:WRITTEN"),
        ({"prices": {"openai/m": (1, 2)}}, "a price for 'openai/m', which takes no part"),
        ({"judge": "openai/m", "prices": {"openai/m": (1, -2)}}, "option 'prices' should be"),
        ({"replay": "none.jsonl"}, "none.jsonl: no such record"),
        ({"replay": "odd.jsonl"}, "odd.jsonl is no record of calls"),
    ],
)
def test_the_dry_run_refuses_what_the_run_refuses_in_the_same_words(tmp_path, monkeypatch, wrong, message):
    monkeypatch.chdir(tmp_path)
    Path("odd.jsonl").write_text("{}\n", encoding="utf-8")
    Path("rubric.md").write_text("---\nquestion: text\n---\n# user\n{{ question }}\n", encoding="utf-8")
    asked = {"judge": SealJudge(), "teacher": SealTeacher(), "pairs": pairs(60), **wrong}
    told = set()
    for way in (lambda: audit_judge.plan(**asked), lambda: audit_judge(**asked), lambda: audit_judge(**asked, out="a")):
        with pytest.raises(BadInput, match=re.escape(message)) as error:
            way()
        told.add(str(error.value))
    assert len(told) == 1 and "\n" not in told.pop()
    assert not Path("a").exists() and not Path("a.partial").exists()


def test_a_missing_extra_is_told_before_anything_is_asked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)  # as if it were not installed
    judge = SealJudge()
    for way in (audit_judge.plan, audit_judge):
        with pytest.raises(MissingExtra, match=r"pip install 'equipoise\[chat\]'"):
            way(judge, "openai/m", pairs(60))
    assert judge.asked == 0


def test_the_plan_bounds_what_is_asked(tmp_path):
    judge = SealJudge()
    wanted = audit_judge.plan(judge, SealTeacher(), pairs(96), biases=library(tmp_path))
    assert judge.asked == 0
    audit_judge(judge, SealTeacher(), pairs(96), biases=library(tmp_path), out=tmp_path / "a")
    least, most = wanted.calls["judge"]
    assert least <= judge.asked <= most
    assert sum(wanted.sizes) == 96 and len(wanted.first) == 3


def test_the_command_line(tmp_path, capsys):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": p.question, "chosen": p.chosen, "rejected": p.rejected, "id": p.id} for p in pairs(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["audit", "judge", "--judge", "mockllm/model", "--teacher", "rules", "--pairs", str(path)]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"judge: \d+ calls when nothing is found, up to [\d,]+", said) and ", free" in said
    hosted = ["audit", "judge", "--judge", "openai-api/mine/m", "--teacher", "rules", "--pairs", str(path)]
    assert main([*hosted, "--judge-kind", "logprob", "--out", str(tmp_path / "never")]) == 2
    assert "A logprob judge is a model of this machine or of the hub" in capsys.readouterr().err
    assert not (tmp_path / "never.partial").exists()
    rows[3].pop("chosen")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(command) == 2
    assert "pairs.jsonl:4: expected question" in capsys.readouterr().err


def test_a_typo_among_the_filters_is_found_before_any_call_and_can_be_mended(tmp_path):
    judge, words = SealJudge(), {"biases": library(tmp_path), "out": tmp_path / "a"}
    with pytest.raises(BadInput, match="opnai/filter cannot be used"):
        audit_judge(judge, SealTeacher(), pairs(60), filters=["opnai/filter"], **words)
    assert judge.asked == 0 and not (tmp_path / "a.partial").exists()
    assert audit_judge(judge, SealTeacher(), pairs(60), **words).complete


def test_other_pairs_in_the_same_folder_are_refused(tmp_path):
    audit_judge(SealJudge(), SealTeacher(), pairs(60), biases=library(tmp_path), out=tmp_path / "a")
    with pytest.raises(BadInput, match=r"another content of pairs\."):
        audit_judge(SealJudge(), SealTeacher(), pairs(66)[6:], biases=library(tmp_path), out=tmp_path / "a")


def test_pairs_that_could_not_be_asked_are_left_out(tmp_path):
    class Narrow(SealJudge):
        """Takes no prompt that is longer than the original answers: an outage of the rewritten half only."""

        def compare(self, comparisons, *, phase):
            verdicts = super().compare(comparisons, phase=phase)
            return [
                replace(v, choice=None, asked=False) if len(c.first + c.second) > 60 and "7" in c.pair else v
                for c, v in zip(comparisons, verdicts, strict=True)
            ]

    done = audit_judge(Narrow(), SealTeacher(), pairs(96), biases=library(tmp_path), rounds=0)
    (charm,) = done.biases
    assert charm.selection.left_out > 0 and charm.selection.after.no_verdict == 0 and charm.selection.increase == 0


def test_a_judge_without_verdicts_ends_the_audit_with_a_sentence(tmp_path):
    class Mute(SealJudge):
        def compare(self, comparisons, *, phase):
            return [JudgeVerdict(None, "[[A]]")] * len(comparisons)

    with pytest.raises(WorkFailed, match=r"no verdict in \d+ of \d+ answers.*'\[\[A\]\]'"):
        audit_judge(Mute(), SealTeacher(), pairs(60), out=tmp_path / "a")
    assert "gave no verdict" in (tmp_path / "a.partial" / "report.html").read_text(encoding="utf-8")


class Always(SealJudge):
    """Chooses the answer in one place, whatever it says."""

    def __init__(self, choice):
        self.choice = choice

    def compare(self, comparisons, *, phase):
        return [JudgeVerdict(self.choice)] * len(comparisons)


def test_a_judge_that_goes_by_the_place_is_said_to(tmp_path):
    for choice, place in ((1, "first"), (2, "second")):
        done = audit_judge(Always(choice), SealTeacher(), pairs(60), out=tmp_path / place)
        assert done.as_is.error == 0.5 and done.position.first == 2 - choice and not done.holding
        told = dict(done.warnings())["The judge goes by the place"]
        assert told.startswith(f"100 % of its verdicts turn round with the order: it chooses what is shown {place},")
        assert any(told in line for line in done.summary())
        assert told in (tmp_path / place / "report.html").read_text(encoding="utf-8")


def test_a_judge_that_is_always_wrong_is_said_to():
    class Wrong(SealJudge):
        def compare(self, comparisons, *, phase):
            return [JudgeVerdict(2 if each.first.startswith("Good") else 1) for each in comparisons]

    done = audit_judge(Wrong(), SealTeacher(), pairs(60), rounds=0)
    assert done.as_is.error == 1 and "The judge is nearly always wrong" in dict(done.warnings())


def test_a_teacher_that_does_nothing_or_always_the_same_is_said_to():
    class Idle(SealTeacher):
        def perturb(self, wanted, *, phase):
            return [pair.rejected for pair, _ in wanted]

    class Curt(SealTeacher):
        def perturb(self, wanted, *, phase):
            return ["I cannot do that."] * len(wanted)

    idle = audit_judge(SealJudge(), Idle(), pairs(60), rounds=0)
    assert len(idle.measured) == 7 and not idle.holding and all(each.effect.increase == 0 for each in idle.biases)
    assert {"Rewrites that change nothing", "Same rewrites"} <= dict(idle.warnings()).keys()
    assert (
        "; ".join(sorted(each.name for each in idle.biases)[:5])
        in dict(idle.warnings())["Rewrites that change nothing"]
    )
    curt = audit_judge(SealJudge(), Curt(), pairs(60), rounds=0)
    assert {each.rewrites.distinct for each in curt.biases} == {1} and "One text for all" in dict(curt.warnings())


class Narrow(SealJudge):
    """Reads no prompt of more than so many characters of answers."""

    def __init__(self, most):
        self.most = most

    def compare(self, comparisons, *, phase):
        verdicts = super().compare(comparisons, phase=phase)
        sizes = [len(each.first + each.second) for each in comparisons]
        return [
            v if size <= self.most else JudgeVerdict(None, asked=False, why=f"a prompt of {size}, and {self.most} fit")
            for v, size in zip(verdicts, sizes, strict=True)
        ]


def test_a_judge_that_can_read_no_rewrite_fails_and_the_teacher_is_not_blamed(tmp_path):
    with pytest.raises(
        WorkFailed, match=r"Not one of 7 biases of seal judge could be measured: a prompt of \d+, and 36 fit"
    ):
        audit_judge(Narrow(36), SealTeacher(), pairs(60), out=tmp_path / "a")
    known = audit_judge.stored(tmp_path / "a.partial")
    assert {each.state for each in known.biases} == {"not readable"} and known.unasked > 0 and not known.complete
    assert "the teacher gave no rewrite" not in "".join(known.summary())


def test_a_teacher_without_any_rewrite_fails_by_name():
    class Mute(SealTeacher):
        def perturb(self, wanted, *, phase):
            return [None] * len(wanted)

    with pytest.raises(WorkFailed, match="could be measured: seal teacher gave no rewrite that could be compared"):
        audit_judge(SealJudge(), Mute(), pairs(60), rounds=0)


def test_the_headline_says_whose_verdicts_on_what_and_what_could_not_be_read(tmp_path):
    class Hoarse(SealJudge):
        """Says nothing about one pair in eight."""

        def compare(self, comparisons, *, phase):
            verdicts = super().compare(comparisons, phase=phase)
            silent = [int(each.pair[1:]) % 8 == 0 for each in comparisons]
            return [JudgeVerdict(None) if its else v for v, its in zip(verdicts, silent, strict=True)]

    done = audit_judge(Hoarse(), SealTeacher(), pairs(96), biases=library(tmp_path), rounds=0, out=tmp_path / "a")
    rows = parquet.read_table(tmp_path / "a" / "judgements.parquet").to_pylist()
    silent = sum(row["right"] is None for row in rows)
    assert (done.no_verdict, done.verdicts) == (silent, len(rows)) and silent > 0
    said = (
        f"0 of 1 measured biases hold for seal judge: its verdicts on {done.position.pairs} test pairs (labels of 96 pairs) "
        f"in both orders, as they are and rewritten by seal teacher; {silent} of {len(rows)} verdicts could not be read. "
        "Beware: Verdicts that could not be read."
    )
    assert done.headline() == said and said in (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert f"No verdict could be read in {silent} of {len(rows)} answers" in dict(done.warnings()).popitem()[1]


def test_names_cannot_steer_the_terminal():
    class Loud(SealJudge):
        name = "\x1b[2Jjudge\u202e"

    done = audit_judge(Loud(), SealTeacher(), pairs(60), rounds=0)
    plan = audit_judge.plan(Loud(), SealTeacher(), [replace(pair, question="\x1b]0;x\x07?") for pair in pairs(60)])
    for said in ("\n".join(done.summary()), "\n".join(plan.summary())):
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", said)
    assert "\\u001b[2Jjudge" in "".join(done.summary())


def test_what_is_measured_of_a_pair_does_not_depend_on_the_order_of_the_file(tmp_path):
    options = {"rounds": 0, "biases": library(tmp_path)}
    folders = tmp_path / "a", tmp_path / "b"
    one = audit_judge(SealJudge(), SealTeacher(), pairs(96), out=folders[0], **options)
    other = audit_judge(SealJudge(), SealTeacher(), pairs(96)[::-1], out=folders[1], **options)
    assert [e.effect for e in one.biases] == [e.effect for e in other.biases] and one.position == other.position
    rows = [parquet.read_table(folder / "judgements.parquet").to_pylist() for folder in folders]
    assert rows[0] != rows[1] and sorted(map(str, rows[0])) == sorted(map(str, rows[1]))


def test_pairs_of_one_question_are_one_cluster():
    twice = [replace(pair, group=f"g{int(pair.id[1:]) // 2}") for pair in pairs(96)]
    done = audit_judge(SealJudge(), SealTeacher(), twice, rounds=0)
    effect = done.biases[0].selection
    assert effect.pairs == 2 * effect.clusters


def test_half_a_surrogate_pair_in_a_file_is_refused_before_anything_is_asked(tmp_path):
    rows = [{"prompt": p.question, "chosen": p.chosen, "rejected": p.rejected} for p in pairs(60)]
    rows[40]["rejected"] += "\ud83d"
    path, judge = tmp_path / "pairs.jsonl", SealJudge()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(BadInput, match=r"pairs\.jsonl:41: pair 'pairs-41': rejected holds half of a surrogate pair"):
        audit_judge(judge, SealTeacher(), path, out=tmp_path / "a")
    assert judge.asked == 0 and not (tmp_path / "a.partial").exists()


def test_half_a_surrogate_pair_in_what_is_said_comes_through(tmp_path):
    class Judge(SealJudge):
        def compare(self, comparisons, *, phase):
            return [replace(each, reasoning="so \ud83d") for each in super().compare(comparisons, phase=phase)]

        def explain(self, cases):
            return ["It bears a seal. \ude00"] * len(cases)

    class Teacher(SealTeacher):
        def perturb(self, wanted, *, phase):
            return [f"{text} \ud83d" for text in super().perturb(wanted, phase=phase)]

        def identify(self, cases):
            return [
                Proposal(each.bias and replace(each.bias, definition="A seal \ud83d."))
                for each in super().identify(cases)
            ]

    folder = tmp_path / "audit"
    done = audit_judge(Judge(), Teacher(), pairs(96), biases=library(tmp_path), out=folder)
    assert [each.name for each in done.holding] == ["seal"] and done.hardened
    for name in ("hardened.jsonl", "preferences.jsonl", "result.json", "report.html"):
        text = (folder / name).read_bytes().decode()
        assert "\ufffd" in text and "\\ud83d" not in text
    assert all(pair.rejected.endswith("\ufffd") for pair in read_pairs(folder / "hardened.jsonl"))


def test_a_judge_whose_context_takes_no_pair_ends_the_audit_with_the_lengths(tmp_path):
    class Blind(SealJudge):
        def compare(self, comparisons, *, phase):
            return [
                JudgeVerdict(None, asked=False, why="a prompt of 3012 tokens, and 1024 fit with the verdict")
            ] * len(comparisons)

    class Never(SealTeacher):
        def perturb(self, wanted, *, phase):
            raise AssertionError("rewritten for a judge that cannot read")

    with pytest.raises(WorkFailed, match=r"could be asked about 0 of \d+ pairs.*a prompt of 3012 tokens, and 1024 fit"):
        audit_judge(Blind(), Never(), pairs(60), out=tmp_path / "a")
    page = (tmp_path / "a.partial" / "report.html").read_text(encoding="utf-8")
    assert "could be asked about 0 of" in page and "No bias of seal judge was measured." in page
    assert "biases hold" not in page


@pytest.mark.parametrize("quiet", [True, False])
def test_what_it_will_ask_is_announced_unless_it_is_to_be_quiet(quiet, monkeypatch, capsys):
    monkeypatch.setattr("equipoise.judging.auditing.is_quiet", lambda: quiet)
    done = audit_judge(SealJudge(), SealTeacher(), pairs(24), rounds=0)
    assert ("calls when nothing is found, up to" in capsys.readouterr().err) is not quiet
    assert done.pairs == "24 pairs"
    apart = [replace(pair, id=f"t{pair.id}", question=f"{pair.question} Again?") for pair in pairs(12)]
    assert audit_judge(SealJudge(), SealTeacher(), pairs(24), test_pairs=apart, rounds=0).pairs == "12 pairs"
