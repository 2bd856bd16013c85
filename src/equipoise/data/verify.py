"""Verifiers: is an answer right, as a value in [0, 1] and a reason why it is not 1.

verify("number", "So he has 1,200 left.\\n#### 1,200", "1200").value        1.0
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.data import final_answer
from equipoise.data.answers import matches
from equipoise.data.problems import Problem
from equipoise.data.text import after_thinking

_log = logging.getLogger(__name__)

Kind = Literal["exact", "number", "choice", "regex", "f1", "math", "tests"]
TOLERANCE = Fraction(1, 10_000)  # relative, for numbers that are not whole


@dataclass(frozen=True, slots=True)
class VerifierScore:
    """value: in [0, 1]. reason: why it is not 1, in a few words; it begins with "missing" where there was no answer."""

    value: float
    reason: str


@closed
def verify(kind: Kind, answer: str, gold: str | Sequence[str]) -> VerifierScore:
    """Whether an answer is right; of several golds the best counts. Only what stands after the thinking is read."""
    golds = [gold] if isinstance(gold, str) else list(gold)
    said = after_thinking(answer)
    if said is None:
        return VerifierScore(0.0, "missing: the thinking has not ended")
    match kind:
        case "exact":
            return VerifierScore(1.0, "") if matches(said, golds) else VerifierScore(0.0, "another answer")
        case "number":
            return _number(said, golds)
        case "choice":
            return _choice(said, golds)
        case _:
            raise BadInput(f"the kind {kind!r} is not there yet.")


def _number(said: str, golds: Sequence[str]) -> VerifierScore:
    found = final_answer.number(said)
    if found is None:
        return VerifierScore(0.0, "missing: no number, or several in the box")
    for gold in golds:
        wanted = final_answer.number(gold)
        if wanted is None:
            raise BadInput(f"the gold answer {gold!r:.60} has no number to compare with.")
        if found.equals(wanted, relative=TOLERANCE):
            return VerifierScore(1.0, "")
    return VerifierScore(0.0, f"another number, {float(found.value):g}")


def _choice(said: str, golds: Sequence[str]) -> VerifierScore:
    found = final_answer.choice(said)
    if found is None:
        return VerifierScore(0.0, "missing: no choice, or two that contradict")
    wanted = {final_answer.choice(gold) for gold in golds}
    if None in wanted:
        raise BadInput(f"the gold answers {list(golds)!r:.60} are not each the letter of a choice.")
    return VerifierScore(1.0, "") if found in wanted else VerifierScore(0.0, f"another choice, {found}")


class Verifier:
    """Scores answers of problems, in order; a context manager. name, digest ("" without a file of the user's), binary."""

    def __init__(self, kind: Kind) -> None:
        self.name, self.digest, self.binary, self.kind = kind, "", kind not in ("f1", "tests"), kind

    def __call__(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[VerifierScore]:
        """A score for each answer; an answer on which the verifier crashes has 0 and the reason, which is logged."""
        return [self._score(problem, answer) for problem, answer in zip(problems, answers, strict=True)]

    def _score(self, problem: Problem, answer: str) -> VerifierScore:
        try:
            return verify(self.kind, answer, problem.gold)
        except Exception as error:
            _log.warning("the verifier %s crashed on problem %s: %s", self.name, problem.id, error)
            return VerifierScore(0.0, f"crashed: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Ends what the verifier started."""

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


@closed
def open_verifier(kind: Kind | None = None, *, reward: str | Callable[..., object] | None = None) -> Verifier:
    """The verifier of a kind, or the one that a reward function makes. Raises BadInput unless exactly one is given."""
    if (kind is None) == (reward is None):
        raise BadInput("a verifier needs a kind or a reward function, one of both.")
    if kind is None:
        raise BadInput("reward functions are not there yet.")
    return Verifier(kind)
