"""The work of `prm evaluate`: steps are scored and compared with their labels, beside controls that read none of them.

Killed at any moment, the same call goes on: scored.jsonl has a row for each few solutions that were read.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.errors import BadInput
from equipoise.core.files import seal, write_atomic
from equipoise.core.job import Request
from equipoise.core.rows import Rows
from equipoise.data.steps import StepwiseSolution
from equipoise.language.model import LanguageModel, load
from equipoise.reinforcement import prm
from equipoise.reinforcement import prm_evaluation_measures as measures
from equipoise.reinforcement.prm_evaluation_result import (
    Discrimination,
    ErrorClass,
    FirstErrors,
    PrmEvaluation,
    PrmEvaluationPlan,
)
from equipoise.reinforcement.prm_scoring import (
    SCORED,
    SCORES,
    check_model,
    check_written,
    encoded,
    known,
    name_of,
    read_solutions,
    step_scores,
)

SHOWN = 8  # steps that were misjudged most


@dataclass(frozen=True, eq=False)
class Evaluating(Request):
    """A request to weigh a model, read and found right."""

    model: str | Path | LanguageModel
    solutions: tuple[StepwiseSolution, ...]
    threshold: float
    batch_size: int
    loading: Mapping[str, Any]
    seed: int
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        model: Any,
        data: Any,
        *,
        threshold: float,
        limit: int | None,
        batch_size: int,
        loading: Mapping[str, Any],
        seed: int,
    ) -> "Evaluating":
        """Raises BadInput for a wrong request; loads no model."""
        check_model(model)
        solutions, named, inputs = read_solutions("data", data, use="optional")
        if limit is not None:
            solutions = drawn(solutions, limit, seed)
        if not any(each.labels or each.correct is not None for each in solutions):
            raise BadInput(f"{named} has no labels to compare scores with: `prm score` says what a model makes of it.")
        return cls(
            model=model,
            solutions=solutions,
            threshold=threshold,
            batch_size=batch_size,
            loading=loading,
            seed=seed,
            names={"model": name_of(model), "data": named},
            inputs={**inputs, **check_written(model)},
            resolved={},
        )

    def plan(self) -> PrmEvaluationPlan:
        language_model, trained, examples = self._opened()
        tokenizer: Any = language_model.tokenizer
        return PrmEvaluationPlan(
            model=language_model.source,
            trained=trained,
            solutions=self._counts(),
            steps=sum(len(each.steps) for each in self.solutions),
            unread=sum(each.cut for each in examples),
            tokens=sum(len(each.input_ids) for each in examples),
            shown=tokenizer.decode(examples[0].input_ids),
        )

    def work(self, folder: Path | None) -> PrmEvaluation:
        language_model, trained, examples = self._opened()
        rows = Rows(None if folder is None else folder / SCORED)
        if prm.undecided(language_model):  # hours would not change it
            scores = [[0.5] * len(each.places) + [math.nan] * each.cut for each in examples]
        else:
            scores = step_scores(language_model, self.solutions, rows, self.batch_size)
        if folder is not None:
            pairs = zip(self.solutions, scores, strict=True)
            lines = [seal({"id": s.id, "labels": s.labels, "scores": known(r)}) for s, r in pairs]
            write_atomic(folder / SCORES, b"".join(lines))
        every = np.concatenate([np.array(each) for each in scores])
        judged = measures.Judged(
            self.solutions,
            [np.array(each) for each in scores],
            measures.halves([each.group for each in self.solutions], self.seed),
            self.seed,
        )
        first_errors: list[FirstErrors] = []
        classes: list[ErrorClass] = []
        discrimination: list[Discrimination] = []
        for name, places in measures.by_format(self.solutions).items():
            of_data = judged.of(places)
            if name == "prmbench":
                classes += measures.error_classes(of_data, self.threshold)
            elif (whole := of_data.where(lambda each: each.first_error is not None)).solutions:
                first_errors += measures.first_errors(name, whole, self.threshold)
            if (labelled := of_data.where(lambda each: each.labels is not None)).solutions:
                discrimination += measures.discrimination(name, labelled)
        chosen, chosen_from = measures.best_of(judged)
        return PrmEvaluation(
            names=self.names,
            source=language_model.source,
            trained=trained,
            threshold=self.threshold,
            solutions=self._counts(),
            steps=every.size,
            unread=int(np.isnan(every).sum()),
            beyond=sum(each.beyond for each in self.solutions),
            spread=float(np.ptp(every[np.isfinite(every)])) if np.isfinite(every).any() else math.nan,
            first_errors=tuple(first_errors),
            classes=tuple(classes),
            discrimination=tuple(discrimination),
            best_of=tuple(chosen),
            chosen_from=chosen_from,
            misjudged=tuple(measures.misjudged(judged, SHOWN)) if trained else (),
            notes=tuple(rows.damaged),
            scores={each.id: r for each, r in zip(self.solutions, scores, strict=True)},
        )

    def scratch(self) -> tuple[str, ...]:
        return (SCORED,)

    def _opened(self) -> tuple[LanguageModel, bool, list[prm.StepExample]]:
        """The model, whether it came with the tokens of steps, and the solutions as it reads them."""
        given = isinstance(self.model, LanguageModel)
        language_model = self.model if isinstance(self.model, LanguageModel) else load(self.model, **self.loading)
        trained = prm.has_tokens(language_model)
        if not trained:
            if given:  # which stays as it is
                copied = copy.deepcopy((language_model.model, language_model.tokenizer))
                language_model = replace(language_model, model=copied[0], tokenizer=copied[1])
            prm.add_tokens(language_model)
        return language_model, trained, encoded(language_model, self.solutions)

    def _counts(self) -> dict[str, int]:
        return {name: len(places) for name, places in measures.by_format(self.solutions).items()}


def drawn(solutions: Sequence[StepwiseSolution], limit: int, seed: int) -> tuple[StepwiseSolution, ...]:
    """At most so many of each split, at random: published files begin with the wrong solutions, or with one class."""
    splits: dict[tuple[str, str], list[int]] = {}
    for place, each in enumerate(solutions):
        splits.setdefault((each.format, each.split), []).append(place)
    generator = np.random.default_rng(np.random.SeedSequence([seed, 3]))
    chosen = [place for places in splits.values() for place in generator.permutation(places)[:limit].tolist()]
    return tuple(solutions[place] for place in sorted(chosen))
