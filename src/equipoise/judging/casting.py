"""Judges and a teacher from their names: all calls of one audit share a record, an account and a budget."""

import contextlib
import importlib.util
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from equipoise.chat.account import Account, Budget, Prices
from equipoise.chat.client import Chat, resolve
from equipoise.chat.record import Record
from equipoise.chat.templates import Template
from equipoise.core.errors import BadInput, MissingExtra, did_you_mean
from equipoise.core.secrets import SECRET_NAME
from equipoise.judging.biases import Bias
from equipoise.judging.judges import LogProbJudge, PairwiseJudge, PointwiseJudge
from equipoise.judging.roles import Judge, Teacher
from equipoise.judging.teacher import ChatTeacher
from equipoise.judging.verdicts import Reading

RULES = "rules"  # the teacher without a model
RECORD = "calls.jsonl"
MARGINS = "margins.jsonl"


@dataclass(frozen=True, eq=False)
class Cast:
    """Who takes part, ready to be asked."""

    judge: Judge
    teacher: Teacher
    filters: Sequence[Judge]
    account: Account


@dataclass(frozen=True, eq=False)
class Casting:
    """Who is to take part, and how they are to be asked. judge, teacher: names, or the very objects.

    warned: biases that a pairwise judge is warned of. explain: the judge will be asked why. replay: what alone answers.
    """

    judge: str | Judge
    teacher: str | Teacher
    filters: Sequence[str]
    judge_kind: str
    rubric: Template | None
    warned: Sequence[Bias]
    reading: Reading
    explain: bool
    cut: int | None
    judge_args: Mapping[str, Any] | None
    teacher_args: Mapping[str, Any] | None
    judge_url: str | None
    teacher_url: str | None
    judge_tokens: int
    teacher_tokens: int
    budget: Budget | None
    prices: Prices
    max_connections: int | None
    replay: Record | None

    def __post_init__(self) -> None:
        """Raises BadInput for what cannot be meant."""
        for role, there, methods in (("judge", self.judge, "compare, explain"), ("teacher", self.teacher, "perturb")):
            if not isinstance(there, str) and not all(hasattr(there, method) for method in methods.split(", ")):
                raise BadInput(
                    f"The {role} is {there!r:.80}: expected a name, or an object with {methods} (see roles)."
                )
        for role, arguments, url, named in (
            ("judge", self.judge_args, self.judge_url, isinstance(self.judge, str)),
            ("teacher", self.teacher_args, self.teacher_url, isinstance(self.teacher, str) and self.teacher != RULES),
        ):
            if (arguments or url) and not named:
                raise BadInput(f"{role}_args and {role}_url are for a model that is named; this {role} asks none.")
            _check_secrets(arguments, url)
        for option, value, meant in (("cut", self.cut, self.scores), ("judge_url", self.judge_url, not self.scores)):
            if value is not None and not meant:
                raise BadInput(f"{option} means nothing to a judge of the kind {self.judge_kind}; leave it out.")
        for priced in self.prices:
            if priced not in self.models:
                raise BadInput(
                    f"There is a price for {priced!r}, which takes no part. {did_you_mean(priced, self.models)}"
                )
        if self.budget is not None and self.budget.usd is not None and self.replay is None:
            account = Account(self.prices)
            for model in self.models:
                if not account.has_price(resolve(model)[0]):
                    raise BadInput(
                        f"A budget in usd needs the price of {model}: --prices {model}=READ:WRITTEN, dollars per million "
                        "tokens."
                    )

    @property
    def scores(self) -> bool:
        """Whether the judge is a local model of which log-probabilities are read, without calls."""
        return self.judge_kind.startswith("logprob")

    @property
    def models(self) -> list[str]:
        """The names of the models that take part."""
        return [each for each in (self.judge, self.teacher, *self.filters) if isinstance(each, str) and each != RULES]

    @contextlib.contextmanager
    def open(self, folder: Path | None) -> Iterator[Cast]:
        """Everyone, with the memory of the folder. What cannot be had is found here, before a call is paid for.

        Raises BadInput, MissingExtra among them.
        """
        with contextlib.ExitStack() as opened:
            account = Account(self.prices)
            record: list[Record] = [] if self.replay is None else [self.replay]

            def chat(name: str, arguments: Mapping[str, Any] | None = None, url: str | None = None) -> Chat:
                if self.replay is None and importlib.util.find_spec("inspect_ai") is None:
                    raise MissingExtra("Asking a chat model needs Inspect AI: pip install 'equipoise[chat]'")
                if not record:
                    place = folder or Path(opened.enter_context(tempfile.TemporaryDirectory()))
                    record.append(opened.enter_context(Record(place / RECORD)))
                asked = Chat(
                    name,
                    record=record[0],
                    account=account,
                    budget=self.budget,
                    model_args=arguments,
                    base_url=url,
                    max_connections=self.max_connections,
                    offline=self.replay is not None,
                )
                asked.open()
                return opened.enter_context(asked)

            judge, teacher = self.judge, self.teacher
            if isinstance(judge, str):
                if self.scores:
                    judge = self._scorer(judge, chat, None if folder is None else folder / MARGINS)
                elif self.judge_kind == "pointwise":
                    judge = PointwiseJudge(chat(judge, self.judge_args, self.judge_url), max_tokens=self.judge_tokens)
                else:
                    asked = chat(judge, self.judge_args, self.judge_url)
                    judge = self._pairwise(asked, debias=self.warned, reading=self.reading)
            if teacher == RULES:
                from equipoise.judging.rules import RuleTeacher

                teacher = RuleTeacher()
            elif isinstance(teacher, str):
                teacher = ChatTeacher(
                    chat(teacher, self.teacher_args, self.teacher_url), max_tokens=self.teacher_tokens
                )
            yield Cast(judge, teacher, [self._pairwise(chat(name)) for name in self.filters], account)

    def _pairwise(self, chat: Chat, **how: Any) -> PairwiseJudge:
        return PairwiseJudge(chat, rubric=self.rubric, max_tokens=self.judge_tokens, **how)

    def _scorer(self, name: str, chat: Callable[..., Chat], memory: Path | None) -> LogProbJudge:
        from equipoise.language.model import load

        known = inspect.signature(load).parameters.keys() - {"name"}
        for argument in self.judge_args or {}:
            if argument not in known:
                raise BadInput(f"A logprob judge takes no argument {argument!r}. {did_you_mean(argument, known)}")
        bare = name.removeprefix("equipoise/")
        try:
            model = load(bare, **(self.judge_args or {}))
        except BadInput as error:
            raise BadInput(
                f"{error} A logprob judge is a model of this machine or of the hub, not a provider's."
            ) from error
        return LogProbJudge(
            model,
            chat=chat(f"equipoise/{bare}", self.judge_args) if self.explain else None,
            cut=self.cut,
            memory=memory,
            balanced=self.judge_kind == "logprob-both",
            name=resolve(f"equipoise/{bare}")[0],
        )


def stored_arguments(arguments: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Arguments as settings: those that are JSON values, others by the name of their type."""
    return arguments and {name: _stored(value) for name, value in arguments.items()}


def _stored(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return type(value).__name__


def _check_secrets(arguments: Mapping[str, Any] | None, url: str | None) -> None:
    """Raises BadInput for a key among the arguments, which are stored and shown in reports, or in an address."""
    names = [name for name in arguments or {} if SECRET_NAME.search(name)]
    try:
        address = urlsplit(url or "")
    except ValueError as error:
        raise BadInput(f"{url!r} is no address: {error}.") from None
    told = any(SECRET_NAME.search(name) for name, _ in parse_qsl(address.query, keep_blank_values=True))
    if names or told or "@" in address.netloc:
        what = f"The argument {names[0]!r}" if names else "The address"
        raise BadInput(
            f"{what} holds a secret; keys belong into the variable of the environment that the provider reads."
        )
