"""The work of `think`: the moment is measured or taken, the model thinks, a verifier looks at the answers.

Killed at any moment, the same call goes on: written.jsonl has a row for each prompt that was thought about. A prompt's
draws are named by its id, so that under one moment it comes out alike in any file. Where the moment is measured, the
prompts that it is measured on decide it, the first of the file or those of calibration, and no limit changes them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.chat.grammar import json_grammar
from equipoise.core.errors import BadInput
from equipoise.core.files import read_regular, sha256_file, write_atomic
from equipoise.core.job import Request
from equipoise.core.rows import Rows
from equipoise.core.shares import Bounded
from equipoise.core.statistics import item_interval
from equipoise.data.problems import Problem, read_problems, ready_problems
from equipoise.data.records import Renamed
from equipoise.data.text import encodable
from equipoise.data.verify import open_verifier
from equipoise.decoding.alphaone import AlphaOne
from equipoise.decoding.answer_grammar import AnswerGrammar
from equipoise.decoding.result import NO_MOMENT, ThinkPlan, ThinkRun
from equipoise.decoding.thinking import Common, Intervention, Tags, ThinkingControl, Thought, tags_of, write_thoughts
from equipoise.decoding.thinking_rivals import BudgetForcing, HardCap, Plain, RandomWaits, expected_waits, waits_to_draw
from equipoise.language.encode import encode_prompts
from equipoise.language.features import objects_digests
from equipoise.language.generate import check_room
from equipoise.language.kept import keep_to
from equipoise.language.model import LanguageModel, load
from equipoise.language.templates import DATE

if TYPE_CHECKING:
    pass

THOUGHTS, WRITTEN = "thoughts.jsonl", "written.jsonl"
CALIBRATION, ANSWERS = "calibration", "answers"
POINTS = 60  # of the curve of accuracy within so many tokens


@dataclass(frozen=True, slots=True)
class Wanted:
    """The settings of the job that say how it is thought; see `job.think`."""

    control: str
    alpha: float
    mean_thinking: float | None
    calibrate: int
    schedule: Any
    p: float
    gamma: float
    tau: float
    times: int
    preset: Any
    opening: str | None
    closing: str | None
    word: str | None
    min_thinking: int
    max_thinking: int
    guard: bool
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int

    def check(self) -> None:
        """Raises BadInput for settings that contradict each other."""
        if (self.opening is None) != (self.closing is None):
            raise BadInput("a model's own tags come in pairs: give opening and closing, or neither.")
        if 0 <= self.max_thinking < self.min_thinking:
            raise BadInput(f"max_thinking is {self.max_thinking}, less than min_thinking, {self.min_thinking}.")
        if max(self.min_thinking, self.max_thinking) >= self.max_new_tokens:
            raise BadInput(
                f"max_new_tokens is {self.max_new_tokens}, of which {max(self.min_thinking, self.max_thinking)} may "
                "be thinking: leave some for the answer."
            )

        if self.control == "random" and self.mean_thinking is not None:
            raise BadInput("how many words random inserts is measured: leave mean_thinking out, and give calibration.")
        if not math.isfinite(self.alpha * (self.mean_thinking or 1.0)):
            raise BadInput(f"alpha is {self.alpha:g} and mean_thinking {self.mean_thinking:g}: that is no moment.")

    @property
    def needs_moment(self) -> bool:
        """Whether this control has one."""
        return self.control not in NO_MOMENT

    def tags(self, tokenizer: Any) -> Tags:
        """The model's tags with the word that is asked for. Raises BadInput for a model without, by name."""
        found = tags_of(tokenizer, self.preset) if self.closing is None else Tags(self.opening or "", self.closing)
        if self.word is None:
            return found
        return Tags(found.opening, found.closing, self.word, (self.word,), found.opened_by)

    def common(self, tokenizer: Any, grammar: AnswerGrammar | None = None) -> Common:
        """What every control gets."""
        return {
            "grammar": grammar,
            "tags": self.tags(tokenizer),
            "min_thinking": self.min_thinking,
            "max_thinking": self.max_thinking,
            "guard": self.guard,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
        }

    def alphaone(self, tokenizer: Any, moment: float, grammar: AnswerGrammar | None = None) -> AlphaOne:
        """AlphaOne with this schedule."""
        shape: dict[str, Any] = {"kind": self.schedule, "p": self.p, "gamma": self.gamma, "tau": self.tau}
        return AlphaOne(tokenizer, moment=moment, **shape, **self.common(tokenizer, grammar))

    def opened(self, tokenizer: Any, moment: float, drawn: float, grammar: AnswerGrammar | None) -> ThinkingControl:
        """The control. moment, drawn (times of random): nan where it needs none."""
        common = self.common(tokenizer, grammar)
        if self.control == "alphaone":
            return self.alphaone(tokenizer, moment, grammar)
        if self.control == "s1":
            return BudgetForcing(tokenizer, times=self.times, **common)
        if self.control == "cap":
            return HardCap(tokenizer, moment=max(moment, 1.0), **common)
        if self.control == "random":
            return RandomWaits(tokenizer, moment=moment, expected=drawn, **common)
        return Plain(tokenizer, **common)


@dataclass(frozen=True, eq=False)
class Steering(Request):
    """A request to think, read and found right. calibration: the problems that N is measured on, () where it is given."""

    model: str | Path | LanguageModel
    problems: tuple[Problem, ...]
    calibration: tuple[Problem, ...]
    wanted: Wanted
    schema: str | None
    verifier: Any
    unsafe: bool
    batch_size: int
    loading: Mapping[str, Any]
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]
    leaks: bool

    @classmethod
    def read(
        cls,
        model: Any,
        prompts: Any,
        wanted: Wanted,
        *,
        calibration: Any,
        schema: Path | None,
        verifier: Any,
        unsafe: bool,
        limit: int | None,
        fields: Mapping[str, str] | None,
        batch_size: int,
        loading: dict[str, Any],
    ) -> Steering:
        """Raises BadInput for a wrong request; loads no model."""
        date = loading["date"] = loading["date"] or DATE
        wanted.check()
        if calibration is not None and (wanted.mean_thinking is not None or not wanted.needs_moment):
            raise BadInput(
                "calibration is for measuring mean_thinking, which is given or not needed here: leave it out."
            )
        names, inputs = {}, {}
        given = prompts if isinstance(prompts, str | Path) else list(prompts)
        renamed = Renamed(fields)
        problems = _read("prompts", given, names, inputs, limit, fields, renamed, gold_needed=verifier is not None)
        measured: list[Problem] = []
        if wanted.needs_moment and wanted.mean_thinking is None:
            # The first of all prompts, whatever the limit: it must not change what a prompt comes to.
            source = given if calibration is None else calibration
            measured = _read("calibration", source, names, inputs, wanted.calibrate, fields, renamed, gold_needed=False)
        renamed.check()
        text = None
        if schema is not None:
            text, inputs["schema"] = _schema(schema), sha256_file(schema)
            if not wanted.guard:
                raise BadInput(
                    "a schema is of the answer, which a control without guard would write into: leave guard on."
                )
        names["judged by"] = "nobody"
        if verifier is not None:
            with open_verifier(verifier, unsafe=unsafe) as found:
                found.check(problems)
                names["judged by"] = found.name
        names["model"] = model.name if isinstance(model, LanguageModel) else str(model)
        return cls(
            model=model,
            problems=tuple(problems),
            calibration=tuple(measured),
            wanted=wanted,
            schema=text,
            verifier=verifier,
            unsafe=unsafe,
            batch_size=batch_size,
            loading=loading,
            names=names,
            inputs=inputs | objects_digests({"model": model}),
            resolved={"date": date},
            leaks=bool(measured) and calibration is None,
        )

    def plan(self) -> ThinkPlan:
        language_model, encoded, _ = self._opened()
        tokenizer: Any = language_model.tokenizer
        tags, wanted = self.wanted.tags(tokenizer), self.wanted
        moment = "none"
        if wanted.needs_moment:
            moment = f"{wanted.alpha:g} times the mean thinking of {len(self.calibration)} prompts, to be measured"
            if wanted.mean_thinking is not None:
                moment = f"{wanted.alpha * wanted.mean_thinking:,.1f} tokens"
        return ThinkPlan(
            model=language_model.source,
            control=wanted.control,
            tags=f"{tags.opening} ... {tags.closing}, {tags.word!r} inserted",
            moment=moment,
            judged_by=self.names["judged by"],
            prompts=len(self.problems),
            shown=tokenizer.decode(encoded[0], clean_up_tokenization_spaces=False),
            tokens=(len(self.problems) + len(self.calibration)) * wanted.max_new_tokens,
        )

    def work(self, folder: Path | None) -> ThinkRun:
        language_model, _, grammar = self._opened()
        rows = Rows(None if folder is None else folder / WRITTEN)
        keep_to(rows, language_model)
        wanted, tokenizer = self.wanted, language_model.tokenizer
        mean, moment, expected, drawn = self._moment(language_model, rows)
        control = wanted.opened(tokenizer, moment, drawn, grammar)
        thoughts = self._thoughts(language_model, control, ANSWERS, self.problems, rows, [wanted.seed])
        right, unread = self._judged(thoughts)
        self._write(folder, thoughts, right)
        notes = list(rows.damaged)
        if self.leaks:
            notes.append(
                f"The mean thinking was measured on the first {len(self.calibration)} of the prompts themselves (their "
                "gold answers were not looked at); with calibration it is measured on others."
            )
        words = [sum(each.taken for each in thought.trace if each.what == "word") for thought in thoughts]
        ends = [any(each.taken for each in thought.trace if each.what == "end") for thought in thoughts]
        groups = [problem.group or f"prompt {problem.id}" for problem in self.problems]
        return ThinkRun(
            names=self.names,
            source=language_model.source,
            settings=asdict(wanted),
            prompts=len(thoughts),
            mean_thinking=mean,
            measured_on=len(self.calibration),
            moment=moment,
            expected=expected,
            accuracy=_mean(right, groups, 1.0) if self.verifier else Bounded(math.nan, math.nan, math.nan),
            unread=unread,
            thinking=_mean([thought.thinking_tokens for thought in thoughts], groups),
            answering=_mean([thought.answer_tokens for thought in thoughts], groups),
            words=float(np.mean(words)),
            ends=float(np.mean(ends)),
            unopened=float(np.mean([not thought.thinking_tokens for thought in thoughts])),
            unclosed=float(np.mean([not thought.closed for thought in thoughts])),
            spent=float(np.mean([not thought.ended for thought in thoughts])),
            tokens=sum(thought.tokens for thought in thoughts),
            within=_within(thoughts, right) if self.verifier else (),
            notes=tuple(notes),
        )

    def scratch(self) -> tuple[str, ...]:
        return (WRITTEN,)

    def _opened(self) -> tuple[LanguageModel, list[list[int]], AnswerGrammar | None]:
        """The model, its prompts' ids, and what answers follow.

        Refused are a model without tags, and prompts that leave no room to think.
        """
        model = self.model
        language_model = model if isinstance(model, LanguageModel) else load(model, **self.loading)
        tokenizer: Any = language_model.tokenizer
        tags = self.wanted.tags(tokenizer)
        control = self.wanted.opened(tokenizer, 1.0, 0.0, None)  # what it refuses, it refuses before anything is read
        asked = [*self.problems, *self.calibration]
        encoded, ends = encode_prompts(language_model, [problem.asked for problem in asked])
        check_room(language_model, encoded, self.wanted.max_new_tokens, [repr(problem.id) for problem in asked])
        for problem, ids in zip(asked, encoded, strict=True):
            if control.begin(0, ids).ended is not None:
                raise BadInput(
                    f"prompt {problem.id!r} as the model reads it ends with {tags.closing} already, so that nothing "
                    "is left to think: use a chat template that lets the model think."
                )
        if self.schema is None:
            return language_model, encoded, None
        head: Any = language_model.model.get_output_embeddings()
        width = head.weight.shape[0]
        return language_model, encoded, AnswerGrammar(tokenizer, self.schema, vocabulary=width, ends=ends)

    def _moment(self, language_model: LanguageModel, rows: Rows) -> tuple[Bounded, float, float, float]:
        """N, alpha N, how many words random has to insert, and of how many times it draws that are so many."""
        wanted, tokenizer, unknown = self.wanted, language_model.tokenizer, Bounded(math.nan, math.nan, math.nan)
        if not wanted.needs_moment:
            return unknown, math.nan, math.nan, math.nan
        plain: list[Thought] = []
        mean = Bounded(wanted.mean_thinking or math.nan, math.nan, math.nan)
        if wanted.mean_thinking is None:
            free = replace(wanted, min_thinking=0, max_thinking=-1)
            control = Plain(tokenizer, **free.common(tokenizer))
            plain = self._thoughts(language_model, control, CALIBRATION, self.calibration, rows, [wanted.seed, 1])
            mean = _mean([thought.thinking_tokens for thought in plain], [problem.id for problem in self.calibration])
        if not mean.value > 0:
            raise BadInput(f"{self.names['model']} thinks with no token before it answers: there is nothing to steer.")
        moment, expected, drawn = wanted.alpha * mean.value, math.nan, math.nan
        if wanted.control == "random":
            alphaone, most = wanted.alphaone(tokenizer, moment), wanted.max_thinking
            written = [thought.ids[: thought.thinking_tokens][: None if most < 0 else most] for thought in plain]
            expected = expected_waits(alphaone, written)
            drawn = waits_to_draw(alphaone, written, expected)
        return mean, moment, expected, drawn

    def _thoughts(
        self,
        language_model: LanguageModel,
        control: ThinkingControl,
        part: str,
        problems: Sequence[Problem],
        rows: Rows,
        seed: Sequence[int],
    ) -> list[Thought]:
        """A thought about each problem: those that are stored, and what is missing."""
        known = {row["id"]: _thought(row["thought"]) for row in rows if row.get("part") == part}
        missing = [problem for problem in problems if problem.id not in known]
        for first in range(0, len(missing), self.batch_size):
            some = missing[first : first + self.batch_size]
            found = write_thoughts(
                language_model,
                [problem.asked for problem in some],
                control,
                max_new_tokens=self.wanted.max_new_tokens,
                seed=seed,
                keys=[key_of(problem) for problem in some],
                batch_size=self.batch_size,
            )
            for problem, thought in zip(some, found, strict=True):
                row = _row(thought)
                rows.add({"part": part, "id": problem.id, "thought": row})
                known[problem.id] = _thought(row)
        return [known[problem.id] for problem in problems]

    def _judged(self, thoughts: Sequence[Thought]) -> tuple[list[float], int]:
        """How right each answer is, nan without a verifier; and how many held nothing to compare."""
        if not self.verifier:
            return [math.nan] * len(thoughts), 0
        with open_verifier(self.verifier, unsafe=self.unsafe) as verifier:
            scores = verifier(self.problems, [thought.answer for thought in thoughts])
        right = [score.value if thought.closed else 0.0 for score, thought in zip(scores, thoughts, strict=True)]
        return right, sum(score.missing for score in scores)

    def _write(self, folder: Path | None, thoughts: Sequence[Thought], right: Sequence[float]) -> None:
        if folder is None:
            return
        lines = []
        for problem, thought, value in zip(self.problems, thoughts, right, strict=True):
            row = {"id": problem.id, "prompt": problem.prompt, "gold": list(problem.gold), **_row(thought)}
            row |= {"right": None if math.isnan(value) else value}
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        write_atomic(folder / THOUGHTS, "".join(lines))


def key_of(problem: Problem) -> int:
    """The number that names a problem's draws, from its id."""
    return int.from_bytes(hashlib.sha256(problem.id.encode("utf-8", "surrogatepass")).digest()[:6], "big")


def _read(
    what: str,
    source: Any,
    names: dict[str, str],
    inputs: dict[str, str],
    limit: int | None,
    fields: Mapping[str, str] | None,
    renamed: Renamed,
    *,
    gold_needed: bool,
) -> list[Problem]:
    given = source if isinstance(source, str | Path) else list(source)
    if not isinstance(given, str | Path) and any(isinstance(each, Problem) for each in given):
        problems = ready_problems(given, limit=limit, gold_needed=gold_needed)
    else:
        problems = read_problems(given, limit=limit, fields=fields, gold_needed=gold_needed, renamed=renamed)
    if isinstance(given, str | Path):
        names[what], inputs[what] = str(given), sha256_file(Path(given))
    else:
        names[what] = f"{len(given)} problems"
        said = json.dumps([asdict(problem) for problem in problems], sort_keys=True, default=str)
        inputs[what] = hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()
    return problems


def _schema(path: Path) -> str:
    """The text of a schema. Raises BadInput for a file that is none, or has a schema that cannot be followed."""
    try:
        text = read_regular(path).decode("utf-8")
        if not isinstance(json.loads(text), dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} cannot be read as a JSON schema: {error}.") from error
    json_grammar(text)
    return text


def _row(thought: Thought) -> dict[str, Any]:
    """As JSON: draws that were not made are null."""
    row = asdict(thought) | {"ids": list(thought.ids)}
    row |= {"thinking": encodable(thought.thinking), "answer": encodable(thought.answer)}
    row["trace"] = [asdict(each) | {"draw": None if math.isnan(each.draw) else each.draw} for each in thought.trace]
    return row


def _thought(row: Mapping[str, Any]) -> Thought:
    trace = tuple(
        Intervention(**{**each, "draw": math.nan if each["draw"] is None else each["draw"]}) for each in row["trace"]
    )
    return Thought(**{**row, "ids": tuple(row["ids"]), "trace": trace})


def _mean(values: Sequence[float], groups: Sequence[str], most: float = math.inf) -> Bounded:
    """Of values from 0 to `most`, within which its interval is kept."""
    return Bounded.of(item_interval(np.array(values, float), np.array(groups)), 0.0, most)


def _within(thoughts: Sequence[Thought], right: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """(tokens, mean of `right` of the answers that had ended by then, the others counting as wrong), over all budgets."""
    tokens = np.array([thought.tokens for thought in thoughts])
    values = np.array([value if thought.ended else 0.0 for value, thought in zip(right, thoughts, strict=True)])
    budgets = np.unique(np.linspace(0, tokens.max(), POINTS).round())
    return tuple((float(budget), float(values[tokens <= budget].sum() / len(values))) for budget in budgets)
