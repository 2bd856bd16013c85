"""Arithmetic by level: problems from a seed, solutions written step by step, and the truth of every step of any text.

    kind     prompt      a right solution        level
    chain    7+5*3-4     7+5=2;2*3=6;6-4=2       operators; worked from the left, only the last digit of a result counts
    sum      247+385     12;13;6;632             digits of each number; columns from the right with their carry, then the sum
    routes   3?5?8=6     3-5=8;8+8=6             operators, to be chosen so that the chain reaches the number behind "="

A prompt ends with a line end, so that nothing is put between it and the solution. Steps are parted by ";". A step that
begins with "Wait " takes the step before it up again, and its value stands instead. The answer is the last value; or what
is written behind the last step in a form: "#6" is the strict one, ":6" the habit.

Two truths of a step. It `follows` when it is what has to be written next after the values that stand, be they right or not
(a "Wait" may also start from the true value instead). It is `right` when its value is the true one. After an error the next
steps follow and are not right, until a "Wait" mends it or two errors cancel.

Which part a problem belongs to is decided by the problem itself: no seed puts one into training that another tests on.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from typing import Literal, TypeVar, get_args

import numpy as np

from equipoise.core.errors import BadInput
from equipoise.core.options import check_fields, closed

Kind = Literal["chain", "sum", "routes"]
Part = Literal["train", "test"]
Form = Literal["plain", "strict", "habit"]
Mistake = Literal["result", "operand", "operator", "carry"]
Item = TypeVar("Item")

SEPARATOR, WAIT = ";", "Wait "
MARKS: dict[Form, str] = {"plain": "", "strict": "#", "habit": ":"}
MISTAKES: dict[Kind, tuple[Mistake, ...]] = {
    "chain": ("result", "operand", "operator"),
    "sum": ("result", "carry"),
    "routes": ("result", "operand"),
}
OPERATORS = "+-*"
CHARACTERS = "0123456789" + OPERATORS + "=?;\n#:" + "".join(sorted(set(WAIT)))  # of all prompts and solutions
_TEST_SHARE = 5  # one problem in so many is for testing
_EQUATION = re.compile(r"([0-9])([-+*])([0-9])=([0-9])")
_NUMBER = re.compile(r"([0-9]{1,12})")
_MARK = re.compile("[#:]")
_PATIENCE = 10_000  # draws without a new problem, after which there is none


@dataclass(frozen=True, slots=True)
class ArithmeticProblem:
    """A problem and its gold answer. steps: of a right solution (by the first route, where there are several).

    routes: the operators of every right solution ("-+" for 3-5=8;8+8=6), in the order of `OPERATORS`; none of a sum.
    """

    id: str
    kind: Kind
    level: int
    prompt: str
    answer: str
    numbers: tuple[int, ...]
    routes: tuple[str, ...]
    steps: tuple[str, ...]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, slots=True)
class StepTruth:
    """One step of a written solution, text[start:stop], and whether it is true (see the module for both truths).

    place: the step of the problem that it is, from 0, or None beyond the last. value: None where it cannot be read.
    wait: it takes the step before it up again.
    """

    text: str
    start: int
    stop: int
    place: int | None
    value: int | None
    follows: bool
    right: bool
    wait: bool


@dataclass(frozen=True, slots=True)
class WrittenSolution:
    """A text and what is true of it. answer: as written, None where there is none or it cannot be read.

    right: the answer is the problem's; of `routes` also that the steps that stand lead there. form: None without an answer.
    route: the operators of the steps that stand, None where one cannot be read; "" of a sum.
    """

    text: str
    steps: tuple[StepTruth, ...]
    answer: str | None
    right: bool
    form: Form | None
    route: str | None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def first_error(self) -> int | None:
        """Index of the first step that does not follow, None when all do."""
        return next((index for index, step in enumerate(self.steps) if not step.follows), None)


@closed
def problems(
    count: int,
    *,
    seed: int,
    kind: Kind = "chain",
    levels: Sequence[int] = (1, 2, 3, 4),
    part: Part = "train",
    operators: str = OPERATORS,
) -> list[ArithmeticProblem]:
    """`count` different problems, the levels in turn; the first n of them are those that count=n gives.

    No problem is in both parts, whatever the seeds (a sum with its numbers exchanged is the same problem). Level 1 has but
    243 chains and 45 sums in both parts together. operators: of chains and routes. Raises BadInput for levels below 1 or
    sums of more than 9 digits, and when a level has fewer problems than asked for.
    """
    most = 9 if kind == "sum" else 6 if kind == "routes" else 99
    if not levels or not all(1 <= level <= most for level in levels) or len(set(levels)) < len(levels):
        raise BadInput(f"The levels are {list(levels)}: give different whole numbers from 1 to {most}.")
    if count < 0 or not operators or not set(operators) <= set(OPERATORS):
        raise BadInput(
            f"count is {count} and operators {operators!r}: use at least 0, and some of {' '.join(OPERATORS)}."
        )
    ordered = "".join(sorted(set(operators), key=OPERATORS.index))
    streams = [_distinct(kind, level, seed, part, ordered) for level in levels]
    return [next(streams[index % len(levels)]) for index in range(count)]


def _distinct(kind: Kind, level: int, seed: int, part: Part, operators: str) -> Iterator[ArithmeticProblem]:
    key = (get_args(Kind).index(kind), level)
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    known: set[str] = set()
    draws = 0
    while draws < _PATIENCE:
        draws += 1
        numbers, chosen = _drawn(kind, level, operators, generator)
        prompt = _prompt(kind, numbers, chosen)
        name = _prompt(kind, sorted(numbers), chosen) if kind == "sum" else prompt
        if name not in known and _part(name) == part:
            known.add(name)
            draws = 0
            yield _problem(kind, level, numbers, chosen, operators)
    raise BadInput(f"There are only {len(known)} {part} problems of kind {kind!r} and level {level}: ask for fewer.")


def _part(prompt: str) -> Part:
    return "train" if hashlib.sha256(prompt.encode()).digest()[0] % _TEST_SHARE else "test"


def _drawn(kind: Kind, level: int, operators: str, generator: np.random.Generator) -> tuple[tuple[int, ...], str]:
    """Numbers, and the operators between them."""
    if kind == "sum":
        return tuple(_below(generator, 9 * 10 ** (level - 1)) + 10 ** (level - 1) for _ in range(2)), "+"
    numbers = tuple(1 + _below(generator, 9) for _ in range(level + 1))
    return numbers, "".join(_one(generator, operators) for _ in range(level))


def _prompt(kind: Kind, numbers: Sequence[int], route: str) -> str:
    if kind == "routes":
        return f"{'?'.join(map(str, numbers))}={_values(numbers, route)[-1]}\n"
    return "".join(map(str, [number for pair in zip(numbers, [*route, "\n"], strict=True) for number in pair]))


def _problem(kind: Kind, level: int, numbers: tuple[int, ...], route: str, operators: str) -> ArithmeticProblem:
    prompt = _prompt(kind, numbers, route)
    answer = sum(numbers) if kind == "sum" else _values(numbers, route)[-1]
    routes: tuple[str, ...] = () if kind == "sum" else (route,)
    if kind == "routes":
        every = map("".join, product(operators, repeat=level))
        routes = tuple(other for other in every if _values(numbers, other)[-1] == answer)
    steps = _steps(kind, numbers, routes[0] if routes else "")
    return ArithmeticProblem(
        f"{kind}:{prompt.strip()}", kind, level, prompt, str(answer), numbers, routes, tuple(step for step, _ in steps)
    )


def _result(left: int, operator: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[operator] % 10


def _values(numbers: Sequence[int], route: str) -> list[int]:
    """The values of a chain behind each of its operators."""
    values = [numbers[0]]
    for operator, number in zip(route, numbers[1:], strict=True):
        values.append(_result(values[-1], operator, number))
    return values[1:]


def _steps(kind: Kind, numbers: Sequence[int], route: str) -> list[tuple[str, int]]:
    """A right solution: text and value of each step."""
    steps: list[tuple[str, int]] = []
    for place in range(_length(kind, numbers)):
        steps.append(_step(kind, numbers, place, [value for _, value in steps], route[place : place + 1]))
    return steps


def _length(kind: Kind, numbers: Sequence[int]) -> int:
    return len(str(numbers[0])) + 1 if kind == "sum" else len(numbers) - 1


def _step(kind: Kind, numbers: Sequence[int], place: int, before: Sequence[int], operator: str) -> tuple[str, int]:
    """What has to be written at this place when these values stand before it: text and value."""
    if kind != "sum":
        left, right = before[place - 1] if place else numbers[0], numbers[place + 1]
        value = _result(left, operator, right)
        return f"{left}{operator}{right}={value}", value
    if place == _length(kind, numbers) - 1:
        digits = [str(before[-1]), *[str(value % 10) for value in before[-2::-1]]]
        return "".join(digits), int("".join(digits))
    value = sum(number // 10**place % 10 for number in numbers) + (before[place - 1] // 10 if place else 0)
    return str(value), value


# Writing.


@closed
def solution(
    problem: ArithmeticProblem,
    error: float | Mapping[int, Mistake] = 0.0,
    correct: float = 0.0,
    wait: float = 0.0,
    generator: np.random.Generator | None = None,
    *,
    route: str | None = None,
    form: Form = "plain",
    prefix: str = "",
) -> WrittenSolution:
    """A solution as a fallible writer writes it, with the truth of every step.

    error: the chance of each step, in [0, 1], of being mistaken so that its value changes; or which steps are, and how:
    {1: "operand"}. "result": another value; "operand", "operator": another number or sign is read; "carry": of a column, one
    too few or too many (a step that cannot be so mistaken has another result). correct: the chance, after a step whose value
    is not the true one, that a "Wait" does it again from the true value before. wait: the same chance after other steps. A
    step is taken up once, and a "Wait" is as mistaken as any step where error is a chance. route: one of the problem's, its
    first by default; of the kind routes also one that does not lead to the answer. prefix: whole steps to go on from; what
    follows is drawn as if they had been drawn too.

    generator: needed where anything is left to chance. Raises BadInput without it, for chances outside [0, 1], mistakes that
    the kind does not have, and a prefix that cannot be read or keeps no route open.
    """
    planted = dict(error) if isinstance(error, Mapping) else {}
    chance_of_error = 0.0 if isinstance(error, Mapping) else error
    _check_writing(problem, planted, (chance_of_error, correct, wait), generator)
    written, values = _begun(problem, prefix)
    route = _route(problem, route, written)
    truth = [value for _, value in _steps(problem.kind, problem.numbers, route)]
    taken_up = bool(written) and written[-1].wait
    texts = [step.text for step in written]

    def happens(chance: float) -> bool:
        return chance == 1 or (chance > 0 and generator is not None and generator.random() < chance)

    def add(place: int, before: Sequence[int], mistake: Mistake | None) -> int:
        operator = route[place : place + 1]
        text, value = _step(problem.kind, problem.numbers, place, before, operator)
        if generator is not None and (mistake or happens(chance_of_error)):
            mistake = mistake or _one(generator, MISTAKES[problem.kind])
            text, value = _one(generator, _mistaken(problem, place, before, operator, mistake))
        texts.append(text)
        return value

    while True:
        place = len(values)
        if place and not taken_up and happens(wait if values[-1] == truth[place - 1] else correct):
            values[-1] = add(place - 1, truth[: place - 1], None)
            texts[-1], taken_up = WAIT + texts[-1], True
        elif place < len(truth):
            values.append(add(place, values, planted.get(place)))
            taken_up = False
        else:
            break
    shown = f"{MARKS[form]}{values[-1]}" if MARKS[form] else ""
    return check_steps(problem, SEPARATOR.join(texts) + shown)


def _check_writing(
    problem: ArithmeticProblem,
    planted: Mapping[int, Mistake],
    chances: tuple[float, float, float],
    generator: np.random.Generator | None,
) -> None:
    for place, mistake in planted.items():
        if not 0 <= place < len(problem.steps) or mistake not in MISTAKES[problem.kind]:
            raise BadInput(
                f"Problem {problem.id!r} has the steps 0 to {len(problem.steps) - 1} and the mistakes "
                f"{', '.join(MISTAKES[problem.kind])}: there is no {mistake!r} at step {place}."
            )
    if not all(0 <= chance <= 1 for chance in chances):
        raise BadInput(f"The chances of error, correct and wait are {chances}: give numbers from 0 to 1.")
    if generator is None and (planted or chances[0] or any(0 < chance < 1 for chance in chances)):
        raise BadInput("What is left to chance needs a generator: pass generator=numpy.random.default_rng(seed).")


def _begun(problem: ArithmeticProblem, prefix: str) -> tuple[list[StepTruth], list[int]]:
    """The steps of a prefix, and the values that stand after it."""
    steps = _read(problem, prefix)
    values = [step.value for step in _standing(steps)]
    known = [value for value in values if value is not None]
    if len(known) < len(values) or len(known) > len(problem.steps):
        raise BadInput(f"Problem {problem.id!r}: {prefix!r} cannot be gone on from: give whole steps of a solution.")
    return steps, known


def _route(problem: ArithmeticProblem, route: str | None, written: Sequence[StepTruth]) -> str:
    """The route to write, which must be one that what is written leaves open."""
    if problem.kind == "sum":
        return ""
    begun = _operators(_standing(written)) or "" if problem.kind == "routes" else ""
    known: Sequence[str] = problem.routes
    if problem.kind == "routes" and route and len(route) == problem.level and set(route) <= set(OPERATORS):
        known = (route,)
    found = [each for each in known if each.startswith(begun) and route in (None, each)]
    if not found:
        raise BadInput(
            f"Problem {problem.id!r} has the routes {' '.join(problem.routes)}: none is {route or 'left'} "
            f"after {begun or 'nothing'!r}."
        )
    return found[0]


def _mistaken(
    problem: ArithmeticProblem, place: int, before: Sequence[int], operator: str, mistake: Mistake
) -> list[tuple[str, int]]:
    """All steps that are mistaken in this way and have another value than the right one."""
    text, value = _step(problem.kind, problem.numbers, place, before, operator)
    found: list[tuple[str, int]] = []
    if problem.kind == "sum":
        last = place == len(problem.steps) - 1
        if mistake == "carry" and place and not last:
            other = value - before[place - 1] // 10 if before[place - 1] > 9 else value + 1
            found = [(str(other), other)]
        elif last:
            figures = [text[:i] + str(d) + text[i + 1 :] for i in range(len(text)) for d in range(10) if i or d]
            found = [(figure, int(figure)) for figure in figures]
        else:
            found = [(str(other), other) for other in range(20)]
    else:
        left, right = before[place - 1] if place else problem.numbers[0], problem.numbers[place + 1]
        if mistake == "operand":
            found = [
                (f"{left}{operator}{d}={_result(left, operator, d)}", _result(left, operator, d)) for d in range(1, 10)
            ]
        elif mistake == "operator":
            found = [(f"{left}{o}{right}={_result(left, o, right)}", _result(left, o, right)) for o in OPERATORS]
        else:
            found = [(f"{left}{operator}{right}={d}", d) for d in range(10)]
    found = [(step, other) for step, other in found if other != value]
    return found or _mistaken(problem, place, before, operator, "result")


def _below(generator: np.random.Generator, limit: int) -> int:
    return int(generator.random() * limit)  # random() alone: NumPy may change the other methods


def _one(generator: np.random.Generator, items: Sequence[Item]) -> Item:
    return items[_below(generator, len(items))]


# Reading.


def check_steps(problem: ArithmeticProblem, text: str) -> WrittenSolution:
    """What is true of a solution that anybody wrote, step by step; any text can be read."""
    mark = _MARK.search(text)
    body, shown = (text[: mark.start()], text[mark.end() :]) if mark else (text, None)
    steps = _read(problem, body)
    standing = _standing(steps)
    if mark is None and steps and steps[-1].stop == len(text) and steps[-1].value is not None:
        shown = steps[-1].text.removeprefix(WAIT).rpartition("=")[2]
    if shown is not None and not _NUMBER.fullmatch(shown):
        shown = None
    sign = mark.group() if mark else ""
    form: Form | None = None if shown is None else next(form for form, its in MARKS.items() if its == sign)
    route = "" if problem.kind == "sum" else _operators(standing)
    led = problem.kind != "routes" or (route in problem.routes and all(step.follows for step in standing))
    return WrittenSolution(text, tuple(steps), shown, led and shown == problem.answer, form, route)


def _read(problem: ArithmeticProblem, body: str) -> list[StepTruth]:
    pieces = body.split(SEPARATOR)
    if not pieces[-1]:
        pieces.pop()
    steps: list[StepTruth] = []
    values: list[int | None] = []  # that stand, and what they should be
    truth: list[int | None] = []
    start = 0
    for piece in pieces:
        wait = piece.startswith(WAIT) and bool(values)
        if wait:
            values.pop()
            truth.pop()
        place, said = len(values), piece.removeprefix(WAIT)
        found = (_NUMBER if problem.kind == "sum" else _EQUATION).fullmatch(said)
        value = int(found[found.re.groups]) if found else None
        if problem.kind == "routes":
            operator = found[2] if found else None
        else:
            operator = (*problem.routes, "")[0][place : place + 1]
        due = [_due(problem, place, before, operator) for before in ([values, truth] if wait else [values])]
        _, true = _due(problem, place, truth, operator)
        steps.append(
            StepTruth(
                text=piece,
                start=start,
                stop=start + len(piece),
                place=place if place < len(problem.steps) else None,
                value=value,
                follows=said in [text for text, _ in due],
                right=value is not None and value == true,
                wait=wait,
            )
        )
        values.append(value)
        truth.append(true)
        start += len(piece) + len(SEPARATOR)
    return steps


def _due(
    problem: ArithmeticProblem, place: int, before: Sequence[int | None], operator: str | None
) -> tuple[str | None, int | None]:
    """`_step`, where that is known."""
    last = place == len(problem.steps) - 1
    needed = before if problem.kind == "sum" and last else before[-1:]
    if place >= len(problem.steps) or operator is None or None in needed:
        return None, None
    return _step(problem.kind, problem.numbers, place, [value or 0 for value in before], operator)


def _standing(steps: Sequence[StepTruth]) -> list[StepTruth]:
    """Without those that a "Wait" took up again."""
    return [step for step, after in zip_longest(steps, steps[1:]) if after is None or not after.wait]


def _operators(standing: Sequence[StepTruth]) -> str | None:
    parsed = [_EQUATION.fullmatch(step.text.removeprefix(WAIT)) for step in standing]
    return "".join(found[2] for found in parsed if found) if all(parsed) else None
