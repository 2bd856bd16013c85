"""The work of `solvable score`: read the scorer, read the prompts, say how likely each is to be solved, keep some."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.errors import BadInput
from equipoise.core.files import seal, write_atomic
from equipoise.core.job import RESULT, Request
from equipoise.core.serialize import deserialize
from equipoise.data.problems import Problem
from equipoise.data.records import read_rows
from equipoise.reinforcement.attempts import read_prompts
from equipoise.reinforcement.solvable_result import Predicted, ScoresPlan, Solvable, SolvableScores, Target
from equipoise.reinforcement.solvable_scorer import Scorer, check_scorer, open_device

SCORES, KEPT = "scores.jsonl", "kept.jsonl"
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of which the share of prompts above is told
SHOWN = 5  # of the surest prompts and of the least sure


@dataclass(frozen=True, eq=False)
class Scoring(Request):
    """A request to score, read and found right. source: where the prompts came from. fitted: what the scorer's fit found."""

    scorer: Path
    source: Any
    problems: tuple[Problem, ...]
    keep: tuple[float, float] | None
    kept_as: str | None
    batch_size: int
    device: str
    fitted: Solvable
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        scorer: Path,
        prompts: Any,
        *,
        keep: str | None,
        limit: int | None,
        fields: Mapping[str, str] | None,
        batch_size: int,
        device: str,
    ) -> "Scoring":
        """Raises BadInput for a wrong request; loads no model."""
        within = None if keep is None else _within(keep)
        open_device(device)
        digest = check_scorer(scorer)
        try:
            fitted = deserialize(Solvable, json.loads((scorer / RESULT).read_bytes()))
        except (OSError, ValueError) as error:
            raise BadInput(
                f"{scorer / RESULT} cannot be read ({error}): the command that made it makes it again."
            ) from error
        prompts = prompts if isinstance(prompts, str | Path) else list(prompts)
        problems, names, digests = read_prompts({"prompts": prompts}, limit, fields, False)
        return cls(
            scorer=scorer,
            source=prompts,
            problems=tuple(problems["prompts"]),
            keep=within,
            kept_as=keep,
            batch_size=batch_size,
            device=device,
            fitted=fitted,
            names={**names, "scorer": str(scorer)},
            inputs={**digests, "scorer": digest},
            resolved={},
        )

    def plan(self) -> ScoresPlan:
        scorer, rows = self._opened()
        tokenizer: Any = scorer.reader.tokenizer
        return ScoresPlan(
            scorer=str(self.scorer),
            model=scorer.model,
            prompts=len(rows),
            tokens=sum(map(len, rows)),
            shown=tokenizer.decode(rows[0]),
            doubts=self.fitted.warnings(),
        )

    def work(self, folder: Path | None) -> SolvableScores:
        scorer, rows = self._opened()
        p = scorer.of_tokens(rows, self.batch_size)
        keep = None if self.keep is None else np.flatnonzero((p >= self.keep[0]) & (p <= self.keep[1])).tolist()
        named = list(zip((problem.id for problem in self.problems), p.tolist(), strict=True))
        if folder is not None:
            lines = [seal({"id": identity, "probability": value}) for identity, value in named]
            write_atomic(folder / SCORES, b"".join(lines))
            if keep is not None:
                write_atomic(folder / KEPT, "".join(self._rows(keep)))
        order = np.argsort(-p, kind="stable").tolist()
        lowest, highest = scorer.spread
        return SolvableScores(
            names=self.names,
            model=scorer.model,
            prompts=len(p),
            expected=float(p.mean()),
            shares={f"{level:g}": float((p >= level).mean()) for level in LEVELS},
            outside=float(((p < lowest) | (p > highest)).mean()),
            targets=tuple(
                Target(each.target, each.threshold, float((p >= each.threshold).mean()))
                for each in self.fitted.thresholds
            ),
            kept=None if keep is None else len(keep),
            keep=self.kept_as,
            extremes=tuple(
                Predicted(self.problems[place].id, self.problems[place].prompt, float(p[place]))
                for place in dict.fromkeys([*order[:SHOWN], *order[-SHOWN:]])
            ),
            doubts=self.fitted.warnings(),
            scores=dict(named),
        )

    def _opened(self) -> tuple[Scorer, list[list[int]]]:
        scorer = Scorer.load(self.scorer, device=self.device)
        names = [repr(problem.id) for problem in self.problems]
        return scorer, scorer.encode([problem.asked for problem in self.problems], names)

    def _rows(self, keep: list[int]) -> list[str]:
        """The rows of these prompts as they were, each with its id, so that a job reads them as it would the whole file.

        An id stays the number that it was; nan and the infinities of Parquet, which JSON has no word for, are null.
        """
        if isinstance(self.source, str | Path):
            rows = [row for _, _, row in islice(read_rows(Path(self.source)), len(self.problems))]
        else:
            rows = [_as_row(each) for each in self.source]
        return [_line(rows[place], self.problems[place].id) for place in keep]


def _line(row: Mapping[str, Any], identifier: str) -> str:
    named = row if str(row.get("id")) == identifier else {**row, "id": identifier}
    return json.dumps(_finite(named), default=str, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_row(given: Problem | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Problem):
        return dict(given)
    turns = [{"role": turn.role, "content": turn.content} for turn in given.messages]
    row = {"prompt": turns or given.prompt, "gold": list(given.gold), "group": given.group}
    return {name: value for name, value in row.items() if value}


def _within(keep: str) -> tuple[float, float]:
    """Both ends of LOW:HIGH. Raises BadInput for another text."""
    low, colon, high = keep.partition(":")
    try:
        ends = float(low), float(high)
    except ValueError:
        ends = 1.0, 0.0
    if not colon or not 0 <= ends[0] <= ends[1] <= 1:
        raise BadInput(f"keep is {keep!r}, expected LOW:HIGH with 0 <= LOW <= HIGH <= 1, such as 0.2:0.8.")
    return ends
