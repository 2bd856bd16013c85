"""Judges and a teacher from their names: all calls of one audit share a record, an account and a budget."""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from equipoise.chat.account import OWN, Account
from equipoise.chat.client import Chat, resolve
from equipoise.chat.roles import Role, Roles
from equipoise.core.errors import BadInput, did_you_mean
from equipoise.judging.biases import Bias
from equipoise.judging.biasscope import BiasScopeSettings
from equipoise.judging.judges import LogProbJudge, PairwiseJudge, PointwiseJudge, pairwise_template
from equipoise.judging.roles import Judge, Teacher
from equipoise.judging.teacher import ChatTeacher

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

RULES = "rules"  # the teacher without a model
JUDGE = Role("judge", methods=("name", "compare", "explain"))
TEACHER = Role("teacher", methods=("name", "perturb", "identify", "same"), own=(RULES,))
FILTERS = Role("filters", optional=True)


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
        self.scores = asked.judge_kind.startswith("logprob")  # log-probabilities of a model here, asked only to explain
        self.filters: Sequence[str] = asked.filters or ()
        self.warned = library if asked.debias else ()
        explains = settings.explain and settings.rounds > 0
        judge = replace(JUDGE, local=self.scores, asked=explains or not self.scores)
        self.roles = Roles.read(asked, judge, TEACHER, FILTERS)
        self._check_meaning()
        self.rubric = None if asked.rubric is None else pairwise_template(asked.rubric)

    def _check_meaning(self) -> None:
        """Raises BadInput for an option that would be ignored."""
        asked, kind, named = self.asked, self.asked.judge_kind, isinstance(self.asked.judge, str)
        for option, meant in (
            ("rubric", kind == "pairwise" and (named or self.filters)),
            ("debias", kind == "pairwise" and named),
            ("cut", self.scores and named),
            ("judge_url", not self.scores),
        ):
            if getattr(asked, option) and not meant:
                what = f"a judge of the kind {kind}" if named else "a judge that is an object"
                raise BadInput(f"{option} means nothing to {what}; leave it out.")

    @contextlib.contextmanager
    def open(self, folder: Path | None) -> Iterator[Cast]:
        """Everyone, with the memory of the folder. What cannot be had is found here, before a call is paid for.

        Raises BadInput, MissingExtra among them.
        """
        asked, how = self.asked, {"max_tokens": self.asked.judge_tokens}
        scored = self._scored() if self.scores and isinstance(asked.judge, str) else None
        with self.roles.open(folder) as players:
            judge, teacher = players["judge"], players["teacher"]
            if scored is not None:
                judge = LogProbJudge(
                    scored,
                    chat=judge if isinstance(judge, Chat) else None,
                    cut=asked.cut,
                    memory=None if folder is None else folder / "margins.jsonl",
                    balanced=asked.judge_kind == "logprob-both",
                    name=resolve(OWN + asked.judge.removeprefix(OWN))[0],
                )
            elif isinstance(judge, Chat) and asked.judge_kind == "pointwise":
                judge = PointwiseJudge(judge, **how)
            elif isinstance(judge, Chat):
                reading = self.settings.reading
                judge = PairwiseJudge(judge, rubric=self.rubric, debias=self.warned, reading=reading, **how)
            if isinstance(teacher, Chat):
                teacher = ChatTeacher(teacher, max_tokens=asked.teacher_tokens)
            elif teacher == RULES:
                from equipoise.judging.rules import RuleTeacher

                teacher = RuleTeacher()
            filters = [PairwiseJudge(chat, rubric=self.rubric, **how) for chat in players.chats("filters")]
            yield Cast(judge, teacher, filters, players.account)

    def _scored(self) -> "LanguageModel":
        """The model whose log-probabilities judge."""
        from equipoise.language.model import load

        arguments = self.asked.judge_args or {}
        known = inspect.signature(load).parameters.keys() - {"name"}
        for argument in arguments:
            if argument not in known:
                raise BadInput(f"A logprob judge takes no argument {argument!r}. {did_you_mean(argument, known)}")
        try:
            return load(self.asked.judge.removeprefix(OWN), **arguments)
        except BadInput as error:
            raise BadInput(
                f"{error} A logprob judge is a model of this machine or of the hub, not a provider's."
            ) from error
