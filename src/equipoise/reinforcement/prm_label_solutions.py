"""What `prm label` reads: problems with gold answers, and solutions of theirs where there are any; and steps of a text.

A row is a problem as `data.problems` reads it. A solution is its field `steps`, a list of texts, or `solution`, a text that
is cut into steps; with neither the model writes one. Another name is given as fields={"solution": "response"}.

A text is cut at its empty lines where it has any, else at its line ends; or at a separator. What has no letter and no digit
("\\[", "---") is no step of its own. A list is put together with the separator, or with an empty line, between its steps.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.files import sha256_file
from equipoise.data.problems import FIELDS, GOLDS, Problem, problem_from
from equipoise.data.records import Cells, Renamed, kind_of, read_rows
from equipoise.reinforcement.prm import PLACEHOLDER

OWN_FIELDS = ("steps", "solution")
PARAGRAPHS = "\n\n"
_EMPTY_LINE = re.compile(r"\n\s*\n")


@dataclass(frozen=True, slots=True)
class SteppedText:
    """A solution as it was written, with the places [start, stop) of its steps in it, without the white space around."""

    text: str
    spans: tuple[tuple[int, int], ...]
    separator: str

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(self.text[start:stop] for start, stop in self.spans)

    def beginning(self, count: int) -> str:
        """The text through its first `count` steps, with what parts them from the next: up to the first line end.

        No further, since tokenizers of GPT-2's kind read two line ends at the end of a text as one token, and as two in
        front of a word: after that token SmolLM2 writes digits. And no less, since for others the end of a sentence and a
        line end are one token, and a sentence without it is one that goes on.
        """
        stop = self.spans[count - 1][1]
        between = self.text[stop : self.spans[count][0]] if count < len(self.spans) else self.separator
        head, line_end, _ = between.partition("\n")
        return (self.text[:stop] + head + line_end).rstrip(" ")


def cut(text: str, separator: str | None = None) -> SteppedText:
    """A text with its steps; none where it is blank."""
    text = text.strip()
    separator = separator or (PARAGRAPHS if _EMPTY_LINE.search(text) else "\n")
    pattern = _EMPTY_LINE if separator == PARAGRAPHS else re.compile(re.escape(separator))
    ends = [(match.start(), match.end()) for match in pattern.finditer(text)]
    spans: list[tuple[int, int]] = []
    start, worded = 0, True
    for stop, following in [*ends, (len(text), len(text))]:
        piece = text[start:stop]
        if piece.strip():
            first, last = start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
            has_word = re.search(r"\w", piece) is not None
            if spans and not (has_word and worded):
                spans[-1] = spans[-1][0], last
                worded = worded or has_word
            else:
                spans.append((first, last))
                worded = has_word
        start = following
    return SteppedText(text, tuple(spans), separator)


def joined(steps: Iterable[str], separator: str | None = None) -> SteppedText:
    """Given steps as one text."""
    separator, text, spans = separator or PARAGRAPHS, "", list[tuple[int, int]]()
    for step in map(str.strip, steps):
        text += separator if spans else ""
        spans.append((len(text), len(text) + len(step)))
        text += step
    return SteppedText(text, tuple(spans), separator)


@dataclass(frozen=True, slots=True)
class LabelProblem:
    """A problem, where it stands, and its solution; None where the model is to write one."""

    problem: Problem
    place: str
    given: SteppedText | None


def stated(problem: Problem) -> str:
    """What is asked as one text, which a process reward model reads: of a conversation all turns with their roles."""
    if len(problem.messages) < 2:
        return problem.prompt
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in problem.messages)


def read(
    source: str | Path | Iterable[Any], *, limit: int | None, fields: Mapping[str, str] | None, separator: str | None
) -> tuple[list[LabelProblem], str, str]:
    """The first `limit` problems of a file, or of rows or `Problem`s; how the source is called; its digest.

    Raises BadInput with place and remedy for what cannot be read: no prompt, no gold answer or none but the solution itself,
    a solution without steps, an empty step, ids that are used twice, and what would be labelled twice;
    and for a name in `fields` that no row has.
    """
    fields = dict(fields or {})
    for name in fields:
        if name not in (*FIELDS, *OWN_FIELDS):
            raise BadInput(f"there is no field {name!r} to rename. {did_you_mean(name, (*FIELDS, *OWN_FIELDS))}")
    found: list[LabelProblem] = []
    ids: dict[str, str] = {}
    texts: dict[Any, str] = {}
    renamed = Renamed(fields)
    for each in islice(_iterate(source, fields, separator, renamed), limit):
        problem, place = each.problem, each.place
        if problem.id in ids:
            raise BadInput(f"{place}: id {problem.id!r} was used before at {ids[problem.id]}; make ids unique.")
        what = problem.asked, each.given and each.given.steps
        if what in texts:
            again = "this solution of this problem" if each.given else "this problem, without a solution,"
            raise BadInput(f"{place}: {again} stands at {texts[what]} too; leave one of them out.")
        ids[problem.id] = texts[what] = place
        found.append(each)
    renamed.check()
    named = isinstance(source, str | Path)
    if not found:
        raise BadInput(f"{source if named else 'what was given'} is empty: expected a problem with a gold answer.")
    if named:
        return found, str(source), sha256_file(Path(source))
    told = [(p.problem.id, stated(p.problem), p.problem.gold, p.given and p.given.steps) for p in found]
    return found, f"{len(found)} problems", hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _iterate(
    source: str | Path | Iterable[Any], fields: Mapping[str, str], separator: str | None, renamed: Renamed
) -> Iterator[LabelProblem]:
    if isinstance(source, str | Path):
        stem, rows = Path(source).name.split(".")[0], read_rows(Path(source))
    else:
        stem, rows = "problem", ((f"row {number}", number, row) for number, row in enumerate(source, start=1))
    for place, number, row in rows:
        if isinstance(row, Problem):
            if not row.gold:
                raise BadInput(f"{place}: problem {row.id!r} has no gold answer, which steps are labelled by.")
            yield LabelProblem(row, place, None)
            continue
        if not isinstance(row, Mapping):
            raise BadInput(f"{place}: expected a problem or a row of fields, found {kind_of(row)}.")
        renamed.see(place, row, lowered=True)
        ours = {name: field for name, field in fields.items() if name in FIELDS}
        problem = problem_from(row, place=place, default_id=f"{stem}-{number}", fields=ours)
        found = LabelProblem(problem, place, _given(row, place, fields, separator))
        for what, text in (("problem", stated(problem)), ("solution", found.given.text if found.given else "")):
            if PLACEHOLDER in text:
                raise BadInput(
                    f"{place}: the {what} holds {PLACEHOLDER}, which marks the end of a step in training: leave it out."
                )
        yield found


def _given(row: Mapping[str, Any], place: str, fields: Mapping[str, str], separator: str | None) -> SteppedText | None:
    lowered = {name.lower(): value for name, value in row.items()} | dict(row)
    cells = Cells(lowered, place, fields)
    listed = lowered.get(cells.name("steps"))
    if isinstance(listed, list) or cells.has("steps"):
        if listed == []:
            cells.refuse(
                "steps", "a step or more", "a list of none; leave the field out and the model writes a solution"
            )
        for number, step in enumerate(listed if isinstance(listed, list) else (), start=1):
            if isinstance(step, str) and not step.strip():
                raise BadInput(f"{place}: step {number} (from 1) is empty; leave it out.")
        given = joined(cells.texts("steps"), separator)
    elif cells.has("solution") and fields.get("gold") != cells.name("solution"):
        if "gold" not in fields and not any(cells.has(name) for name in GOLDS if name != "solution"):
            raise BadInput(
                f"{place}: no gold answer beside the solution, whose steps are to be labelled by one. Name its field with "
                "--fields gold=NAME; gold=solution lets the model write solutions of its own."
            )
        given = cut(cells.text("solution"), separator)
        if not given.spans:
            cells.refuse("solution", "a step or more", f"nothing but {separator!r}")
    else:
        return None
    return given
