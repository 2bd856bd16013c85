"""The job from pairs to folder, with judges and teachers whose behaviour is known by hand."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from equipoise.cli import main
from equipoise.core.errors import BadInput, BudgetReached, WorkFailed
from equipoise.judging.biases import Bias
from equipoise.judging.job import audit_judge
from equipoise.judging.pairs import Pair, read_pairs
from equipoise.judging.roles import Proposal, Verdict

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
            verdicts.append(Verdict(good if seals[0] == seals[1] else 1 if seals[0] else 2, f"I looked. {SCRIPT}"))
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


def test_wrong_requests_are_one_sentence(tmp_path):
    few = pairs(60)
    with pytest.raises(BadInput, match=r"judge_kind is 'pairwse'\. Did you mean 'pairwise'"):
        audit_judge(SealJudge(), SealTeacher(), few, judge_kind="pairwse")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="60 questions are in both"):
        audit_judge(SealJudge(), SealTeacher(), few, test_pairs=few)
    with pytest.raises(BadInput, match="too few"):
        audit_judge(SealJudge(), SealTeacher(), few[:2])
    for odd in ({"limit": 0}, {"limit": -5}, {"cut": -1}):
        with pytest.raises(BadInput, match="should be at least 1"):
            audit_judge(SealJudge(), SealTeacher(), few, **odd)
    with pytest.raises(BadInput, match="is a folder"):
        audit_judge(SealJudge(), SealTeacher(), tmp_path)
    with pytest.raises(BadInput, match="'api_key' holds a secret"):
        audit_judge("openai/m", SealTeacher(), few, judge_args={"api_key": "sk-abcdefgh"}, out=tmp_path / "s")
    with pytest.raises(BadInput, match="The address holds a secret"):
        audit_judge("openai/m", SealTeacher(), few, judge_url="https://user:hunter2@host/v1", out=tmp_path / "s")
    with pytest.raises(BadInput, match="--prices openai/m=READ:WRITTEN"):
        audit_judge("openai/m", SealTeacher(), few, budget="usd=3", out=tmp_path / "s")
    assert not list(tmp_path.glob("s*"))
    with pytest.raises(BadInput, match="rubric"):
        audit_judge(SealJudge(), SealTeacher(), few, judge_kind="logprob", rubric=tmp_path / "r.md")


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
    command = ["audit", "judge", "--judge", "smollm2", "--teacher", "rules", "--pairs", str(path)]
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
    with pytest.raises(BadInput, match="another content of the pairs"):
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
            return [Verdict(None, "[[A]]")] * len(comparisons)

    with pytest.raises(WorkFailed, match=r"no verdict in \d+ of \d+ answers.*'\[\[A\]\]'"):
        audit_judge(Mute(), SealTeacher(), pairs(60), out=tmp_path / "a")
    assert "gave no verdict" in (tmp_path / "a.partial" / "report.html").read_text(encoding="utf-8")


def test_pairs_of_one_question_are_one_cluster():
    twice = [replace(pair, group=f"g{int(pair.id[1:]) // 2}") for pair in pairs(96)]
    done = audit_judge(SealJudge(), SealTeacher(), twice, rounds=0)
    effect = done.biases[0].selection
    assert effect.pairs == 2 * effect.clusters
