"""Reward functions of the user's: TRL's, and rubrics of the package `verifiers`, both as they are.

A function is called as `trl.GRPOTrainer` calls it: prompts, completions and the columns of the rows by name; where a
prompt is a list of messages its completion is one, too; it gives a number for each completion, None where it has none
to give. It may be async. A rubric is anything with the method `score_group` of `verifiers.Rubric`; the answers to one
problem are one group.
"""

import asyncio
import contextlib
import inspect
import logging
import math
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from equipoise.core.errors import BadInput
from equipoise.core.files import sha256_file
from equipoise.core.user_file import named_in_file
from equipoise.data.problems import Problem
from equipoise.data.text import printable

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedReward:
    """What was named: the function or rubric, what to call it, and the sha256 of its file ("" for one of Python's)."""

    reward: Any
    name: str
    digest: str = ""


def load_reward(reward: str | Callable[..., Any] | Any) -> LoadedReward:
    """A reward function or rubric, given itself or as FILE:NAME. Raises BadInput.

    The file is run as Python would run it, its neighbours can be imported: it is the user's own, and has to be typed.
    """
    if isinstance(reward, str):
        found, path, name = named_in_file(
            reward,
            kind="reward",
            what="a reward function",
            example="rewards.py:reward",
            offers=lambda value: callable(value) or _is_rubric(value),
        )
        _check(found, f"{path}:{name}")
        return LoadedReward(found, name, sha256_file(path))
    _check(reward, type(reward).__name__)
    return LoadedReward(reward, getattr(reward, "__name__", type(reward).__name__))


def _check(reward: Any, named: str) -> None:
    if not _is_rubric(reward) and (not callable(reward) or inspect.isclass(reward)):
        raise BadInput(f"{named} is no reward function and no rubric with score_group.")


def _is_rubric(reward: Any) -> bool:
    return callable(getattr(reward, "score_group", None)) and not inspect.isclass(reward)


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_Row = tuple[Problem, str, Sequence[int] | None]  # with the answer, and the ids of its tokens


class Rewarder:
    """Calls a reward function or a rubric; what is async runs in one event loop, in a thread of its own, until `close`."""

    def __init__(self, loaded: LoadedReward) -> None:
        self.name, self.digest, self._reward = loaded.name, loaded.digest, loaded.reward
        function = loaded.reward.score_group if _is_rubric(loaded.reward) else loaded.reward
        self._parameters = inspect.signature(function).parameters
        self._loop: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None

    def __call__(
        self,
        problems: Sequence[Problem],
        answers: Sequence[str],
        *,
        completion_ids: Sequence[Sequence[int]] | None = None,
        step: int = 0,
    ) -> list[float | Exception | None]:
        """A reward for each answer, None where there is none, the exception where it could not be had.

        What a batch fails on is asked for row by row, so that one answer does not spoil the others. Raises BadInput for a
        function that needs token ids where none are given.
        """
        if completion_ids is None:
            needed = self._parameters.get("completion_ids")
            if needed is not None and needed.default is needed.empty:
                raise BadInput(f"the reward function {self.name} takes completion_ids, which are not at hand here.")
        ids = [None] * len(answers) if completion_ids is None else completion_ids
        return self._safely(list(zip(problems, answers, ids, strict=True)), step)

    def check(self, problems: Sequence[Problem]) -> None:
        """Raises BadInput, naming the first problem, where a function needs a column that the rows do not have."""
        if _is_rubric(self._reward):
            return
        needed = {name for name, each in self._parameters.items() if each.default is each.empty and each.kind in _NAMED}
        for problem in problems:
            given = _arguments([(problem, "", [])], 0)
            if lacking := sorted(needed - given.keys()):
                raise BadInput(
                    f"the reward function {self.name} takes {', '.join(lacking)}, which problem {problem.id!r} has not "
                    f"(found: {printable(', '.join(map(str, problem.columns))) or 'no columns'})."
                )

    def _safely(self, rows: Sequence[_Row], step: int) -> list[float | Exception | None]:
        try:
            return self._rewards(rows, step)
        except (Exception, SystemExit) as error:
            if len(rows) == 1:
                return [error if isinstance(error, Exception) else RuntimeError(f"SystemExit: {error}")]
        return [reward for row in rows for reward in self._safely([row], step)]

    def _rewards(self, rows: Sequence[_Row], step: int) -> list[float | Exception | None]:
        if not rows:
            return []
        if _is_rubric(self._reward):
            return self._from_rubric(rows)
        arguments = _arguments(rows, step)
        if not any(each.kind is each.VAR_KEYWORD for each in self._parameters.values()):
            arguments = {name: value for name, value in arguments.items() if name in self._parameters}
        given = self._reward(**arguments)
        given = list(self._wait(given) if inspect.isawaitable(given) else given)
        if len(given) != len(rows):
            raise ValueError(f"{self.name} gave {len(given)} rewards for {len(rows)} completions")
        return [_number(reward) for reward in given]

    def _from_rubric(self, rows: Sequence[_Row]) -> list[float | Exception | None]:
        states = [_state(problem, answer) for problem, answer, _ in rows]
        groups: dict[str, list[dict[str, Any]]] = {}
        for (problem, _, _), state in zip(rows, states, strict=True):
            groups.setdefault(problem.id, []).append(state)
        for group in groups.values():
            self._wait(self._reward.score_group(group))
        return [_number(state["reward"]) for state in states]

    def _wait(self, awaited: Awaitable[Any]) -> Any:
        if self._loop is None:
            loop = asyncio.new_event_loop()
            self._loop = loop, threading.Thread(target=_run, args=(loop,), daemon=True, name="equipoise-rewards")
            self._loop[1].start()
            weakref.finalize(self, _stop, loop)
        return asyncio.run_coroutine_threadsafe(_awaiting(awaited), self._loop[0]).result()

    def close(self) -> None:
        """Let a rubric put away what it has opened, and end the event loop."""
        if _is_rubric(self._reward) and inspect.iscoroutinefunction(getattr(self._reward, "teardown", None)):
            try:
                self._wait(self._reward.teardown())
            except Exception as error:
                _log.warning("the rubric %s could not be torn down: %s", self.name, error)
        running, self._loop = self._loop, None
        if running is not None:
            _stop(running[0])
            running[1].join()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    with contextlib.suppress(RuntimeError):  # closed before
        loop.call_soon_threadsafe(loop.stop)


async def _awaiting(awaited: Awaitable[Any]) -> Any:
    return await awaited


def _number(reward: Any) -> float | Exception | None:
    if reward is None:
        return None
    try:
        value = float(reward)
    except (TypeError, ValueError) as error:
        return error
    return value if math.isfinite(value) else ValueError(f"the reward is {value}")


def _messages(problem: Problem) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in problem.messages]


def _arguments(rows: Sequence[_Row], step: int) -> dict[str, Any]:
    """As trl.GRPOTrainer._calculate_rewards gives them (1.16)."""
    columns = list(dict.fromkeys(name for problem, _, _ in rows for name in problem.columns))
    ids = [list(each) for _, _, each in rows if each is not None]
    return {
        **{name: [problem.columns.get(name) for problem, _, _ in rows] for name in columns},
        **({"completion_ids": ids} if ids else {}),
        "prompts": [_messages(problem) or problem.prompt for problem, _, _ in rows],
        "completions": [
            [{"role": "assistant", "content": answer}] if problem.messages else answer for problem, answer, _ in rows
        ],
        "trainer_state": SimpleNamespace(global_step=step),
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
    }


def _state(problem: Problem, answer: str) -> dict[str, Any]:
    """What `verifiers` knows of a rollout when it is scored; a plain dict serves. Its input holds the columns of the row."""
    prompt = _messages(problem) or [{"role": "user", "content": problem.prompt}]
    columns: Mapping[str, Any] = problem.columns
    given = {"prompt": prompt, "answer": problem.gold[0] if problem.gold else "", "info": columns.get("info") or {}}
    return {
        **given,
        "input": {**columns, **given, "example_id": problem.id},
        "task": columns.get("task", ""),
        "completion": [{"role": "assistant", "content": answer}],
        "trajectory": [],
        "is_completed": True,
        "is_truncated": False,
        "error": None,
    }
