"""Judges and a teacher from their names: all calls of one audit share a record, an account and a budget."""

import contextlib
import importlib.util
import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from equipoise.chat.account import Account
from equipoise.chat.client import Chat, resolve
from equipoise.chat.record import Record
from equipoise.core.budget import Budget
from equipoise.core.errors import BadInput, MissingExtra, did_you_mean
from equipoise.core.secrets import SECRET_NAME
from equipoise.judging.biases import Bias
from equipoise.judging.biasscope import BiasScopeSettings
from equipoise.judging.judges import LogProbJudge, PairwiseJudge, PointwiseJudge, pairwise_template
from equipoise.judging.roles import Judge, Teacher
from equipoise.judging.teacher import ChatTeacher

RULES = "rules"  # the teacher without a model


@dataclass(frozen=True, eq=False)
class Cast:
    """Who takes part, ready to be asked."""

    judge: Judge
    teacher: Teacher
    filters: Sequence[Judge]
    account: Account


class Casting:
    """Who is to take part and how they are asked, from the options of the job; nothing is opened yet."""

    def __init__(self, asked: SimpleNamespace, library: Sequence[Bias], settings: BiasScopeSettings) -> None:
        """Raises BadInput for what cannot be meant."""
        self.asked, self.library, self.settings = asked, library, settings
        self.scores = asked.judge_kind.startswith("logprob")  # log-probabilities of a model here, without calls
        self.filters: Sequence[str] = asked.filters or ()
        self.warned = library if asked.debias else ()
        self.prices = {model: (each[0], each[-2], each[-1]) for model, each in (asked.prices or {}).items()}
        self.budget = Budget.parse(asked.budget) if isinstance(asked.budget, str) else asked.budget
        named = [each for each in (asked.judge, asked.teacher, *self.filters) if isinstance(each, str)]
        self.models = [name for name in named if name != RULES]
        self._check_meaning()
        self._check_prices()
        self.rubric = None if asked.rubric is None else pairwise_template(asked.rubric)
        self.replay = None if asked.replay is None else Record(asked.replay, read_only=True)

    def _check_meaning(self) -> None:
        """Raises BadInput for an option that would be ignored, or holds a secret."""
        asked, kind, named = self.asked, self.asked.judge_kind, isinstance(self.asked.judge, str)
        for role, parts in (
            ("judge", ("name", "compare", "explain")),
            ("teacher", ("name", "perturb", "identify", "same")),
        ):
            there, arguments, url = (getattr(asked, name) for name in (role, f"{role}_args", f"{role}_url"))
            if not isinstance(there, str) and not all(hasattr(there, name) for name in parts):
                raise BadInput(f"The {role} is {there!r:.80}: expected a name, or an object with {', '.join(parts)}.")
            if (arguments or url) and there not in self.models:
                raise BadInput(f"{role}_args and {role}_url are for a named model; this {role} is none.")
            _check_secrets(arguments, url)
        for option, meant in (
            ("rubric", kind == "pairwise" and (named or self.filters)),
            ("debias", kind == "pairwise" and named),
            ("cut", self.scores and named),
            ("judge_url", not self.scores),
        ):
            if getattr(asked, option) and not meant:
                what = f"a judge of the kind {kind}" if named else "a judge that is an object"
                raise BadInput(f"{option} means nothing to {what}; leave it out.")

    def _check_prices(self) -> None:
        """Raises BadInput for a price of a model that takes no part, and for a budget without the price of one that does."""
        for priced in self.prices:
            if priced not in self.models:
                raise BadInput(
                    f"There is a price for {priced!r}, which takes no part. {did_you_mean(priced, self.models)}"
                )
        if self.budget is None or "usd" not in self.budget.limits or self.asked.replay is not None:
            return
        account = Account(self.prices)
        for model in self.models:
            if not account.has_price(resolve(model)[0]):
                raise BadInput(
                    f"A budget in usd needs the price of {model}: --prices {model}=READ:WRITTEN, dollars per million tokens."
                )

    @contextlib.contextmanager
    def open(self, folder: Path | None) -> Iterator[Cast]:
        """Everyone, with the memory of the folder. What cannot be had is found here, before a call is paid for.

        Raises BadInput, MissingExtra among them.
        """
        asked, account = self.asked, Account(self.prices)
        with contextlib.ExitStack() as opened:
            record = [] if self.replay is None else [self.replay]

            def chat(name: str, arguments: Mapping[str, Any] | None = None, url: str | None = None) -> Chat:
                if self.replay is None and importlib.util.find_spec("inspect_ai") is None:
                    raise MissingExtra("Asking a chat model needs Inspect AI: pip install 'equipoise[chat]'")
                if not record:
                    place = folder or Path(opened.enter_context(tempfile.TemporaryDirectory()))
                    record.append(opened.enter_context(Record(place / "calls.jsonl")))
                made = Chat(
                    name,
                    record=record[0],
                    account=account,
                    budget=self.budget,
                    model_args=arguments,
                    base_url=url,
                    max_connections=asked.max_connections,
                    offline=self.replay is not None,
                )
                made.open()
                return opened.enter_context(made)

            judge, teacher, how = asked.judge, asked.teacher, {"max_tokens": asked.judge_tokens}
            if isinstance(judge, str) and self.scores:
                judge = self._scorer(judge, chat, None if folder is None else folder / "margins.jsonl")
            elif isinstance(judge, str):
                model = chat(judge, asked.judge_args, asked.judge_url)
                if asked.judge_kind == "pointwise":
                    judge = PointwiseJudge(model, **how)
                else:
                    reading = self.settings.reading
                    judge = PairwiseJudge(model, rubric=self.rubric, debias=self.warned, reading=reading, **how)
            if teacher == RULES:
                from equipoise.judging.rules import RuleTeacher

                teacher = RuleTeacher()
            elif isinstance(teacher, str):
                model = chat(teacher, asked.teacher_args, asked.teacher_url)
                teacher = ChatTeacher(model, max_tokens=asked.teacher_tokens)
            filters = [PairwiseJudge(chat(name), rubric=self.rubric, **how) for name in self.filters]
            yield Cast(judge, teacher, filters, account)

    def _scorer(self, name: str, chat: Callable[..., Chat], memory: Path | None) -> LogProbJudge:
        from equipoise.language.model import load

        arguments, bare = self.asked.judge_args or {}, name.removeprefix("equipoise/")
        known = inspect.signature(load).parameters.keys() - {"name"}
        for argument in arguments:
            if argument not in known:
                raise BadInput(f"A logprob judge takes no argument {argument!r}. {did_you_mean(argument, known)}")
        try:
            model = load(bare, **arguments)
        except BadInput as error:
            raise BadInput(
                f"{error} A logprob judge is a model of this machine or of the hub, not a provider's."
            ) from error
        return LogProbJudge(
            model,
            chat=chat(f"equipoise/{bare}", arguments) if self.settings.explain and self.settings.rounds else None,
            cut=self.asked.cut,
            memory=memory,
            balanced=self.asked.judge_kind == "logprob-both",
            name=resolve(f"equipoise/{bare}")[0],
        )


def _check_secrets(arguments: Mapping[str, Any] | None, url: str | None) -> None:
    """Raises BadInput for a key among the arguments, which are stored and shown in reports, or in an address."""
    try:
        address = urlsplit(url or "")
    except ValueError as error:
        raise BadInput(f"{url!r} is no address: {error}.") from None
    names = [name for name in arguments or {} if SECRET_NAME.search(name)]
    asked = any(SECRET_NAME.search(name) for name, _ in parse_qsl(address.query, keep_blank_values=True))
    if names or asked or "@" in address.netloc:
        what = f"The argument {names[0]!r}" if names else "The address"
        raise BadInput(
            f"{what} holds a secret; keys belong into the variable of the environment that the provider reads."
        )
