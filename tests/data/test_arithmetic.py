import re
from collections import Counter
from itertools import product

import numpy as np
import pytest

from equipoise.core.errors import BadInput
from equipoise.data import arithmetic
from equipoise.data.arithmetic import CHARACTERS, MISTAKES, ArithmeticProblem, check_steps, problems, solution

KINDS = ("chain", "sum", "routes")


def rng(seed=0):
    return np.random.default_rng(seed)


def worked(numbers, operators):
    """A chain's values, by Python's own arithmetic."""
    values, value = [], numbers[0]
    for operator, number in zip(operators, numbers[1:], strict=True):
        value = eval(f"({value}){operator}({number})") % 10
        values.append(value)
    return values


def truths(written):
    return [(step.text, step.place, step.follows, step.right) for step in written.steps]


@pytest.fixture(scope="module")
def chain():
    return ArithmeticProblem("c", "chain", 3, "7+5*3-4\n", "2", (7, 5, 3, 4), ("+*-",), ("7+5=2", "2*3=6", "6-4=2"))


@pytest.fixture(scope="module")
def total():
    return ArithmeticProblem("s", "sum", 3, "247+385\n", "632", (247, 385), (), ("12", "13", "6", "632"))


@pytest.fixture(scope="module")
def routes():
    found = [problem for problem in problems(400, seed=0, kind="routes", levels=(2,)) if len(problem.routes) > 1]
    return found[0]


def test_chains_are_worked_from_the_left_with_their_last_digits():
    for problem in problems(60, seed=1, kind="chain", levels=(1, 3, 5)):
        numbers, operators = re.findall(r"\d", problem.prompt), re.findall(r"[-+*]", problem.prompt)
        assert len(operators) == problem.level and "".join(operators) == problem.routes[0]
        values = worked(list(map(int, numbers)), operators)
        assert problem.answer == str(values[-1])
        assert [int(step[-1]) for step in problem.steps] == values and problem.prompt.endswith("\n")


def test_sums_are_those_of_python_and_their_columns_carry():
    for problem in problems(60, seed=1, kind="sum", levels=(2, 4)):
        first, second = map(int, problem.prompt.split("+"))
        assert problem.answer == str(first + second) == problem.steps[-1]
        assert len(str(first)) == len(str(second)) == problem.level == len(problem.steps) - 1
        carry = 0
        for place, step in enumerate(problem.steps[:-1]):
            column = int(str(first)[-1 - place]) + int(str(second)[-1 - place]) + carry
            assert step == str(column)
            carry = column // 10


def test_all_routes_that_reach_the_answer_are_known_and_no_other():
    for problem in problems(40, seed=2, kind="routes", levels=(2, 3)):
        numbers, target = problem.prompt.split("=")
        numbers = list(map(int, numbers.split("?")))
        every = ["".join(route) for route in product("+-*", repeat=problem.level)]
        assert list(problem.routes) == [route for route in every if worked(numbers, route)[-1] == int(target)]
        for route in every:
            steps, value = [], numbers[0]
            for operator, number, result in zip(route, numbers[1:], worked(numbers, route), strict=True):
                steps.append(f"{value}{operator}{number}={result}")
                value = result
            read = check_steps(problem, ";".join(steps))
            assert read.right == (route in problem.routes) and read.route == route
            assert all(step.follows and step.right for step in read.steps)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_share_no_problem_whatever_the_seeds(kind):
    def drawn(part):
        return [
            problem for seed in range(3) for problem in problems(60, seed=seed, kind=kind, levels=(2, 3), part=part)
        ]

    train, test = ({problem.prompt for problem in drawn(part)} for part in ("train", "test"))
    assert not train & test and len(train) > 170
    assert {len({problem.id for problem in problems(60, seed=seed, kind=kind)}) for seed in range(3)} == {60}


def test_a_sum_with_its_numbers_exchanged_is_the_same_problem():
    train = problems(33, seed=0, kind="sum", levels=(1,))
    test = problems(6, seed=0, kind="sum", levels=(1,), part="test")
    numbers = [tuple(sorted(problem.numbers)) for problem in (*train, *test)]
    assert len(set(numbers)) == 39


def test_the_first_problems_do_not_depend_on_how_many_nor_on_other_levels():
    many = problems(40, seed=5, levels=(2, 3))
    assert problems(7, seed=5, levels=(2, 3)) == many[:7]
    assert problems(20, seed=5, levels=(3,)) == [problem for problem in many if problem.level == 3]
    assert Counter(problem.level for problem in many) == {2: 20, 3: 20}
    assert problems(7, seed=6, levels=(2, 3)) != many[:7]


def test_a_level_that_is_used_up_says_so():
    assert len(problems(243 - 60, seed=0, levels=(1,))) == 183
    with pytest.raises(BadInput, match=r"There are only \d+ train problems of kind 'chain' and level 1"):
        problems(243, seed=0, levels=(1,))


def test_an_error_is_carried_on_and_two_truths_differ(chain):
    assert truths(check_steps(chain, "7+5=3;3*3=9;9-4=5")) == [
        ("7+5=3", 0, False, False),
        ("3*3=9", 1, True, False),
        ("9-4=5", 2, True, False),
    ]
    # two errors that cancel: the value is true again, although the step does not follow
    read = check_steps(chain, "7+5=3;3*3=9;9-4=2")
    assert truths(read)[2] == ("9-4=2", 2, False, True) and read.right and read.first_error == 0


def test_a_wait_takes_the_step_before_it_up_again(chain):
    mended = check_steps(chain, "7+5=3;3*3=9;Wait 2*3=6;6-4=2")
    assert truths(mended)[2:] == [("Wait 2*3=6", 1, True, True), ("6-4=2", 2, True, True)] and mended.right
    again = check_steps(chain, "7+5=2;Wait 7+5=2;Wait 7+5=4;4*3=2")
    assert [(step.place, step.follows, step.wait) for step in again.steps] == [
        (0, True, False),
        (0, True, True),
        (0, False, True),
        (1, True, False),
    ]
    # without "Wait" in front a second attempt is another step, in the wrong place
    assert truths(check_steps(chain, "7+5=3;7+5=2"))[1] == ("7+5=2", 1, False, False)


def test_another_sign_or_number_does_not_follow(chain):
    assert not check_steps(chain, "7-5=2").steps[0].follows and check_steps(chain, "7-5=2").steps[0].right
    assert not check_steps(chain, "7+6=3").steps[0].follows
    assert not check_steps(chain, "7+5=2;6-4=2").steps[1].follows  # a step left out


def test_columns_build_on_the_carry_before(total):
    read = check_steps(total, "12;12;6;622")
    assert truths(read) == [
        ("12", 0, True, True),
        ("12", 1, False, False),
        ("6", 2, True, True),
        ("622", 3, True, False),
    ]
    read = check_steps(total, "2;12;6;622")  # no carry: the second column follows from it
    assert [step.follows for step in read.steps] == [False, True, True, True] and not read.right
    assert check_steps(total, "12;13;6;632").right


def test_spans_are_those_of_the_text(chain):
    text = "7+5=3;Wait 7+5=2;2*3=6;x;6-4=2#2"
    for step in check_steps(chain, text).steps:
        assert text[step.start : step.stop] == step.text
    assert [step.start for step in check_steps(chain, text).steps] == [0, 6, 17, 23, 25]


@pytest.mark.parametrize(
    ("text", "answer", "form", "right"),
    [
        ("7+5=2;2*3=6;6-4=2", "2", "plain", True),
        ("7+5=2;2*3=6;6-4=2#2", "2", "strict", True),
        ("7+5=2;2*3=6;6-4=2:2", "2", "habit", True),
        ("7+5=2;2*3=6;6-4=2#3", "3", "strict", False),
        ("7+5=2;2*3=6;6-4=2#", None, None, False),
        ("7+5=2;2*3=6;6-4=2#2#2", None, None, False),  # which of two answers is meant
        ("7+5=2;2*3=6;6-4=2#2 ", None, None, False),
        ("7+5=2;2*3=6;6-4=2;", None, None, False),  # not finished
        ("7+5=2;2*3=6;6-4=²", None, None, False),
        ("#2", "2", "strict", True),
        ("", None, None, False),
        ("Wait ", None, None, False),
        ("6-4=2\ud800;;Wait Wait #" + "9" * 5000, None, None, False),
    ],
)
def test_any_text_is_read(chain, text, answer, form, right):
    read = check_steps(chain, text)
    assert (read.answer, read.form, read.right) == (answer, form, right) and read.text == text


def test_what_cannot_be_read_takes_a_place_and_breaks_what_builds_on_it(chain, total):
    read = check_steps(chain, "7+5=2;what;6-4=2;2+2=4")
    assert truths(read)[1:] == [("what", 1, False, False), ("6-4=2", 2, False, True), ("2+2=4", None, False, False)]
    assert read.route is None
    read = check_steps(total, "12;;6;632")
    assert [step.follows for step in read.steps] == [True, False, False, False]  # whether to carry is unknown
    assert [step.right for step in read.steps] == [True, False, True, True] and read.right


def test_a_route_must_lead_there_by_steps_that_follow(routes):
    wrong = next(r for r in ("++", "+-", "--", "**", "-+") if r not in routes.routes)
    first, second, third = routes.numbers
    one = worked(routes.numbers, wrong)[0]
    text = f"{first}{wrong[0]}{second}={one};{one}{wrong[1]}{third}={routes.answer}"
    assert check_steps(routes, text).answer == routes.answer and not check_steps(routes, text).right
    for route in routes.routes:
        written = solution(routes, route=route)
        assert written.right and written.route == route
    assert not check_steps(routes, solution(routes).steps[0].text).right
    tried = solution(routes, route=next(r for r in ("++", "+-", "--") if r not in routes.routes))
    assert not tried.right and all(step.follows and step.right for step in tried.steps)
    with pytest.raises(BadInput, match="has the routes"):
        solution(routes, route="+")


@pytest.mark.parametrize("kind", KINDS)
def test_planted_mistakes_change_the_value_of_their_step_and_of_no_step_before(kind):
    generator = rng()
    for problem in problems(40, seed=3, kind=kind, levels=(2, 3)):
        assert [step.text for step in solution(problem).steps] == list(problem.steps) and solution(problem).right
        for place, mistake in product(range(len(problem.steps)), MISTAKES[kind]):
            written = solution(problem, {place: mistake}, generator=generator)
            assert [step.right for step in written.steps[: place + 1]] == [True] * place + [False]
            assert [step.follows for step in written.steps] == [i != place for i in range(len(problem.steps))]
            mended = solution(problem, {place: mistake}, correct=1, generator=generator)
            assert mended.right and len(mended.steps) == len(problem.steps) + 1
            assert mended.steps[place + 1].wait and mended.steps[place + 1].right
            assert set(written.text + mended.text + problem.prompt) <= set(CHARACTERS)


def test_each_mistake_is_made_as_it_is_called(chain, total):
    for seed in range(20):
        step = {m: solution(chain, {1: m}, generator=rng(seed)).steps[1].text for m in MISTAKES["chain"]}
        assert re.fullmatch(r"2\*3=[^6]", step["result"])
        assert re.fullmatch(r"2\*[^3]=.", step["operand"]) and 2 * int(step["operand"][2]) % 10 == int(
            step["operand"][-1]
        )
        assert step["operator"] in ("2+3=5", "2-3=9")
        assert solution(total, {1: "carry"}, generator=rng(seed)).steps[1].text == "12"
        assert solution(total, {0: "carry"}, generator=rng(seed)).steps[0].text != "12"  # nothing is carried there


def test_chances_are_those_asked_for():
    """A chain of right and wrong values: wrong after an error, back by a Wait that may err too."""
    error, correct, wait, several = 0.2, 0.6, 0.3, 1500
    generator = rng(1)
    (problem,) = [p for p in problems(9, seed=0, levels=(4,), operators="+-") if p.level == 4][:1]
    written = [solution(problem, error, correct, wait, generator) for _ in range(several)]
    # With + and - an error never vanishes by itself but by another error, one time in nine at most.
    first = [w.steps[0].right for w in written]
    assert np.mean(first) == pytest.approx(1 - error, abs=0.03)
    second = [(w.steps[0].right, w.steps[1]) for w in written]
    assert np.mean([step.wait for right, step in second if not right]) == pytest.approx(correct, abs=0.07)
    assert np.mean([step.wait for right, step in second if right]) == pytest.approx(wait, abs=0.04)
    assert np.mean([step.right for _, step in second if step.wait]) == pytest.approx(1 - error, abs=0.05)
    assert not any(a.wait and b.wait for w in written for a, b in zip(w.steps, w.steps[1:], strict=False))


def test_going_on_from_a_prefix(chain, routes):
    assert solution(chain, prefix="7+5=3;").text == "7+5=3;3*3=9;9-4=5"
    assert solution(chain, correct=1, prefix="7+5=3").text == "7+5=3;Wait 7+5=2;2*3=6;6-4=2"
    assert solution(chain, correct=1, prefix="7+5=3;Wait 7+5=4;").text == "7+5=3;Wait 7+5=4;4*3=2;Wait 2*3=6;6-4=2"
    assert solution(chain, wait=1, prefix="7+5=2;2*3=6;6-4=2").text.endswith("6-4=2;Wait 6-4=2")
    last = routes.routes[-1]
    begun = solution(routes, route=last).steps[0].text
    assert str(solution(routes, prefix=begun).route)[0] == last[0]
    with pytest.raises(BadInput, match="cannot be gone on from"):
        solution(chain, prefix="7+5=2;2*")
    closed = next(o for o in "+-*" if all(route[0] != o for route in routes.routes))
    value = worked(routes.numbers[:2], closed)[0]
    with pytest.raises(BadInput, match="has the routes"):
        solution(routes, prefix=f"{routes.numbers[0]}{closed}{routes.numbers[1]}={value};")


def test_forms_of_the_answer(chain, total):
    assert solution(chain, form="strict").text == "7+5=2;2*3=6;6-4=2#2"
    assert solution(total, form="habit").text == "12;13;6;632:632"


@pytest.mark.parametrize(
    ("arguments", "problem_with"),
    [
        ({"error": 1.5, "generator": rng()}, "numbers from 0 to 1"),
        ({"error": 0.5}, "generator="),
        ({"error": {0: "result"}}, "generator="),
        ({"error": {0: "carry"}, "generator": rng()}, "no 'carry' at step 0"),
        ({"error": {3: "result"}, "generator": rng()}, "no 'result' at step 3"),
        ({"error": {0: "resultt"}, "generator": rng()}, "resultt"),
        ({"route": "+++"}, r"has the routes \+\*-"),
    ],
)
def test_what_cannot_be_written_is_refused(chain, arguments, problem_with):
    with pytest.raises(BadInput, match=problem_with):
        solution(chain, **arguments)


def test_levels_and_operators_are_checked():
    for levels in ((), (0,), (2, 2)):
        with pytest.raises(BadInput, match="levels"):
            problems(1, seed=0, levels=levels)
    with pytest.raises(BadInput, match="operators"):
        problems(1, seed=0, operators="/")
    assert {operator for p in problems(30, seed=0, levels=(3,), operators="+*") for operator in p.routes[0]} == set(
        "+*"
    )


def test_a_seed_is_the_same_problems_and_solutions_in_every_version():
    """Recorded results name seeds: what these draw stays, whatever NumPy changes."""
    drawn = {
        "chain": ("4+9 3+8*5 9-9-4+6 4-3*8+3+4 6+4 6*5+1 7*8-6*5 8+7-8+9+4", "9+9 2*2-9 6*2-6-3 2*1-6*8+8 4+6 5-9-5"),
        "sum": ("5+6 50+47 886+419 3367+1002 9+8 33+34 164+143 6805+4068", "6+4 78+22 265+149 3685+7671 6+7 43+15"),
        "routes": (
            "9?6=4 1?2?9=1 1?9?3?8=7 6?1?5?7?1=4 9?9=8 5?4?5=5 5?4?9?5=5 1?5?1?6?8=6",
            "6?6=0 7?6?9=0 3?5?4?5=7 1?8?8?8?9=6 3?3=9 6?1?9=6",
        ),
    }
    generator = rng()
    told = []
    for kind, (train, test) in drawn.items():
        made = problems(8, seed=3, kind=kind)
        assert [each.prompt for each in made] == [f"{text}\n" for text in train.split()]
        assert [each.prompt.strip() for each in problems(6, seed=3, kind=kind, part="test")] == test.split()
        told += [solution(each, 0.5, 0.7, 0.4, generator).text for each in made[2:4] for _ in range(4)][::3]
    assert told == [
        "9-9=0;Wait 9-9=8;8-4=4;Wait 0-4=6;6+6=2",
        "9-9=0;0-4=7;Wait 0-9=1;1+6=7;Wait 6+6=2",
        "4-3=1;1+8=9;Wait 1*8=8;8*3=4;4*4=6",
        "11;Wait 15;9;13;Wait 12;1296;Wait 1345",
        "15;Wait 17;10;Wait 10;17;1707",
        "9;1;3;5;5311;Wait 4369",
        "1-9=2;2+1=3;3-8=5",
        "1-9=2;2+3=5;5-5=0;Wait 5-8=4",
        "6+1=7;Wait 6+4=0;0+2=2;2-7=8;8-1=7;Wait 5-1=4",
    ]


@pytest.mark.parametrize(("kind", "most"), [("chain", 99), ("sum", 9), ("routes", 6)])
def test_the_highest_levels(kind, most):
    (problem,) = problems(1, seed=0, kind=kind, levels=(most,))
    assert problem.level == most and len(problem.numbers) == (2 if kind == "sum" else most + 1)
    with pytest.raises(BadInput, match=f"from 1 to {most}"):
        problems(1, seed=0, kind=kind, levels=(most + 1,))
    assert problems(0, seed=0, kind=kind) == []
    with pytest.raises(BadInput, match="count is -1"):
        problems(-1, seed=0, kind=kind)
    with pytest.raises(BadInput, match="operators ''"):
        problems(1, seed=0, kind=kind, operators="")


def test_every_problem_of_a_level_is_found_before_it_is_used_up():
    """45 sums of two digits: both parts together have all of them."""
    sizes = {}
    for part in ("train", "test"):
        for size in range(1, 46):
            try:
                problems(size, seed=1, kind="sum", levels=(1,), part=part)
            except BadInput as error:
                assert f"only {size - 1} {part} problems of kind 'sum' and level 1" in str(error)
                break
            sizes[part] = size
    assert sizes["train"] + sizes["test"] == 45


def test_patience_is_counted_anew_after_each_new_problem(monkeypatch):
    drawn = []

    def draw(kind, level, operators, generator):
        drawn.append(len(drawn))
        return (1 + min(len(drawn), 2), 1), "+"  # the first is new, the second, too, and then always the same

    monkeypatch.setattr(arithmetic, "_PATIENCE", 4)
    monkeypatch.setattr(arithmetic, "_drawn", draw)
    monkeypatch.setattr(arithmetic, "_part", lambda name: "train")
    with pytest.raises(BadInput, match="only 2 train problems"):
        problems(3, seed=0, levels=(1,))
    assert len(drawn) == 2 + 4


def test_patience_is_as_long_before_the_first_problem(monkeypatch):
    drawn = []
    monkeypatch.setattr(arithmetic, "_PATIENCE", 4)
    monkeypatch.setattr(arithmetic, "_drawn", lambda *given: drawn.append(1) or ((1, 1), "+"))
    monkeypatch.setattr(arithmetic, "_part", lambda name: "test")
    with pytest.raises(BadInput, match="only 0 train problems"):
        problems(1, seed=0, levels=(1,))
    assert len(drawn) == 4
