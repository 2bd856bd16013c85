"""Models that grade answers, and how far they can be trusted: two graders, planted answers, nothing dropped in silence.

    grading = grade(submissions, [ChatGrader(one), ChatGrader(other)], planted=plant(submissions, 25, seed=0))
    grading.accuracy, grading.invalid, grading.agreement, grading.audit

A grader gives each answer one of a closed set of grades, or none: what it said could not be read (counted as invalid), or
the provider did not take the question. Planted answers, of which it is known whether they are right, stand among the others
under names and in an order that do not tell them apart; what a grader does with them is its error.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from equipoise.chat.calls import Call, Reply
from equipoise.chat.client import answers
from equipoise.chat.grades import BINARY, Grades, read_grade
from equipoise.chat.grading import Agreement, Grade, GraderAudit, GraderReport, Grading
from equipoise.chat.templates import Template
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.options import closed
from equipoise.core.shares import Share
from equipoise.data.answers import contains, matches
from equipoise.data.records import Message
from equipoise.data.text import printable

if TYPE_CHECKING:
    from pydantic import BaseModel

    from equipoise.chat.client import Chat

PROMPT = files("equipoise.chat") / "prompts" / "grade.md"
UNASKED = ("refused", "rejected")  # the provider's doing, not a grade


@dataclass(frozen=True, slots=True)
class Submission:
    """An answer to be graded. gold: right answers, any of which will do. group: answers of one group (a source, a dialogue)
    are one cluster in intervals; "" for a group of its own. more: further slots of a prompt, such as an explanation.
    """

    id: str
    question: str
    answer: str
    gold: tuple[str, ...] = ()
    group: str = ""
    more: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if taken := self.more.keys() & {"question", "answer", "gold", "grades"}:
            raise BadInput(
                f"{self.id!r} has {', '.join(sorted(taken))} in more: these slots of a prompt have values already."
            )


@dataclass(frozen=True, slots=True)
class Planted:
    """An answer of which it is known whether it is right. kind: what it is a test of, such as "wrong time"; "" for no more
    than that.
    """

    submission: Submission
    right: bool
    kind: str = ""


class Grader(Protocol):
    """Whoever grades. `check` raises BadInput for what it cannot be asked; `grade` answers in order."""

    name: str
    grades: Grades

    def check(self, submissions: Sequence[Submission]) -> None:
        """Raises BadInput for an answer that it cannot grade, before anything is asked."""
        ...

    def grade(self, submissions: Sequence[Submission]) -> list[Grade]:
        """A grade of each answer, in order."""
        ...


class RuleGrader:
    """Right when the answer is a gold one after `data.answers.normalize` (exact), or holds the words of one (contains)."""

    @closed
    def __init__(self, match: Literal["exact", "contains"] = "exact") -> None:
        self.name, self.grades = f"{match} match", BINARY
        self._match: Callable[[str, tuple[str, ...]], bool] = matches if match == "exact" else contains

    def check(self, submissions: Sequence[Submission]) -> None:
        """Raises BadInput for an answer without a gold one."""
        for each in submissions:
            if not each.gold:
                raise BadInput(f"{each.id!r} has no right answer to compare with; give it a gold one.")

    def grade(self, submissions: Sequence[Submission]) -> list[Grade]:
        """ "correct" or "incorrect", by comparison."""
        return [
            self.grades.graded("correct" if self._match(each.answer, each.gold) else "incorrect", "")
            for each in submissions
        ]


class ChatGrader:
    """A chat model with a prompt.

    prompt: its slots are question, answer, gold (text or list), grades (a list) and names of `Submission.more`, as many of
    them as the prompt wants. reading: "json" asks for an object with reasoning and grade, repaired once where it is none;
    "text" reads a reply in words (`read_grade`), for prompts that were published with such. sample, temperature: for a
    second run of the same model, which needs a name of its own.
    """

    @closed
    def __init__(
        self,
        chat: Chat,
        grades: Grades = BINARY,
        *,
        prompt: Template | None = None,
        reading: Literal["json", "text"] = "json",
        max_tokens: int = 512,
        name: str | None = None,
        temperature: float = 0.0,
        sample: int = 0,
    ) -> None:
        """Raises BadInput for a prompt that does not show the answer."""
        self.name, self.grades = name or chat.name, grades
        self._chat, self._reading, self._prompt = chat, reading, prompt or Template.read(PROMPT)
        self._schema = _schema(tuple(grades.credits), grades.whole) if reading == "json" else None
        self._how = {"max_tokens": max_tokens, "temperature": temperature, "sample": sample}
        if "answer" not in self._prompt.slots:
            raise BadInput(f"{self._prompt.name} has no slot 'answer': a grader has to see what it grades.")

    def check(self, submissions: Sequence[Submission]) -> None:
        """Raises BadInput for what its prompt has no slot for."""
        for each in submissions:
            self._messages(each)

    def grade(self, submissions: Sequence[Submission]) -> list[Grade]:
        """Raises WorkFailed when a call got no answer: a lost connection is no grade."""
        calls = [Call(self._messages(each), "grade", schema=self._schema, **self._how) for each in submissions]
        return [self._grade(reply) for reply in answers(self._chat, calls, f"{self.name} grades", name=self.name)]

    def _messages(self, submission: Submission) -> tuple[Message, ...]:
        slots = self._prompt.slots
        known: dict[str, Any] = {**submission.more, "question": submission.question, "answer": submission.answer}
        if submission.gold:
            known["gold"] = list(submission.gold) if slots.get("gold") == "list" else "\n".join(submission.gold)
        known["grades"] = self.grades.told
        if missing := [slot for slot in slots if slot not in known]:
            raise BadInput(
                f"{self._prompt.name} shows {', '.join(missing)}, and the answer {submission.id!r} has none."
            )
        return self._prompt.render(**{slot: known[slot] for slot in slots})

    def _grade(self, reply: Reply) -> Grade:
        if reply.status in UNASKED:
            return Grade(None, reason=reply.reason or reply.status, asked=False)
        if self._reading == "json":
            grade = None if reply.value is None else str(reply.value.grade)
        else:
            grade = read_grade(reply.text, self.grades)
        if grade is None:
            return Grade(None, text=reply.text, reason=reply.reason or "no grade can be read in it")
        return self.grades.graded(grade, reply.text)


@functools.cache
def _schema(grades: tuple[str, ...], whole: bool) -> type[BaseModel]:
    from pydantic import Field, create_model

    given: Any = Annotated[int, Field(ge=int(grades[0]), le=int(grades[-1]))] if whole else Literal[grades]
    return create_model("Graded", reasoning=Annotated[str, Field(max_length=600)], grade=given)


# --- planted answers ------------------------------------------------------------------------------------------------

_PADDING = (
    "To put the same at more length, this has been gone through with some care, one step after another.",
    "What was asked has been read more than once, and what is said here has been weighed before it was written down.",
    "Looked at from more than one side, it remains what it was at the beginning, and so it is given here in full.",
)


def plant(items: Sequence[Submission], each: int, *, seed: int, padded: bool = False) -> list[Planted]:
    """`each` answers that are known to be right, a gold one, and as many that are known to be wrong, the gold one of another
    item that matches none of its own. padded: as many of both again, with three sentences behind them that say nothing.

    These are easy to tell apart: errors that a grader makes on them it makes at least. Better ones look like yours, and are
    for you to write: a right answer in other words, a time that is off by an hour.
    """
    usable = [item for item in items if item.gold]
    chosen = sorted(usable, key=lambda item: _drawn(seed, item.id, "plant"))[:each]
    if len(chosen) < each or each < 1:
        raise BadInput(f"{each} planted answers were asked for, of {len(usable)} items that have a right one.")
    planted: list[Planted] = []
    for item in chosen:
        strange = [other for other in usable if not any(matches(gold, item.gold) for gold in other.gold)]
        if not strange:
            raise BadInput(f"No item has another right answer than {item.id!r}: there is no wrong answer to plant.")
        other = min(strange, key=lambda other: _drawn(seed, item.id, other.id))
        for right, answer in ((True, item.gold[0]), (False, other.gold[0])):
            kind = "right" if right else "wrong"
            plain = replace(item, id=f"{item.id}/planted {kind}", answer=answer, group=item.group or item.id)
            planted.append(Planted(plain, right, kind))
            if padded:
                long = replace(plain, id=f"{plain.id}, padded", answer=" ".join((answer.rstrip(". ") + ".", *_PADDING)))
                planted.append(Planted(long, right, f"{kind}, padded"))
    return planted


def blinded(submissions: Sequence[Submission], *, seed: int) -> list[tuple[str, Submission]]:
    """(own id, the answer under a name that says nothing), in the order of these names.

    The name of an answer depends on its id and the seed alone, so that no other answer changes before or behind which of
    two it is shown.
    """
    named = [(each.id, replace(each, id=_drawn(seed, each.id))) for each in submissions]
    return sorted(named, key=lambda each: each[1].id)


def _drawn(seed: int, *names: str) -> str:
    import numpy as np

    digest = hashlib.sha256(json.dumps(names).encode()).digest()
    state = np.random.SeedSequence([seed, int.from_bytes(digest, "big")]).generate_state(4)
    return "".join(f"{word:08x}" for word in state)


# --- grading --------------------------------------------------------------------------------------------------------


def grade(
    items: Sequence[Submission], graders: Sequence[Grader], *, planted: Sequence[Planted] = (), seed: int = 0
) -> Grading:
    """Every answer by every grader, planted ones among them. What a chat's record holds is not asked again.

    Raises BadInput for what cannot be asked, before anything is; WorkFailed for a grader that gave no grade at all.
    """
    submissions = [*items, *(each.submission for each in planted)]
    _check_names("answers", [each.id for each in submissions])
    _check_names("graders", [grader.name for grader in graders])
    for grader in graders:
        grader.check(submissions)
    shown = blinded(submissions, seed=seed)
    grades: dict[str, dict[str, Grade]] = {}
    for grader in graders:
        given = grader.grade([submission for _, submission in shown])
        own = {name: each for (name, _), each in zip(shown, given, strict=True)}
        if all(each.grade is None for each in given):
            raise WorkFailed(
                f"{grader.name} gave no grade in {len(given)} answers: {given[0].reason or 'nothing came'} "
                f"({printable(given[0].text)[:80]!r})."
            )
        grades[grader.name] = {each.id: own[each.id] for each in submissions}
    reports = tuple(_report(grader, items, planted, grades[grader.name]) for grader in graders)
    return Grading(reports, tuple(_agreement(pair, items, grades) for pair in combinations(graders, 2)), grades)


def _check_names(what: str, names: Sequence[str]) -> None:
    """Raises BadInput where there is none, and for a name that stands twice."""
    if not names:
        raise BadInput(f"There are no {what}; name at least one.")
    if twice := next((name for name, often in Counter(names).items() if often > 1), None):
        raise BadInput(f"Two {what} are called {twice!r}; give each a name of its own.")


def _report(
    grader: Grader, items: Sequence[Submission], planted: Sequence[Planted], grades: Mapping[str, Grade]
) -> GraderReport:
    from equipoise.core.agreement import correlation, share

    given = [grades[item.id] for item in items]
    known = [(item, grade) for item, grade in zip(items, given, strict=True) if grade.grade is not None]
    groups, credits = [_group(item) for item, _ in known], [grade.credit for _, grade in known]
    accepts = [float(grader.grades.accepts(grade)) for _, grade in known]
    counts = Counter(grade.grade for _, grade in known)
    missing, unasked = len(given) - len(known), sum(not grade.asked for grade in given)
    accepted = share(accepts, groups, missing=missing)
    audit = _audit(grader, planted, grades, accepted) if planted else None
    notes = [f"{grader.name} gave {missing - unasked} of {len(given)} answers no grade that can be read."]
    notes = notes if missing > unasked else []
    if len(counts) == 1 and len(known) > 1:
        notes.append(f"{grader.name} gave all {len(known)} answers the grade {next(iter(counts))!r}.")
    if audit is not None and audit.false_accept.rate + audit.false_reject.rate >= 1:
        notes.append(f"{grader.name} accepts planted wrong answers no less than right ones: its grades say nothing.")
    return GraderReport(
        grader=grader.name,
        counts={grade: counts[grade] for grade in grader.grades.credits},
        invalid=missing - unasked,
        unasked=unasked,
        accuracy=share(credits, groups, missing=missing),
        accepted=accepted,
        length=correlation(credits, [_length(item) for item, _ in known], groups),
        audit=audit,
        notes=tuple(notes),
    )


def _audit(grader: Grader, planted: Sequence[Planted], grades: Mapping[str, Grade], accepted: Share) -> GraderAudit:
    from equipoise.core.agreement import corrected, share

    def wrong(chosen: Sequence[Planted]) -> Share:
        given = [(each, grades[each.submission.id]) for each in chosen]
        known = [(each, grade) for each, grade in given if grade.grade is not None]
        errors = [float(grader.grades.accepts(grade) != each.right) for each, grade in known]
        return share(errors, [_group(each.submission) for each, _ in known], missing=len(given) - len(known))

    false_accept, false_reject = (wrong([each for each in planted if each.right is right]) for right in (False, True))
    by_kind: dict[str, list[Planted]] = {}
    for each in planted:
        by_kind.setdefault(each.kind or ("right" if each.right else "wrong"), []).append(each)
    kinds = {kind: wrong(chosen) for kind, chosen in by_kind.items()}
    return GraderAudit(false_accept, false_reject, kinds, corrected(accepted, false_reject, false_accept))


def _agreement(
    graders: tuple[Grader, Grader], items: Sequence[Submission], grades: Mapping[str, Mapping[str, Grade]]
) -> Agreement:
    from equipoise.core.agreement import cohen_kappa, correlation, share

    first, second = graders
    given = [(item, grades[first.name][item.id], grades[second.name][item.id]) for item in items]
    known = [each for each in given if each[1].grade is not None and each[2].grade is not None]
    alike = first.grades == second.grades
    names = list(first.grades.credits) if alike else ["rejected", "accepted"]

    def category(grader: Grader, grade: Grade) -> int:
        return names.index(str(grade.grade)) if alike else int(grader.grades.accepts(grade))

    a, b = [category(first, each) for _, each, _ in known], [category(second, each) for _, _, each in known]
    groups = [_group(item) for item, _, _ in known]
    counts = Counter(zip(a, b, strict=True))
    return Agreement(
        graders=(first.name, second.name),
        by="grade" if alike else "accepted",
        same=share([float(i == j) for i, j in zip(a, b, strict=True)], groups, missing=len(given) - len(known)),
        kappa=cohen_kappa(a, b, groups, len(names), ordered=alike and first.grades.ordered),
        table=tuple((names[i], names[j], often) for (i, j), often in sorted(counts.items())),
        longer=correlation([x.credit - y.credit for _, x, y in known], [_length(item) for item, _, _ in known], groups),
    )


def _group(submission: Submission) -> str:
    return f"group {submission.group}" if submission.group else f"answer {submission.id}"


def _length(submission: Submission) -> float:
    return math.log2(1 + len(submission.answer.split()))
