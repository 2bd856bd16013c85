"""The work of `uncertainty score`. Killed at any moment, the same call goes on: every 16 answers are stored when done."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.errors import BadInput
from equipoise.core.files import write_atomic
from equipoise.core.job import Request
from equipoise.core.progress import progress
from equipoise.core.rows import Rows
from equipoise.core.scores import risk_coverage
from equipoise.core.shares import Bounded
from equipoise.language.confidence import p_true, semantic_entropy
from equipoise.language.features import objects_digests
from equipoise.language.kept import keep_to
from equipoise.language.model import LanguageModel, load
from equipoise.language.templates import DATE
from equipoise.uncertainty.answers import Answers, question, read_answers
from equipoise.uncertainty.clean_history import check_family
from equipoise.uncertainty.measured_answers import accept, detection, share_right
from equipoise.uncertainty.perturbed import Perturbed, perturb
from equipoise.uncertainty.selection import canonical, meanings
from equipoise.uncertainty.token_page import SCORES
from equipoise.uncertainty.token_result import ENOUGH, LENGTH, SEMANTIC, ScorePlan, TokenScores
from equipoise.uncertainty.tokur import Encoded, TokenUncertainty, choose_sigma, confidences, encoded, score_tokens

STORED = "scored.jsonl"
AT_ONCE = 16  # answers that are stored together
CHOOSERS = 20  # answers on which sigma is chosen
P_TRUE = "p_true"
SEVERAL = 2  # answers to a question, without which its semantic entropy is no number
DRAWN = 200  # points of a curve


@dataclass(frozen=True, eq=False)
class Scoring(Request):
    """A request to score, read and found right."""

    model: str | Path | LanguageModel
    answers: Answers
    members: int
    sigma: float | None
    rank: int
    targets: tuple[str, ...]
    by: str
    risk: float | None
    certainty: float
    end: bool
    ask: bool
    seed: int
    batch_size: int
    loading: Mapping[str, Any]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        model: Any,
        answers: Any,
        *,
        limit: int | None,
        fields: Mapping[str, str] | None,
        verifier: Any,
        loading: dict[str, Any],
        **settings: Any,
    ) -> Scoring:
        """Raises BadInput for a wrong request; loads no model."""
        date = loading["date"] = loading["date"] or DATE
        source = answers if isinstance(answers, str | Path) else list(answers)
        read = read_answers(source, limit=limit, fields=fields, verifier=verifier)
        if settings["risk"] is not None and not read.labelled:
            raise BadInput(
                "a threshold for a risk needs answers that are known to be right or wrong: give correct, or gold."
            )
        if settings["by"] == P_TRUE and not settings["ask"]:
            raise BadInput("by is p_true, for which the model has to be asked: give ask, too.")
        if settings["by"] == SEMANTIC and (few := _few(read)):
            raise BadInput(
                f"by is {SEMANTIC}, but {few[0]!r} is the one answer to its question: give several to each, with one "
                "prompt or group."
            )
        if settings["sigma"] is None and settings["members"] < 2:
            raise BadInput("members is 1, which is the model without noise: give 2 at least, or a sigma.")
        inputs = ({"answers": read.sha256} if read.sha256 else {}) | objects_digests({"model": model})
        return cls(model=model, answers=read, loading=loading, inputs=inputs, resolved={"date": date}, **settings)

    def plan(self) -> ScorePlan:
        unsure, rows, left_out = self._opened()
        return ScorePlan(
            model=unsure.language_model.source,
            answers=len(rows),
            labelled=self.answers.labelled,
            tokens=sum(len(row.answer) for row in rows.values()),
            left_out=left_out,
            maps=len(unsure.projections),
            passes=self.members,
        )

    def work(self, folder: Path | None) -> TokenScores:
        unsure, rows, left_out = self._opened()
        stored = Rows(None if folder is None else folder / STORED)
        keep_to(stored, unsure.language_model)
        chosen = self._sigma(unsure, rows, stored)
        values = self._scored(unsure.at(chosen["sigma"]), rows, stored)
        notes = list(stored.damaged)
        few = _few(self.answers)
        if not few:
            spread = semantic_entropies(self.answers)
            values = {
                place: {**each, "scores": {**each["scores"], SEMANTIC: _rounded(-spread[place])}}
                for place, each in values.items()
            }
        elif len(few) < len(set(self.answers.questions)):
            notes.append(
                f"No semantic entropy: {len(few)} questions have one answer each, the first of them {few[0]!r}."
            )
        if folder is not None:
            write_atomic(folder / SCORES, "".join(self._line(place, values.get(place)) for place in range(self._count)))
        return self._result(unsure, chosen, values, left_out, tuple(notes))

    def scratch(self) -> tuple[str, ...]:
        return (STORED,)

    @property
    def _count(self) -> int:
        return len(self.answers.texts)

    def _opened(self) -> tuple[Perturbed, dict[int, Encoded], dict[str, str]]:
        """The model with its noise, the answers as tokens by their places, and why others cannot be scored."""
        language_model = self.model if isinstance(self.model, LanguageModel) else load(self.model, **self.loading)
        check_family(language_model)
        rows, left_out = {}, {}
        for place, (problem, text) in enumerate(zip(self.answers.problems, self.answers.texts, strict=True)):
            try:
                rows[place] = encoded(language_model, problem.asked, text, end=self.end, name=repr(problem.id))
            except BadInput as error:
                left_out[problem.id] = str(error)
        if not rows:
            raise BadInput(f"no answer can be scored; the first: {next(iter(left_out.values()))}")
        sigma = 0.1 if self.sigma is None else self.sigma
        return perturb(language_model, rank=self.rank, sigma=sigma, targets=self.targets), rows, left_out

    def _sigma(self, unsure: Perturbed, rows: Mapping[int, Encoded], stored: Rows) -> dict[str, Any]:
        if self.sigma is not None:
            return {"sigma": self.sigma, "chosen": False, "reached": True}
        known = next((row for row in stored if "sigma" in row), None)
        if known is None:
            some = list(rows.values())[:CHOOSERS]
            found = choose_sigma(unsure, some, members=self.members, seed=self.seed, batch_size=self.batch_size)
            known = {"sigma": found.sigma, "chosen": True, "reached": found.reached}
            stored.add(known)
        return known

    def _scored(self, unsure: Perturbed, rows: Mapping[int, Encoded], stored: Rows) -> dict[int, dict[str, Any]]:
        """By the place of an answer its scores and its tokens, as they are stored."""
        known = {row["first"]: row["values"] for row in stored if "first" in row}
        values: dict[int, dict[str, Any]] = {}
        with progress("Scoring", total=len(rows), unit="answers") as bar:
            for first in range(0, self._count, AT_ONCE):
                places = [place for place in range(first, min(first + AT_ONCE, self._count)) if place in rows]
                if places and first not in known:
                    known[first] = self._of(unsure, places, [rows[place] for place in places])
                    stored.add({"first": first, "values": known[first]})
                values |= zip(places, known.get(first, ()), strict=True)
                bar.advance(len(places))
        return values

    def _of(self, unsure: Perturbed, places: Sequence[int], rows: Sequence[Encoded]) -> list[dict[str, Any]]:
        found = score_tokens(unsure, rows, members=self.members, seed=self.seed, batch_size=self.batch_size)
        scores = {name: each.tolist() for name, each in confidences(found).items()}
        if self.ask:
            language_model = unsure.language_model
            scores[P_TRUE] = p_true(
                language_model,
                [question(self.answers.problems[place]) for place in places],
                [self.answers.texts[place] for place in places],
                batch_size=self.batch_size,
                max_length=language_model.context,
            ).tolist()
        for row, place in enumerate(places):
            odd = next((name for name, each in scores.items() if not math.isfinite(each[row])), None)
            if odd is not None:
                raise BadInput(
                    f"the model's {odd} of answer {self.answers.problems[place].id!r} is {scores[odd][row]}: its weights or "
                    "what comes of them are not finite. Try dtype float32."
                )
        return [
            {
                "scores": {name: _rounded(each[row]) for name, each in scores.items()},
                "agreement": _rounded(float(found.agreement[row][found.mask[row]].mean())),
                "tokens": _tokens(found, row),
            }
            for row in range(len(rows))
        ]

    def _line(self, place: int, values: Mapping[str, Any] | None) -> str:
        """A row of scores.jsonl; an answer that was not scored has no scores and no tokens."""
        problem, right = self.answers.problems[place], self.answers.right[place]
        turns = [{"role": turn.role, "content": turn.content} for turn in problem.messages]
        row = {
            "id": problem.id,
            "prompt": turns or problem.prompt,
            "answer": self.answers.texts[place],
            "group": problem.group,
            "correct": None if math.isnan(right) else bool(right),
            **(values or {"scores": {}, "agreement": None, "tokens": []}),
        }
        return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"

    def _result(
        self,
        unsure: Perturbed,
        chosen: Mapping[str, Any],
        values: Mapping[int, Mapping[str, Any]],
        left_out: Mapping[str, str],
        notes: tuple[str, ...],
    ) -> TokenScores:
        tokens = [token for each in values.values() for token in each["tokens"]]
        total = sum(token["tu"] for token in tokens)
        weights = [len(each["tokens"]) for each in values.values()]
        agreement = [1.0 if each["agreement"] is None else each["agreement"] for each in values.values()]
        right = np.array([self.answers.right[place] for place in values])
        there = ~np.isnan(right)
        right, questions = right[there], np.array(self.answers.questions)[list(values)][there]
        scores = {
            name: np.array([each["scores"][name] for each in values.values()])[there]
            for name in next(iter(values.values()))["scores"]
        }
        detected, curve = {}, {}
        both = 0 < right.sum() < len(right)
        if both:
            detected = {
                name: detection(each, right, -scores[LENGTH], questions, self.seed) for name, each in scores.items()
            }
            curve = {name: _curve(scores[name], right) for name in dict.fromkeys((self.by, LENGTH))}
        acceptance = None
        if self.risk is not None and len(right):
            acceptance = accept(scores[self.by], right, risk=self.risk, certainty=self.certainty)
        asked_of = len(set(questions.tolist()))
        few = (
            ""
            if not both or asked_of >= ENOUGH
            else (f"{len(right)} labelled answers to {asked_of} questions are too few for intervals.")
        )
        return TokenScores(
            model=str(unsure.language_model.name),
            source=unsure.language_model.source,
            answers=len(values),
            tokens=len(tokens),
            labelled=len(right),
            left_out=left_out,
            by=self.by,
            members=self.members,
            sigma=chosen["sigma"],
            chosen=chosen["chosen"],
            reached=chosen["reached"],
            share=sum(token["eu"] for token in tokens) / total if total > 0 else 0.0,
            agreement=float(np.average(agreement, weights=weights)),
            end=self.end,
            right=share_right(right, questions) if len(right) else Bounded(math.nan, math.nan, math.nan),
            detection=detected,
            acceptance=acceptance,
            curve=curve,
            questions=asked_of,
            notes=(*notes, *([few] if few else [])),
        )


def semantic_entropies(answers: Answers) -> list[float]:
    """The semantic entropy of the question of each answer, in nats: of what its answers come to, as `select` reads them.

    Of their shares, so that it does not matter who wrote them. No model judges what means the same.
    """
    names = answers.questions
    said: dict[str, list[str]] = {}
    for name, text in zip(names, meanings(answers.texts, canonical), strict=True):
        said.setdefault(name, []).append(text)
    found = {}
    for name, texts in said.items():
        groups = {text: group for group, text in enumerate(dict.fromkeys(texts))}
        found[name] = float(semantic_entropy([groups[text] for text in texts]))
    return [found[name] for name in names]


def _few(answers: Answers) -> list[str]:
    """The ids of answers that are the only ones to their questions."""
    names = answers.questions
    count = Counter(names)
    return [problem.id for problem, name in zip(answers.problems, names, strict=True) if count[name] < SEVERAL]


def _tokens(found: TokenUncertainty, row: int) -> list[dict[str, Any]]:
    columns = {"tu": found.tu, "au": found.au, "eu": found.eu, "log_prob": found.log_probs}
    lists = {name: each[row].tolist() for name, each in columns.items()}
    return [
        {"begin": begin, "end": end} | {name: _rounded(each[place]) for name, each in lists.items()}
        for place, (begin, end) in enumerate(found.offsets[row])
    ]


def _rounded(value: float) -> float | None:
    """To what does not depend on the batch that a number was computed in; None for nan."""
    return None if math.isnan(value) else round(value, 5)


def _curve(confidence: Any, right: Any) -> tuple[tuple[float, float], ...]:
    coverage, risk = risk_coverage(confidence, 1 - right)
    places = np.unique(np.linspace(0, len(coverage) - 1, min(DRAWN, len(coverage))).round().astype(int))
    return tuple((float(coverage[place]), float(risk[place])) for place in places)
