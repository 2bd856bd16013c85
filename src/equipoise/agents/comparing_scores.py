"""What the answers of memory systems come to: the scores of each, and of each against the compulsory rivals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import numpy as np

from equipoise.agents.lifedialbench import (
    AskedQuestion,
    Band,
    Clusters,
    MemoryAnswers,
    Protocol,
    accuracy,
    by_age,
    by_size,
    clusters,
    contamination,
    effects,
    paired,
    scored,
)
from equipoise.agents.lifedialbench import Score as NamedScore
from equipoise.agents.memory_result import UNKNOWN, Contaminated, CurvePoint, KindScore, ProtocolScores, SystemScores
from equipoise.core.options import closed
from equipoise.core.shares import Bounded, Share
from equipoise.core.statistics import item_interval
from equipoise.data.histories import MemoryQuestion
from equipoise.data.verify import verify

Score = Callable[[MemoryQuestion, AskedQuestion], float]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


def recalled(question: MemoryQuestion, row: AskedQuestion) -> float:
    """Whether all evidence of a question was printed, of a session any of its turns; nan where it is not known."""
    return float(set(question.evidence) <= set(row.found)) if question.evidence else math.nan


def shared_words(question: MemoryQuestion, row: AskedQuestion) -> float:
    """F1 of the words that an answer shares with a right one, the best of several (SQuAD); nan for options and for none."""
    if question.right is not None or not question.gold:
        return math.nan
    return verify("f1", row.text, question.gold).value if row.text.strip() else 0.0


@closed
def system_scores(
    by_protocol: Mapping[Protocol, MemoryAnswers],
    measured: Score,
    right: Score | None,
    rivals: Mapping[str, MemoryAnswers],
    *,
    added: bool,
    by: Clusters,
    seed: int,
) -> SystemScores:
    """The scores of one system. measured: what is compared. right: of answers; None where nobody answers for it.

    rivals: name -> the answers of a compulsory rival under the first protocol.
    """
    first = next(iter(by_protocol.values()))
    modification = contaminated = UNKNOWN
    if by_protocol.keys() >= set(PROTOCOLS):
        online, asof, offline = (by_protocol[name] for name in PROTOCOLS)
        found = effects(online, asof, offline, measured, by=by)
        modification, contaminated = (Bounded.of(each, -1, 1) for each in found)
    return SystemScores(
        added=added,
        protocols={name: _protocol_scores(each, right, by) for name, each in by_protocol.items()},
        modification=modification,
        contamination=contaminated,
        contaminated=_contaminated(by_protocol.get("offline"), measured, by, seed),
        against={name: Bounded.of(paired(first, each, measured, by=by), -1, 1) for name, each in rivals.items()},
        build=first.build,
        query=first.read,
        seconds=dict(first.seconds),
        age=_curve([row.age for row in first.rows], by_age(first, measured, by=by), first, measured),
        store=_curve([float(row.turns) for row in first.rows], by_size(first, measured, by=by), first, measured),
    )


def _protocol_scores(answers: MemoryAnswers, right: Score | None, by: Clusters) -> ProtocolScores:
    recall = accuracy(answers, recalled, by=by)
    answered = accuracy(answers, right if right is not None else _unknown, by=by)
    printed = [row.printed for row in answers.rows]
    later = [row.later / row.printed for row in answers.rows if row.printed]
    corrected = scored(answers, "corrected-choice") if right is not None else np.full(len(answers.rows), np.nan)
    names = np.array(clusters(answers, by))
    kept = ~np.isnan(corrected)

    def told(score: NamedScore | Score) -> Share:
        return accuracy(answers, score if right is not None else _unknown, by=by)[""]

    return ProtocolScores(
        questions=len(answers.rows),
        recall=recall[""],
        evidence=accuracy(answers, "evidence", by=by)[""],
        accuracy=answered[""],
        choice=told("choice"),
        corrected=Bounded.of(item_interval(corrected[kept], names[kept]), -1, 1) if kept.any() else UNKNOWN,
        times=told("strict-time"),
        near_times=told("near-time"),
        f1=told(shared_words),
        read_tokens=_mean([row.read_tokens for row in answers.rows]),
        printed=_mean(printed),
        late=_mean(later),
        words=_mean([len(row.text.split()) for row in answers.rows if row.text.strip()]),
        unanswered=sum(not row.text.strip() and row.choice is None for row in answers.rows),
        kinds={kind: KindScore(recall[kind], answered[kind]) for kind in recall if kind},
    )


def _contaminated(offline: MemoryAnswers | None, measured: Score, by: Clusters, seed: int) -> Contaminated | None:
    if offline is None:
        return None
    found = contamination(offline, measured, by=by, generator=np.random.default_rng([seed, 0]))
    return Contaminated(Bounded.of(found.overall, 0, 1), found.quarters, found.within, found.later)


def _curve(
    places: Sequence[float], bands: Sequence[Band], answers: MemoryAnswers, measured: Score
) -> tuple[CurvePoint, ...]:
    """The bands with questions that have the measure."""
    at, known = np.array(places, float), ~np.isnan(scored(answers, measured))
    points = []
    for low, high, share in bands:
        inside = at[known & (at >= low) & (at < high)]
        if inside.size:
            points.append(CurvePoint(low, high, float(np.median(inside)), share))
    return tuple(points)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _unknown(question: MemoryQuestion, row: AskedQuestion) -> float:
    return math.nan
