"""Solutions cut into steps, with what is known of each step, read from files as they are published.

A row is understood by the fields it has (the first line that fits):

    modified_process + error_steps            PRMBench (arXiv:2501.03124): numbers of the wrong steps, from 1
    prompt + completions (+ labels)           TRL's stepwise format: a label for each step
    problem + steps + label                   ProcessBench (arXiv:2412.06559): index of the first wrong step, -1 for none
    problem + steps + corrected_hard, corrected_soft, hard, soft or labels     what `prm label` writes: `which` of them
    problem + steps                           without labels

A label is the probability that the step is right: true, false, a number in [0, 1], or null where that is not known. Of
ProcessBench nobody knows the steps behind the first wrong one. A `question` may stand for the problem; `id`, `group`,
`split`, and whether the final answer is right (`correct`) are taken when there.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from equipoise.core.errors import BadInput
from equipoise.core.options import check_fields, closed
from equipoise.data.records import EXTENSIONS, Cells, kind_of, read_rows
from equipoise.data.text import printable

StepFormat = Literal["prmbench", "stepwise", "processbench", "labels", "plain"]
LabelChoice = Literal["corrected-hard", "corrected-soft", "hard", "soft"]
LabelUse = Literal["needed", "optional", "ignored"]
Labels = tuple[float | None, ...]

LABEL_FIELDS = ("corrected_hard", "corrected_soft", "hard", "soft", "labels")
WRONG_BELOW = 0.5  # a label below says that the step is wrong
_FORMS = "problem + steps, prompt + completions, or modified_question + modified_process + error_steps"
_SPLIT = "give each solution as a list with one text a step"


@dataclass(frozen=True, slots=True)
class StepwiseSolution:
    """A problem and the steps of one solution.

    place: FILE:LINE, for errors. labels: the probability of each step that it is right, None where that is not known; None
    without labels. labelled_by: the field that they come from. first_error: index of the first wrong step, -1 for none, None
    where it is not known. correct: whether the final answer is right. split: the part of a data set (ProcessBench), or the
    class of errors (PRMBench). group: what the problem is, the cluster in intervals. beyond: how many wrong steps were named
    that the solution does not have.
    """

    id: str
    problem: str
    steps: tuple[str, ...]
    place: str
    group: str
    format: StepFormat = "plain"
    labels: Labels | None = None
    labelled_by: str = ""
    first_error: int | None = None
    correct: bool | None = None
    split: str = ""
    beyond: int = 0

    def __post_init__(self) -> None:
        check_fields(self)


@closed
def read_steps(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    which: LabelChoice | None = None,
    use: LabelUse = "needed",
    limit: int | None = None,
) -> list[StepwiseSolution]:
    """The solutions of a file, of all files of a folder, or of rows, with unique ids.

    which: of the labels that `prm label` writes; not given: the first that a row has, corrected before others, hard before
    soft. use: whether a row without labels is refused, and whether labels are read at all. limit: only the first so many of
    each split. Raises BadInput, one sentence with file, line and remedy, for whatever cannot be read.
    """
    read = (
        solution_from(row, place=place, default_id=default_id, split=split, which=which, use=use)
        for place, default_id, split, row in _rows(source)
    )
    solutions = _unique(read, limit)
    if not solutions:
        named = source if isinstance(source, str | Path) else "what was given"
        raise BadInput(f"{named} is empty: expected at least one solution, with {_FORMS}.")
    return solutions


@closed
def ready_steps(
    solutions: Iterable[StepwiseSolution],
    *,
    which: LabelChoice | None = None,
    use: LabelUse = "needed",
    limit: int | None = None,
) -> list[StepwiseSolution]:
    """Solutions that are in memory, held to what `read_steps` holds rows to: labels of `which`, a limit, unique ids.

    Raises BadInput in the same words. Labels cannot be chosen anew: a solution has those that it was made with.
    """
    return _unique((_as_asked(each, which, use) for each in solutions), limit)


def _as_asked(solution: StepwiseSolution, which: LabelChoice | None, use: LabelUse) -> StepwiseSolution:
    if use == "needed" and solution.labels is None:
        raise BadInput(f"{solution.place}: no labels. Give each step one.")
    chosen = solution.labelled_by if which is None or solution.labels is None else which.replace("-", "_")
    if use != "ignored" and solution.labelled_by != chosen:
        raise BadInput(
            f"{solution.place}: its labels are {solution.labelled_by!r}, and which is {which}: read it with the labels that "
            "are meant, or leave which out."
        )
    return solution


def _unique(found: Iterable[StepwiseSolution], limit: int | None) -> list[StepwiseSolution]:
    if limit is not None and limit < 1:
        raise BadInput(f"limit is {limit}, expected at least 1.")
    solutions: list[StepwiseSolution] = []
    places: dict[str, str] = {}
    counts: dict[tuple[str, str], int] = {}
    for solution in found:
        counts[part] = counts.get(part := (solution.format, solution.split), 0) + 1
        if limit is not None and counts[part] > limit:
            continue
        if solution.id in places:
            raise BadInput(
                f"{solution.place}: id {solution.id!r} was used before at {places[solution.id]}; make ids unique."
            )
        places[solution.id] = solution.place
        solutions.append(solution)
    return solutions


def step_files(source: str | Path) -> list[Path]:
    """The file itself, or the files of a folder that can be read, in order. Raises BadInput for a folder without any."""
    path = Path(source)
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.name.lower().endswith(EXTENSIONS) and file.is_file())
    if not files:
        raise BadInput(f"{path} holds no file with solutions, expected {', '.join(EXTENSIONS)}.")
    return files


@closed
def solution_from(
    row: Mapping[str, Any],
    *,
    place: str,
    default_id: str,
    split: str = "",
    which: LabelChoice | None = None,
    use: LabelUse = "needed",
) -> StepwiseSolution:
    """The solution that a row means. place: for errors. split: where the row names none. Raises BadInput as `read_steps`."""
    cells = Cells(dict(row), place, {})
    form = _format(cells)
    problem = cells.text(_first(cells, ("modified_question", "problem", "question", "prompt")))
    field = {"prmbench": "modified_process", "stepwise": "completions"}.get(form, "steps")
    steps = _steps(cells, field)
    labelled_by, labels, first_error, beyond = "", None, None, 0
    if use != "ignored":
        if which is not None and form in ("prmbench", "stepwise", "processbench"):
            raise BadInput(
                f"{place}: --which {which} chooses among the labels that `prm label` writes, and this row has other ones: "
                "leave it out."
            )
        if form == "prmbench":
            labelled_by, labels, first_error, beyond = "error_steps", *_by_error_steps(cells, len(steps))
        elif form == "processbench":
            labelled_by, labels, first_error = "label", *_by_first_error(cells, len(steps))
        elif labelled_by := _label_field(cells, which):
            labels = _labels(cells, labelled_by, len(steps))
            first_error = _first_error(labels)
        elif use == "needed":
            found = printable(", ".join(map(str, row)))
            raise BadInput(f"{place}: no labels (found: {found}). Give each step one, as a list `labels`.")
    return StepwiseSolution(
        id=_id(cells, form) or default_id,
        problem=problem,
        steps=steps,
        place=place,
        group=" ".join((_text(cells, "group") or _text(cells, "original_question") or problem).split()),
        format="labels" if form == "plain" and labels is not None else form,
        labels=labels,
        labelled_by=labelled_by,
        first_error=first_error,
        correct=_correct(cells),
        split=_text(cells, "classification" if form == "prmbench" else "split") or split,
        beyond=beyond,
    )


def _rows(source: str | Path | Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """(place, usual id, usual split, row) of every row; the split is the file's name where there are several files."""
    if not isinstance(source, str | Path):
        for number, row in enumerate(source, start=1):
            yield f"row {number}", f"solution-{number}", "", row
        return
    files = step_files(source)
    for path in files:
        stem = path.name.split(".")[0]
        for place, number, row in read_rows(path):
            yield place, f"{stem}-{number}", stem if len(files) > 1 else "", row


def _format(cells: Cells) -> StepFormat:
    """Raises BadInput for a row that has no steps, or none of these forms."""
    if cells.row.get("modified_process") is not None:
        return "prmbench"
    if cells.row.get("completions") is not None and cells.has("prompt"):
        return "stepwise"
    if cells.row.get("steps") is None or not (cells.has("problem") or cells.has("question") or cells.has("prompt")):
        found = printable(", ".join(map(str, cells.row))) or "no fields"
        raise BadInput(f"{cells.place}: no solution in steps (found: {found}), expected {_FORMS}.")
    return "processbench" if cells.row.get("label") is not None else "plain"


def _first(cells: Cells, names: Sequence[str]) -> str:
    return next((name for name in names if cells.has(name)), names[0])


def _text(cells: Cells, name: str) -> str:
    return cells.text(name) if cells.has(name) else ""


def _id(cells: Cells, form: StepFormat) -> str:
    """PRMBench's is one of its class only."""
    value = cells.row.get(_first(cells, ("id", "idx")))
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value in (None, ""):
        return ""
    value = cells.check_text("id", value)
    kind = _text(cells, "classification") if form == "prmbench" else ""
    return f"{kind}_{value}" if kind else value


def _list(cells: Cells, field: str, expected: str) -> list[Any]:
    """A list, which a CSV cell may hold as JSON."""
    value = cells.row.get(field)
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            cells.refuse(field, expected, repr(value[:40]))
    if not isinstance(value, list):
        cells.refuse(field, expected, kind_of(value))
    return value


def _steps(cells: Cells, field: str) -> tuple[str, ...]:
    value = cells.row[field]
    if isinstance(value, str) and not value.lstrip().startswith("["):
        cells.refuse(field, "a list of steps", f"one text; {_SPLIT}")
    steps = _list(cells, field, "a list of steps")
    if not steps:
        cells.refuse(field, "one step or more", "none; leave the solution out")
    for index, step in enumerate(steps):
        if isinstance(step, str) and not step.strip():
            cells.refuse(
                field, "steps that are not empty", f"step {index} (from 0) empty; leave it out, with its label"
            )
    return tuple(cells.check_text(field, step) for step in steps)


def _label_field(cells: Cells, which: LabelChoice | None) -> str:
    """The field that the labels are in, "" where there is none. Raises BadInput for a chosen one that is missing."""
    found = [name for name in LABEL_FIELDS if cells.row.get(name) is not None]
    if which is None:
        return next(iter(found), "")
    if (field := which.replace("-", "_")) not in found:
        raise BadInput(
            f"{cells.place}: no labels {field!r} (found: {', '.join(found) or 'none'}): choose another --which."
        )
    return field


def _labels(cells: Cells, field: str, steps: int) -> Labels:
    values = _list(cells, field, "a list with a label for each step")
    if len(values) != steps:
        cells.refuse(field, f"{steps} labels, one for each step (null where it is not known)", str(len(values)))
    return tuple(_label(cells, field, index, value) for index, value in enumerate(values))


def _label(cells: Cells, field: str, index: int, value: Any) -> float | None:
    """None, True and False as they are: a -100 that stands for "not known" elsewhere is no label here."""
    if value is None or isinstance(value, bool):
        return value if value is None else float(value)
    if isinstance(value, int | float) and 0 <= value <= 1:
        return float(value)
    return _refuse_label(cells, field, index, value)


def _refuse_label(cells: Cells, field: str, index: int, value: Any) -> NoReturn:
    raise BadInput(
        f"{cells.place}: field {field!r}: the label of step {index} (from 0) is {value!r:.40}; give true, false, a number "
        "in [0, 1], or null where it is not known."
    )


def _first_error(labels: Labels) -> int | None:
    """By the labels; None where a step before it has none."""
    for index, label in enumerate(labels):
        if label is None:
            return None
        if label < WRONG_BELOW:
            return index
    return -1


def _by_first_error(cells: Cells, steps: int) -> tuple[Labels, int]:
    value = _number(cells.row["label"])
    if value is None or not -1 <= value < steps:
        cells.refuse(
            "label", f"the index of the first wrong step, 0 to {steps - 1}, or -1", kind_of(cells.row["label"])
        )
    if value == -1:
        return (1.0,) * steps, -1
    return (1.0,) * value + (0.0,) + (None,) * (steps - value - 1), value


def _by_error_steps(cells: Cells, steps: int) -> tuple[Labels, int | None, int]:
    """Steps beyond the end are named in the published data; they count for nothing, as in the published evaluation."""
    numbers: set[int] = set()
    for each in [] if cells.row.get("error_steps") is None else _list(cells, "error_steps", "a list of numbers from 1"):
        number = _number(each)
        if number is None or number < 1:
            cells.refuse("error_steps", "numbers of steps from 1", kind_of(each))
        numbers.add(number - 1)
    wrong = {index for index in numbers if index < steps}
    first = min(wrong) if wrong else None if numbers else -1
    return tuple(float(index not in wrong) for index in range(steps)), first, len(numbers - wrong)


def _number(value: Any) -> int | None:
    """A whole number, also in the digits of a CSV cell; None for anything else."""
    if isinstance(value, str) and value.strip().removeprefix("-").isdecimal() and value.isascii():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _correct(cells: Cells) -> bool | None:
    field = _first(cells, ("correct", "final_answer_correct"))
    value = cells.row.get(field)
    known: dict[Any, bool] = {"true": True, "false": False, True: True, False: False}
    value = value.lower() if isinstance(value, str) else value
    if value in (None, ""):
        return None
    if not isinstance(value, bool | str) or value not in known:
        cells.refuse(field, "true or false", kind_of(value))
    return known[value]
