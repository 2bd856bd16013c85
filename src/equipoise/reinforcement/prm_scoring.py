"""The work of `prm score`, and what the jobs of process reward models share: solutions read, a model opened, steps scored.

Killed at any moment, the same call goes on: scored.jsonl has a row for each few solutions that were read.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from equipoise.core import progress
from equipoise.core.errors import BadInput
from equipoise.core.files import seal, sha256_file, write_atomic
from equipoise.core.folder import MANIFEST, damage, read_manifest
from equipoise.core.job import Request
from equipoise.core.rows import Rows
from equipoise.data.steps import WRONG_BELOW, StepwiseSolution, read_steps, ready_steps, step_files
from equipoise.language.features import objects_digests
from equipoise.language.model import LanguageModel, load
from equipoise.reinforcement import nait, prm
from equipoise.reinforcement.prm_scoring_result import ScoredStep, StepScores, StepScoresPlan

if TYPE_CHECKING:
    from equipoise.reinforcement.prm_scoring_job import ScoreFormat

TRAINED_BY = "prm train"
SCORED, SCORES, STEPWISE = "scored.jsonl", "scores.jsonl", "stepwise.jsonl"
AT_ONCE = 64  # solutions that are scored together, and stored as one row
LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)  # of which the share of steps above is told
PLACES = 12  # steps of a solution whose mean score is told
SHOWN = 8  # steps with the lowest scores
Scores = list[float]  # of the steps of a solution, nan where one was not read


@dataclass(frozen=True, eq=False)
class Scoring(Request):
    """A request to score steps, read and found right."""

    model: str | Path | LanguageModel
    solutions: tuple[StepwiseSolution, ...]
    format: "ScoreFormat"
    threshold: float | None
    batch_size: int
    loading: Mapping[str, Any]
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        model: Any,
        solutions: Any,
        *,
        format: "ScoreFormat",
        threshold: float | None,
        limit: int | None,
        batch_size: int,
        loading: Mapping[str, Any],
    ) -> "Scoring":
        """Raises BadInput for a wrong request; loads no model."""
        check_model(model)
        read, named, inputs = read_solutions("solutions", solutions, use="ignored", limit=limit)
        if format == "trl" and threshold is None:
            threshold = WRONG_BELOW
        return cls(
            model=model,
            solutions=read,
            format=format,
            threshold=threshold,
            batch_size=batch_size,
            loading=loading,
            names={"model": name_of(model), "solutions": named},
            inputs={**inputs, **check_written(model)},
            resolved={"threshold": threshold},
        )

    def plan(self) -> StepScoresPlan:
        language_model, examples = self._opened()
        tokenizer: Any = language_model.tokenizer
        return StepScoresPlan(
            model=language_model.source,
            solutions=len(examples),
            steps=sum(len(each.steps) for each in self.solutions),
            unread=sum(each.cut for each in examples),
            tokens=sum(len(each.input_ids) for each in examples),
            shown=tokenizer.decode(examples[0].input_ids),
        )

    def work(self, folder: Path | None) -> StepScores:
        language_model, _ = self._opened()
        rows = Rows(None if folder is None else folder / SCORED)
        scores = step_scores(language_model, self.solutions, rows, self.batch_size)
        if folder is not None:
            write_atomic(folder / SCORES, self._written(scores))
            if self.format == "trl":
                stepwise = (self._stepwise(each, r) for each, r in zip(self.solutions, scores, strict=True))
                write_atomic(folder / STEPWISE, b"".join(stepwise))
        every = [r for each in scores for r in each]
        read = [r for r in every if not math.isnan(r)]
        below = [nait.first_error(torch.tensor(each), self.threshold or 0.0) for each in scores]
        return StepScores(
            names=self.names,
            source=language_model.source,
            format=self.format,
            solutions=len(scores),
            steps=len(every),
            unread=len(every) - len(read),
            mean=_mean(read),
            spread=max(read) - min(read) if read else math.nan,
            shares={f"{level:g}": _mean([float(r >= level) for r in read]) for level in LEVELS},
            by_place=tuple(_mean([each[t] for each in scores if t < len(each)]) for t in range(PLACES)),
            threshold=self.threshold,
            flagged=None if self.threshold is None else sum(each is not None and each >= 0 for each in below),
            lowest=tuple(self._lowest(scores)),
            notes=tuple(rows.damaged),
            scores={each.id: r for each, r in zip(self.solutions, scores, strict=True)},
        )

    def scratch(self) -> tuple[str, ...]:
        return (SCORED,)

    def _opened(self) -> tuple[LanguageModel, list[prm.StepExample]]:
        language_model = open_prm(self.model, self.loading)
        return language_model, encoded(language_model, self.solutions)

    def _written(self, scores: Sequence[Scores]) -> bytes:
        rows = [
            {"id": each.id, "scores": known(r)}
            | ({} if self.threshold is None else {"first_error": nait.first_error(torch.tensor(r), self.threshold)})
            for each, r in zip(self.solutions, scores, strict=True)
        ]
        return b"".join(map(seal, rows))

    def _stepwise(self, solution: StepwiseSolution, scores: Scores) -> bytes:
        """TRL's trainer takes no steps without a label: those that the model had no room for are left out.

        It makes an int of each label, so that a probability of 0.98 would be learnt as wrong: labels are true or false.
        """
        assert self.threshold is not None
        read = [r for r in scores if not math.isnan(r)]
        labels = [r >= self.threshold for r in read]
        row = {"prompt": solution.problem, "completions": solution.steps[: len(read)], "labels": labels}
        return json.dumps(row, ensure_ascii=False).encode() + b"\n" if read else b""

    def _lowest(self, scores: Sequence[Scores]) -> list[ScoredStep]:
        steps = [(r, place, t) for place, each in enumerate(scores) for t, r in enumerate(each) if not math.isnan(r)]
        return [
            ScoredStep(self.solutions[place].id, self.solutions[place].problem, t, self.solutions[place].steps[t], r)
            for r, place, t in sorted(steps)[:SHOWN]
        ]


def read_solutions(name: str, source: Any, **how: Any) -> tuple[tuple[StepwiseSolution, ...], str, dict[str, str]]:
    """Solutions of a file, a folder or in memory, what to call them, and the digest of what was read.

    how: as of `read_steps`. Raises BadInput also for a text that holds the placeholder, naming its place.
    """
    inputs: dict[str, str] = {}
    if isinstance(source, str | Path):
        solutions, named = read_steps(source, **how), str(source)
        inputs[name] = _digest(Path(source))
    else:
        given = list(source)
        ready = [each for each in given if isinstance(each, StepwiseSolution)]
        if ready and len(ready) < len(given):
            raise BadInput(f"{name} mixes solutions and rows: give one or the other.")
        solutions = ready_steps(ready, **how) if ready else read_steps(given, **how)
        named = f"{len(solutions)} solutions"
    for each in solutions:
        if any(prm.PLACEHOLDER in text for text in (each.problem, *each.steps)):
            raise BadInput(
                f"{each.place}: the text holds {prm.PLACEHOLDER}, which marks the end of a step: leave it out."
            )
    return tuple(solutions), named, inputs


def check_model(model: Any) -> None:
    """Raises BadInput for what is neither a name nor a model, and for a server, whose logits cannot be read from here."""
    if isinstance(model, str) and "://" in model:
        raise BadInput(f"{model} is a server, whose logits cannot be read from here: give the folder of its model.")
    if not isinstance(model, str | Path | LanguageModel):
        raise BadInput(
            f"Found a {type(model).__name__} as model: give a name, a folder, or language.wrap(model, tokenizer)."
        )


def check_written(model: str | Path | LanguageModel) -> dict[str, str]:
    """The digest of a folder that prm train wrote, or of an object. Raises BadInput where the folder was altered since."""
    folder = Path(name_of(model))
    if isinstance(model, LanguageModel) or not (folder / MANIFEST).is_file():
        return objects_digests({"model": model})
    written = read_manifest(folder)
    if written["command"] != TRAINED_BY:
        return {}
    files = {name: row["sha256"] for name, row in written["files"].items() if not row["drawn"]}
    if damaged := [name for name in damage(folder) if name in files]:
        raise BadInput(f"{folder} is damaged ({', '.join(damaged)}): the command that made it makes that part again.")
    return {"model": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()}


def name_of(model: str | Path | LanguageModel) -> str:
    """What reports call it."""
    return model.name if isinstance(model, LanguageModel) else str(model)


def open_prm(model: str | Path | LanguageModel, loading: Mapping[str, Any]) -> LanguageModel:
    """A process reward model. Raises BadInput for a model without the tokens."""
    language_model = model if isinstance(model, LanguageModel) else load(model, **loading)
    prm.step_tokens(language_model)
    return language_model


def encoded(
    language_model: LanguageModel,
    solutions: Sequence[StepwiseSolution],
    labels: Sequence[Sequence[float | None]] | None = None,
    **how: Any,
) -> list[prm.StepExample]:
    """As `prm.encode`; what does not fit is in the examples, and is told by the jobs in their own words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return prm.encode(language_model, [(each.problem, each.steps) for each in solutions], labels, **how)


def step_scores(
    language_model: LanguageModel,
    solutions: Sequence[StepwiseSolution],
    rows: Rows,
    batch_size: int,
    title: str = "Scoring",
) -> list[Scores]:
    """r of every step, nan for steps beyond the model's context. Those that are in `rows` already are not read again.

    A solution is read with the same others whenever, so that a resumed job writes the same bytes.
    """
    done = {row["first"]: row for row in rows}
    with progress.progress(title, total=len(solutions), unit="solutions") as bar:
        for first in range(0, len(solutions), AT_ONCE):
            some = solutions[first : first + AT_ONCE]
            ids = [each.id for each in some]
            if first not in done or done[first]["ids"] != ids:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    read = [(each.problem, each.steps) for each in some]
                    found = prm.score(language_model, read, batch_size=batch_size)
                done[first] = {"first": first, "ids": ids, "scores": [known(each.tolist()) for each in found]}
                rows.add(done[first])
            bar.advance(len(some))
    scores = [each for first in range(0, len(solutions), AT_ONCE) for each in done[first]["scores"]]
    return [[math.nan if r is None else r for r in each] for each in scores]


def known(scores: Scores) -> list[float | None]:
    """With None for nan, as JSON has it."""
    return [None if math.isnan(r) else r for r in scores]


def _digest(source: Path) -> str:
    """sha256 of a file, or of the names and contents of a folder's files."""
    if not source.is_dir():
        return sha256_file(source)
    listed = {path.name: sha256_file(path) for path in step_files(source)}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan
