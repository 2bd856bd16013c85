"""Problems: prompts with the answers that count as right, read from a user's file or a public data set as it is published.

The prompt is the first that a row has, names in any case:

    body + question                     a text and what is asked of it, as SVAMP is published
    passage or context + question       the same with an empty line between (DROP, SQuAD)
    question + choices (or options)     the choices are lettered below the question; the gold answer is a letter
    prompt, problem, question, messages, text, input      a text, or a list of {"role", "content"} to be answered

and so is the gold answer, of which several count as aliases:

    test_list, or test + entry_point    Python tests (MBPP, HumanEval): what `verify("tests", ...)` takes
    gold, answer, answers, ground_truth, reward_model.ground_truth, target, solution, answerKey

Of a worked answer as in GSM8K what follows the last #### is taken, of a `solution` as in MATH what stands in its last
\\boxed{}; `answer_aliases` (MuSiQue) come after the answer. Other names are given by the caller: fields={"gold": "reply"}.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.data.final_answer import last_boxed
from equipoise.data.records import Cells, Message, Renamed, kind_of, read_rows
from equipoise.data.text import printable

FIELDS = ("id", "group", "prompt", "gold")
PROMPTS = ("prompt", "problem", "question", "question_stem", "messages", "text", "input")
GOLDS = ("gold", "answer", "answers", "ground_truth", "reward_model", "target", "answerkey", "solution")
IDS = ("id", "task_id", "unique_id", "_id", "query_id")

_WORKED = re.compile(r"^\s*####\s*(\S.*?)\s*$", re.MULTILINE)
# Never handed to a reward function as columns: TRL passes these under names of its own.
_OWN_NAMES = ("prompt", "completion", "completion_ids")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to solve.

    prompt: what is asked; of a conversation, its last turn. messages: all turns of a conversation, () for a text.
    gold: right answers, each of which suffices (of Python tests, each of which counts). group: the cluster in
    intervals. columns: the whole row of the file but for its prompt, for reward functions.
    """

    id: str
    prompt: str
    gold: tuple[str, ...]
    messages: tuple[Message, ...] = ()
    group: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> str | tuple[Message, ...]:
        """What a model is asked: all turns of a conversation, else the text."""
        return self.messages or self.prompt


def read_problems(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    limit: int | None = None,
    fields: Mapping[str, str] | None = None,
    gold_needed: bool = True,
    renamed: Renamed | None = None,
) -> list[Problem]:
    """The first `limit` problems (all by default) of a file (JSON lines, CSV, Parquet) or of rows, with unique ids.

    fields: our name (id, group, prompt, gold) -> the file's, for example {"gold": "reply"}. gold_needed: whether a row
    without a gold answer is refused; where it is not, its gold is (). renamed: is told of the rows where several files have
    the same `fields`; their reader asks it when all are read.
    Raises BadInput, one sentence with place and remedy, for whatever cannot be read, and for a name in `fields` that no row
    has.
    """
    seen = renamed or Renamed(fields)
    problems = _unique(_iterate(source, fields or {}, gold_needed, seen), limit)
    if renamed is None:
        seen.check()
    if not problems:
        named = source if isinstance(source, str | Path) else "what was given"
        raise BadInput(f"{named} is empty: expected at least one problem, with a prompt and a gold answer.")
    return problems


def ready_problems(problems: Iterable[Problem], *, limit: int | None = None, gold_needed: bool = True) -> list[Problem]:
    """The first `limit` of problems made in memory, held to what `read_problems` holds rows to: texts, and unique ids.

    Raises BadInput in the same words, with "problem N" for the place.
    """
    numbered = ((f"problem {number}", problem) for number, problem in enumerate(problems, start=1))
    return _unique(((place, _as_texts(problem, place, gold_needed)) for place, problem in numbered), limit)


def _unique(found: Iterable[tuple[str, Problem]], limit: int | None) -> list[Problem]:
    if limit is not None and limit < 1:
        raise BadInput(f"limit is {limit}, expected at least 1.")
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for place, problem in islice(found, limit):
        if problem.id in places:
            raise BadInput(f"{place}: id {problem.id!r} was used before at {places[problem.id]}; make ids unique.")
        places[problem.id] = place
        problems.append(problem)
    return problems


def _as_texts(problem: Any, place: str, gold_needed: bool) -> Problem:
    if not isinstance(problem, Problem):
        raise BadInput(f"{place} is no Problem, which others are: give either all as Problem or all as rows.")
    cells = Cells({}, place, {})
    cells.check_text("id", problem.id)
    cells.check_text("prompt", problem.prompt)
    if problem.group != "":
        cells.check_text("group", problem.group)
    for turn in problem.messages:
        cells.check_text("messages", turn.role)
        cells.check_text("messages", turn.content)
    if not isinstance(problem.gold, tuple | list):  # of a text each letter would count as right
        cells.refuse("gold", "a tuple of texts", kind_of(problem.gold))
    for answer in problem.gold:
        cells.check_text("gold", answer)
    if gold_needed and not problem.gold:
        raise BadInput(f"{place}: no gold answer, which a verifier needs.")
    return problem


def _iterate(
    source: str | Path | Iterable[Mapping[str, Any]], fields: Mapping[str, str], gold_needed: bool, renamed: Renamed
) -> Iterator[tuple[str, Problem]]:
    for name in fields:
        if name not in FIELDS:
            raise BadInput(f"there is no field {name!r} to rename. {did_you_mean(name, FIELDS)}")
    if isinstance(source, str | Path):
        stem, rows = Path(source).name.split(".")[0], read_rows(Path(source))
    else:
        stem, rows = "problem", ((f"row {number}", number, row) for number, row in enumerate(source, start=1))
    for place, number, row in rows:
        renamed.see(place, row, lowered=True)
        yield (
            place,
            problem_from(row, place=place, default_id=f"{stem}-{number}", fields=fields, gold_needed=gold_needed),
        )


def problem_from(
    row: Mapping[str, Any],
    *,
    place: str,
    default_id: str,
    fields: Mapping[str, str] | None = None,
    gold_needed: bool = True,
) -> Problem:
    """The problem that a row means. place: named in errors. Raises BadInput for a missing field or a wrong type."""
    fields = fields or {}
    cells = Cells(_with_choices({name.lower(): value for name, value in row.items()} | dict(row)), place, fields)
    prompt, messages = _prompt(cells)
    gold = _gold(cells)
    if not gold and gold_needed:
        found = printable(", ".join(map(str, row)))
        raise BadInput(f"{place}: no gold answer (found: {found}). Name its field with --fields gold=NAME.")
    return Problem(
        id=_id(cells) or default_id,
        prompt=prompt,
        gold=gold,
        messages=messages,
        group=cells.text("group") if cells.has("group") else "",
        columns={name: value for name, value in row.items() if name not in _OWN_NAMES},
    )


def _first(cells: Cells, ours: str, names: tuple[str, ...]) -> str | None:
    """The first field of these that holds something; when ours was renamed, that one only."""
    return next((name for name in ((ours,) if ours in cells.fields else names) if cells.has(name)), None)


def _id(cells: Cells) -> str:
    name = _first(cells, "id", IDS)
    if name is None:
        return ""
    value = cells.row[cells.name(name)]
    return cells.check_text(name, str(value) if isinstance(value, int) and not isinstance(value, bool) else value)


def _prompt(cells: Cells) -> tuple[str, tuple[Message, ...]]:
    name = _first(cells, "prompt", PROMPTS)
    if name is None:
        found = printable(", ".join(map(str, cells.row))) or "no fields"
        raise BadInput(f"{cells.place}: no prompt (found: {found}). Name its field with --fields prompt=NAME.")
    if isinstance(cells.said(name), list):
        messages = cells.messages(name)
        if messages[-1].role == "assistant":
            cells.refuse(name, "a conversation that waits for an answer", "one that ends with 'assistant'")
        return messages[-1].content, messages
    prompt = cells.text(name)
    if name in ("question", "question_stem"):
        prompt = _introduced(cells, prompt)
    if cells.has("choices"):
        prompt = "\n".join([prompt, *(f"{letter}. {choice}" for letter, choice in _choices(cells).items())])
    elif cells.has("test_list") and "gold" not in cells.fields:
        prompt = "\n".join([f"{prompt}\nYour code should pass these tests:\n", *cells.texts("test_list")])
    return prompt, ()


def _with_choices(row: dict[str, Any]) -> dict[str, Any]:
    """With `choices`, where they are a list of `options` (MMLU-Pro), or an object with a letter for each (MedQA)."""
    options = row.get("options")
    if row.get("choices") not in (None, "") or not options:
        return row
    if isinstance(options, Mapping) and all(str(letter) in ascii_uppercase for letter in options):
        return row | {"choices": {"text": list(options.values()), "label": list(options)}}
    listed = isinstance(options, list) or (isinstance(options, str) and options.lstrip().startswith("["))
    return row | {"choices": options} if listed else row


def _introduced(cells: Cells, question: str) -> str:
    for name, between in (("body", " "), ("passage", "\n\n"), ("context", "\n\n")):
        if isinstance(cells.row.get(name), str) and cells.has(name):
            return f"{cells.text(name)}{between}{question}"
    return question


def _choices(cells: Cells) -> dict[str, str]:
    """Letter -> choice. They are a list, or as in ARC an object with their texts and labels."""
    value = cells.row[cells.name("choices")]
    listed = Cells({"choices": value.get("text")}, cells.place, {}) if isinstance(value, dict) else cells
    choices = listed.texts("choices", at_least=2)
    if len(choices) > len(ascii_uppercase):
        cells.refuse("choices", f"at most {len(ascii_uppercase)}, a letter each", str(len(choices)))
    return dict(zip(ascii_uppercase, choices, strict=False))


def _letter(cells: Cells, name: str) -> str:
    """The letter of the right choice, which the row names by its label, its text, its letter or its index."""
    choices, value = _choices(cells), cells.row[cells.name(name)]
    listed = cells.row[cells.name("choices")]
    labels = listed.get("label") or [] if isinstance(listed, dict) else []
    if value in labels:
        return ascii_uppercase[labels.index(value)]
    if isinstance(value, str) and value in choices:
        if any(choice == value for letter, choice in choices.items() if letter != value):
            cells.refuse(name, "one meaning", f"{value!r}, the text of a choice and the letter of another")
        return value
    return ascii_uppercase[Cells(cells.row, cells.place, {"answer": cells.name(name)}).choice((*choices.values(),))]


def _gold(cells: Cells) -> tuple[str, ...]:
    renamed = "gold" in cells.fields
    if not renamed and cells.has("test_list"):
        given = ("\n".join(cells.texts("test_imports")),) if cells.row.get("test_imports") else ()
        # What prepares the tests may use the program's classes, so it belongs to each test.
        before = cells.text("test_setup_code") + "\n" if cells.has("test_setup_code") else ""
        return (*given, *(before + test for test in cells.texts("test_list")))
    if not renamed and cells.has("test") and cells.has("entry_point"):
        return cells.text("prompt"), f"{cells.text('test')}\n\ncheck({cells.text('entry_point')})"
    name = _first(cells, "gold", GOLDS)
    if name is None:
        return ()
    if cells.has("choices"):
        return (_letter(cells, name),)
    value = cells.row[cells.name(name)]
    if isinstance(value, dict):
        value = _inside(cells, name, value)
    golds = [_as_text(cells, name, each) for each in _listed(value)]
    aliases = cells.texts("answer_aliases") if cells.row.get("answer_aliases") else ()
    return tuple(dict.fromkeys([*golds, *aliases]))


def _listed(value: Any) -> list[Any]:
    """The golds: a list, which a CSV cell may hold as JSON with texts in it; [0, 1], an interval, is one gold."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, list) and found and all(isinstance(each, str) for each in found):
            return found
    return value if isinstance(value, list) else [value]


def _inside(cells: Cells, name: str, value: Mapping[str, Any]) -> Any:
    """What an object holds: reward_model's ground truth (DAPO), SQuAD's texts, DROP's number, date or spans."""
    date = value.get("date") or {}
    for inner in (
        value.get("ground_truth"),
        value.get("text"),
        value.get("number"),
        " ".join(date[part] for part in ("day", "month", "year") if date.get(part)),
        ", ".join(value.get("spans") or ()),
    ):
        if inner not in (None, "", []):
            return inner
    return cells.refuse(name, "an answer", kind_of(value))


def _as_text(cells: Cells, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if not math.isfinite(value):
            cells.refuse(name, "a finite number", str(value))
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
    text = cells.check_text(name, value)
    if worked := _WORKED.findall(text):
        return worked[-1]
    boxed = last_boxed(text) if cells.name(name) == "solution" else None
    return text if boxed is None else boxed
