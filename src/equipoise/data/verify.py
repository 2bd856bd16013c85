"""Verifiers: is an answer right, as a value in [0, 1] and the reason why it is not 1.

    verify("number", "So he has 1,200 left.\\n#### 1,200", "1200").value        1.0

    with open_verifier("math") as verifier:        or reward="FILE:FUNCTION", or reward=function
        scores = verifier(problems, answers)

What an answer is compared by, after its thinking (an answer that is still thinking scores 0):

    exact     all of it, normalised (`data.answers.normalize`)
    number    the number it comes to (`data.final_answer.number`); whole numbers exactly, others within `tolerance`,
              relative; a gold has to be one plain number (`gold_number`)
    choice    the letter it chooses (`data.final_answer.choice`)
    f1        all of it: F1 of the words that it shares with the gold (SQuAD, Rajpurkar et al. 2016), after `normalize`
    math      its last \\boxed{}, else all of it: as normalised LaTeX, else by math-verify (as SPPO does, arXiv:2604.08865)
    tests     its last fenced block, else all of it, as a program that has to pass Python tests (`data.verify_tests`); the
              value is the share of tests passed
    regex     all of it, thinking too, since format is what patterns are for: whether the gold, a pattern, is found in it
              (`re.search`: \\A and \\Z where all is meant)

`math` and `regex` run in processes of their own, which are ended when a comparison takes too long or too much memory.
"""

import functools
import importlib.util
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from equipoise.core import sandbox
from equipoise.core.errors import BadInput, MissingExtra, WorkFailed
from equipoise.core.options import closed
from equipoise.data import final_answer
from equipoise.data.answers import normalize
from equipoise.data.problems import Problem
from equipoise.data.rewards import Rewarder, load_reward
from equipoise.data.text import after_thinking, printable
from equipoise.data.verify_pool import Pool
from equipoise.data.verify_tests import check_tests, run_tests

Kind = Literal["exact", "number", "choice", "regex", "f1", "math", "tests"]
TOLERANCE = 1e-4

_log = logging.getLogger(__name__)
_SPACING = re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[!,;: ]|\$|\s|\.$")
# Blanks that tell numbers apart: 1 1/2 is not 11/2, nor the pair 1, 234 the number 1,234; 1\,234 and 1,\!234 are.
_APART = re.compile(
    r"(?<=\d)(?:[\s$]+(?=\d)|(?:[\s$]|\\[,;: ])+(?=\d)(?!\d{3}(?!\d)))"
    r"|(?<=\d,)(?:[\s$]|\\[,;: ])+(?=\d{3}(?!\d))"
)
_BEFORE_COMMA = re.compile(r"(?<![\s$])[\s$]+(?=,)")
_GROUPED = re.compile(r"(?<=\d)\s*(?:\\[,;: ]\s*)+(?=\d{3}(?!\d))")
_FRACTION = re.compile(r"\\frac\s*(\d)\s*(?=\d)")
_MIXED = re.compile(r"(?<![\w.,/^}])(\d+)\s+(\d+)/(\d+)(?![\w.,/^])")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


@dataclass(frozen=True, slots=True)
class VerifierScore:
    """value: in [0, 1], but for reward functions, which may give any number. reason: why it is not 1, briefly, else ""."""

    value: float
    reason: str

    @property
    def missing(self) -> bool:
        """Whether there was nothing to compare: no number, no choice, two that contradict, no reward; its value is 0."""
        return self.reason.startswith("missing")

    @property
    def crashed(self) -> bool:
        """Whether the verifier failed on this answer (an error, time, memory); its value is 0."""
        return self.reason.startswith("crashed")


_RIGHT = VerifierScore(1.0, "")
_THINKING = VerifierScore(0.0, "missing: the thinking has not ended")


@closed
def verify(kind: Kind, answer: str, gold: str | Sequence[str]) -> VerifierScore:
    """Whether one answer is right; of several golds the best counts (of `tests`, each). See the module for the kinds.

    Processes that `math` and `regex` need are kept for the next call. Raises BadInput for a gold that the kind cannot
    compare with, MissingExtra for `math` without math-verify.
    """
    golds = (gold,) if isinstance(gold, str) else tuple(gold)
    check_gold(kind, golds)
    (score,) = _kept(kind).score([(answer, golds)])
    return score


@closed
def check_gold(kind: Kind, golds: Sequence[str]) -> None:
    """Raises BadInput for gold answers that a kind cannot compare with."""
    if not golds or not all(map(str.strip, golds)):
        raise BadInput("there is no gold answer, or an empty one.")
    if kind == "tests":
        check_tests(golds)
    for gold in golds:
        if kind == "number" and final_answer.gold_number(gold) is None:
            what = "no number" if final_answer.number(gold) is None else "no single number"
            raise BadInput(f"the gold answer {gold!r:.60} is {what}; use another kind, for example exact or math.")
        if kind == "choice" and final_answer.choice(gold) is None:
            raise BadInput(f"the gold answer {gold!r:.60} is no letter of a choice.")
        if kind == "regex":
            try:
                re.compile(gold)
            except (re.error, RecursionError, OverflowError) as error:
                raise BadInput(f"the gold answer {gold!r:.60} is no pattern ({error}).") from None


class Verifier:
    """Scores answers to problems. A context manager: what it started ends with it.

    name: of the kind or function. digest: sha256 of the file that a reward function came from, else "". binary: whether its
    values are 0 and 1 only; values of reward functions may lie outside [0, 1].
    """

    def __init__(self, scorer: "_Kind | _Reward") -> None:
        self._scorer = scorer
        self.name, self.digest, self.binary = scorer.name, scorer.digest, scorer.binary

    def __call__(
        self,
        problems: Sequence[Problem],
        answers: Sequence[str],
        *,
        completion_ids: Sequence[Sequence[int]] | None = None,
        step: int = 0,
    ) -> list[VerifierScore]:
        """A score for each answer, in order; where the verifier crashes it is 0 with the reason, which is logged.

        completion_ids, step: for reward functions that look at token ids, or at trainer_state.global_step. Raises
        BadInput for one that needs the ids and does not get them.
        """
        scores = self._scorer.scores(problems, answers, completion_ids=completion_ids, step=step)
        for problem, score in zip(problems, scores, strict=True):
            if score.crashed:
                _log.warning("verifier %s on problem %s %s", self.name, problem.id, score.reason)
        return scores

    def check(self, problems: Sequence[Problem]) -> None:
        """Raises BadInput for a gold answer that it cannot compare with, and for columns that a reward function lacks."""
        self._scorer.check(problems)

    def close(self) -> None:
        """End the processes and threads that it started."""
        self._scorer.close()

    def __enter__(self) -> "Verifier":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


@closed
def open_verifier(
    kind: Kind | None = None,
    *,
    reward: str | Callable[..., Any] | Any | None = None,
    tolerance: float = TOLERANCE,
    seconds: float = 5.0,
    memory_bytes: int = 2 * 2**30,
    workers: int | None = None,
    unsafe: bool = False,
) -> Verifier:
    """The verifier of a kind, or of a reward function: TRL's, a rubric of `verifiers`, or FILE:FUNCTION with one of both.

    tolerance: relative, for numbers that are not whole. seconds: of computing for an answer (`math`, `regex`, `tests`).
    memory_bytes: of each process. workers: processes at a time, by default one for each core, four at most. unsafe:
    run `tests` also where there is no isolation. Raises BadInput unless exactly one of both is given, and for a
    machine without isolation; MissingExtra.
    """
    if (kind is None) == (reward is None):
        raise BadInput("a verifier is a kind or a reward function: give one of both.")
    if not seconds > 0 or not 0 <= tolerance < 1 or (workers is not None and workers < 1):
        raise BadInput(
            f"seconds ({seconds}) and workers ({workers}) must be above 0, tolerance ({tolerance}) in [0, 1)."
        )
    if kind is None:
        return Verifier(_Reward(Rewarder(load_reward(reward))))
    workers = workers or min(4, os.cpu_count() or 1)
    return Verifier(_Kind(kind, Fraction(tolerance), seconds, memory_bytes, workers, unsafe))


@functools.cache
def _kept(kind: Kind) -> "_Kind":
    return _Kind(kind, Fraction(TOLERANCE), 5.0, 2 * 2**30, 1, False)


_Task = dict[str, Any]


class _Kind:
    """A kind with what it needs: `first` gives a score, or the task whose outcome a worker of the pool has to find."""

    digest = ""

    def __init__(
        self, kind: Kind, tolerance: Fraction, seconds: float, memory_bytes: int, workers: int, unsafe: bool
    ) -> None:
        self.kind: Kind = kind
        self.name, self.binary, self.workers = str(kind), kind not in ("f1", "tests"), workers
        if kind == "math" and importlib.util.find_spec("math_verify") is None:
            raise MissingExtra("The verifier math needs math-verify: pip install 'equipoise[math]'.")
        if kind == "tests":
            sandbox.python("", unsafe=unsafe)  # refused here, not after the first answers
        self.first: Callable[[str, Sequence[str]], VerifierScore | _Task] = {
            "exact": _exact,
            "number": functools.partial(_number, tolerance),
            "choice": _choice,
            "regex": _regex,
            "f1": _f1,
            "math": _math,
            "tests": functools.partial(_tests, {"seconds": seconds, "memory_bytes": memory_bytes, "unsafe": unsafe}),
        }[kind]
        self.pool = (
            Pool(kind, seconds=seconds, memory_bytes=memory_bytes, workers=workers)
            if kind in ("math", "regex")
            else None
        )

    def check(self, problems: Sequence[Problem]) -> None:
        for problem in problems:
            try:
                check_gold(self.kind, problem.gold)
            except BadInput as error:
                raise BadInput(f"problem {problem.id!r}: {error}") from None

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()

    def scores(self, problems: Sequence[Problem], answers: Sequence[str], **_: Any) -> list[VerifierScore]:
        return self.score([(answer, problem.gold) for problem, answer in zip(problems, answers, strict=True)])

    def score(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[VerifierScore]:
        if self.kind == "tests":
            with ThreadPoolExecutor(self.workers) as threads:
                found = list(threads.map(self._begin, asked))
        else:
            found = [self._begin(each) for each in asked]
        tasks = [each for each in found if not isinstance(each, VerifierScore)]
        done: list[dict[str, Any]] = []
        if tasks and self.pool is not None:
            try:
                done = self.pool.run(tasks)
            except WorkFailed as error:
                done = [{"crashed": str(error)}] * len(tasks)
        compared = map(_compared, done)
        return [each if isinstance(each, VerifierScore) else next(compared) for each in found]

    def _begin(self, asked: tuple[str, Sequence[str]]) -> "VerifierScore | _Task":
        answer, golds = asked
        try:
            check_gold(self.kind, golds)
            said = answer if self.kind == "regex" else after_thinking(answer)
            return _THINKING if said is None else self.first(said, golds)
        except Exception as error:
            return _crashed(error)


class _Reward:
    """A reward function, or a rubric, as a verifier."""

    binary = False

    def __init__(self, rewarder: Rewarder) -> None:
        self.rewarder, self.name, self.digest = rewarder, rewarder.name, rewarder.digest
        self.check, self.close = rewarder.check, rewarder.close

    def scores(self, problems: Sequence[Problem], answers: Sequence[str], **given: Any) -> list[VerifierScore]:
        return [_rewarded(reward) for reward in self.rewarder(problems, answers, **given)]


def _rewarded(reward: float | Exception | None) -> VerifierScore:
    if reward is None:
        return VerifierScore(0.0, "missing: no reward")
    if isinstance(reward, Exception):
        return _crashed(reward)
    return VerifierScore(reward, "" if reward >= 1 else f"rewarded with {reward:g}")


def _crashed(error: BaseException) -> VerifierScore:
    return VerifierScore(0.0, printable(f"crashed: {type(error).__name__}: {error}")[:300])


def _exact(said: str, golds: Sequence[str]) -> VerifierScore:
    return _RIGHT if _words(said) in map(_words, golds) else VerifierScore(0.0, "another answer")


def _words(text: str) -> list[str]:
    return normalize(text).split() or text.split()  # "!!!" is a band


def _number(tolerance: Fraction, said: str, golds: Sequence[str]) -> VerifierScore:
    found = final_answer.number(said)
    if found is None:
        return VerifierScore(0.0, "missing: no number, or no single plain one in a box")
    wanted = map(final_answer.gold_number, golds)
    if any(number is not None and found.equals(number, relative=tolerance) for number in wanted):
        return _RIGHT
    return VerifierScore(0.0, f"another number: {found}")


def _choice(said: str, golds: Sequence[str]) -> VerifierScore:
    found = final_answer.choice(said)
    if found is None:
        return VerifierScore(0.0, "missing: no choice, or two that contradict")
    return _RIGHT if found in map(final_answer.choice, golds) else VerifierScore(0.0, f"another choice: {found}")


def _f1(said: str, golds: Sequence[str]) -> VerifierScore:
    found = Counter(_words(said))
    if not found:
        return VerifierScore(0.0, "missing: no words")
    value = max(_f1_of(found, Counter(_words(gold))) for gold in golds)
    return _RIGHT if value == 1 else VerifierScore(value, "other words")


def _f1_of(found: Counter[str], wanted: Counter[str]) -> float:
    return 2 * (found & wanted).total() / (found.total() + wanted.total())


def _math(said: str, golds: Sequence[str]) -> VerifierScore | _Task:
    boxed = final_answer.last_boxed(said)
    found = said.strip() if boxed is None else boxed
    if not found:
        return VerifierScore(0.0, "missing: no answer")
    if any(_latex(found) == _latex(gold) for gold in golds):
        return _RIGHT
    # In prose math-verify finds the answer itself; an expression that stands alone must not be cut.
    prose = boxed is None and _WORD.search(_TEXT.sub(r"\1", found))
    return {"answer": found if prose else _box(found), "golds": [_box(gold) for gold in golds]}


def _box(latex: str) -> str:
    """For math-verify, which would read 1 1/2 as 1, and 1\\,234 as 1 + 234."""
    return "\\boxed{" + _GROUPED.sub("", _MIXED.sub(r"\1\\frac{\2}{\3}", latex)) + "}"


def _latex(text: str) -> str:
    """LaTeX without what changes its looks only."""
    plain = _TEXT.sub(r"\1", text.strip()).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    plain = _BEFORE_COMMA.sub("", _FRACTION.sub(r"\\frac\1", plain))
    return " ".join(_SPACING.sub("", part) for part in _APART.split(plain))


def _regex(answer: str, golds: Sequence[str]) -> _Task:
    return {"answer": answer, "golds": list(golds)}


def _tests(limits: dict[str, Any], said: str, golds: Sequence[str]) -> VerifierScore:
    value, reason = run_tests(said, golds, **limits)
    return VerifierScore(value, printable(reason))


def _compared(done: dict[str, Any]) -> VerifierScore:
    if "crashed" in done:
        return VerifierScore(0.0, f"crashed: {done['crashed']}")
    return _RIGHT if done["right"] else VerifierScore(0.0, "another answer")
