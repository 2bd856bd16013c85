"""Does a completion correct or negate the step that it was drawn from? NAIT's R (arXiv:2601.12748), by rules.

A completion that reaches the gold answer because it repairs a wrong step is no evidence for that step (`nait.correct`). What
counts is a correction or a negation, not the mere look back: "let me verify: 3+5=8, yes" is none.

    verdicts = reflections(rule_judge, asked, outcomes)             only what succeeded is shown to a judge
    reflected = torch.tensor([verdict.reflects for verdict in verdicts]).view_as(outcomes)

The rules see an earlier step rejected, in the sentences that ask nothing and suppose nothing, where a later one

    names it        "step 2 is wrong", "a mistake in step 2" (steps are counted from 1); "that is wrong" right behind it
    denies it       "not 8", "instead of 8", "8 is wrong", of the value it arrived at
    changes it      has a cue (wait, actually, mistake, recheck, ...) and another value for the same left side of an equation
    retakes it      is nothing but a cue and an equation, or a number, of its form with another value, right behind it

Of several earlier steps that could be meant it is the last one. Missed are a value that is changed without a word about it,
one that a later step quietly replaces by the right one, and a rejection in other words; a chat judge may see those. The
paper's own judge is a language model whose prompt is not public.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from torch import Tensor

from equipoise.core.errors import BadInput


@dataclass(frozen=True, slots=True)
class ContinuedSolution:
    """What a judge is asked about. steps: the last is under test. continuation: the steps with which a policy went on."""

    problem: str
    steps: tuple[str, ...]
    continuation: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise BadInput(f"no step of {self.problem[:40]!r} is under test: steps ends with it.")


@dataclass(frozen=True, slots=True)
class Reflection:
    """A judge's verdict. reflects: the continuation corrects or negates the step under test, R.

    at_step: where, an index into the continuation. quote: its words there.
    """

    reflects: bool
    at_step: int | None = None
    quote: str = ""


class ReflectionJudge(Protocol):
    """Rules, or a chat model: a verdict on each, in their order."""

    def __call__(self, asked: Sequence[ContinuedSolution], /) -> Sequence[Reflection]: ...


NO_REFLECTION = Reflection(False)
_Statements = dict[tuple[str, ...], float]


def reflections(judge: ReflectionJudge, asked: Sequence[ContinuedSolution], outcomes: Tensor) -> list[Reflection]:
    """A verdict on each completion; the judge sees those that reached the gold answer, and its quotes are checked.

    outcomes: 0 or 1 (or bool) of each, any shape of as many entries, in row-major order. Raises BadInput for another number
    of them or of verdicts.
    """
    if outcomes.numel() != len(asked):
        raise BadInput(f"{len(asked)} completions came with {outcomes.numel()} outcomes: give one each.")
    chosen = outcomes.flatten().nonzero().flatten().tolist()
    verdicts = judge([asked[index] for index in chosen]) if chosen else []
    if len(verdicts) != len(chosen):
        raise BadInput(f"the judge gave {len(verdicts)} verdicts on {len(chosen)} completions: it must give one each.")
    found = [NO_REFLECTION] * len(asked)
    for index, verdict in zip(chosen, verdicts, strict=True):
        found[index] = quoted(verdict, asked[index].continuation)
    return found


def quoted(verdict: Reflection, continuation: Sequence[str]) -> Reflection:
    """The verdict where its quote stands in a step of the continuation, at that step (the stated one first); else R = 0."""
    if not verdict.reflects or not verdict.quote.strip():
        return NO_REFLECTION
    places = [index for index, step in enumerate(continuation) if verdict.quote in step]
    if not places:
        return NO_REFLECTION
    return verdict if verdict.at_step in places else replace(verdict, at_step=places[0])


def rule_judge(asked: Sequence[ContinuedSolution], /) -> list[Reflection]:
    """Verdicts by the rules above, which need no model."""
    return [_judged(each) for each in asked]


def _judged(asked: ContinuedSolution) -> Reflection:
    known = [_statements(step) for step in asked.steps]
    for place, step in enumerate(asked.continuation):
        for rejected, quote in _rejected(step, known):
            if rejected == len(asked.steps) - 1:
                return Reflection(True, place, quote)
        known.append(_statements(step))
    return NO_REFLECTION


_NUMBER = r"-?\d+(?:\.\d+)?"
_OPERAND = r"\(*+-?(?:\d++(?:\.\d++)?%?|[A-Za-z]\w*+)\)*+"
_EQUATION = re.compile(
    rf"(?<![\w.(*/^+-])({_OPERAND}(?:\s*[-+*/^]\s*{_OPERAND})*+)\s*=\s*({_NUMBER})(?!\w|\.\d|\s*[-+*/^]\s*[\w(])"
)
_TERM = re.compile(r"\d+(?:\.\d+)?%?|[A-Za-z]\w*|[-+*/^]")
_CUE = (
    r"\b(?:wait|hold on|no|oops|actually|sorry|correction|mistakes?|errors?|incorrect(?:ly)?|wrong(?:ly)?|instead"
    r"|not (?:right|correct)|should (?:be|have been)|re-?(?:check|calculat|comput|do|examin|consider)\w*)\b"
)
_HAS_CUE = re.compile(_CUE, re.IGNORECASE)
_BEGINS = rf"\W*(?:{_CUE}\W*?)+"  # with one cue or more
_RETAKE = re.compile(rf"{_BEGINS}(?:{_EQUATION.pattern}|{_NUMBER})\W*", re.IGNORECASE)
_BARE = re.compile(rf"(?:{_BEGINS})?({_NUMBER})\W*", re.IGNORECASE)
_WRONG = r"(?:wrong|incorrect|mistaken|flawed|not (?:right|correct|true)|an? (?:mistake|error))\b"
_IS = r"(?:'s|’s|\s+(?:is|was|has|contains))\s+(?:actually |simply |just )?"
_NAMED = re.compile(
    rf"\bstep (\d+){_IS}{_WRONG}|\b(?:an?|the|my) (?:mistake|error) (?:in|at|with) step (\d+)", re.IGNORECASE
)
_BEHIND = re.compile(rf"(?:{_BEGINS})?(?:that|this|the (?:last|previous) step){_IS}{_WRONG}", re.IGNORECASE)
_DENIED = re.compile(
    rf"\b(?:not|instead of|rather than) ({_NUMBER})(?!\.?\d)|(?<![\d.])({_NUMBER}){_IS}{_WRONG}", re.IGNORECASE
)
_SENTENCE = re.compile(r"\S.*?(?:[.!?](?=\s|$)|$)", re.MULTILINE)
_ASKS = re.compile(r"\?\W*$|\b(?:if|whether)\b", re.IGNORECASE)
_NOTATION = [
    # A calculator's marks, currency, LaTeX and Markdown around formulas.
    (re.compile(r"<<[^<>]*>>|\\[()\[\]]|\$|(?<!\w)\*\*|\*\*(?!\w)"), ""),
    (re.compile(r"\\times|\\cdot|[×·]"), "*"),
    (re.compile(r"\\div|÷"), "/"),
    (re.compile("[−–]"), "-"),
    (re.compile(r"(?<=\d),(?=\d{3}\b)"), ""),
]


def _rejected(step: str, known: Sequence[_Statements]) -> Iterator[tuple[int, str]]:
    """Of the steps before, by what they state, the indices of those that this one rejects, and its sentence that does."""
    final = _statements(step)  # of two values for one quantity the last is meant
    has_cue, retakes = bool(_HAS_CUE.search(step)), bool(_RETAKE.fullmatch(_plain(step)))
    for number, sentence in enumerate(_sentences(step)):
        text = _plain(sentence)
        found = [int(match[1] or match[2]) - 1 for match in _NAMED.finditer(text)]
        if number == 0 and _BEHIND.match(text):
            found.append(len(known) - 1)
        for match in _DENIED.finditer(text):
            found += _latest(known, lambda made, denied=float(match[1] or match[2]): denied in made.values())
        for left, value in _statements(sentence).items() if has_cue else ():
            same = _latest(known, lambda made, left=left: left in made) if left else []
            found += [index for index in same if value == final[left] != known[index][left]]
            if retakes and not same and _other_value(left, value, known[-1]):
                found.append(len(known) - 1)
        yield from ((index, sentence) for index in found)


def _latest(known: Sequence[_Statements], fits: Callable[[_Statements], bool]) -> list[int]:
    """The index of the last step whose statements fit, in a list, which is empty when none do."""
    return next(([index] for index in reversed(range(len(known))) if fits(known[index])), [])


def _other_value(left: tuple[str, ...], value: float, previous: _Statements) -> bool:
    """Whether the last statement of the step before has this form and another value, which is not gone on from here."""
    if not previous:
        return False
    its_left, its_value = list(previous.items())[-1]
    goes_on = left[:1] == (f"{its_value:g}",) != its_left[:1]
    return len(left) == len(its_left) and value != its_value and not goes_on


@lru_cache(4096)  # the steps of a prefix come with each of its completions
def _statements(text: str) -> _Statements:
    """What a text states: the terms left of an equals sign -> the number right of it; of a bare number () -> it."""
    found: _Statements = {}
    for sentence in _sentences(text):
        for match in _EQUATION.finditer(_plain(sentence)):
            found[tuple(_TERM.findall(match[1]))] = float(match[2])
    bare = _BARE.fullmatch(_plain(text))
    return {(): float(bare[1])} if bare else found


def _sentences(text: str) -> list[str]:
    """Without those that ask or suppose."""
    return [match[0] for match in _SENTENCE.finditer(text) if not _ASKS.search(match[0])]


def _plain(text: str) -> str:
    for pattern, instead in _NOTATION:
        text = pattern.sub(instead, text)
    return text
