"""What labels of steps come to, by hand."""

from types import SimpleNamespace

import pytest

from equipoise.data.problems import Problem
from equipoise.reinforcement import prm_label_measures as measures
from equipoise.reinforcement.prm_label_drawing import Completed, Solution
from equipoise.reinforcement.prm_label_result import LabeledStep, LabelPlace
from equipoise.reinforcement.prm_label_solutions import cut


def row(name, hard, soft, corrected_hard=None, corrected_soft=None, **more):
    steps = [f"{name}{number}" for number in range(len(hard))]
    return {
        "id": name, "steps": steps, "hard": hard, "soft": soft, "corrected_hard": corrected_hard or hard,
        "corrected_soft": corrected_soft or soft, "reflected": [[0, 0]] * len(hard), "outcomes": [[1, None]] * len(hard),
        "quotes": [[]] * len(hard), **more,
    }  # fmt: skip


def completed(group, answer, *completions):
    """One completion a step: its outcome, and why it has none."""
    drawn = [[{"outcome": outcome, "why": why, "text": "a\nb\nc"}] for outcome, why in completions]
    problem = Problem(group, f"q {group}", ("x",))
    return SimpleNamespace(solution=SimpleNamespace(problem=problem), answer=answer, completions=drawn)


def test_the_labels_of_a_solution():
    """Three steps, the last with the solution's own answer, of which nothing is judged; one success is taken out."""
    yes, no = SimpleNamespace(reflects=True, at_step=1, quote="wait"), SimpleNamespace(reflects=False)
    drawn = [[{"outcome": 1}, {"outcome": None}], [{"outcome": 1}, {"outcome": 1}]]
    solved = Solution(Problem("p", "q?", ("7", "8")), 0, 2, cut("a\nb\nso \\boxed{7}", "\n"), True)
    found = measures.labeled(Completed(solved, 1, drawn, 0), [[no, no], [no, yes]], 2, "math")  # type: ignore
    assert found == {
        "id": "p/2", "problem": "q?", "answer": "7 | 8", "steps": ["a", "b", "so \\boxed{7}"], "final_answer": "7",
        "correct": True, "outcomes": [[1, None], [1, 1], [1, 1]], "reflected": [[0, 0], [0, 1], [0, 0]],
        "quotes": [[], [{"completion": 1, "at_step": 1, "quote": "wait"}], []],
        "soft": [0.5, 1.0, 1.0], "hard": [1, 1, 1], "corrected_soft": [0.5, 0.5, 1.0], "corrected_hard": [1, 1, 1],
    }  # fmt: skip
    part = Completed(Solution(solved.problem, 0, 2, solved.stepped, False), None, [*drawn, [{"outcome": 0}] * 2], 0)
    found = measures.labeled(part, [[no, no]] * 3, 2, "math")  # type: ignore
    assert found["final_answer"] is found["correct"] is None and found["hard"] == [1, 1, 0]
    wrong = measures.labeled(Completed(solved, 0, drawn, 0), [[no, no]] * 2, 2, "exact")  # type: ignore
    assert wrong["correct"] is False and wrong["final_answer"] is None and wrong["soft"][2] == 0


def test_all_that_is_counted():
    labels = [
        row("a", [1, 0, 1], [1.0, 0.0, 0.5], [1, 0, 0], [1.0, 0.0, 0.25], reflected=[[0, 0], [0, 0], [1, 1]]),
        row("b", [0, 1], [0.0, 0.5]),
        row("c", [1], [1.0]),
    ]
    done = [
        completed("a", 1.0, (1, ""), (0, ""), (1, "")), completed("b", 0.0, (None, "cut"), (1, "")),
        completed("c", None, (None, "unread")),
    ]  # fmt: skip
    found = measures.measured(done, labels, None)
    assert found["correct"].value == 0.5  # of the two solutions with an answer
    assert {name: found["before"][name].value for name in ("hard", "soft")} == {"hard": 4 / 6, "soft": 3 / 6}
    assert {name: found["after"][name].value for name in ("hard", "soft")} == {"hard": 3 / 6, "soft": 2.75 / 6}
    assert found["lowered"]["hard"].value == pytest.approx(1 / 6)
    assert found["lowered"]["soft"].value == pytest.approx(0.25 / 6)
    assert (found["rises"], found["pairs"]) == ((2, 1), 3)
    assert (found["completions"], found["successes"], found["removed"]) == (6, 3, 2)
    assert found["unjudged"] == {"cut": 1, "unread": 1}
    assert found["places"] == (
        LabelPlace(1, False, 3, pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3)),
        LabelPlace(2, False, 2, 0.5, 0.5, 0.25, 0.25),
        LabelPlace(3, False, 1, 1.0, 0.0, 0.5, 0.25),
    )
    assert found["examples"] == ()


def test_places_behind_the_twelfth_share_one():
    twelve = measures._places([row("a", [1] * 12, [1.0] * 12)])
    assert len(twelve) == 12 and not any(each.more for each in twelve)
    assert [each.place for each in twelve] == list(range(1, 13))
    longer = measures._places([row("a", [1] * 12 + [0, 0], [1.0] * 14), row("b", [0] * 3, [0.0] * 3)])
    assert len(longer) == 12 and [each.more for each in longer] == [False] * 11 + [True]
    assert (longer[11].steps, longer[11].hard) == (3, pytest.approx(1 / 3))
    assert [each.steps for each in longer[:4]] == [2, 2, 2, 1]


def test_the_solution_that_is_shown_is_the_one_that_tells_most():
    plain, differing = row("a", [1, 1], [1.0, 1.0]), row("b", [1, 0], [0.5, 0.0])
    corrected = row("c", [1, 1], [0.5, 0.5], [1, 0], [0.5, 0.25], outcomes=[[1, 0, 1, 0], [1, None, 1, None]])
    assert [each.solution for each in measures._shown([plain, differing, corrected])] == ["c", "c"]
    assert measures._shown([plain, differing])[0].solution == "b" and measures._shown([plain])[0].solution == "a"
    assert measures._shown([corrected]) == (LabeledStep("c", 1, "c0", 2, 2), LabeledStep("c", 2, "c1", 2, 1))


def test_removed_successes_of_as_many_solutions_as_can_be_shown():
    quotes = [{"completion": 0, "at_step": 1, "quote": "b"}]
    labels = [
        row(name, [1] * count, [1.0] * count, quotes=[quotes] * count)
        for name, count in (("a", 6), ("b", 1), ("c", 0), ("d", 3))
    ]
    done = [completed(name, 1.0, *[(1, "")] * count) for name, count in (("a", 6), ("b", 1), ("c", 0), ("d", 3))]
    found = measures._removed(done, labels, "\n")
    assert [(each.solution, each.step) for each in found] == [
        ("a", 1), ("b", 1), ("d", 1), ("a", 2), ("d", 2), ("a", 3), ("d", 3), ("a", 4)
    ]  # fmt: skip
    assert {(each.completion, each.added, each.quote) for each in found} == {(0, "b", "b")}
    assert found[3].text == "a1"


def test_final_answers_by_the_kind_of_verifier():
    text = "So 3 and then \\boxed{7}. The answer is (B)."
    assert measures._final_answer("math", text) == "7" and measures._final_answer("exact", text) is None
    assert measures._final_answer("number", "it is 12") == "12" and measures._final_answer("number", "none") is None
    assert measures._final_answer("choice", text) == "B" and measures._final_answer("number", "<think>5") is None
