"""Solutions and completions are drawn and judged by their final answers, a few at a time, and stored as they come."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from equipoise.core import progress
from equipoise.core.rows import Rows
from equipoise.core.terminal import say
from equipoise.data.problems import Problem
from equipoise.data.text import after_thinking
from equipoise.data.verify import Verifier, VerifierScore
from equipoise.reinforcement.measures import FULL
from equipoise.reinforcement.prm_label_policy import Beginning, Drawn, Policy
from equipoise.reinforcement.prm_label_solutions import SteppedText, cut

if TYPE_CHECKING:
    from equipoise.reinforcement.prm_label_job import LabelSettings

CUT, NO_ANSWER, CRASHED, REFUSED = "cut at max_new_tokens", "without an answer", "crashed the verifier", "not taken"
_APART = 2**20  # solutions of a problem, and steps of a solution, are fewer


@dataclass(frozen=True, eq=False)
class Solution:
    """A solution to label. place: of its problem; number: among its problem's, from 0. whole: False where it was cut."""

    problem: Problem
    place: int
    number: int
    stepped: SteppedText
    whole: bool

    @property
    def id(self) -> str:
        return f"{self.problem.id}/{self.number}"

    def beginning(self, steps: int) -> Beginning:
        """Its first steps, from 1 on, to be gone on with."""
        number = (self.place * _APART + self.number) * _APART + steps
        return Beginning(self.problem, self.stepped.beginning(steps), number)


def nothing(problem: Problem, place: int) -> Beginning:
    """A problem to solve. place: among all."""
    return Beginning(problem, "", place * _APART * _APART)


@dataclass(frozen=True, eq=False)
class Completed:
    """A solution with what came of it. answer: whether it is right, 1 or 0; None where it comes to no answer.

    completions: from the end of each step that was gone on with, [t][k], each with its text, its outcome (1, 0 or None) and,
    where there is none, why.
    """

    solution: Solution
    answer: int | None
    completions: Sequence[Sequence[Mapping[str, Any]]]
    tokens: int

    def outcomes(self, samples: int) -> list[list[int | None]]:
        """Of every step, [T][K]."""
        drawn = [[each["outcome"] for each in row] for row in self.completions]
        return drawn if self.answer is None else [*drawn, [self.answer] * samples]


def written(drawn: Drawn, separator: str | None) -> SteppedText | None:
    """What a model wrote as a solution, without its thinking and without a step that was cut; None where no step is left."""
    stepped = cut(after_thinking(drawn.text) or "", separator)
    if not drawn.ended:
        stepped = SteppedText(stepped.text, stepped.spans[:-1], stepped.separator)
    return stepped if stepped.spans else None


def write(
    policy: Policy, problems: Sequence[tuple[int, Problem]], settings: "LabelSettings", rows: Rows
) -> dict[int, list[Drawn]]:
    """Solutions of problems with their places, by place; those that are in `rows` are not drawn again."""
    known = {row["place"]: row for row in rows}
    found: dict[int, list[Drawn]] = {}
    wanted: list[tuple[int, Problem]] = []
    for place, problem in problems:
        if known.get(place, {}).get("of") == _digest(_asked(problem)):
            found[place] = [Drawn(**each) for each in known[place]["drawn"]]
        else:
            wanted.append((place, problem))
    total, done = (len(each) * settings.solutions for each in (problems, found))
    with progress.progress("Writing solutions", total=total, unit="solutions", done=done) as bar:
        for some in _together(wanted, [settings.solutions] * len(wanted), policy.at_once):
            drawn = policy.draw([nothing(problem, place) for place, problem in some], settings.solutions)
            for (place, problem), its in zip(some, drawn, strict=True):
                rows.add({"place": place, "of": _digest(_asked(problem)), "drawn": [asdict(each) for each in its]})
                found[place] = its
            bar.advance(len(some) * settings.solutions)
    return found


def complete(
    policy: Policy, solutions: Sequence[Solution], verifier: Verifier, settings: "LabelSettings", rows: Rows
) -> list[Completed]:
    """Solutions gone on with from the ends of their steps; those that are in `rows` are not gone on with again.

    Says at once when nothing of the first could be judged.
    """
    known = {row["id"]: row for row in rows}
    digests = {each.id: _digest([_asked(each.problem), each.stepped.text, each.stepped.spans]) for each in solutions}
    wanted = [each for each in solutions if known.get(each.id, {}).get("of") != digests[each.id]]
    sizes = [len(each.stepped.spans) * settings.samples for each in wanted]
    total = sum(len(each.stepped.spans) for each in solutions) * settings.samples
    with progress.progress("Completing", total=total, unit="completions", done=total - sum(sizes)) as bar:
        for some in _together(wanted, sizes, policy.at_once):
            for each, row in zip(some, _completed(policy, some, verifier, settings.samples), strict=True):
                known[each.id] = {"id": each.id, "of": digests[each.id], **row}
                rows.add(known[each.id])
                bar.advance(len(each.stepped.spans) * settings.samples)
            if some[0] is solutions[0] and not progress.is_quiet() and (silent := silence([known[s.id] for s in some])):
                say(silent)
    return [
        Completed(each, *(known[each.id][name] for name in ("answer", "completions", "tokens"))) for each in solutions
    ]


def silence(rows: Sequence[Mapping[str, Any]]) -> str:
    """What to say where no completion could be judged; "" where one could, or none was drawn."""
    drawn = [one for row in rows for step in row["completions"] for one in step]
    if not drawn or any(one["outcome"] is not None for one in drawn):
        return ""
    shown = " ".join(drawn[0]["text"].split())[-80:]
    return (
        f"Not one of {len(drawn):,} completions has an answer that could be judged, the first was {drawn[0]['why']}: raise "
        f"max_new_tokens, use another model, or another verifier. It ends with {shown!r}."
    )


def _completed(
    policy: Policy, solutions: Sequence[Solution], verifier: Verifier, samples: int
) -> Iterator[dict[str, Any]]:
    whole = [each for each in solutions if each.whole]
    scores = iter(verifier([each.problem for each in whole], [each.stepped.text for each in whole]) if whole else ())
    answers = [_outcome(Drawn("", True), next(scores))[0] if each.whole else None for each in solutions]
    counts = [len(each.stepped.spans) - (a is not None) for each, a in zip(solutions, answers, strict=True)]
    beginnings = [
        each.beginning(steps) for each, count in zip(solutions, counts, strict=True) for steps in range(1, count + 1)
    ]
    drawn = policy.draw(beginnings, samples) if beginnings else []
    every = [(b.problem, b.text + one.text) for b, row in zip(beginnings, drawn, strict=True) for one in row]
    judged = iter(verifier(*map(list, zip(*every, strict=True))) if every else ())
    rows = iter(drawn)
    for answer, count in zip(answers, counts, strict=True):
        its = [next(rows) for _ in range(count)]
        yield {
            "answer": answer,
            "completions": [
                [
                    {"text": one.text, "outcome": outcome, "why": why}
                    for one in row
                    for outcome, why in [_outcome(one, next(judged))]
                ]
                for row in its
            ],
            "tokens": sum(one.tokens for row in its for one in row),
        }


def _outcome(drawn: Drawn, score: VerifierScore) -> tuple[int | None, str]:
    """Whether a response is right, or why that cannot be said."""
    if drawn.refused:
        return None, REFUSED
    if not drawn.ended:
        return None, CUT
    if score.missing or score.crashed:
        return None, NO_ANSWER if score.missing else CRASHED
    return int(score.value >= FULL), ""


def _together(items: Sequence[Any], sizes: Sequence[int], most: int) -> Iterator[list[Any]]:
    """Items in order, as many at a time as have `most` in all, but one at least."""
    chosen: list[Any] = []
    held = 0
    for item, size in zip(items, sizes, strict=True):
        if chosen and held + size > most:
            yield chosen
            chosen, held = [], 0
        chosen.append(item)
        held += size
    if chosen:
        yield chosen


def _asked(problem: Problem) -> Any:
    return [[turn.role, turn.content] for turn in problem.messages] or problem.prompt


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
