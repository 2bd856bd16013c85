"""LifeDialBench (arXiv:2604.11182): a memory is asked while the stream is still running, so that no answer sees the future.

    d_1 .. d_T sessions, M_t = Update(M_{t-1}, d_t), Q_t the questions that may be asked once d_t is heard

    online     A(q | M_t) for q in Q_t, of a memory that is frozen while it is asked
    as-of      A(q | M_T), from items alone whose last change is not later than the question
    offline    A(q | M_T)

    online - offline = (online - as-of) + (as-of - offline) = modification + contamination

    online = run(memory, history)
    asof, offline = (run(memory, history, protocol=each, after=online) for each in ("asof", "offline"))
    modification, contamination = effects(online, asof, offline)

The online protocol is the paper's; as-of is ours and tells apart what the paper names as two causes of one gap: items that
were changed before somebody asked (modification), and later items that are found in their place (contamination). Of a store
that only appends, modification is 0, question by question.

Differs from the paper: what its contamination statistic is computed from is not stated; here x is the share of printed items
that are later than the question, and y whether the answer is right, so that below 0.5 later items go with wrong answers.
Every mean has its interval, clustered by conversation or by day. Choice scores are also given with luck taken out, and times
of the day by the clock, where the paper's judge is told to be lenient.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.agents.memory import MemoryAnswer, MemorySystem
from equipoise.core.agreement import share
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.options import check_fields, closed
from equipoise.core.scores import auroc
from equipoise.core.shares import Share
from equipoise.core.statistics import Interval, item_interval, score_interval
from equipoise.data.answers import matches
from equipoise.data.histories import History, MemoryQuestion, Session
from equipoise.data.locomo import abstains
from equipoise.data.text import unified

Protocol = Literal["online", "asof", "offline"]
Score = Literal["right", "choice", "corrected-choice", "open", "strict-time", "near-time", "evidence"]
Clusters = Literal["auto", "conversation", "group", "day", "question"]
Scorer = Callable[[MemoryQuestion, "AskedQuestion"], float]
Array = NDArray[np.float64]
NEAR = 10  # minutes by which a near time may be off
QUARTERS = 4
AGES = (1.0, 7.0, 30.0, 90.0)  # days
_DAY = 24 * 60  # minutes


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """What is kept of an answer: plain values, for `core.serialize` and a row of a file.

    question: its id in `history`. printed, later: items that were printed, and those of them whose last change is later than
    the question. found: ids of its evidence that were printed, of a session where one of its turns was. sessions, turns: how
    much the memory had taken in. age: days from the newest of its evidence to the question; nan where that is not known.
    state: digest of the memory.
    """

    history: str
    question: str
    text: str
    choice: int | None
    printed: int
    later: int
    found: tuple[str, ...]
    sessions: int
    turns: int
    age: float
    read_tokens: int
    amounts: Mapping[str, float]
    state: str


@dataclass(frozen=True)
class MemoryAnswers:
    """The answers of one system under one protocol, question by question.

    questions, rows: in the same order, that in which they are due. built: amounts of each session that was taken in. state:
    digest of the memory at the end. streams: digests of what was heard and asked. running: questions asked before the last
    word of a session that was taken in as a whole: what is known of that session was not all said. seconds: of building and
    of reading; no part of what makes two results equal.
    """

    system: str
    protocol: Protocol
    questions: tuple[MemoryQuestion, ...]
    rows: tuple[AskedQuestion, ...]
    built: tuple[Mapping[str, float], ...] = ()
    state: str = ""
    streams: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def build(self) -> dict[str, float]:
        """What building the memory cost, by name."""
        return _summed(self.built)

    @property
    def read(self) -> dict[str, float]:
        """What reading it cost, by name; `read_tokens` are those of the printed contexts."""
        return _summed({**row.amounts, "read_tokens": row.read_tokens} for row in self.rows)

    def only(self, keep: Callable[[MemoryQuestion, AskedQuestion], bool]) -> MemoryAnswers:
        """The answers to some of the questions; the costs of building stay whole."""
        kept = [pair for pair in zip(self.questions, self.rows, strict=True) if keep(*pair)]
        return replace(self, questions=tuple(q for q, _ in kept), rows=tuple(row for _, row in kept))


class Effects(NamedTuple):
    """Of all questions: modification = online - as-of, contamination = as-of - offline; their sum is online - offline."""

    modification: Interval
    contamination: Interval


class Band(NamedTuple):
    """Answers to the questions between two values (the lower one counts in), and the share of them that is right."""

    low: float
    high: float
    share: Share


# --- the protocols --------------------------------------------------------------------------------------------------------


def due(sessions: Sequence[Session], question: MemoryQuestion) -> int:
    """The place of the session behind which a question is asked: the last that began by its time; of None the last of all.

    Raises BadInput for a question before the first session.
    """
    if not sessions or (question.time is not None and question.time < sessions[0].time):
        raise BadInput(
            f"question {question.id!r} is asked at {question.time}, before anything was said: give it a later time."
        )
    if question.time is None:
        return len(sessions) - 1
    return bisect_right(sessions, question.time, key=lambda session: session.time) - 1


@closed
def run(
    system: MemorySystem,
    stream: History,
    questions: Sequence[MemoryQuestion] | None = None,
    *,
    protocol: Protocol = "online",
    after: MemoryAnswers | None = None,
    known: Iterable[AskedQuestion] = (),
    taken: Callable[[Session, Mapping[str, float]], None] | None = None,
    store: Callable[[AskedQuestion, MemoryAnswer], None] | None = None,
) -> MemoryAnswers:
    """Feed a stream to a new memory and ask it, under one protocol. questions: those of the stream, or others about it.

    after: the answers of an earlier run on this very object, whose memory of the stream is whole and not built again.
    known: answers that were stored before; they are not asked again, and the memory has to be in the same state as then.
    taken, store: told of each session, and of each new answer with all that was printed, before the next is begun.

    Raises BadInput for a question that does not fit the stream, and for known answers to other questions; WorkFailed, naming
    the system, where answering changes its digest, where a digest differs though nothing was done, and where it is not in
    the state of `after` or `known`.
    """
    if after is not None and protocol == "online":
        raise BadInput(
            "A memory that has heard everything cannot be asked online: leave out after=, and give a new one."
        )
    asked = list(stream.questions if questions is None else questions)
    if len({question.id for question in asked}) < len(asked):
        raise BadInput(f"{stream.name}: two questions have the same id; ids are unique in a history.")
    if questions is not None:
        stream.check(asked)
    places = {question.id: due(stream.sessions, question) for question in asked}
    asked.sort(key=lambda question: places[question.id])
    stored = {(row.history, row.question): row for row in known}
    if strange := [key for key in stored if key[0] != stream.name or key[1] not in places]:
        raise BadInput(f"{stream.name}: there is a stored answer to {strange[0][1]!r}, which is not asked here.")
    facts = _Facts(stream)
    seconds = {"build": 0.0, "read": 0.0}
    rows: list[AskedQuestion] = []
    built: list[Mapping[str, float]] = []

    def ask(question: MemoryQuestion, heard: int, state: str) -> None:
        row = stored.get((stream.name, question.id))
        if row is None:
            now = question.time or facts.end
            start = time.perf_counter()
            answer = system.answer(question, now, until=now) if protocol == "asof" else system.answer(question, now)
            seconds["read"] += time.perf_counter() - start
            row = facts.row(question, now, answer, heard, state)
            if system.snapshot() != state:
                raise WorkFailed(
                    f"{system.name} writes while it reads: its digest changed with the answer to {question.id!r}. An answer "
                    "would depend on what was asked before; have it answer from a copy."
                )
            if store is not None:
                store(row, answer)
        elif row.state != state:
            raise WorkFailed(
                f"{system.name} is not in the state in which it gave the stored answer to {question.id!r}: its building is "
                "not the same twice, or something else was changed. Begin anew."
            )
        rows.append(row)

    if after is not None:
        _check_after(system, stream, after)
        built = list(after.built)
    at = 0
    for place, session in enumerate(stream.sessions):
        if after is None:
            start = time.perf_counter()
            built.append(dict(system.ingest(session, session.time)))
            seconds["build"] += time.perf_counter() - start
            if taken is not None:
                taken(session, built[-1])
        if protocol == "online" and at < len(asked) and places[asked[at].id] == place:
            state = _frozen(system)
            while at < len(asked) and places[asked[at].id] == place:
                ask(asked[at], place + 1, state)
                at += 1
    state = _frozen(system)
    for question in asked if protocol != "online" else ():
        ask(question, len(stream.sessions), state)
    return MemoryAnswers(
        system=system.name,
        protocol=protocol,
        questions=tuple(asked),
        rows=tuple(rows),
        built=tuple(built),
        state=state,
        streams=(stream_digest(stream, asked),),
        running=tuple(
            question.id
            for question in asked
            if question.time is not None and facts.spoken[places[question.id]] > question.time
        ),
        seconds=seconds,
    )


def joined(parts: Sequence[MemoryAnswers]) -> MemoryAnswers:
    """The answers about several histories as one. Raises BadInput for other systems, protocols, or a history twice."""
    if not parts:
        raise BadInput("There are no answers to join.")
    first = parts[0]
    if wrong := [each for each in parts if (each.system, each.protocol) != (first.system, first.protocol)]:
        raise BadInput(
            f"Answers of {first.system} ({first.protocol}) and of {wrong[0].system} ({wrong[0].protocol}) are no one result."
        )
    names = [name for each in parts for name in {row.history for row in each.rows}]
    if len(set(names)) < len(names):
        raise BadInput("Two parts are about one history: join answers about different ones.")
    return replace(
        first,
        questions=tuple(question for each in parts for question in each.questions),
        rows=tuple(row for each in parts for row in each.rows),
        built=tuple(amounts for each in parts for amounts in each.built),
        state=hashlib.sha256(" ".join(each.state for each in parts).encode()).hexdigest(),
        streams=tuple(digest for each in parts for digest in each.streams),
        running=tuple(name for each in parts for name in each.running),
        seconds=_summed(each.seconds for each in parts),
    )


def stream_digest(stream: History, questions: Sequence[MemoryQuestion] | None = None) -> str:
    """A digest of all that is heard and asked: equal histories, equal digests."""

    def told(moment: datetime | None) -> str:
        return "" if moment is None else moment.isoformat()

    said = [
        [
            session.id,
            told(session.time),
            [[turn.id, turn.speaker, turn.text, told(turn.time)] for turn in session.turns],
        ]
        for session in stream.sessions
    ]
    asked = [
        [each.id, each.text, told(each.time), each.gold, each.options, each.right, each.evidence, each.kind, each.group]
        for each in (stream.questions if questions is None else questions)
    ]
    return hashlib.sha256(json.dumps([stream.name, said, asked]).encode(errors="surrogatepass")).hexdigest()


class _Facts:
    """What is known of a stream beside the answers: when sessions end, when a turn was said, what evidence is made of."""

    def __init__(self, stream: History) -> None:
        self.name = stream.name
        self.ends = [max([each.time, *(turn.time or each.time for turn in each.turns)]) for each in stream.sessions]
        self.spoken = list(accumulate(self.ends, max))  # a session may go on while the next begins and ends
        self.end = max(self.ends, default=datetime.min)
        self._said = {turn.id: turn.time or each.time for each in stream.sessions for turn in each.turns}
        self._turns = {each.id: frozenset(turn.id for turn in each.turns) for each in stream.sessions}
        self._begun = {each.id: each.time for each in stream.sessions}
        self._heard = np.cumsum([0, *(len(each.turns) for each in stream.sessions)]).tolist()

    def row(
        self, question: MemoryQuestion, now: datetime, answer: MemoryAnswer, heard: int, state: str
    ) -> AskedQuestion:
        printed, sessions = answer.sources, {item.session for item in answer.items}
        said = [self._said.get(name) or self._begun[name] for name in question.evidence]
        return AskedQuestion(
            history=self.name,
            question=question.id,
            text=answer.text,
            choice=answer.choice,
            printed=len(answer.items),
            later=sum(item.time > now for item in answer.items),
            found=tuple(
                name
                for name in dict.fromkeys(question.evidence)
                if name in printed or name in sessions or self._turns.get(name, frozenset()) & printed
            ),
            sessions=heard,
            turns=self._heard[heard],
            age=(now - max(said)).total_seconds() / 86400 if said else math.nan,
            read_tokens=answer.read_tokens,
            amounts=dict(answer.amounts),
            state=state,
        )


def _frozen(system: MemorySystem) -> str:
    state = system.snapshot()
    if system.snapshot() != state:
        raise WorkFailed(f"{system.name} has two digests of one state: snapshot() has to depend on what is held alone.")
    return state


def _check_after(system: MemorySystem, stream: History, after: MemoryAnswers) -> None:
    if len(after.built) != len(stream.sessions):
        raise BadInput(
            f"{stream.name}: the run before took in {len(after.built)} sessions of {len(stream.sessions)}: give that of "
            "this history, or leave out after=."
        )
    if others := {row.history for row in after.rows} - {stream.name}:
        raise BadInput(
            f"{stream.name}: the run before was about {min(others)}: give that of this history, or leave out after=."
        )
    if system.snapshot() != after.state:
        raise WorkFailed(
            f"{system.name} is not in the state that the run before left it in: give the same object, or leave out after=."
        )


def _summed(amounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for each in amounts:
        for name, amount in each.items():
            total[name] = total.get(name, 0) + amount
    return total


# --- scores of an answer --------------------------------------------------------------------------------------------------


@closed
def scored(answers: MemoryAnswers, score: Score | Scorer = "right") -> Array:
    """One number a question, [n]; nan where a question has no such score.

    choice: whether the right option was chosen; none chosen is 0. corrected-choice: (choice - 1/m) / (1 - 1/m), of m
    options. open: whether the words are a gold answer (`data.answers.matches`); where there is none, whether there are no
    words, or those of somebody who declines (`data.locomo.abstains`). right: choice where there are options, else open.
    strict-time, near-time: whether the time of the day is the gold one, to the minute, or within ten; that of the chosen
    option where one was chosen, else of the words. evidence: the share of the evidence that was printed; a
    session counts when any of its turns was, as LongMemEval counts it. Or a function's, such as a judge's grades.
    """
    function = score if callable(score) else _SCORES[score]
    return np.array([function(*pair) for pair in zip(answers.questions, answers.rows, strict=True)], float)


def guess_corrected(accuracy: float, options: int = 4) -> float:
    """(a - 1/m) / (1 - 1/m): 0 for luck, 1 for all right, below 0 for worse than luck. Raises BadInput under 2 options."""
    if options < 2:
        raise BadInput(f"A choice of {options} options is none: luck can be taken out of 2 or more.")
    return (accuracy - 1 / options) / (1 - 1 / options)


def clock_time(text: str) -> int | None:
    """The time of the day that a text names, in minutes after midnight; None for none, or for two that differ.

    21:05, 21:05:30, 9 pm, 9:05 p.m., 9:05 p. m, 9 o'clock, noon, midnight. Without am and pm as on a clock of 24 hours.
    """
    found = set()
    for match in _CLOCK.finditer(unified(text).casefold()):
        if match["word"]:
            found.add(12 * 60 if match["word"] == "noon" else 0)
            continue
        hour, minute = int(match["hour"] or match["bare"]), int(match["minute"] or 0)
        half = (match["half"] or match["bare_half"] or "")[:1]
        if minute > 59 or hour > (12 if half else 23) or (half and hour == 0):
            continue
        if half:
            hour = hour % 12 + (12 if half == "p" else 0)
        found.add(60 * hour + minute)
    return found.pop() if len(found) == 1 else None


_HALF = r"[ap](?:\.\s*)?m\.?"
_CLOCK = re.compile(
    rf"(?<![\w:.])(?:(?P<hour>\d{{1,2}}):(?P<minute>\d\d)(?::\d\d)?(?:\s*(?P<half>{_HALF}))?"
    rf"|(?P<bare>\d{{1,2}})\s*(?:(?P<bare_half>{_HALF})|o['’]clock)|(?P<word>noon|midnight))(?![\w:])"
)


def _choice(question: MemoryQuestion, row: AskedQuestion) -> float:
    return math.nan if question.right is None else float(row.choice == question.right)


def _corrected(question: MemoryQuestion, row: AskedQuestion) -> float:
    chosen = _choice(question, row)
    return chosen if math.isnan(chosen) else guess_corrected(chosen, len(question.options))


def _open(question: MemoryQuestion, row: AskedQuestion) -> float:
    return float(matches(row.text, question.gold) if question.gold else not row.text.strip() or abstains(row.text))


def _right(question: MemoryQuestion, row: AskedQuestion) -> float:
    return _open(question, row) if question.right is None else _choice(question, row)


def _time(question: MemoryQuestion, row: AskedQuestion, within: int) -> float:
    golds = [minutes for minutes in map(clock_time, question.gold) if minutes is not None]
    if not golds:
        return math.nan
    # the reply to a choice is a letter, which names no time
    told = clock_time(row.text if row.choice is None or not question.options else question.options[row.choice])
    return float(told is not None and any(min((told - x) % _DAY, (x - told) % _DAY) <= within for x in golds))


def _evidence(question: MemoryQuestion, row: AskedQuestion) -> float:
    wanted = set(question.evidence)
    return len(row.found) / len(wanted) if wanted else math.nan


_SCORES: Mapping[Score, Scorer] = {
    "right": _right,
    "choice": _choice,
    "corrected-choice": _corrected,
    "open": _open,
    "strict-time": lambda question, row: _time(question, row, 0),
    "near-time": lambda question, row: _time(question, row, NEAR),
    "evidence": _evidence,
}


# --- what many answers say ------------------------------------------------------------------------------------------------


@closed
def clusters(answers: MemoryAnswers, by: Clusters = "auto") -> list[str]:
    """What each question belongs to in intervals; by itself for "question", or where "group" finds none.

    auto: as `clustered_by` says.
    """
    kind = clustered_by([row.history for row in answers.rows], answers.questions) if by == "auto" else by
    names = []
    for question, row in zip(answers.questions, answers.rows, strict=True):
        part = {
            "conversation": "",
            "group": question.group or f"question {question.id}",
            "day": _day(question) or "the end",
            "question": question.id,
        }[kind]
        names.append(f"{row.history}/{part}")
    return names


def clustered_by(histories: Iterable[str], questions: Iterable[MemoryQuestion]) -> Clusters:
    """What questions are clustered by where nothing else is asked for: their conversations, where these are several; of one
    alone the groups that they name, where these are several and not just their days; else the days. histories: by name.
    """
    if len(set(histories)) > 1:
        return "conversation"
    named = {(question.group, _day(question)) for question in questions}
    groups = len({group for group, _ in named}) > 1 and any(group not in ("", day) for group, day in named)
    return "group" if groups else "day"


def _day(question: MemoryQuestion) -> str:
    return "" if question.time is None else f"{question.time:%Y-%m-%d}"


@closed
def accuracy(
    answers: MemoryAnswers,
    score: Score | Scorer = "right",
    *,
    by: Clusters = "auto",
) -> dict[str, Share]:
    """The share that is right of each kind of question, and, under "", of all together: every question counts alike.

    Raises BadInput for `corrected-choice`, which is no share: correct the rate by `guess_corrected`.
    """
    if score == "corrected-choice":
        raise BadInput("A choice with luck taken out is no share: use guess_corrected on the rate of 'choice'.")
    values, names = scored(answers, score), clusters(answers, by)
    kinds = np.array([question.kind for question in answers.questions], object)
    every = np.ones(len(values), bool)
    return {"": _share(values, names, every)} | {
        kind: _share(values, names, kinds == kind) for kind in sorted({*kinds.tolist()} - {""})
    }


@closed
def paired(
    first: MemoryAnswers,
    second: MemoryAnswers,
    score: Score | Scorer = "right",
    *,
    by: Clusters = "auto",
    level: float = 0.95,
) -> Interval:
    """Mean of first - second over the same questions. Raises BadInput where they were not asked the same ones."""
    (interval,) = _differences((first, second), score, by, level)
    return interval


@closed
def effects(
    online: MemoryAnswers,
    asof: MemoryAnswers,
    offline: MemoryAnswers,
    score: Score | Scorer = "right",
    *,
    by: Clusters = "auto",
    level: float = 0.95,
) -> Effects:
    """online - as-of and as-of - offline, of the questions that have a score in all three.

    Raises BadInput for answers under other protocols than their names say, of different systems, or to other questions.
    """
    for answers, protocol in ((online, "online"), (asof, "asof"), (offline, "offline")):
        if answers.protocol != protocol:
            raise BadInput(
                f"The answers given as {protocol} are {answers.protocol}: order them online, as-of, offline."
            )
        if answers.system != online.system:
            raise BadInput(f"Effects are of one system: here are answers of {online.system} and of {answers.system}.")
    return Effects(*_differences((online, asof, offline), score, by, level))


@closed
def recovered(
    online: MemoryAnswers,
    asof: MemoryAnswers,
    offline: MemoryAnswers,
    score: Score | Scorer = "right",
    *,
    by: Clusters = "auto",
) -> Share:
    """Of the questions right online and wrong offline, the share that is right as-of; the rest was overwritten.

    asof: better with a larger k than the others (the paper: 100), so that no item that is there is missed.
    """
    values = _aligned((online, asof, offline), score)
    lost = (values[0] >= 0.5) & (values[2] < 0.5)
    return _share(values[1], clusters(online, by), lost)


@dataclass(frozen=True)
class Contamination:
    """AUROC of the share of later items against right answers: of all, by quarter of the stream, and within quarters.

    within: pairs of one quarter alone, since early questions have more future. Below 0.5: later items go with wrong answers.
    """

    overall: Interval
    quarters: tuple[float, ...]
    within: float
    later: float


@closed
def contamination(
    offline: MemoryAnswers,
    score: Score | Scorer = "right",
    *,
    by: Clusters = "auto",
    generator: np.random.Generator,
    level: float = 0.95,
) -> Contamination:
    """Do answers that were read from later items go wrong? later: mean share of printed items that are later.

    Quarters are of the time from a history's first question to its last. Answers without an item do not count; the
    interval has bounds from 50 clusters on. Scores below 0.5 count as wrong. nan where there is only one sort of answers.
    """
    values = scored(offline, score)
    printed = np.array([row.printed for row in offline.rows], float)
    kept = ~np.isnan(values) & (printed > 0)
    right = (values[kept] >= 0.5).astype(float)
    x = np.array([row.later for row in offline.rows], float)[kept] / printed[kept]
    names = [name for name, use in zip(clusters(offline, by), kept, strict=True) if use]
    quarter = _quarters(offline)[kept]
    found, weights = [], []
    for place in range(QUARTERS):
        inside = quarter == place
        positive = int(right[inside].sum())
        found.append(float(auroc(x[inside], right[inside])))
        weights.append(positive * (int(inside.sum()) - positive))
    pairs = sum(weights)
    return Contamination(
        overall=score_interval(auroc, x, right, names, generator=generator, level=level),
        quarters=tuple(found),
        within=sum(w * a for w, a in zip(weights, found, strict=True) if w) / pairs if pairs else math.nan,
        later=float(x.mean()) if x.size else math.nan,
    )


@closed
def by_age(
    answers: MemoryAnswers,
    score: Score | Scorer = "right",
    *,
    edges: Sequence[float] = AGES,
    by: Clusters = "auto",
) -> list[Band]:
    """The share right by days since the newest evidence, in bands that the edges part; questions without it are left out."""
    return _bands(answers, score, [row.age for row in answers.rows], edges, by)


@closed
def by_size(
    answers: MemoryAnswers,
    score: Score | Scorer = "right",
    *,
    edges: Sequence[float] = (),
    by: Clusters = "auto",
) -> list[Band]:
    """The share right by turns that the memory had taken in; edges: by default the quarters of the largest.

    Under the online protocol alone, questions and store grow together: to part them, ask the same questions of stores that
    differ.
    """
    turns = [float(row.turns) for row in answers.rows]
    most = max(turns, default=0.0)
    quarters = [most * part / QUARTERS for part in range(1, QUARTERS)] if most else []
    return _bands(answers, score, turns, edges or quarters, by)


def _bands(
    answers: MemoryAnswers,
    score: Score | Scorer,
    places: Sequence[float],
    edges: Sequence[float],
    by: Clusters,
) -> list[Band]:
    if any(not low < high for low, high in pairwise(edges)):
        raise BadInput(f"The edges {list(edges)} do not rise: give them from the least to the largest.")
    values, names, at = scored(answers, score), clusters(answers, by), np.asarray(places, float)
    ends = [-math.inf, *map(float, edges), math.inf]
    found = []
    for low, high in pairwise(ends):
        inside = (at >= low) & (at < high)
        if inside.any():
            found.append(Band(low, high, _share(values, names, inside)))
    return found


def _share(values: Array, names: Sequence[str], chosen: NDArray[np.bool_]) -> Share:
    kept = np.logical_and(chosen, ~np.isnan(values))
    return share(
        values[kept], [name for name, use in zip(names, kept, strict=True) if use], missing=int((chosen & ~kept).sum())
    )


def _aligned(several: Sequence[MemoryAnswers], score: Score | Scorer) -> Array:
    """[answers, questions], in the order of the first."""
    keys = [[(row.history, row.question) for row in answers.rows] for answers in several]
    for answers, own in zip(several, keys, strict=True):
        if sorted(own) != sorted(keys[0]):
            raise BadInput(
                f"{answers.system} ({answers.protocol}) and {several[0].system} ({several[0].protocol}) were not asked the "
                "same questions: only the same can be compared."
            )
    by_key = [dict(zip(own, scored(answers, score), strict=True)) for answers, own in zip(several, keys, strict=True)]
    return np.array([[values[key] for key in keys[0]] for values in by_key], float)


def _differences(
    several: Sequence[MemoryAnswers],
    score: Score | Scorer,
    by: Clusters,
    level: float,
) -> list[Interval]:
    """Each less the next, of the questions that all of them have a score of."""
    values, names = _aligned(several, score), clusters(several[0], by)
    kept = np.asarray(~np.isnan(values).any(axis=0))
    names = [name for name, use in zip(names, kept, strict=True) if use]
    return [item_interval(d, names, level=level) for d in values[:-1, kept] - values[1:, kept]]


def _quarters(answers: MemoryAnswers) -> NDArray[np.intp]:
    """0 .. 3 of each question, by its time between the first and the last of its history; None is the end."""
    spans: dict[str, list[datetime]] = {}
    for question, row in zip(answers.questions, answers.rows, strict=True):
        if question.time is not None:
            spans.setdefault(row.history, []).append(question.time)
    places = []
    for question, row in zip(answers.questions, answers.rows, strict=True):
        times = spans.get(row.history, [])
        if question.time is None or min(times) == max(times):
            places.append(QUARTERS - 1)
            continue
        part = (question.time - min(times)) / (max(times) - min(times))
        places.append(min(int(QUARTERS * part), QUARTERS - 1))
    return np.array(places, np.intp)
