"""The job `prm label`: what it reads, draws, counts, corrects, resumes and says."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

from equipoise.core.errors import BadInput, BudgetReached, WorkFailed
from equipoise.data.problems import Problem
from equipoise.data.steps import read_steps
from equipoise.reinforcement import prm_label_policy as policies
from equipoise.reinforcement import prm_labeling as labeling
from equipoise.reinforcement.prm_label_drawing import Solution, nothing
from equipoise.reinforcement.prm_label_job import LabelSettings, label
from equipoise.reinforcement.prm_label_policy import GO_ON, Beginning, ChatPolicy, Drawn, LocalPolicy
from equipoise.reinforcement.prm_label_solutions import cut, joined, read
from equipoise.reinforcement.reflection import rule_judge
from faulty_server import FaultyServer
from reinforcement_world import model


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, *given):
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return path


# Steps


@pytest.mark.parametrize(
    ("text", "separator", "steps"),
    [
        ("a b\nc\n\n", None, ("a b", "c")),
        ("  a\nb\n \n\n c ", None, ("a\nb", "c")),  # lines belong together where there are empty ones
        ("a\r\n\r\nb\r\nc", None, ("a", "b\r\nc")),
        ("a\n\nb\nc", "\n", ("a", "b", "c")),
        ("1+2=3;; 3*4=2 ;", ";", ("1+2=3", "3*4=2")),
        ("So:\n\\[\n3+4=7\n\\]\nDone.", None, ("So:\n\\[", "3+4=7\n\\]", "Done.")),
        ("---\nFirst.\n---\nSecond.", None, ("---\nFirst.\n---", "Second.")),
        ("one step", None, ("one step",)),
        (" \n ", None, ()),
    ],
)
def test_a_text_is_cut_into_steps(text, separator, steps):
    stepped = cut(text, separator)
    assert stepped.steps == steps
    for count in range(1, len(steps)):
        begun = stepped.beginning(count)
        assert stepped.text.startswith(begun) and begun.rstrip(" \r\n;").endswith(steps[count - 1])


def test_a_beginning_goes_up_to_one_line_end():
    """More is another token at the end of a text than within one, for tokenizers of GPT-2's kind."""
    text = cut("3+4=7.\n\nSo 8.  \n\n\nDone.")
    assert [text.beginning(count) for count in (1, 2, 3)] == ["3+4=7.\n", "3+4=7.\n\nSo 8.  \n", text.text + "\n"]
    chain = cut("1+2=3; 3*4=2", "; ")
    assert [chain.beginning(count) for count in (1, 2)] == ["1+2=3;", "1+2=3; 3*4=2;"]
    given = joined([" a ", "b\nc"])
    assert (given.text, given.steps, given.beginning(1)) == ("a\n\nb\nc", ("a", "b\nc"), "a\n")
    assert joined(["a", "b"], ";").text == "a;b"


# Reading

GOOD = {"prompt": "1+2?", "answer": "3"}


@pytest.mark.parametrize(
    ("more", "fields", "told"),
    [
        ({"answer": None}, {}, r"p\.jsonl:2: no gold answer"),
        ({"answer": None, "steps": ["3"]}, {}, r"p\.jsonl:2: no gold answer"),
        (
            {"answer": None, "solution": "So 3."},
            {},
            r"p\.jsonl:2: no gold answer beside the solution.*gold=solution lets",
        ),
        (
            {"steps": []},
            {},
            r"p\.jsonl:2: field 'steps': expected a step or more, found a list of none; leave the field",
        ),
        ({"steps": ["3", " \n"]}, {}, r"p\.jsonl:2: step 2 \(from 1\) is empty; leave it out"),
        ({"steps": ["3", 4]}, {}, r"p\.jsonl:2: field 'steps': expected text, found int 4"),
        ({"steps": {"a": "b"}}, {}, r"p\.jsonl:2: field 'steps': expected a list of at least 1 texts"),
        ({"solution": "  "}, {}, r"p\.jsonl:2: field 'solution': expected text that is not empty"),
        ({"solution": ";;"}, {}, r"p\.jsonl:2: field 'solution': expected a step or more, found nothing but ';'"),
        ({"solution": "3 [PRM]"}, {}, r"p\.jsonl:2: the solution holds \[PRM\]"),
        ({"prompt": "[PRM]?"}, {}, r"p\.jsonl:2: the problem holds \[PRM\]"),
        ({"solution": "3 \ud800"}, {}, r"p\.jsonl:2: field 'solution': expected text, found half of a surrogate pair"),
        ({"prompt": "1+2?"}, {}, r"p\.jsonl:2: this problem, without a solution, stands at .*p\.jsonl:1 too"),
        ({"id": "a"}, {}, r"p\.jsonl:2: id 'a' was used before at .*p\.jsonl:1"),
        (
            {"prompt": "2+2?", "subject": "s"},
            {"group": "subjct"},
            "no row has the field 'subjct' that was named for group",
        ),
        ({}, {"step": "x"}, "there is no field 'step' to rename. Did you mean 'steps'"),
    ],
)
def test_what_cannot_be_labelled_is_refused_by_its_line(tmp_path, more, fields, told):
    first = GOOD | ({"id": "a"} if "id" in more else {})
    path = write(tmp_path / "p.jsonl", first, {**GOOD, "prompt": "2+1?", **more})
    with pytest.raises(BadInput, match=told):
        read(path, limit=None, fields=fields, separator=";")
    assert len(read(path, limit=1, fields={}, separator=None)[0]) == 1


def test_solutions_are_read_where_there_are_some(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        GOOD | {"solution": "a\nb"},
        GOOD | {"solution": "a\nc"},  # another solution of the same problem
        GOOD | {"steps": ["x", "y"], "solution": r"\boxed{3}"},
        {"question": "Two?", "answer": "So 2.\n#### 2", "completions": ["p"]},
    )
    found, name, digest = read(path, limit=None, fields={"steps": "completions"}, separator=None)
    assert [each.given and each.given.steps for each in found] == [("a", "b"), ("a", "c"), (r"\boxed{3}",), ("p",)]
    assert found[3].problem.gold == ("2",) and name == str(path) and len(digest) == 64
    found, _, _ = read(path, limit=3, fields={}, separator=None)
    assert found[2].given.steps == ("x", "y")
    # Of MATH the solution is where the gold answer stands.
    worked = write(tmp_path / "m.jsonl", {"problem": "1+2?", "solution": r"So \boxed{3}."})
    (only,), _, _ = read(worked, limit=None, fields={"gold": "solution"}, separator=None)
    assert only.given is None and only.problem.gold == ("3",)
    with pytest.raises(BadInput, match="row 2: this solution of this problem stands at row 1 too"):
        read([{**GOOD, "id": i, "steps": ["a"]} for i in range(2)], limit=None, fields=None, separator=None)
    with pytest.raises(BadInput, match="row 1: problem 'p' has no gold answer"):
        read([Problem("p", "?", ())], limit=None, fields=None, separator=None)
    assert (
        read([GOOD], limit=None, fields=None, separator=None)[2]
        != read([{**GOOD, "answer": "4"}], limit=None, fields=None, separator=None)[2]
    )


def conversation(base, answer):
    messages = [
        {"role": "system", "content": f"Numbers are {base}."},
        {"role": "user", "content": "What is 7+5?"},
    ]
    return {"id": base, "messages": messages, "answer": answer, "steps": [f"7+5={answer}", f"#### {answer}"]}


def test_a_conversation_is_one_text_with_all_its_turns(monkeypatch):
    """What is labelled right of a solution is so for what was asked, whose turns before the last may say the opposite."""
    asked = []

    def judge(solutions):
        asked.extend(each.problem for each in solutions)
        return rule_judge(solutions)

    monkeypatch.setattr(labeling, "rule_judge", judge)
    monkeypatch.setattr(
        LocalPolicy,
        "draw",
        lambda self, begun, samples: [[Drawn(f" #### {b.problem.gold[0]}", True)] * samples for b in begun],
    )
    talks = [conversation("decimal", "12"), conversation("octal", "14")]
    how = {"samples": 1, "max_new_tokens": 5}
    result = label(model(), problems=talks, **how)
    problems = [f"system: Numbers are {base}.\n\nuser: What is 7+5?" for base in ("decimal", "octal")]
    assert [row["problem"] for row in result.labels()] == problems and set(asked) == set(problems)
    assert len({each.group for each in read_steps(result.labels())}) == 2
    alone = [{**talks[0], "messages": talks[0]["messages"][1:]}]
    assert label(model(), problems=alone, **how).labels()[0]["problem"] == "What is 7+5?"
    # Other turns are another content, and may not hold the placeholder.
    digests = {read([{**each, "id": "x", "answer": "1"}], limit=None, fields=None, separator=None)[2] for each in talks}
    assert len(digests) == 2
    talks[1]["messages"][0]["content"] = "[PRM]"
    with pytest.raises(BadInput, match=r"row 2: the problem holds \[PRM\]"):
        read(talks, limit=None, fields=None, separator=None)


def test_the_dry_run_counts_no_less_than_is_drawn(monkeypatch):
    """Nothing given comes to an answer, so that each of its steps is gone on with."""
    monkeypatch.setattr(
        LocalPolicy, "draw", lambda self, begun, samples: [[Drawn(" #### 3", True)] * samples for _ in begun]
    )
    given = [
        {"id": "x", "prompt": "1+2", "answer": "3", "steps": ["ab", "cd", "ef"]},
        {"id": "y", "prompt": "1+3", "answer": "4", "steps": ["gh"]},
    ]
    how = {"samples": 2, "max_new_tokens": 4}
    plan = label.plan(model(), problems=given, **how)
    drawn = label(model(), problems=given, **how).completions
    assert drawn == 2 * (3 + 1) and plan.estimate.startswith(f"{drawn} completions, {drawn * 4} generated tokens")
    assert any(line.startswith("estimate, at most: 8 completions") for line in plan.summary())
    more = [*given, {"id": "z", "prompt": "1+4", "answer": "5"}]
    written = label.plan(model(), problems=more, **how)
    assert any(line.startswith("estimate, about: 18 completions (of 6 steps") for line in written.summary())


# A policy and a judge that a server plays

SUMS = [{"id": f"s{i}", "prompt": f"{i} + 2 + 3", "answer": str(i + 5)} for i in range(4)]
SAMPLES = 4


class Server(FaultyServer):
    """Odd sums go wrong at the first step; a completion of such a beginning repairs it every other time.

    The fourth completion of others is cut behind its answer. answers: how often each question was answered, by (model,
    messages).
    """

    def __init__(self):
        super().__init__()
        self.answers, self._own, self.cuts = Counter(), threading.Lock(), False

    def _answer(self, handler, body, question, times):
        key = body["model"], json.dumps([each["content"] for each in body["messages"]])
        with self._own:
            number = self.answers[key]
            self.answers[key] += 1
        text = judge(body["messages"]) if body["model"] == "judge" else policy(body["messages"], number)
        ends = "length" if self.cuts or text.endswith("~") else "stop"
        self._say(handler, question, text.removesuffix("~"), finish=ends)


def policy(messages, number):
    first = int(messages[0]["content"].split(" ")[0])
    right, wrong = first + 2, first + 2 + first % 2
    if len(messages) == 1:
        return f"{first} + 2 = {wrong}\n\n{wrong} + 3 = {wrong + 3}\n\nThe answer is {wrong + 3}."
    assert messages[-1]["content"] == GO_ON
    if right != wrong and number % 2 == 0:
        return f"Wait, {first} + 2 = {right}, not {wrong}.\n\nThe answer is {first + 5}."
    if number == 3:
        return f"The answer is {wrong + 3}.~" if right == wrong else "Perhaps <b>99</b>. \ud800"
    return f"The answer is {wrong + 3}."


def judge(messages):
    """Of sum 1 it quotes, of sum 3 something else; of the others it sees a reflection without a word."""
    prompt = messages[1]["content"]
    added = prompt.split("What was added:\n")[1]
    if "| 1 + 2 + 3" in prompt and "Wait" in added:
        return json.dumps({"reflects": True, "at_step": 2, "quote": added.split("| ")[1].split(".")[0]})
    if "| 3 + 2 + 3" in prompt:
        return json.dumps({"reflects": True, "at_step": 2, "quote": "That was wrong."})
    return "No." if len(messages) == 2 else json.dumps({"reflects": False, "at_step": None, "quote": ""})


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("inspect_ai")
    monkeypatch.setenv("LOCAL_API_KEY", "sk-test-0123456789abcdef")
    with Server() as running:
        yield running


def asked(server, out=None, **more):
    served = {"model_url": server.url, "max_connections": 1}
    given = {"samples": SAMPLES, "max_new_tokens": 40, **served, **more}
    return label("openai-api/local/m", problems=SUMS, **given, out=out)


JUDGED = {"judge": "openai-api/local/judge"}


def test_labels_are_those_of_a_policy_that_is_known(server, tmp_path):
    result = asked(server, tmp_path / "out")
    found = {row["id"]: row for row in rows(tmp_path / "out" / "labels.jsonl")}
    assert list(found) == ["s0/0", "s1/0", "s2/0", "s3/0"]
    right, wrong = found["s2/0"], found["s1/0"]
    assert right["outcomes"] == [[1, 1, 1, None], [1, 1, 1, None], [1] * 4]
    assert right["soft"] == right["corrected_soft"] == [0.75, 0.75, 1.0] and right["hard"] == [1, 1, 1]
    assert (right["final_answer"], right["correct"], right["answer"]) == ("7", True, "7")
    assert right["steps"] == ["2 + 2 = 4", "4 + 3 = 7", "The answer is 7."]
    # The repair is of the first step; from the second on it is what a wrong value led to.
    assert wrong["outcomes"] == [[1, 0, 1, 0], [1, 0, 1, 0], [0] * 4]
    assert wrong["reflected"] == [[1, 0, 1, 0], [0] * 4, [0] * 4]
    assert wrong["soft"] == [0.5, 0.5, 0.0] and wrong["corrected_soft"] == [0.0, 0.5, 0.0]
    assert wrong["hard"] == [1, 1, 0] and wrong["corrected_hard"] == [0, 1, 0] and wrong["correct"] is False
    quote = {"completion": 0, "at_step": 0, "quote": "Wait, 1 + 2 = 3, not 4."}
    assert wrong["quotes"] == [[quote, {**quote, "completion": 2}], [], []]
    assert result.labels() == list(found.values()) == label.stored(tmp_path / "out").labels()
    assert (result.steps, result.completions, result.successes, result.removed) == (12, 32, 20, 4)
    assert result.unjudged == {"cut at max_new_tokens": 4} and "of 4 of 4 solutions" in result.notes[0]
    assert result.before["hard"].value == pytest.approx(10 / 12) and result.after["hard"].value == pytest.approx(8 / 12)
    assert result.lowered["soft"].value == pytest.approx(2 * 0.5 / 12) and result.correct.value == 0.5
    assert (result.rises, result.pairs) == ((0, 2), 8)
    assert [(each.place, each.steps, each.soft) for each in result.places] == [
        (1, 4, 0.625),
        (2, 4, 0.625),
        (3, 4, 0.5),
    ]
    assert result.cost["completions"] == 32 and result.cost["calls of the model"] == 36
    assert result.cost["generated tokens"] == 36 * 3
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Wait, 1 + 2 = 3, not 4." in page and "asked in a user" in page
    beginnings = [json.loads(messages)[1] for _, messages in server.answers if len(json.loads(messages)) > 1]
    assert {"1 + 2 = 4\n", "1 + 2 = 4\n\n4 + 3 = 7\n"} <= set(beginnings) and "The answer is 7." not in str(beginnings)


def test_a_chat_judge_is_believed_where_its_words_stand(server, tmp_path):
    result = asked(server, tmp_path / "out", **JUDGED, judge_url=server.url)
    found = {row["id"]: row for row in rows(tmp_path / "out" / "labels.jsonl")}
    assert found["s1/0"]["reflected"] == [[1, 0, 1, 0]] * 2 + [[0] * 4]
    assert found["s1/0"]["quotes"][1][0] == {"completion": 0, "at_step": 0, "quote": "Wait, 1 + 2 = 3, not 4"}
    assert not any(map(any, found["s3/0"]["reflected"] + found["s2/0"]["reflected"]))
    # Equal completions are asked about once, but each counts: 12 of the right sums, 8 of the wrong ones.
    counts = {"asked": 20, "with a quote that stands nowhere": 4, "not of the form": 0, "not given": 0}
    assert result.judged == counts and result.removed == 4
    assert result.cost["calls of the judge"] == sum(
        count for (who, _), count in server.answers.items() if who == "judge"
    )
    assert set(Counter(who for who, _ in server.answers)) == {"m", "judge"}
    assert not [messages for who, messages in server.answers if who == "judge" and "99" in messages]  # failures
    assert result.warnings() == ()


def test_it_goes_on_where_it_was_stopped(server, tmp_path):
    """In writing, in completing, in judging: nothing is asked twice, and the files are the same bytes."""
    how = {**JUDGED, "judge_url": server.url}
    asked(server, tmp_path / "whole", **how)
    once = Counter(server.answers)
    server.answers.clear()
    for calls in (2, 11, 30, 38, 41):
        with pytest.raises(BudgetReached, match=f"calls={calls}"):
            asked(server, tmp_path / "out", **how, budget=f"calls={calls}")
    asked(server, tmp_path / "out", **how)
    assert server.answers == once and sum(once.values()) > 41
    for name in ("labels.jsonl", "completions.jsonl", "solutions.jsonl", "result.json", "run.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_it_survives_being_killed(server, tmp_path):
    """By SIGKILL, while a call is in flight, which alone may be asked again; and its record is whole."""
    write(tmp_path / "p.jsonl", *SUMS)
    words = [
        *(
            "prm",
            "label",
            "--model",
            "openai-api/local/m",
            "--model-url",
            server.url,
            "--problems",
            "p.jsonl",
            "--quiet",
        ),
        *("--samples", "4", "--max-new-tokens", "40", "--max-connections", "1", "--out", "out"),
        *("--judge", "openai-api/local/judge", "--judge-url", server.url),
    ]
    for least in (8, 40):
        child = subprocess.Popen([sys.executable, "-m", "equipoise", *words], cwd=tmp_path)
        while sum(server.answers.values()) < least and child.poll() is None:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run([sys.executable, "-m", "equipoise", *words], cwd=tmp_path, check=True)
    once = Counter(server.answers)
    again = asked(server, tmp_path / "again", **JUDGED, judge_url=server.url, replay=tmp_path / "out" / "calls.jsonl")
    assert server.answers == once and again.cost["calls of the model"] == 36
    assert sum(count for (who, _), count in once.items() if who == "m") <= 36 + 2
    for name in ("labels.jsonl", "completions.jsonl", "solutions.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_without_a_judge_nothing_is_corrected(server):
    result = asked(server, judge="none", solutions=2)
    assert result.after == result.before and result.removed == 0 and result.lowered["hard"].value == 0
    assert "no judge corrected them" in result.headline()
    # A server that always writes the same has one solution a problem to label.
    assert result.left_out == {"written twice": 4} and result.solutions == 4
    assert "4 written twice" in result.headline()


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (
            "",
            r"There is nothing to label\. Of 4 solutions of .* there are 4 without a finished step: raise max_new_tokens",
        ),
        (
            "I cannot.\nSorry.",
            r"There is nothing to label steps by\. Not one of \d+ completions .* was without an answer",
        ),
    ],
)
def test_a_model_that_never_answers_is_told(server, monkeypatch, says, told):
    monkeypatch.setattr(sys.modules[__name__], "policy", lambda *_: says)
    with pytest.raises(WorkFailed, match=told):
        asked(server)


def test_what_was_cut_has_no_outcome(server):
    """Not even where the number that it broke off behind is the gold one; and the step that was cut is none."""
    server.cuts = True
    with pytest.raises(WorkFailed, match=r"the first was cut at max_new_tokens.*It ends with 'The answer is 5\.'"):
        asked(server)
    server.cuts = False
    given = [{**SUMS[0], "steps": ["0 + 2 = 2", "2 + 3"]}]
    found = label("openai-api/local/m", problems=given, model_url=server.url, samples=3, max_connections=1)
    assert found.labels()[0]["correct"] is False and found.labels()[0]["final_answer"] == "3"
    given = [{**SUMS[0], "steps": ["0 + 2 = 2", f"So {said}."]} for said in ("70,000", "1/2")]
    named = [{**each, "id": str(place)} for place, each in enumerate(given)]
    found = label("openai-api/local/m", problems=named, model_url=server.url, samples=1, max_connections=1)
    assert [each["final_answer"] for each in found.labels()] == ["70000", "0.5"]


# A model here

QUICK = {"samples": 3, "max_new_tokens": 5, "verifier": "regex"}
HERE = [
    {
        "id": "one",
        "prompt": "Where was Mulum born?",
        "answer": r"(?s)[aeo]\W*\Z",
        "steps": ["yes no", "maybe", "one two"],
    },
    {"id": "two", "prompt": "no <script>alert(1)</script>", "answer": r"(?s)[aeinot]\W*\Z"},
    {"id": "three", "prompt": "Norway? Oslo", "answer": r"(?s)[aeo]\W*\Z", "solution": "one\ntwo\nno"},
]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("label") / "out"
    return SimpleNamespace(folder=folder, result=label(model(), problems=HERE, solutions=3, **QUICK, out=folder))


def test_a_model_here_is_rolled_out(done):
    labels, completed = rows(done.folder / "labels.jsonl"), rows(done.folder / "completions.jsonl")
    assert {row["id"].split("/")[0] for row in labels} == {"one", "two", "three"}
    assert len(labels) + sum(done.result.left_out.values()) == 2 + 3
    for row, drawn in zip(labels, completed, strict=True):
        assert row["id"] == drawn["id"]
        its = [[one["outcome"] for one in step] for step in drawn["completions"]]
        assert row["outcomes"][: len(its)] == its and len(row["outcomes"]) == len(row["steps"]) == len(row["soft"])
        assert row["soft"] == [sum(each or 0 for each in outcomes) / 3 for outcomes in row["outcomes"]]
        assert row["hard"] == [int(1 in outcomes) for outcomes in row["outcomes"]]
        assert len(its) == len(row["steps"]) - (row["correct"] is not None)
    texts = [one["text"] for drawn in completed for step in drawn["completions"] for one in step]
    assert len(set(texts)) > len(texts) / 2  # samples of their own
    values = {one["outcome"] for drawn in completed for step in drawn["completions"] for one in step}
    assert values == {0, 1, None}
    assert "<script>alert" not in (done.folder / "report.html").read_text(encoding="utf-8")
    assert done.result.cost["generated tokens"] > len(texts)


def test_a_solution_gets_the_same_alone_and_in_any_batch(done):
    for more in ({"rollout_batch_size": 1}, {"rollout_batch_size": 7}, {"limit": 1}):
        again = label(model(), problems=HERE, solutions=3, **QUICK, **more).labels()
        assert again == done.result.labels()[: len(again)] and len(again) >= 1
    other = label(model(), problems=HERE, solutions=3, **QUICK, seed=1, limit=1).labels()
    assert other != done.result.labels()[:1]


def test_no_two_beginnings_have_draws_in_common():
    stepped, problem = cut("a\nb\nc"), Problem("p", "Norway?", ("a",))
    numbers = [
        Solution(problem, place, number, stepped, True).beginning(steps).number
        for place in range(3)
        for number in range(3)
        for steps in (1, 2, 3)
    ] + [nothing(problem, place).number for place in range(3)]
    assert len(set(numbers)) == 30 and min(numbers) == 0


def test_it_goes_on_where_it_was_interrupted(done, tmp_path, monkeypatch):
    """No prompt is rolled out twice, and the files are the same bytes."""
    seen, rolled = [], policies.roll_out

    def rolling(language_model, prompts, *, stop=[1, 2], **how):  # noqa: B006
        if len(seen) in stop:
            stop.remove(len(seen))
            raise KeyboardInterrupt
        found = rolled(language_model, prompts, **how)
        seen.append([(str(prompt), *how["seed"]) for prompt in prompts])
        return found

    monkeypatch.setattr(policies, "roll_out", rolling)
    how = {"problems": HERE, "solutions": 3, **QUICK, "rollout_batch_size": 1}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            label(model(), **how, out=tmp_path / "out")
    label(model(), **how, out=tmp_path / "out")
    every = [each for call in seen for each in call]
    assert len(every) == len(set(every)) == 5
    for name in ("labels.jsonl", "completions.jsonl", "solutions.jsonl", "result.json"):
        assert (tmp_path / "out" / name).read_bytes() == (done.folder / name).read_bytes(), name


def test_a_beginning_is_the_models_own_turn():
    """Neither an end of turn nor a second beginning behind it, and the tokens of the whole answer so far."""
    made = model()
    begun = Beginning(Problem("p", "Norway?", ("a",)), "yes\n", 0)
    settings = LabelSettings(max_new_tokens=5)
    shown = LocalPolicy(made, settings).shown(begun)
    assert made.uses_chat_template and shown.endswith("yes\n") and "Norway?" in shown
    assert LocalPolicy(replace(made, chat_template="none"), settings).shown(begun).endswith("Norway? yes\n")
    chat = SimpleNamespace(name="openai-api/local/m")
    turns = ChatPolicy(chat, settings, by_turn=None, plain=False).turns(begun)
    assert [(turn.role, turn.content) for turn in turns][1:] == [("assistant", "yes\n"), ("user", GO_ON)]
    assert len(ChatPolicy(chat, settings, by_turn=False, plain=False).turns(begun)) == 2
    own = ChatPolicy(SimpleNamespace(name="equipoise/smollm2"), settings, by_turn=None, plain=False)
    assert not own.by_turn and own.turns(begun)[-1].role == "assistant"
    (only,) = ChatPolicy(chat, settings, by_turn=None, plain=True).turns(begun)
    assert only.content == "Norway? yes\n"


@pytest.mark.slow
def test_a_beginning_is_read_as_within_the_whole_answer():
    """With a tokenizer to which two line ends at the end of a text are another token than before a word."""
    from equipoise.language import load

    policy = LocalPolicy(load("smollm2", device="cpu"), LabelSettings())
    tokenizer = policy.language_model.tokenizer
    stepped = cut("There are 3 boxes.\n\nSo 3 + 5 = 8.\n\n- Then 9*2 = 18.\n\nThe answer is 18.")
    whole = tokenizer(policy.shown(Beginning(Problem("p", "How many?", ("18",)), stepped.text, 0))).input_ids
    for count in (1, 2, 3):
        beginning = Beginning(Problem("p", "How many?", ("18",)), stepped.beginning(count), 0)
        ids = tokenizer(policy.shown(beginning)).input_ids
        assert ids == whole[: len(ids)] and tokenizer.decode(ids).endswith(f"{stepped.steps[count - 1]}\n")


# What cannot be meant


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"samples": 0}, "option 'samples' should be at least 1, but got 0"),
        ({"model": "http://here/v1"}, "give it as --model-url"),
        ({"model": "small", "model_args": {"top_k": 1}}, "model_args is for a model that is asked by chat"),
        ({"model": "small", "go_on": "turn"}, "leave go_on turn out"),
        ({"model": "small", "budget": "calls=5"}, "budget is for chat models"),
        ({"model": "small", "judge_args": {"a": 1}}, "this judge is none"),
        ({"model": "small", "judge": "rule"}, "judge is 'rule'. Did you mean 'rules'"),
        ({"model": "openai-api/local/m", "dtype": "bfloat16"}, "dtype is for a model that is rolled out here"),
        ({"model": "openai-api/local/m", "chat_template": "t.jinja"}, "a server has its own"),
        ({"model": "no.gguf"}, "No model 'no.gguf' is known here"),
        ({"model": "small", "separator": " "}, "separator is ' ', which is in every text"),
        ({"model": "small", "verifier": "choice"}, "is no letter of a choice"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_loaded(given, told):
    with pytest.raises(BadInput, match=told):
        label(**{"model": "small", "problems": SUMS, **given})


def test_a_solution_that_has_no_room_is_refused_before_the_first_draw(monkeypatch):
    monkeypatch.setattr(labeling, "write", lambda *_: pytest.fail("drawn"))
    long = {"steps": ["yes no " * 50]}
    with pytest.raises(BadInput, match=r"Prompt 'long' has .* tokens; with 5 new ones that is more than the context"):
        label(model(), problems=[HERE[1], {**HERE[0], **long, "id": "long"}], **QUICK)
    with pytest.raises(BadInput, match=r"Prompt 'two' has .* tokens; with 120 new ones"):
        label(model(), problems=[HERE[1]], **{**QUICK, "max_new_tokens": 60})


def test_problems_that_cannot_be_labelled_are_refused(tmp_path):
    options = {"limit": None, "fields": None, "separator": None}
    with pytest.raises(BadInput, match="what was given is empty"):
        read([], **options)
    with pytest.raises(BadInput, match=r"row 2: problem 'b' has no gold"):
        read([Problem("a", "1 + 1", ("2",)), Problem("b", "1 + 2", ())], **options)
    with pytest.raises(BadInput, match=r"row 2: expected a problem"):
        read([Problem("a", "1 + 1", ("2",)), "1 + 2"], **options)
    found, source, digest = read([Problem("a", "1 + 1", ("2",)), Problem("b", "1 + 2", ("3",))], **options)
    assert [(each.problem.id, each.place, each.given) for each in found] == [("a", "row 1", None), ("b", "row 2", None)]
    assert source == "2 problems" and digest != read([Problem("a", "1 + 1", ("2",))], **options)[2]
