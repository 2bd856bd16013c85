"""Answers that are there already, read from a file: rows with prompt and answer, and, where known, whether it is right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.files import sha256_file
from equipoise.core.options import closed
from equipoise.data.problems import Problem, read_problems
from equipoise.data.records import kind_of
from equipoise.data.text import lone_surrogate
from equipoise.data.verify import open_verifier

VerifierKind = Literal["exact", "number", "choice", "math"]
FIELDS = ("id", "group", "prompt", "answer", "correct", "gold")
_WORDS = {"1": True, "0": False, "true": True, "false": False}


@dataclass(frozen=True)
class Answers:
    """N answers with their prompts. right: 1, 0, or nan where it is not known. sha256: of the file, None for rows."""

    problems: tuple[Problem, ...]
    texts: tuple[str, ...]
    right: tuple[float, ...]
    sha256: str | None

    @property
    def labelled(self) -> int:
        """How many are known to be right or wrong."""
        return sum(not math.isnan(each) for each in self.right)

    @property
    def questions(self) -> list[str]:
        """What each answers: its group, else its prompt. Answers to one question are one unit in intervals."""
        return [problem.group or repr(problem.asked) for problem in self.problems]


def question(problem: Problem) -> str:
    """What is answered, as one text: of a conversation all turns, each with who said it."""
    turns = problem.messages
    if len(turns) < 2:
        return problem.prompt
    return "\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in turns)


@closed
def read_answers(
    source: str | Path | Sequence[Mapping[str, Any]],
    *,
    limit: int | None = None,
    fields: Mapping[str, str] | None = None,
    verifier: VerifierKind | None = None,
) -> Answers:
    """The answers of a file (JSON lines, CSV, Parquet) or of rows.

    A row's prompt is read as `data.problems` reads it, its answer from `answer`, its label from `correct` (true, false, 1, 0
    or nothing), or by the verifier from `gold`. fields: our name -> the file's. Raises BadInput with place and remedy.
    """
    names = {name: name for name in FIELDS} | dict(fields or {})
    for name in names:
        if name not in FIELDS:
            raise BadInput(f"there is no field {name!r} to rename. {did_you_mean(name, FIELDS)}")
    renamed = {name: own for name, own in (fields or {}).items() if name not in ("answer", "correct")}
    problems = read_problems(source, limit=limit, fields={"gold": "gold"} | renamed, gold_needed=False)
    texts = tuple(_text(problem, names["answer"]) for problem in problems)
    right = [_label(problem, names["correct"]) for problem in problems]
    if names["correct"] != "correct" and not any(names["correct"] in problem.columns for problem in problems):
        raise BadInput(f"no row has the field {names['correct']!r} that was named for correct.")
    unknown = [place for place, each in enumerate(right) if math.isnan(each) and problems[place].gold]
    if unknown and verifier is None:
        raise BadInput(
            f"row {problems[unknown[0]].id!r} has a gold answer and no field {names['correct']!r}: say how answers are "
            "compared, for example --verifier number."
        )
    if unknown:
        with open_verifier(verifier) as judge:
            chosen = [problems[place] for place in unknown]
            judge.check(chosen)
            for place, score in zip(unknown, judge(chosen, [texts[place] for place in unknown]), strict=True):
                right[place] = math.nan if score.crashed else float(score.value >= 0.5)
    elif verifier is not None:
        raise BadInput(
            f"verifier is {verifier!r}, but no row has a gold answer that needs it: name its field, gold=NAME."
        )
    digest = sha256_file(Path(source)) if isinstance(source, str | Path) else None
    return Answers(tuple(problems), texts, tuple(right), digest)


def _text(problem: Problem, name: str) -> str:
    value = problem.columns.get(name)
    if not isinstance(value, str):
        found = "nothing" if value is None else kind_of(value)
        raise BadInput(
            f"row {problem.id!r}: the answer is {found}, expected a text. Name yours with --fields answer=NAME."
        )
    if (at := lone_surrogate(value)) is not None:
        raise BadInput(f"row {problem.id!r}: the answer has half of a surrogate pair at character {at}: take it out.")
    return value


def _label(problem: Problem, name: str) -> float:
    value = problem.columns.get(name)
    if value is None or value == "":
        return math.nan
    known = _WORDS.get(value.strip().lower()) if isinstance(value, str) else value
    if known not in (0, 1):
        raise BadInput(f"row {problem.id!r}: field {name!r} is {kind_of(value)}, expected true, false, 1 or 0.")
    return float(known)
