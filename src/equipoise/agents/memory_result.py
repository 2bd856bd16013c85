"""What comparing memory systems and asking one come to. Loads no torch and no numpy, so that a page can be drawn again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.chat.grading import Agreement, GraderReport
from equipoise.core.job import Page, table_html
from equipoise.core.shares import Bounded, Share, shown

PROTOCOLS = {"online": "online", "asof": "as-of", "offline": "offline"}  # in their order, and how they are called
CONTROLS, CEILINGS = ("empty", "thinned"), ("oracle",)  # systems that nobody would choose
ON_TERMINAL = 1000  # characters of an item
FEW = 10  # clusters below which an interval over them rests on very little
UNKNOWN = Bounded(math.nan, math.nan, math.nan)
TRUSTED = 0.1  # share of planted answers that a grader may get wrong before the page begins with it


@dataclass(frozen=True, slots=True)
class KindScore:
    """The questions of one type; each of both is over those that can have it."""

    recall: Share
    accuracy: Share


@dataclass(frozen=True, slots=True)
class ProtocolScores:
    """One system under one protocol; of a share that no question can have, `of` is 0.

    recall: questions whose evidence was printed, all of it; evidence: mean share of it. accuracy: right answers. choice: of
    multiple choice; corrected: the same without luck. times, near_times: clock times of the day, to the minute and within
    ten. f1: words shared with the right answer. A question: read_tokens of the context, printed items, late ones that
    changed after it was asked (a share), words of the answer. unanswered: questions without words and without a choice.
    """

    questions: int
    recall: Share
    evidence: Share
    accuracy: Share
    choice: Share
    corrected: Bounded
    times: Share
    near_times: Share
    f1: Share
    read_tokens: float
    printed: float
    late: float
    words: float
    unanswered: int
    kinds: Mapping[str, KindScore]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """The measure of the questions between two values of a curve. at: the median of these values."""

    low: float
    high: float
    at: float
    share: Share


@dataclass(frozen=True, slots=True)
class Contaminated:
    """Offline: AUROC of the share of later items as a sign of a right answer, below 0.5 where they go with wrong ones.

    within: the same within quarters of the stream, since early questions have more future. later: mean share.
    """

    overall: Bounded
    quarters: tuple[float, ...]
    within: float
    later: float


@dataclass(frozen=True, slots=True)
class SystemScores:
    """One memory system. added: whether it came in as a compulsory rival. failed: why it has no scores, "" where it has.

    protocols: by name, in the order online, asof, offline. modification, contamination: online minus as-of and as-of minus
    offline, of the measure that is compared. against: rival -> this minus the rival, on the same questions. build, query:
    amounts over all sessions, and over all questions of the first protocol. seconds: of both. age, store: the measure by
    days since the evidence, and by turns held.
    """

    added: bool
    protocols: Mapping[str, ProtocolScores]
    modification: Bounded
    contamination: Bounded
    contaminated: Contaminated | None
    against: Mapping[str, Bounded]
    build: Mapping[str, float]
    query: Mapping[str, float]
    seconds: Mapping[str, float]
    age: tuple[CurvePoint, ...]
    store: tuple[CurvePoint, ...]
    failed: str = ""

    @property
    def first(self) -> ProtocolScores | None:
        """Under the first protocol; None where it has no scores."""
        return next(iter(self.protocols.values()), None)


@dataclass(frozen=True)
class MemoryComparison:
    """Memory systems on the same questions, all answers in answers.jsonl of the folder; folder is None without one.

    measure: what is compared, "accuracy" where there is a reader, else "recall". clusters: of the questions that have it;
    clustered: what they are.
    with_evidence: questions whose evidence is known. graders: of open answers, the first decides; agreement: of each two.
    licence: what the data may not be used for, "" where nothing is known.
    """

    names: Mapping[str, str]
    histories: int
    sessions: int
    turns: int
    questions: int
    with_evidence: int
    clusters: int
    clustered: str
    measure: str
    k: int
    context_tokens: int | None
    systems: Mapping[str, SystemScores]
    graders: tuple[GraderReport, ...]
    agreement: tuple[Agreement, ...]
    usage: tuple[Mapping[str, Any], ...]
    calls: int
    licence: str = ""
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def order(self) -> list[str]:
        """The systems with scores, the best first."""
        scored = [name for name, each in self.systems.items() if each.first is not None]
        return sorted(scored, key=lambda name: -_or_least(self.measured(name).rate))

    def measured(self, name: str) -> Share:
        """What is compared, of a system that has scores."""
        return self.share_of(self.systems[name].protocols[self.protocols[0]])

    def share_of(self, scores: ProtocolScores) -> Share:
        """What is compared, of scores under one protocol."""
        return scores.accuracy if self.measure == "accuracy" else scores.recall

    @property
    def protocols(self) -> list[str]:
        """Those that were asked for, the one that is compared first."""
        return [name for name in PROTOCOLS if any(name in each.protocols for each in self.systems.values())]

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the numbers."""
        found = [f"{name} has no scores: {each.failed}" for name, each in self.systems.items() if each.failed]
        if self.clusters < FEW:
            found.append(
                f"Intervals are over {self.clusters} {self.clustered}: too few to tell close systems apart."
                if self.clusters > 1
                else "There is one cluster of questions, so that nothing is known of how far scores would vary."
            )
        for name, each in self.systems.items():
            if lost := sum(each.build.get(kind, 0) for kind in ("unparsable", "not_given")):
                found.append(
                    f"{name}: {lost:g} replies of the model that writes it could not be read, and are not in it."
                )
        found += self._grader_warnings()
        for name in self.order if self.measure == "accuracy" else ():
            first = self.systems[name].first
            if first is not None and 2 * first.unanswered > first.questions:
                found.append(f"{name} gave no answer to {first.unanswered} of {first.questions} questions.")
        return tuple(found)

    def _grader_warnings(self) -> list[str]:
        found = []
        for each in self.graders:
            if each.invalid:
                found.append(f"{each.grader} gave {each.invalid} judgements that cannot be read; they count as none.")
            audit = each.audit
            if audit is not None and audit.false_accept.rate > TRUSTED:
                found.append(
                    f"{each.grader} accepts {audit.false_accept.rate:.0%} of answers that were planted wrong: accuracy is "
                    "too high by as much or more."
                )
            if audit is not None and audit.false_reject.rate > TRUSTED:
                found.append(f"{each.grader} rejects {audit.false_reject.rate:.0%} of answers that were planted right.")
        return found

    def headline(self) -> str:
        """One sentence, warnings first: who leads, and what that is worth against plain retrieval and full text."""
        order = self.order
        if not order:
            return " ".join(self.warnings())
        rivals = list(dict.fromkeys(rival for each in self.systems.values() for rival in each.against))
        best = next((name for name in order if name not in (*rivals, *CONTROLS, *CEILINGS)), order[0])
        said = {"accuracy": "answers {} of them right", "recall": "prints all evidence for {} of them"}[self.measure]
        histories = "history" if self.histories == 1 else "histories"
        done = (
            f"{self.questions:,} questions about {self.histories:,} {histories}, {self.protocols[0]}: {best} "
            f"{said.format(told(self.measured(best)))}, reading {self.tokens(best)} tokens a question"
        )
        for rival, gap in self.systems[best].against.items():
            done += (
                f"; {rival} {told(self.measured(rival))}, reading {self.tokens(rival)} ({best} is {difference(gap)})"
            )
        return " ".join((*self.warnings(), f"{done}."))

    def tokens(self, name: str) -> str:
        """Read by a question, of a system that has scores."""
        first = self.systems[name].first
        return "no" if first is None else f"{first.read_tokens:,.0f}"

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: warnings, a line a system, the headline."""
        lines = [*self.warnings()]
        width = max(map(len, self.systems), default=0)
        for name in self.order:
            each = self.systems[name]
            lines.append(
                f"{name:<{width}}  {self.measure} {told(self.measured(name))}  reads {self.tokens(name)} tokens  "
                f"modification {shown(each.modification)}  contamination {shown(each.contamination)}"
            )
        return (*lines, self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.agents.memory_page import comparison_page

        return comparison_page(self)

    def _repr_html_(self) -> str:
        rows = [(name, told(self.measured(name)), self.tokens(name)) for name in self.order]
        return table_html(("system", self.measure, "tokens read"), rows)


@dataclass(frozen=True)
class ComparisonPlan:
    """What a comparison would do. calls: by who is asked, at most; further: systems that call a model as they take in."""

    histories: int
    sessions: int
    turns: int
    questions: int
    with_evidence: int
    systems: tuple[str, ...]
    added: tuple[str, ...]
    protocols: tuple[str, ...]
    reader: str
    embedder: str
    answers: int
    calls: Mapping[str, int]
    further: tuple[str, ...]
    planted: int
    clusters: int
    clustered: str
    first: Mapping[str, Any]
    licence: str

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        lines = [
            f"{self.histories:,} histories of {self.sessions:,} sessions and {self.turns:,} turns; {self.questions:,} "
            f"questions, {self.with_evidence:,} with known evidence",
            f"systems: {', '.join(self.systems)}",
        ]
        if self.added:
            lines.append(f"compulsory rivals that were not named, and are added: {', '.join(self.added)}")
        lines.append(f"protocols: {', '.join(self.protocols)}; intervals over {self.clusters:,} {self.clustered}")
        lines.append(f"embedder: {self.embedder}; reader: {self.reader}; {self.answers:,} answers")
        lines += [f"calls of {who}: at most {count:,}" for who, count in self.calls.items()]
        if self.planted:
            lines.append(
                f"among those of graders {self.planted} planted answers, of which it is known whether they are right"
            )
        if self.further:
            lines.append(f"beside them {', '.join(self.further)} ask a model about every session they take in")
        lines.append(f"the first question: {self.first['question']!r}, asked {self.first['time']}")
        return (*lines, *([self.licence] if self.licence else []))


@dataclass(frozen=True, slots=True)
class Evidence:
    """An item that an answer was read from. turns: the ids of the turns that it was made of."""

    id: str
    session: str
    time: str
    text: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class MemoryReply:
    """An answer of a memory with what it rests on; folder is None without one.

    answer: "" without a reader. evidence: as it was printed, in that order. trace: the decisions that led to it. sessions:
    how many had been said by then, of `of`. build, query: amounts by name; seconds: of both.
    """

    names: Mapping[str, str]
    question: str
    now: str
    answer: str
    evidence: tuple[Evidence, ...]
    trace: tuple[Mapping[str, Any], ...]
    read_tokens: int
    sessions: int
    of: int
    build: Mapping[str, float]
    query: Mapping[str, float]
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before the answer."""
        found = []
        if not self.evidence:
            found.append("Nothing was found.")
        if self.names["reader"] and not self.answer:
            found.append(f"{self.names['reader']} gave no answer.")
        return tuple(found)

    def headline(self) -> str:
        """The answer, or how much evidence there is; warnings first."""
        turns = len({turn for each in self.evidence for turn in each.turns})
        rests = f"{turns} turns of {self.sessions} sessions until {self.now}, {self.read_tokens:,} tokens"
        said = f"{self.answer} (from {rests})" if self.answer else f"No reader: the evidence is {rests}."
        return " ".join((*self.warnings(), said))

    def summary(self) -> Sequence[str]:
        """Lines for a terminal: the evidence with ids and dates, then the answer."""
        return (*(f"{', '.join(each.turns)}  {_beginning(each.text)}" for each in self.evidence), self.headline())

    def page(self, folder: Path) -> Page:
        """The report, from what is stored."""
        from equipoise.agents.memory_page import reply_page

        return reply_page(self)

    def _repr_html_(self) -> str:
        rows = [(each.time, each.text, ", ".join(each.turns)) for each in self.evidence]
        return table_html(("time", "evidence", "turns"), rows, self.answer)


@dataclass(frozen=True)
class ReplyPlan:
    """What asking would do. calls: of models, at most; None where the system decides that as it takes sessions in."""

    system: str
    question: str
    now: str
    sessions: int
    of: int
    turns: int
    reader: str
    calls: int | None

    def summary(self) -> Sequence[str]:
        """Lines for a terminal."""
        told = "calls as the system needs them" if self.calls is None else f"at most {self.calls} calls"
        return (
            f"{self.system} takes in {self.sessions} of {self.of} sessions ({self.turns:,} turns), those until {self.now}",
            f"the question: {self.question!r}",
            f"reader: {self.reader or 'none, the evidence is shown'}; {told}",
        )


def told(share: Share) -> str:
    """A share with its interval, where there is one."""
    return shown(Bounded(share.rate, share.lower, share.upper))


def difference(value: Bounded) -> str:
    """A difference in words: by how much better or worse, or that none is shown."""
    if math.isnan(value.value):
        return "not comparable"
    if math.isnan(value.lower):
        return f"{value.value:+.3f} apart, how surely is not known"
    apart = f"{value.value:+.3f} [{value.lower:+.3f}, {value.upper:+.3f}]"
    if value.lower > 0 or value.upper < 0:
        return f"{'better' if value.value > 0 else 'worse'} by {apart}"
    return f"not shown to differ, {apart}"


def _beginning(text: str) -> str:
    """What a terminal shows of an item."""
    if len(text) <= ON_TERMINAL:
        return text
    return f"{text[:ON_TERMINAL]} ... ({len(text):,} characters; the report has them all)"


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value
