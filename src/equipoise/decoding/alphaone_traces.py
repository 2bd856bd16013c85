"""What the toy of AlphaOne's study is taught: thinking in paragraphs that errs, and waits that derive a value again.

    7a+5b+3c+4d+2?          a7+5=2 | b2+3=6 | Waita7+5=2;b2+3=5 | c5+4=9 | d9+2=1 | </think> #1

Four one-digit numbers are added to a first one, modulo ten (`data.arithmetic`), each under a letter; a step a paragraph,
which takes the value that stands. A first step errs in its result with chance `ERROR`. Behind a paragraph may come one with
"Wait", which does steps again, from the values that stand, and errs in each with chance `SLIP`.

How far it goes back is told by the last sign of the problem: to the step that was just done (":"), or to the beginning
("?"). Which of both the waits of real models do is not known, and what a control is worth hangs on it: with the first a wait
at the end mends little, with the second it mends all. Half of the problems are of each.

Writers differ: some wait behind few paragraphs, some behind many, so that waits make further ones likelier. In a part of
the texts the thinking was ended early, anywhere; the steps that are left stand in the answer, from the step that was cut.
There the thinking is given: to go on from its end is taught, not to end it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from equipoise.core.options import check_fields, closed
from equipoise.data.arithmetic import SEPARATOR, ArithmeticProblem, Part, problems
from equipoise.data.records import Record
from equipoise.decoding.thinking import PARAGRAPH, Tags, Thought

Reach = Literal["step", "chain"]
Item = TypeVar("Item")

LETTERS = "abcd"
LEVEL = len(LETTERS)
MARKS: dict[Reach, str] = {"step": ":", "chain": "?"}
CHARACTERS = "0123456789+=#\n" + SEPARATOR + LETTERS + "".join(MARKS.values())
ERROR, SLIP = 0.15, 0.05
FEW, MANY = 0.05, 0.4  # chances of a wait behind a paragraph
CAREFUL, MOST = 0.25, 5  # the share of writers with the second, waits of a text
EARLY = 0.25
TAGS = Tags("", "</think>")
_STEP = re.compile(rf"([{LETTERS}])([0-9])\+([0-9])=([0-9])")


@dataclass(frozen=True, slots=True)
class ThinkingTask:
    """A problem, and how far back a wait goes in thinking about it."""

    problem: ArithmeticProblem
    reach: Reach

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def id(self) -> str:
        return self.problem.id

    @property
    def prompt(self) -> str:
        """As the model reads it."""
        first, *numbers = self.problem.numbers
        lettered = "".join(f"{letter}+{number}" for letter, number in zip(LETTERS, numbers, strict=True))
        return f"{first}{lettered}{MARKS[self.reach]}\n"

    @property
    def values(self) -> list[int]:
        """The number it begins with, and the true value behind each step."""
        return [self.problem.numbers[0], *(int(step.rpartition("=")[2]) for step in self.problem.steps)]

    def due(self, place: int, before: int) -> tuple[str, int]:
        """What a step takes, and its right result: "b2+3=" and 5."""
        number = self.problem.numbers[place + 1]
        return f"{LETTERS[place]}{before}+{number}=", (before + number) % 10


@closed
def tasks(count: int, seed: int, part: Part = "train") -> list[ThinkingTask]:
    """So many different problems, the two reaches in turn."""
    found = problems(count, seed=seed, kind="chain", levels=(LEVEL,), operators="+", part=part)
    reaches = list(MARKS)
    return [ThinkingTask(problem, reaches[place % len(reaches)]) for place, problem in enumerate(found)]


def trace(task: ThinkingTask, generator: np.random.Generator) -> tuple[str, str]:
    """One text: what is given behind the problem, "" or thinking that was ended early, and what is taught to follow."""
    written = _Writer(task, generator)
    chance = MANY if generator.random() < CAREFUL else FEW
    waits = 0
    for place in range(LEVEL):
        written.paragraph([place], ERROR)
        while waits < MOST and generator.random() < chance:
            waits += 1
            written.paragraph(range(place if task.reach == "step" else 0, place + 1), SLIP, TAGS.word)
    cut = len(written.tokens)
    early = generator.random() < EARLY
    if early:
        ends = [at + 1 for at, token in enumerate(written.tokens) if token == PARAGRAPH]
        cut = _one(ends, generator) if generator.random() < 0.5 else 1 + int(generator.random() * (cut - 1))
    thinking = f"{''.join(written.tokens[:cut])}{TAGS.closing}\n"
    answer = written.answer(*written.standing[cut])
    return (thinking, answer) if early else ("", thinking + answer)


class _Writer:
    """tokens: of the thinking so far. standing: before each token and behind the last, the step that is to be done next
    and the value that it takes."""

    def __init__(self, task: ThinkingTask, generator: np.random.Generator) -> None:
        self.task, self.generator = task, generator
        self.values = task.values[:1]
        self.tokens: list[str] = []
        self.standing = [(0, self.values[0])]

    def paragraph(self, places: Sequence[int], error: float, word: str = "") -> None:
        for place in places:
            before = self.values[place]
            text, value = self.step(place, before, error)
            self.values[place + 1 :] = [value]
            opening = [SEPARATOR] if place > places[0] else [word] if word else []
            self.tokens += [*opening, *text]
            self.standing += [(place, before)] * (len(opening) + len(text) - 1) + [(place + 1, value)]
        self.tokens.append(PARAGRAPH)
        self.standing.append(self.standing[-1])

    def step(self, place: int, before: int, error: float) -> tuple[str, int]:
        said, value = self.task.due(place, before)
        if self.generator.random() < error:
            value = (value + 1 + int(self.generator.random() * 9)) % 10
        return f"{said}{value}", value

    def answer(self, place: int, value: int) -> str:
        steps = []
        for left in range(place, LEVEL):
            text, value = self.step(left, value, ERROR)
            steps.append(text)
        return f"{SEPARATOR.join(steps)}#{value}"


def lessons(count: int, seed: int, part: int = 0) -> list[Record]:
    """So many traces, each of another draw, of problems of the training part; other ones in every part."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, 1, part]))
    pool = tasks(min(count, 4000), seed)
    chosen = [_one(pool, generator) for _ in range(count)]
    found = []
    for place, task in enumerate(chosen):
        given, completion = trace(task, generator)
        found.append(Record(id=str(place), prompt=task.prompt + given, completion=completion, group=task.id))
    return found


def _one(items: Sequence[Item], generator: np.random.Generator) -> Item:
    return items[int(generator.random() * len(items))]


@dataclass(frozen=True, slots=True)
class ReadStep:
    """A step that a model wrote. again: in a paragraph with "Wait". in_place: its letter is due, and it takes the value
    that stands and the number of the letter. sound: it has the sum of what it takes. right: it has the true value behind
    that letter."""

    again: bool
    in_place: bool
    sound: bool
    right: bool


@closed
def read_steps(task: ThinkingTask, thought: Thought) -> list[ReadStep]:
    """The steps of thinking and answer; what cannot be read is a step that is neither in its place nor right.

    The end of thinking may cut one off, which is no step.
    """
    values, truth, last, found = task.values[:1], task.values, -1, []
    *paragraphs, rest = thought.thinking.split(PARAGRAPH)
    waiting = rest.startswith(TAGS.word)
    pieces = rest.removeprefix(TAGS.word).split(SEPARATOR)
    if not _STEP.fullmatch(pieces[-1]):
        pieces.pop()
    if pieces:
        paragraphs.append(rest[: len(TAGS.word) * waiting] + SEPARATOR.join(pieces))
    begun = waiting and not pieces  # a wait that was cut before its first step, which the answer then does
    for number, text in enumerate([*paragraphs, thought.answer.partition("#")[0].strip()]):
        again = text.startswith(TAGS.word)
        back = again or (begun and number == len(paragraphs))
        due = last + 1 if not back else max(last, 0) if task.reach == "step" else 0
        for piece in text.removeprefix(TAGS.word).split(SEPARATOR) if text else []:
            match = _STEP.fullmatch(piece)
            if match is None:
                found.append(ReadStep(again, False, False, False))
                continue
            place, value = LETTERS.index(match[1]), int(match[4])
            standing = values[place] if place < len(values) else None
            kept = standing is not None and piece.startswith(task.due(place, standing)[0])
            sound = (int(match[2]) + int(match[3])) % 10 == value
            found.append(ReadStep(again, kept and place == due, sound, value == truth[place + 1]))
            if standing is not None:
                values[place + 1 :] = [value]
                last, due = place, place + 1
    return found


def right(task: ThinkingTask, thought: Thought) -> bool:
    """Whether the answer is the problem's: what stands behind the last sign of it."""
    return thought.closed and thought.answer.rpartition("#")[1:] == ("#", task.problem.answer)
