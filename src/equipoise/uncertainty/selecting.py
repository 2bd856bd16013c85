"""The work of `uncertainty select`: one answer to each question, from answers that were scored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.files import sha256_file, write_atomic
from equipoise.core.job import Request
from equipoise.core.options import check_fields
from equipoise.core.shares import Bounded
from equipoise.core.statistics import item_interval
from equipoise.data.records import kind_of, read_rows
from equipoise.data.text import lone_surrogate
from equipoise.uncertainty.selection import Selected, Vote, canonical, meanings, select
from equipoise.uncertainty.token_result import SEMANTIC, Selection, SelectPlan

SELECTED = "selected.jsonl"
UNKNOWN = Bounded(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class _Candidate:
    id: str
    prompt: Any
    answer: str
    score: float
    right: float


@dataclass(frozen=True, eq=False)
class Selecting(Request):
    """A request to select, read and found right. questions: the candidates of each."""

    questions: Mapping[str, Sequence[_Candidate]]
    skipped: int
    by: str
    keep: float
    vote: Vote
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def read(cls, scores: Any, *, by: str, keep: float, vote: Any) -> Selecting:
        """Raises BadInput for rows that hold no such score."""
        if by == SEMANTIC:
            raise BadInput(
                f"{by} is of a question, alike for all its answers, and cannot choose among them: name another."
            )
        if isinstance(scores, str | Path):
            rows = [(place, row) for place, _, row in read_rows(Path(scores))]
            inputs = {"scores": sha256_file(Path(scores))}
        else:
            rows, inputs = [(f"row {number}", row) for number, row in enumerate(scores, start=1)], {}
        questions: dict[str, list[_Candidate]] = {}
        skipped, places = 0, dict[str, str]()
        for place, row in rows:
            if not isinstance(row, Mapping):
                raise BadInput(f"{place} is {kind_of(row)}, expected an object with id, prompt, answer and scores.")
            if row.get("scores") == {}:  # what could not be scored
                skipped += 1
                continue
            candidate = _candidate(place, row, by)
            if candidate.id in places:
                raise BadInput(
                    f"{place}: id {candidate.id!r} was used before at {places[candidate.id]}, and each votes once: give "
                    "each answer an id of its own, and name the question in group."
                )
            places[candidate.id] = place
            group = row.get("group")
            name = (
                group if group not in (None, "") else json.dumps(candidate.prompt, ensure_ascii=False, sort_keys=True)
            )
            questions.setdefault(str(name), []).append(candidate)
        if not questions:
            raise BadInput("there is no scored answer to choose from: give the scores.jsonl of uncertainty score.")
        return cls(questions=questions, skipped=skipped, by=by, keep=keep, vote=vote, inputs=inputs, resolved={})

    def plan(self) -> SelectPlan:
        return SelectPlan(len(self.questions), sum(map(len, self.questions.values())), self.by)

    def work(self, folder: Path | None) -> Selection:
        lines, measured = [], []
        for candidates in self.questions.values():
            chosen = _chosen(candidates, self.keep, self.vote)
            one = candidates[chosen.answer]
            lines.append(
                json.dumps(
                    {
                        "id": one.id,
                        "prompt": one.prompt,
                        "answer": one.answer,
                        "score": one.score,
                        "correct": None if math.isnan(one.right) else bool(one.right),
                        "votes": chosen.votes,
                        "kept": [candidates[place].id for place in chosen.kept],
                        "of": len(candidates),
                    },
                    ensure_ascii=False,
                    allow_nan=False,
                )
                + "\n"
            )
            right = [candidate.right for candidate in candidates]
            if not any(map(math.isnan, right)):
                surest = max(candidates, key=lambda each: each.score)
                measured.append((one.right, _plain_vote(candidates), surest.right, float(np.mean(right)), max(right)))
        if folder is not None:
            write_atomic(folder / SELECTED, "".join(lines))
        columns = np.array(measured).T if measured else np.zeros((5, 0))
        shares = [_bounded(column) for column in columns]
        return Selection(
            by=self.by,
            keep=self.keep,
            vote=self.vote,
            questions=len(self.questions),
            answers=sum(map(len, self.questions.values())),
            labelled=len(measured),
            chosen=shares[0],
            consistency=shares[1],
            surest=shares[2],
            average=shares[3],
            best=shares[4],
            gain=_bounded(columns[0] - columns[1], least=-1.0),
            notes=(f"{self.skipped} answers have no score and were left out.",) if self.skipped else (),
        )


def _chosen(candidates: Sequence[_Candidate], keep: float, vote: Vote) -> Selected:
    return select([each.answer for each in candidates], [each.score for each in candidates], keep=keep, vote=vote)


def _plain_vote(candidates: Sequence[_Candidate]) -> float:
    """How often the vote of all is right, without scores: a tie is drawn by lot."""
    votes = _chosen(candidates, 1.0, "majority").votes
    most = max(votes.values())
    said = meanings([each.answer for each in candidates], canonical)
    return float(np.mean([each.right for text, each in zip(said, candidates, strict=True) if votes[text] == most]))


def _candidate(place: str, row: Mapping[str, Any], by: str) -> _Candidate:
    for name in ("id", "prompt", "answer", "scores"):
        if name not in row:
            raise BadInput(f"{place}: no field {name!r}: give the scores.jsonl of uncertainty score.")
    for name in ("id", "prompt", "answer"):
        if lone_surrogate(json.dumps(row[name], ensure_ascii=False, default=str)) is not None:
            raise BadInput(f"{place}: field {name!r} has half of a surrogate pair: take it out.")
    scores, right = row["scores"], row.get("correct")
    if not isinstance(scores, Mapping) or by not in scores:
        known = list(scores) if isinstance(scores, Mapping) else []
        raise BadInput(f"{place}: there is no score {by!r}. {did_you_mean(by, known)}")
    score = scores[by]
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        found = score if isinstance(score, float) else kind_of(score)
        raise BadInput(f"{place}: the score {by!r} is {found}, expected a finite number.")
    if not isinstance(row["answer"], str) or right not in (None, True, False):
        raise BadInput(f"{place}: expected a text as answer and true, false or nothing as correct.")
    return _Candidate(str(row["id"]), row["prompt"], row["answer"], score, math.nan if right is None else float(right))


def _bounded(values: Any, least: float = 0.0) -> Bounded:
    if not len(values):
        return UNKNOWN
    return Bounded.of(item_interval(values), least, 1.0)
