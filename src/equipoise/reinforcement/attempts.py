"""What is learnt from and measured on, and who judges it: prompts with a verifier, or the seeds of an environment."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.core.files import sha256_file
from equipoise.data.problems import Problem, read_problems, ready_problems
from equipoise.data.records import Renamed
from equipoise.data.verify import Verifier, open_verifier
from equipoise.reinforcement import stages
from equipoise.reinforcement.acting import FEWEST, Acting, met
from equipoise.reinforcement.measures import Solved, solve
from equipoise.reinforcement.playing import no_reward
from equipoise.reinforcement.recipe import Recipe
from equipoise.reinforcement.stages import Reward, Step

if TYPE_CHECKING:
    from equipoise.language.model import LanguageModel

Sample = Callable[..., Step]
Weigh = Callable[[Recipe, Step], Step]
HELD_OUT = 128  # problems at most on which before and after are compared


@dataclass(frozen=True)
class Attempts:
    """How a model tries problems. reward: as of `training.train`. solve: as of `measures.solve`, bound. stages: the `sample`
    and `weigh` of `training.train` for the model that is trained.
    """

    reward: Reward
    solve: Callable[..., Solved]
    stages: Callable[["LanguageModel", Recipe], tuple[Sample, Weigh]] = lambda language_model, recipe: (
        stages.sample,
        stages.weigh,
    )


@dataclass(frozen=True)
class Tasks:
    """problems: learnt from. measured: on which before and after are compared; held_out: set apart for that.

    met: how many of the measured ask, or begin with, a text that is learnt from, too. judge: the name of what judges. names,
    inputs: of what was read, and its digests. opened: gives the attempts, and closes what it has opened. environment:
    whether seeds of one are the problems. turns: of an attempt at most. chance: by names of shares, what is had without any
    skill. notes: what a reader of the result must know. check: raises BadInput for a model or a recipe that they cannot be
    tried with. beside: the responses that a prompt may take beside those of its group. guided: whether some are written with
    a hint.
    """

    problems: tuple[Problem, ...]
    measured: tuple[Problem, ...]
    held_out: bool
    met: int
    judge: str
    names: Mapping[str, str]
    inputs: Mapping[str, str]
    opened: Callable[[], AbstractContextManager[Attempts]]
    environment: bool = False
    turns: int = 1
    chance: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    check: Callable[["LanguageModel", Recipe], None] = lambda language_model, recipe: None
    beside: Callable[[Recipe], int] = lambda recipe: 0
    guided: bool = False

    @classmethod
    def of_prompts(
        cls,
        prompts: Any,
        eval_prompts: Any,
        *,
        verifier: Any,
        reward: Any,
        unsafe: bool,
        limit: int | None,
        fields: Mapping[str, str] | None,
    ) -> "Tasks":
        """Raises BadInput for prompts and verifiers that cannot be read or do not go together."""
        needed = reward is None
        problems, names, digests = read_prompts(
            {"prompts": prompts, "eval_prompts": eval_prompts}, limit, fields, needed
        )

        @contextmanager
        def opened() -> Iterator[Attempts]:
            with open_verifier(verifier, reward=reward, unsafe=unsafe) as found:
                judged = rewarding(found)

                def solved(language_model: "LanguageModel", problems: Sequence[Problem], **how: Any) -> Solved:
                    return solve(language_model, problems, judged, **how)

                yield Attempts(judged, solved)

        with open_verifier(verifier, reward=reward, unsafe=unsafe) as found:
            if needed:
                found.check([problem for each in problems.values() for problem in each])
            digests |= {"reward": found.digest} if found.digest else {}
            name = found.name
        given, measured = tuple(problems["prompts"]), tuple(problems.get("eval_prompts", ()))
        training, measured = (given, measured) if measured else held_out(given)
        apart = len(training) < len(given)
        return cls(training, measured, apart, met(training, measured), name, names, digests, opened)

    @classmethod
    def of_environment(cls, environment: Any, chosen: Recipe, **played: Any) -> "Tasks":
        """played: the settings of `Acting`. Raises BadInput as `Acting.read` does."""
        acting = Acting.read(environment, chosen, **played)

        @contextmanager
        def opened() -> Iterator[Attempts]:
            yield Attempts(no_reward, acting.playing.solve, acting.stages)

        return cls(
            acting.problems,
            acting.measured,
            acting.held_out,
            acting.met,
            acting.playing.environment.name,
            acting.names,
            acting.inputs,
            opened,
            environment=True,
            turns=acting.playing.turns,
            chance=acting.playing.environment.chance,
            notes=acting.notes,
            check=acting.check,
            beside=acting.beside,
            guided=bool(acting.actions),
        )


def read_prompts(
    given: Mapping[str, Any], limit: int | None, fields: Mapping[str, str] | None, gold_needed: bool
) -> tuple[dict[str, list[Problem]], dict[str, str], dict[str, str]]:
    """Problems, names and digests of files or of problems in memory; what is None is left out."""
    problems: dict[str, list[Problem]] = {}
    names: dict[str, str] = {}
    digests: dict[str, str] = {}
    renamed = Renamed(fields)
    for name, source in given.items():
        if source is None:
            continue
        if isinstance(source, str | Path):
            problems[name] = read_problems(source, limit=limit, fields=fields, gold_needed=gold_needed, renamed=renamed)
            names[name], digests[name] = str(source), sha256_file(Path(source))
            continue
        rows = list(source)
        if any(isinstance(each, Problem) for each in rows):
            problems[name] = ready_problems(rows, limit=limit, gold_needed=gold_needed)
        else:
            problems[name] = read_problems(rows, limit=limit, fields=fields, gold_needed=gold_needed, renamed=renamed)
        names[name] = f"{len(problems[name])} problems"
    renamed.check()
    return problems, names, digests


def rewarding(verifier: Verifier) -> Reward:
    """A verifier as the loop takes it: nan where there was nothing to judge, or the verifier crashed."""

    def reward(
        problems: Sequence[Problem],
        answers: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        step: int = 0,
    ) -> list[float]:
        scores = verifier(problems, answers, completion_ids=completion_ids, step=step)
        return [math.nan if score.missing or score.crashed else score.value for score in scores]

    return reward


def held_out(problems: tuple[Problem, ...]) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """Problems to learn from and to measure on: a tenth, from every tenth group, or all of them where there are few.

    What has one group, or asks the same, stays together: fewer than FEWEST of such are few.
    """
    groups = [problem.group or (problem.asked,) for problem in problems]
    sizes = Counter(groups)
    if len(sizes) < FEWEST:
        return problems, problems[:HELD_OUT]
    names, chosen, room = list(sizes), set(), min(-(-len(problems) // 10), HELD_OUT)
    for name in (*names[::10], *names):  # where those are too large, others
        if name not in chosen and sizes[name] <= room:
            chosen.add(name)
            room -= sizes[name]
    parts: tuple[list[Problem], list[Problem]] = ([], [])
    for problem, name in zip(problems, groups, strict=True):
        parts[name in chosen].append(problem)
    return tuple(parts[0]), tuple(parts[1])
