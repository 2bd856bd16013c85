"""What came of grading, as plain data: shares with what is missing, agreement of graders, their errors on planted answers.

Loads no numpy, so that a stored result can be read and drawn again at once. What is undefined is nan.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from equipoise.core.options import check_fields
from equipoise.core.shares import Bounded, Share
from equipoise.data.text import encodable


@dataclass(frozen=True, slots=True)
class Grade:
    """What a grader gave. grade: one of its grades, None for none. credit: in [0, 1], nan for none.

    text: what it said. reason: why there is no grade. asked: False where the provider did not take the question, which is no
    fault of the grader.
    """

    grade: str | None
    credit: float = math.nan
    text: str = ""
    reason: str = ""
    asked: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", encodable(self.text))
        object.__setattr__(self, "reason", encodable(self.reason))


@dataclass(frozen=True, slots=True)
class GraderAudit:
    """What a grader does with planted answers, of which it is known whether they are right.

    false_accept: of the wrong ones, those that it accepts; false_reject: of the right ones, those that it does not. kinds:
    kind of planted answer -> those that it got wrong. corrected: the share of right answers among the real ones, had it
    made no errors (Rogan and Gladen); it supposes that real answers are as hard to grade as the planted ones.
    """

    false_accept: Share
    false_reject: Share
    kinds: Mapping[str, Share]
    corrected: Bounded


@dataclass(frozen=True, slots=True)
class GraderReport:
    """A grader over the real answers. counts: how often it gave each grade; invalid: no grade could be read; unasked: the
    provider did not take the question.

    accuracy: mean credit. accepted: share with at least the credit that counts as right. length: correlation of credit with
    log2(1 + words of the answer); `explained` of the variance of credits goes with length. That may be the answers' doing:
    compare with `Agreement.longer` and with planted answers that were padded.
    """

    grader: str
    counts: Mapping[str, int]
    invalid: int
    unasked: int
    accuracy: Share
    accepted: Share
    length: Bounded
    audit: GraderAudit | None
    notes: tuple[str, ...] = ()

    @property
    def explained(self) -> float:
        """The share of the variance of credits that goes with length, in [0, 1]."""
        return self.length.value**2


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two graders over the same real answers. by: what is compared, the grade itself, or whether it is accepted where they
    give different ones.

    same: share of equal grades. kappa: Cohen's, with quadratic weights for scores of a scale. table: (first's, second's, how
    often). longer: correlation of the first's credit minus the second's with log2(1 + words), at equal answers.
    """

    graders: tuple[str, str]
    by: Literal["grade", "accepted"]
    same: Share
    kappa: Bounded
    table: tuple[tuple[str, str, int], ...]
    longer: Bounded

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def disagreed(self) -> int:
        """How many answers they grade differently."""
        return round(self.same.of - self.same.count)


@dataclass(frozen=True, slots=True)
class Grading:
    """A report for each grader, agreement for each pair of them, and every grade, of planted answers too, by grader and id.

    accuracy, accepted, invalid, unasked and audit are those of the first grader.
    """

    reports: tuple[GraderReport, ...]
    agreement: tuple[Agreement, ...]
    grades: Mapping[str, Mapping[str, Grade]] = field(repr=False)

    @property
    def accuracy(self) -> Share:
        """The mean credit of the first grader's grades."""
        return self.reports[0].accuracy

    @property
    def accepted(self) -> Share:
        """The share that the first grader accepts."""
        return self.reports[0].accepted

    @property
    def invalid(self) -> int:
        """How many replies of the first grader gave no grade."""
        return self.reports[0].invalid

    @property
    def unasked(self) -> int:
        """How many answers the first grader could not be asked about."""
        return self.reports[0].unasked

    @property
    def audit(self) -> GraderAudit | None:
        """What the first grader made of planted answers; None where none were."""
        return self.reports[0].audit

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be said beside the numbers."""
        return tuple(note for report in self.reports for note in report.notes)
