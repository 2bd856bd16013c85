"""Graders: what they say is read as it was meant, counted whatever it is, and checked against planted answers."""

import hashlib
import importlib.util
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from equipoise.chat.account import Account, Budget
from equipoise.chat.calls import Reply
from equipoise.chat.client import Chat
from equipoise.chat.grade import ChatGrader, Planted, RuleGrader, Submission, _schema, blinded, grade, plant
from equipoise.chat.grades import BINARY, FOUR, Grades, read_grade
from equipoise.chat.grading import Grade, Grading
from equipoise.chat.record import Record
from equipoise.chat.templates import Template
from equipoise.core.errors import BadInput, BudgetReached, WorkFailed
from equipoise.core.serialize import deserialize, serialize
from equipoise.core.shares import Share
from equipoise.core.statistics import wilson

needs_inspect = pytest.mark.skipif(
    importlib.util.find_spec("inspect_ai") is None, reason="needs Inspect AI: the extra `chat`"
)
YES, CORRECT = Grades({"yes": 1, "no": 0}), Grades({"CORRECT": 1, "INCORRECT": 0})
ONE, TEN = Grades({"1": 1, "0": 0}), Grades.scale(1, 10, accept=8)


def items(count: int) -> list[Submission]:
    """The first third is right."""
    return [
        Submission(f"q{i}", f"What is {i}?", f"gold {i}" if 3 * i < count else "something else", (f"gold {i}",))
        for i in range(count)
    ]


class Scripted:
    """Gives what a function of the answer says, and keeps what it was shown."""

    def __init__(self, says, grades=BINARY, name="scripted"):
        self.says, self.grades, self.name = says, grades, name
        self.shown: list[Submission] = []

    def check(self, submissions):
        pass

    def grade(self, submissions):
        self.shown += submissions
        given = [self.says(each) for each in submissions]
        return [Grade(None, text="?") if each is None else self.grades.graded(each, "") for each in given]


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "grades", "wanted"),
    [
        # LongMemEval asks for yes or no, and takes a "yes" anywhere for one.
        ("Yes.", YES, "yes"),
        ("no", YES, "no"),
        ("**Yes**, the response contains it.", YES, "yes"),
        ("Yes. Yes, it does.", YES, "yes"),
        ("NO, because yes would need the date", YES, None),
        ("No contradiction is in it", YES, None),
        ("<think>no</think>\nyes", YES, "yes"),
        ("<think>yes", YES, None),
        ("yes\nno", YES, None),
        ("Verdict: no\n\nThat was too strict.\nVerdict: **yes**", YES, "yes"),
        ("Verdict: yes\nVerdict: no", YES, None),
        ("Verdict: yes or no", YES, None),
        ("Verdict: yes\nVerdict: no\nVerdict: yes", YES, None),  # the last two count
        ("Verdict: no\nVerdict: yes\nVerdict: yes", YES, "yes"),
        ("Verdict: yes\nmaybe\nVerdict: no", YES, "no"),
        ("Well.\nVerdict: yes\nmaybe\nVerdict: no", YES, "no"),
        ("Verdict: no\nVerdict: yes", YES, None),
        ("Well.\nSo.\nVerdict: yes\nVerdict: no", YES, None),
        ("Well.\nVerdict: no\nVerdict: yes", YES, None),
        ("Well.\nVerdict:\nyes", YES, "yes"),
        ("Well.\nGrade:", YES, None),
        ("Grade:", YES, None),
        ("Verdict:\n> yes\nno", YES, "no"),
        ("yes\nyes", YES, "yes"),
        ("> Verdict: yes\nVerdict: no", YES, "no"),
        ("Verdict:\nyes", YES, "yes"),
        # Chain-of-Memory: one word, of which one is part of the other.
        ("INCORRECT", CORRECT, "INCORRECT"),
        ("correct", CORRECT, "CORRECT"),
        ("The answer is correct, since it names Paris.", CORRECT, "CORRECT"),
        ("The answer is not correct.", CORRECT, None),
        ("Correct answer: Paris", CORRECT, None),
        # What a grade that is asked about, or denied, says: another one, or nothing.
        *[
            (text, BINARY, None)
            for text in (
                "Correct: No",
                "Correct: no, the answer is wrong",
                "**Correct**: No",
                "Correct: False",
                "Correct: 0",
                "Correct:\nNo",
                "Correct? No.",
                "Verdict: correct? No.",
                "Verdict: **Correct: no**",
                "Correct: Oslo\nGiven: Bergen",
                "Correct: Oslo, given: Bergen",
                "Correct - no",
                "Correct; no, the year differs",
                "Correct. Not.",
                "Correct, it is not.",
                "Correct, it isn't",
                "Correct, I would say that it isn’t; the year differs",
                "Correct, it is not correct",
                "correct\nNo, it is not.",
                "Grade: correct\nWrong.",
                "Well.\nGrade: correct\nWrong.",
                "Correct, it is, well, not.",
            )
        ],
        ("Correct? Yes.", YES, None),
        ("Correct: yes\nVerdict: yes", YES, "yes"),
        ("Correct, it does not contradict the right answer.", BINARY, "correct"),
        ("Correct. No errors.", BINARY, "correct"),
        ("Grade: correct\nIt names Oslo.\nNo, it is not.", BINARY, "correct"),  # of a line further on nothing is known
        ("Correct\nNo year was asked for.", BINARY, "correct"),
        ("Incorrect. Wrong.", BINARY, "incorrect"),
        ("Incorrect, it is not.", BINARY, "incorrect"),
        ("Incorrect\nNo, it says Bergen.", BINARY, "incorrect"),
        ("No, it does not.", YES, "no"),
        ("Partially correct. Wrong year.", FOUR, "partially_correct"),
        ("Partially correct, not complete.", FOUR, "partially_correct"),
        ("Not attempted, it does not.", FOUR, "not_attempted"),
        ("7, because it does not name the year.", TEN, "7"),
        ("It is close.\n\nCORRECT", CORRECT, "CORRECT"),
        ("CORRECT\nThe answer is what was asked for.", CORRECT, "CORRECT"),
        # CulturALL: 1 or 0 and nothing else.
        (" 1.", ONE, "1"),
        ("0", ONE, "0"),
        ("１", ONE, "1"),
        ("1/0", ONE, None),
        ("10", ONE, None),
        ("", ONE, None),
        # DialogTool's parser drops "10/10" and takes any one number.
        ("10/10", TEN, "10"),
        ("7.", TEN, "7"),
        ("Rating (1-10): 7", TEN, "7"),
        ("Score: 7 out of 10", TEN, "7"),
        ("9, since it is nearly right", TEN, "9"),
        ("9, maybe 8", TEN, None),
        ("7 to 8", TEN, None),
        ("8.5", TEN, None),
        ("7/100", TEN, None),
        ("Score: 85", TEN, None),
        ("Not attempted.", FOUR, "not_attempted"),
        ("grade: partially-correct", FOUR, "partially_correct"),
        ("partially correct, not incorrect", FOUR, None),
    ],
)
def test_a_grade_in_words_is_read_as_it_was_meant_or_not_at_all(text, grades, wanted):
    assert read_grade(text, grades) == wanted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grades({"correct": 1}), "name two or more"),
        (lambda: Grades({"not attempted": 1, "Not_attempted": 0}), "cannot be told apart"),
        (lambda: Grades({"a": 1.5, "b": 0}), "each is from 0 to 1"),
        (lambda: Grades({"a": 1, "b": 0}, {"c": "?"}), "a meaning of c, which is no grade"),
        (lambda: Grades.scale(1, 5, accept=6), "A scale from 1 to 5 that accepts from 6"),
        (lambda: RuleGrader("exakt"), "Did you mean 'exact'"),  # pyright: ignore[reportArgumentType]
        (lambda: grade([], [RuleGrader()]), "There are no answers"),
        (lambda: grade(items(3), []), "There are no graders"),
        (lambda: grade(items(3) * 2, [RuleGrader()]), "Two answers are called 'q0'"),
        (lambda: grade(items(3), [RuleGrader(), RuleGrader()]), "Two graders are called 'exact match'"),
        (lambda: grade([Submission("q", "?", "a")], [RuleGrader()]), "'q' has no right answer to compare with"),
        (lambda: Submission("q", "?", "a", more={"gold": "b"}), "'q' has gold in more"),
        (lambda: plant(items(3), 4, seed=0), "4 planted answers were asked for, of 3 items"),
        (lambda: plant([replace(each, gold=("one",)) for each in items(3)], 1, seed=0), "no wrong answer to plant"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()


def test_grades_by_hand():
    assert TEN.credits == {str(n): (n - 1) / 9 for n in range(1, 11)} and (TEN.accept, TEN.ordered) == (7 / 9, True)
    assert [TEN.accepts(TEN.graded(grade, "")) for grade in ("1", "7", "8", "10")] == [False, False, True, True]
    assert TEN.told == ["a whole number from 1, the worst, to 10, the best"]
    assert Grades({"a": 1, "b": 0}) == Grades({"a": 1, "b": 0}, {}, 1.0, False)
    assert Grades({"a": 1, "b": 0.5, "c": 0}, {"b": "half"}, 0.5).told == ["a", "b: half", "c"]
    assert FOUR.graded("partially_correct", "so") == Grade("partially_correct", 0.5, "so", "", True)
    for low, high in ((-2, 0), (0, 3), (3, 7), (7, 20)):
        scale = Grades.scale(low, high, accept=high)
        assert scale.whole and scale.told == [f"a whole number from {low}, the worst, to {high}, the best"]
    assert not Grades({"0": 0, "1": 1}).whole
    assert Grades.scale(0, 1, accept=0).credits == {"0": 0.0, "1": 1.0} and Grades.scale(-2, 0, accept=0).accept == 1
    for low, high, accept in ((1, 5, 0), (1, 5, 6), (3, 3, 3), (int("300"), 300, 300), (5, 1, 3)):
        with pytest.raises(BadInput) as caught:
            Grades.scale(low, high, accept=accept)
        assert str(caught.value) == f"A scale from {low} to {high} that accepts from {accept} is none."
    for wrong, sentence in (
        (lambda: Grades({}), "The grades (none) cannot be told apart: name two or more."),
        (lambda: Grades({"": 1, "b": 0}), "The grades , b cannot be told apart: name two or more."),
        (lambda: Grades({"a": 1, "b": -0.1}), "The credits {'a': 1, 'b': -0.1} and accept=1.0: each is from 0 to 1."),
        (
            lambda: Grades({"a": 1, "b": 0}, accept=1.1),
            "The credits {'a': 1, 'b': 0} and accept=1.1: each is from 0 to 1.",
        ),
        (lambda: Grades({"a": 1, "b": 0}, {"d": "", "c": ""}), "There is a meaning of c, d, which is no grade."),
    ):
        with pytest.raises(BadInput) as caught:
            wrong()
        assert str(caught.value) == sentence


def test_a_grade_as_data_is_one_of_them():
    scale = _schema(tuple(TEN.credits), True)
    assert [scale(reasoning="", grade=n).grade for n in (1, 10)] == [1, 10]
    for wrong in (0, 11, 1.5):
        with pytest.raises(ValidationError, match="grade"):
            scale(reasoning="", grade=wrong)
    words = _schema(tuple(YES.credits), False)
    assert words(reasoning="x" * 600, grade="no").grade == "no" and words.__name__ == "Graded"
    for wrong in ({"reasoning": "x" * 601, "grade": "no"}, {"reasoning": "", "grade": "maybe"}, {"grade": "no"}):
        with pytest.raises(ValidationError):
            words(**wrong)


@pytest.mark.parametrize(
    "names", [("0", "5", "10"), ("bad", "fair", "good"), ("1", "3", "2"), ("01", "02"), ("0.5", "1")]
)
def test_ordered_grades_that_are_no_run_of_whole_numbers_are_named_one_by_one(names):
    grades = Grades({name: place / len(names) for place, name in enumerate(names)}, ordered=True)
    grader = ChatGrader(SimpleNamespace(name="m"), grades)
    assert not grades.whole and grades.told == list(names) and TEN.whole
    for name in names:
        assert grader._grade(Reply("", "answered", value=grader._schema(reasoning="", grade=name))).grade == name
        assert read_grade(f"Grade: {name}, as was said", grades) == name
    for wrong in ("3", "7", "ok", 2):
        if wrong not in names:
            with pytest.raises(ValidationError):
                grader._schema(reasoning="", grade=wrong)
    assert read_grade(f"{names[0]}, or rather {names[-1]}", grades) is None


def test_what_grading_holds_unless_it_is_said():
    plain = Submission("i", "q", "a")
    assert plain == Submission("i", "q", "a", (), "", {}) and Planted(plain, True) == Planted(plain, True, "")
    none = Grade(None)
    assert (none.text, none.reason, none.asked, math.isnan(none.credit)) == ("", "", True, True)
    empty = Share(0, 0, 0, 0, 0, 1)
    assert math.isnan(empty.rate) and math.isnan(empty.least) and math.isnan(empty.most)
    first, second = grade(items(4), [RuleGrader(), Scripted(lambda _: "correct")]).reports
    done = Grading((first, second), (), {})
    assert (done.accuracy, done.accepted, done.invalid, done.unasked, done.audit) == (
        first.accuracy, first.accepted, first.invalid, first.unasked, first.audit,
    )  # fmt: skip
    assert done.notes == (*first.notes, *second.notes) == ("scripted gave all 4 answers the grade 'correct'.",)


def test_planted_answers_word_by_word():
    known = [Submission("a", "A?", "x", ("One. ", "1"), "g"), Submission("b", "B?", "y", ("Two",))]
    planted = {each.submission.id: each for each in plant(known, 2, seed=0, padded=True)}
    assert list(planted) == [
        f"{item}/planted {kind}" for item in ("ab" if next(iter(planted))[0] == "a" else "ba")
        for kind in ("right", "right, padded", "wrong", "wrong, padded")
    ]  # fmt: skip
    right, wrong, own = planted["a/planted right"], planted["a/planted wrong"], planted["b/planted right"]
    assert right == Planted(replace(known[0], id="a/planted right", answer="One. "), True, "right")
    assert wrong == Planted(replace(known[0], id="a/planted wrong", answer="Two"), False, "wrong")
    assert own.submission.group == "b"  # both forms of one answer are one cluster
    padded = planted["a/planted right, padded"]
    assert (padded.right, padded.kind) == (True, "right, padded")
    assert padded.submission.answer.startswith("One. To put the same at more length, ")
    assert padded.submission.answer.endswith("and so it is given here in full.")
    assert not any("padded" in each.kind for each in plant(known, 2, seed=0))
    for count, usable in ((0, 2), (3, 2)):
        with pytest.raises(BadInput) as caught:
            plant([*known, Submission("c", "C?", "z")], count, seed=0)
        assert str(caught.value) == f"{count} planted answers were asked for, of {usable} items that have a right one."


# --- grading --------------------------------------------------------------------------------------------------------


def test_every_answer_is_counted_whatever_came():
    def says(each):
        return None if each.question == "What is 8?" else "correct" if each.answer.startswith("gold") else "incorrect"

    done = grade(items(9), [Scripted(says)])
    assert done.reports[0].counts == {"correct": 3, "incorrect": 5} and done.invalid == 1 and done.unasked == 0
    assert (done.accuracy.count, done.accuracy.of, done.accuracy.missing) == (3, 8, 1)
    assert (done.accuracy.least, done.accuracy.most) == (3 / 9, 4 / 9)
    assert done.notes == ("scripted gave 1 of 9 answers no grade that can be read.",)
    assert done.grades["scripted"]["q8"].text == "?" and done.audit is None and done.agreement == ()
    with pytest.raises(WorkFailed, match=r"scripted gave no grade in 9 answers.*'\?'"):
        grade(items(9), [Scripted(lambda _: None)])


def test_partial_credit_and_what_counts_as_right_are_two_things():
    def says(each):
        return ["correct", "partially_correct", "incorrect", "not_attempted"][int(each.question[8]) % 4]

    strict = grade(items(8), [Scripted(says, FOUR)])
    assert strict.accuracy.rate == 3 / 8 and strict.accepted.rate == 2 / 8
    assert grade(items(8), [Scripted(says, replace(FOUR, accept=0.5))]).accepted.rate == 4 / 8
    marks = grade(items(8), [Scripted(lambda each: str(2 + int(each.question[8])), TEN)])
    assert marks.accuracy.rate == pytest.approx(np.mean([(s - 1) / 9 for s in range(2, 10)]))
    assert marks.accepted.count == 2 and marks.reports[0].counts["9"] == 1


def test_two_graders_are_compared_over_the_real_answers():
    def lenient(each):
        return "correct" if each.question in ("What is 0?", "What is 4?", "What is 5?") else "incorrect"

    done = grade(items(6), [RuleGrader(), Scripted(lenient)], planted=plant(items(6), 2, seed=0))
    (found,) = done.agreement
    assert found.by == "grade" and found.graders == ("exact match", "scripted")
    assert found.table == (
        ("correct", "correct", 1), ("correct", "incorrect", 1), ("incorrect", "correct", 2), ("incorrect", "incorrect", 2)
    )  # fmt: skip
    assert found.disagreed == 3 and found.same.of == 6
    assert found.kappa.value == pytest.approx((3 / 6 - 1 / 2) / (1 / 2), abs=1e-12)
    # What one of both could not grade is missing, and no agreement.
    mute = Scripted(lambda each: None if each.question in ("What is 0?", "What is 4?") else lenient(each))
    (found,) = grade(items(6), [RuleGrader(), mute]).agreement
    assert (found.same.of, found.same.missing) == (4, 2)
    # Grades that are not the same are compared by whether they accept.
    four = Scripted(lambda each: "not_attempted" if each.answer == "something else" else "correct", FOUR)
    (found,) = grade(items(6), [RuleGrader(), four]).agreement
    assert found.by == "accepted" and found.kappa.value == 1 and found.table[0] == ("rejected", "rejected", 4)


def test_a_grader_that_likes_long_answers_is_seen():
    texts = ["word " * (2**i) for i in range(1, 7)]
    known = [Submission(str(i), "?", text, ("word",)) for i, text in enumerate(texts * 2)]
    liking = Scripted(lambda each: "correct" if len(each.answer.split()) > 8 else "incorrect")
    even = Scripted(lambda each: "correct" if int(each.question == "?") else "incorrect", name="even")
    done = grade(known, [liking, even])
    lengths = [math.log2(1 + 2**i) for i in range(1, 7)] * 2
    expected = np.corrcoef([0, 0, 0, 1, 1, 1] * 2, lengths)[0, 1]
    assert done.reports[0].length.value == pytest.approx(expected) == pytest.approx(done.agreement[0].longer.value)
    assert done.reports[0].explained == pytest.approx(expected**2)
    assert math.isnan(done.reports[1].length.value) and done.notes == ("even gave all 12 answers the grade 'correct'.",)


# --- planted answers ------------------------------------------------------------------------------------------------


def test_planted_answers_are_what_they_are_said_to_be():
    known = [*items(12), Submission("open", "No gold?", "x")]
    planted = plant(known, 5, seed=4, padded=True)
    assert len(planted) == 20 and len({each.submission.id for each in planted}) == 20
    done = grade(known[:12], [RuleGrader(), RuleGrader("contains")], planted=planted)
    exact, holds = (report.audit for report in done.reports)
    # What is padded is no exact match any more; the words of the right answer still stand in it.
    assert {kind: (s.count, s.of) for kind, s in exact.kinds.items()} == {
        "right": (0, 5), "right, padded": (5, 5), "wrong": (0, 5), "wrong, padded": (0, 5)
    }  # fmt: skip
    assert holds.false_accept.count == 0 == holds.false_reject.count and holds.false_reject.of == 10
    assert done.accuracy.of == 12
    # Both forms of one answer are one cluster: no more than five questions have told anything.
    assert holds is not None and holds.false_accept.size == 5 and holds.kinds["wrong"].size == 5
    assert plant(known, 5, seed=4, padded=True) == planted != plant(known, 5, seed=5, padded=True)


def test_errors_on_planted_answers_are_counted_by_hand():
    wrong = [Planted(Submission(f"w{i}", "?", "no", group=f"g{i}"), right=False, kind="near") for i in range(10)]
    right = [Planted(Submission(f"r{i}", "?", "yes", group=f"g{i}"), right=True) for i in range(8)]
    answers = {each.submission.id: each for each in (*wrong, *right)}
    slips = {"w0": "correct", "w1": "correct", "w2": None, "r0": "incorrect"}
    blind = {hidden.id: own for own, hidden in blinded([*items(30), *(p.submission for p in answers.values())], seed=7)}

    def says(each):
        own = blind[each.id]
        if own in answers:
            return slips.get(own, "correct" if answers[own].right else "incorrect")
        return "correct" if each.answer.startswith("gold") else "incorrect"

    done = grade(items(30), [Scripted(says)], planted=[*wrong, *right], seed=7)
    audit = done.audit
    assert audit is not None and (audit.false_accept.count, audit.false_accept.of, audit.false_accept.missing) == (
        2,
        9,
        1,
    )
    assert (audit.false_accept.lower, audit.false_accept.upper) == wilson(2, 9)
    assert (audit.false_reject.count, audit.false_reject.of) == (1, 8) and audit.kinds == {
        "near": audit.false_accept,
        "right": audit.false_reject,
    }
    assert audit.corrected.value == pytest.approx((1 / 3 + 7 / 9 - 1) / (7 / 8 + 7 / 9 - 1))
    assert audit.corrected.lower < audit.corrected.value < audit.corrected.upper
    assert done.accuracy.count == 10 and done.accuracy.of == 30 and done.invalid == 0


def test_a_grader_that_accepts_everything_is_said_to():
    done = grade(items(9), [Scripted(lambda _: "correct")], planted=plant(items(9), 4, seed=0))
    assert done.accuracy.rate == 1 and done.audit is not None and done.audit.false_accept.rate == 1
    assert math.isnan(done.audit.corrected.value)
    assert "gave all 9 answers the grade 'correct'" in done.notes[0]
    assert "accepts planted wrong answers no less than right ones" in done.notes[1]


def test_nothing_that_a_grader_sees_tells_planted_answers_apart():
    grader = Scripted(lambda _: "correct")
    known, planted = items(60), plant(items(60), 20, seed=1)
    grade(known, [grader], planted=planted, seed=5)
    own = dict(blinded([*known, *(p.submission for p in planted)], seed=5))
    assert not any("planted" in each.id or each.id in {k.id for k in known} for each in grader.shown)
    assert {len(each.id) for each in grader.shown} == {32}
    places = [grader.shown.index(own[each.submission.id]) for each in planted]
    assert 35 < np.mean(places) < 64 and places != sorted(places)  # 49.5, in no order


def test_which_of_two_answers_comes_first_depends_on_no_other():
    known = items(40)
    together = [name for name, _ in blinded(known, seed=3)]
    fewer = [name for name, _ in blinded(known[10:30][::-1], seed=3)]
    assert fewer == [name for name in together if name in set(fewer)] and together != [each.id for each in known]
    assert together != [name for name, _ in blinded(known, seed=4)]


def test_what_came_of_it_can_be_stored_and_read_back():
    done = grade(items(9), [RuleGrader(), Scripted(lambda _: "correct")], planted=plant(items(9), 2, seed=0))
    stored = json.dumps(serialize(done), allow_nan=False)
    back = deserialize(Grading, json.loads(stored))
    assert serialize(back) == json.loads(stored) and back.accuracy == done.accuracy


# --- chat models ----------------------------------------------------------------------------------------------------


class Mock:
    """A model in this process that says what a function of its prompt and of the times it was asked says."""

    def __init__(self, says):
        self.says, self.asked = says, []

    async def __call__(self, messages, *_):
        from inspect_ai.model import ModelOutput, ModelUsage

        self.asked.append([message.text for message in messages])
        output = ModelOutput.from_content("mockllm", self.says(self.asked[-1]))
        output.usage = ModelUsage(input_tokens=5, output_tokens=2, total_tokens=7)
        return output


def said(prompt: list[str]) -> str:
    """Right where a gold answer is given; of 7 not JSON at first, of 8 never."""
    if "What is 8?" in prompt[1] or ("What is 7?" in prompt[1] and len(prompt) == 2):
        return "It is correct, I would say."
    gold, answer = (prompt[1].split(f"[{part}]\n")[1].split("\n")[0] for part in ("Right answers", "Answer to grade"))
    right = gold == f"1. {answer}"
    return json.dumps({"reasoning": "I compared.", "grade": "correct" if right else "incorrect"})


class Replies:
    """A chat whose replies are given."""

    name = "replies"

    def __init__(self, *replies: Reply):
        self.replies = replies

    def ask(self, calls, *, title=""):
        return list(self.replies)


def test_what_the_provider_did_is_no_grade_and_no_fault_of_the_grader():
    came = [
        Reply("Yes", "cut"),
        Reply("", "refused", reason="a filter"),
        Reply("", "rejected", reason="too long"),
        Reply("maybe", "answered"),
    ]
    grader = ChatGrader(Replies(*came), YES, reading="text")  # pyright: ignore[reportArgumentType]
    known = [each for _, each in blinded(items(4), seed=0)]
    given = grader.grade(known)
    assert [each.grade for each in given] == ["yes", None, None, None]
    assert [each.asked for each in given] == [True, False, False, True]
    assert [each.reason for each in given] == ["", "a filter", "too long", "no grade can be read in it"]
    report = grade(items(4), [grader]).reports[0]
    assert (report.invalid, report.unasked, report.accuracy.of, report.accuracy.missing) == (1, 2, 1, 3)
    failing = ChatGrader(Replies(came[0], Reply("", "failed", reason="HTTP 503.")), YES, reading="text")  # pyright: ignore[reportArgumentType]
    with pytest.raises(WorkFailed, match=r"1 of 2 calls of replies got no answer \(HTTP 503\)"):
        grade(items(2), [failing])


@needs_inspect
def test_a_chat_model_grades_with_one_repair_and_is_asked_nothing_twice(tmp_path):
    mock = Mock(said)

    def run(budget: Budget | None = None):
        with Record(tmp_path / "calls.jsonl") as record:
            how = {"record": record, "account": Account(), "budget": budget, "model_args": {"custom_outputs": mock}}
            with Chat("mockllm/model", **how) as chat:
                return grade(items(9), [ChatGrader(chat)], planted=plant(items(9), 2, seed=0))

    with pytest.raises(BudgetReached):
        run(Budget(calls=5))
    done = run()
    assert done.reports[0].counts == {"correct": 3, "incorrect": 5} and done.invalid == 1
    assert "no valid answer" in done.grades["mockllm/model"]["q8"].reason
    assert done.audit is not None and done.audit.false_accept.rate == done.audit.false_reject.rate == 0
    # A right answer that is planted for a question whose own answer is the same gold one is the same call.
    assert len(mock.asked) == len({tuple(each) for each in mock.asked})
    before = len(mock.asked)
    assert run() == done and len(mock.asked) == before


@needs_inspect
def test_a_prompt_of_ones_own_with_a_reply_in_words(tmp_path):
    path = tmp_path / "culture.md"
    path.write_text(
        "---\nquestion: text\nanswer: text\ngold: text\nexplanation: text\n---\n# user\n{{question}} {{gold}} "
        "{{explanation}}\nPrediction: {{answer}}\nReturn only 1 or 0.\n",
        encoding="utf-8",
    )
    mock = Mock(lambda prompt: "1" if "gold" in prompt[0].split("Prediction:")[1] else "0.")
    known = [replace(each, gold=(*each.gold, "other"), more={"explanation": "so"}) for each in items(6)]
    with Record(tmp_path / "calls.jsonl") as record:
        chat = Chat("mockllm/model", record=record, account=Account(), model_args={"custom_outputs": mock})
        grader = ChatGrader(chat, ONE, prompt=Template.read(path), reading="text", max_tokens=4)
        assert grade(known, [grader]).reports[0].counts == {"1": 2, "0": 4}
        assert any("What is 5? gold 5\nother so" in each[0] for each in mock.asked)
        # What one grader cannot be asked is found before another is.
        before = len(mock.asked)
        with pytest.raises(BadInput, match="shows explanation, and the answer 'q0' has none"):
            grade(items(6), [ChatGrader(chat, name="other"), grader])
        assert len(mock.asked) == before
        with pytest.raises(BadInput, match="has no slot 'answer'"):
            path.write_text("---\nquestion: text\n---\n# user\n{{question}}\n", encoding="utf-8")
            ChatGrader(chat, prompt=Template.read(path))
        chat.close()


@needs_inspect
def test_scores_come_as_whole_numbers_of_their_scale(tmp_path):
    mock = Mock(lambda prompt: '{"reasoning": "", "grade": %s}' % ("10" if "gold" in prompt[-1] else "11"))
    with Record(tmp_path / "calls.jsonl") as record:
        chat = Chat("mockllm/model", record=record, account=Account(), model_args={"custom_outputs": mock})
        done = grade([Submission("a", "?", "gold", ("x",)), Submission("b", "?", "y", ("x",))], [ChatGrader(chat, TEN)])
        chat.close()
    assert done.reports[0].counts["10"] == 1 and done.invalid == 1
    assert "1. a whole number from 1, the worst, to 10, the best" in mock.asked[0][1]


# --- exact draws and limits -----------------------------------------------------------------------------------------


def drawn(seed, *names):
    """The name of a draw: sha256 of the names as a large number, through numpy's SeedSequence."""
    number = int(hashlib.sha256(json.dumps(names).encode()).hexdigest(), 16)
    return "".join(f"{word:08x}" for word in np.random.SeedSequence([seed, number]).generate_state(4))


def test_what_is_planted_and_shown_is_drawn_by_name():
    known = items(12)
    chosen = sorted(known, key=lambda item: drawn(3, item.id, "plant"))[:4]
    planted = plant(known, 4, seed=3)
    assert [each.submission.question for each in planted[::2]] == [item.question for item in chosen]
    for item, wrong in zip(chosen, planted[1::2], strict=True):
        other = min((each for each in known if each is not item), key=lambda each: drawn(3, item.id, each.id))
        assert wrong.submission.answer == other.gold[0]
    assert [each.id for _, each in blinded(known, seed=6)] == sorted(drawn(6, item.id) for item in known)
    assert {name: each.id for name, each in blinded(known, seed=6)} == {item.id: drawn(6, item.id) for item in known}


def test_scores_of_a_scale_agree_the_more_the_nearer_they_are():
    from sklearn.metrics import cohen_kappa_score

    scores = {"one": [1, 2, 3, 5, 8, 9, 10, 4], "other": [2, 2, 5, 5, 9, 7, 10, 1]}
    graders = [
        Scripted(lambda each, name=name: str(scores[name][int(each.question[8])]), TEN, name=name) for name in scores
    ]
    (found,) = grade(items(8), graders).agreement
    quadratic = cohen_kappa_score(*scores.values(), labels=[*range(1, 11)], weights="quadratic")
    assert found.by == "grade" and found.kappa.value == pytest.approx(quadratic)
    assert found.disagreed == 5 and found.same.rate == 3 / 8
    # Against grades of another kind it is whether they accept, from eight on, which has no order.
    yes = Scripted(lambda each: "yes" if int(each.question[8]) in (4, 5, 6, 7) else "no", YES, name="words")
    (found,) = grade(items(8), [graders[0], yes]).agreement
    accepts = [score >= 8 for score in scores["one"]]
    assert found.by == "accepted"
    assert found.kappa.value == pytest.approx(cohen_kappa_score(accepts, [False] * 4 + [True] * 4))
    assert found.table == (("rejected", "rejected", 4), ("rejected", "accepted", 1), ("accepted", "accepted", 3))


def test_notes_come_at_their_limits():
    def audited(accepts, rejects):
        wrong = [Planted(Submission(f"w{i}", f"w{i}", "no"), right=False) for i in range(4)]
        right = [Planted(Submission(f"r{i}", f"r{i}", "yes"), right=True) for i in range(4)]
        errors = {f"w{i}" for i in range(accepts)} | {f"r{i}" for i in range(rejects)}

        def says(each):
            if each.question[0] in "wr":
                return "correct" if (each.question[0] == "r") != (each.question in errors) else "incorrect"
            return "correct" if each.answer.startswith("gold") else "incorrect"

        return grade(items(9), [Scripted(says)], planted=[*wrong, *right]).notes

    for accepts, rejects, told in (
        (2, 1, False),
        (1, 2, False),
        (2, 2, True),
        (4, 0, True),
        (0, 3, False),
        (1, 3, True),
    ):
        found = audited(accepts, rejects)
        assert len(found) == told and all("its grades say nothing" in each for each in found)
    assert grade(items(1), [Scripted(lambda _: "correct")]).notes == ()
    assert len(grade(items(2), [Scripted(lambda _: "correct")]).notes) == 1
    long = Scripted(lambda _: None)
    long.grade = lambda shown: [Grade(None, text="x" * 100, reason="so it is")] * len(shown)
    with pytest.raises(WorkFailed) as caught:
        grade(items(3), [long])
    assert str(caught.value) == f"scripted gave no grade in 3 answers: so it is ({'x' * 80!r})."


def test_credits_and_lengths_are_correlated_over_answers_that_have_a_grade():
    words = [1, 3, 7, 15, 31, 63]
    known = [Submission(str(i), f"What is {i}?", "w " * count, ("x",)) for i, count in enumerate(words)]
    first = Scripted(lambda each: None if "5" in each.question else str(1 + int(each.question[8])), TEN)
    second = Scripted(lambda each: str(10 - int(each.question[8]) ** 2 // 3), TEN, name="other")
    done = grade(known, [first, second])
    lengths = [math.log2(1 + count) for count in words]
    assert lengths == [1, 2, 3, 4, 5, 6]
    assert done.reports[0].length.value == pytest.approx(1) and done.reports[0].accuracy.missing == 1
    gaps = [(i - (9 - i**2 // 3)) / 9 for i in range(5)]
    assert done.agreement[0].longer.value == pytest.approx(np.corrcoef(gaps, lengths[:5])[0, 1])
    assert (done.agreement[0].same.of, done.agreement[0].same.missing) == (5, 1)


def test_grades_that_are_written_twice_are_the_same():
    one, other = (Scripted(lambda _: "no", Grades({"yes": 1, "no": 0}), name=name) for name in ("one", "other"))
    (found,) = grade(items(4), [one, other]).agreement
    assert (found.by, found.table) == ("grade", (("no", "no", 4),))
