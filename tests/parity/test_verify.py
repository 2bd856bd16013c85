"""Verifiers against math-verify called directly, TRL's own reward functions, and the published solutions of public tests."""

import os
from pathlib import Path

import pytest

from equipoise.data.problems import Problem, read_problems
from equipoise.data.records import Message
from equipoise.data.verify import open_verifier

pytestmark = pytest.mark.slow
math_verify = pytest.importorskip("math_verify")

PAIRS = [  # gold, answer
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", r"\frac{3}{6}"),
    (r"\frac{1}{2}", "0.51"),
    ("50", r"50\%"),
    ("1,234", "1234"),
    ("p - q", "-q+p"),
    ("p - q", "q-p"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\tfrac{\pi}{2})"),
    (r"\{1,2,3\}", r"\{3,2,1\}"),
    (r"(-\infty, 2]", r"x \le 2"),
    (r"[0,1)", "[0,1]"),
    ("x=5", "5"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\sqrt{8}", "2.83"),
    (r"90^\circ", "90"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4.0 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 4 & 3 \end{pmatrix}"),
    (r"\text{odd}", r"\text{even}"),
    ("x^2-1", "(x-1)(x+1)"),
    ("2^{10}", "1024"),
    ("3+4i", "4i+3"),
    (r"\log_2 8", "3"),
    ("9:5", "9/5"),
    ("7", "x"),
    ("1", ""),
]


def directly(gold, text):
    parsed = math_verify.parse(f"\\boxed{{{gold}}}"), math_verify.parse(text)
    return float(math_verify.verify(*parsed))


def test_math_is_math_verify_in_another_process():
    answers = [f"Thus \\boxed{{{answer}}}." for _, answer in PAIRS]
    with open_verifier("math") as verifier:
        found = verifier([Problem(str(index), "?", (gold,)) for index, (gold, _) in enumerate(PAIRS)], answers)
    expected = [directly(gold, answer) for (gold, _), answer in zip(PAIRS, answers, strict=True)]
    assert [score.value for score in found] == expected
    assert 8 < sum(expected) < len(PAIRS) - 5


def test_math_on_the_gold_answers_of_others():
    problems = data("math500/math500.jsonl.gz")[::10]
    answers = [f"\\boxed{{{problem.gold[0]}}}" for problem in (*problems[1:], problems[0])]
    shifted = [f"\\boxed{{{problem.gold[0]} + 0}}" for problem in problems]
    with open_verifier("math") as verifier:
        found = verifier(problems * 2, answers + shifted)
    pairs = zip(problems * 2, answers + shifted, strict=True)
    assert [score.value for score in found] == [directly(problem.gold[0], answer) for problem, answer in pairs]


def test_trls_reward_functions_as_they_are():
    rewards = pytest.importorskip("trl.rewards")
    chat = (Message("user", "?"),)
    problems = [
        Problem(str(index), "?", (), chat, columns={"solution": gold})
        for index, gold in enumerate(("$1/3$", "$1/3$", "no"))
    ]
    answers = [r"<think>hm</think>\boxed{\frac{1}{3}}", r"<think>hm</think>\boxed{\frac{1}{2}}", "<think>"]
    ids = [[1] * 50, [1] * 50, [1] * 120]
    for reward, expected in (
        (rewards.accuracy_reward, [1, 0, 0]),
        (rewards.think_format_reward, [1, 1, 0]),
        (rewards.get_cosine_scaled_reward(max_len=100), [0.75, -0.75, 0]),
        (rewards.get_soft_overlong_punishment(max_completion_len=120, soft_punish_cache=80), [-0.125, -0.125, -1]),
    ):
        with open_verifier(reward=reward) as verifier:
            found = verifier(problems, answers, completion_ids=ids)
        assert [score.value for score in found] == pytest.approx(expected), reward
        assert not any(score.crashed for score in found)


def data(name):
    root = os.environ.get("EQUIPOISE_DATA")
    if not root or not (Path(root) / name).exists():
        pytest.skip(f"needs {name} in the folder that EQUIPOISE_DATA names")
    return read_problems(Path(root) / name)


@pytest.mark.parametrize(
    ("name", "solution", "every"),
    [("humaneval/HumanEval.jsonl.gz", "canonical_solution", 8), ("mbpp/mbpp.jsonl.gz", "code", 40)],
)
def test_published_solutions_pass_published_tests(name, solution, every):
    problems = data(name)
    special = {"HumanEval/32", "HumanEval/38", "HumanEval/81", "HumanEval/115", "126", "367", "596", "861", "927"}
    chosen = [problem for index, problem in enumerate(problems) if index % every == 0 or problem.id in special]
    with open_verifier("tests") as verifier:
        right = verifier(chosen, [problem.columns[solution] for problem in chosen])
        wrong = verifier(chosen[:4], [chosen[4].columns[solution]] * 4)
    assert {problem.id: score.reason for problem, score in zip(chosen, right, strict=True) if score.value < 1} == {}
    assert [score.value for score in wrong] == [0] * 4
