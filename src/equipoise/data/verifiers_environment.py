"""Environments of the package `verifiers` as they are: SingleTurnEnv, MultiTurnEnv, ToolEnv and groups of them (0.3).

    make = from_verifiers(vf.load_environment("wiki-search"), timeout=60)

The interaction stays theirs. Their `run_rollout` runs in an event loop beside us; where it asks its client for a response,
`reset` and `step` give what is new in the prompt, and the next step's text answers it. So state, tools, stop conditions,
cleanup and rubric are what they are for verifiers' own trainer. A rollout is scored when it has ended: its reward is that of
the last turn, and one that is cut before, by fewer turns than its own or a full context, has none. As with verifiers, a
reward function that raises counts 0, and is logged.
"""

import asyncio
import contextlib
import importlib
import json
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from equipoise.core.errors import BadInput, MissingExtra, WorkFailed, did_you_mean
from equipoise.data.text import encodable
from equipoise.data.tools import CALL, Action, read_action

if TYPE_CHECKING:
    from equipoise.data.environment import Maker

TIMEOUT = 300.0
TOOLS = f"""These tools can be called:
{{tools}}
Write a call as {CALL}. You are then told what it gives."""


def is_verifiers(value: Any) -> bool:
    """Whether it is an environment of verifiers, by what is needed of one."""
    return not isinstance(value, type) and all(
        callable(getattr(value, name, None)) for name in ("run_rollout", "build_dataset", "build_eval_dataset")
    )


def from_verifiers(environment: Any, *, timeout: float = TIMEOUT) -> "Maker":
    """What makes episodes of an environment of verifiers; that of a seed is of the row of this number, counted around.

    The rows are those to train on, or to evaluate with where there are no others. timeout: the seconds that it may take to
    answer a turn, scoring included. Raises BadInput for what is none, for one whose rewards compare the rollouts of a group
    or are switched off, and for one without rows.
    """
    if not is_verifiers(environment):
        raise BadInput(
            f"this is a {type(environment).__name__}, expected an environment of verifiers 0.3 with run_rollout, such as "
            "load_environment gives. Those of its second kind (verifiers.v1) cannot be played."
        )
    if not timeout > 0:
        raise BadInput(f"timeout is {timeout}: use seconds above 0.")
    name = str(getattr(environment, "env_id", "") or type(environment).__name__)
    _check_rewards(environment, name)
    rows = environment.build_dataset()
    if rows is None:
        rows = environment.build_eval_dataset()
    if rows is None or len(rows) == 0:
        raise BadInput(f"{name} has no rows to play: give it a dataset.")
    played = _Played(environment, name, rows, timeout, _max_turns(environment), _client_class())

    def make() -> VerifiersEnvironment:
        return VerifiersEnvironment(played)

    make.__name__ = name
    return make


def _check_rewards(environment: Any, name: str) -> None:
    if getattr(environment, "requires_group_rollouts", False):
        raise BadInput(
            f"{name} has rewards that compare the rollouts of a group (functions of completions, states or the like), and "
            "an episode is scored alone: give it a rubric of functions of one completion."
        )
    if not getattr(environment, "score_rollouts", True):
        raise BadInput(f"{name} does not score its rollouts: make it with score_rollouts=True.")
    for part in getattr(environment, "envs", ()):  # a group tells nothing of its parts' rewards
        _check_rewards(part, f"{name}, in which {type(part).__name__}")


def _max_turns(environment: Any) -> int | None:
    """The most that a rollout takes; None without a limit. Of a group the most of its parts."""
    if parts := getattr(environment, "envs", ()):
        limits = [_max_turns(part) for part in parts]
        return None if None in limits else max(limit for limit in limits if limit is not None)
    limit = getattr(environment, "max_turns", -1)
    return limit if limit and limit > 0 else None


def _types() -> Any:
    return importlib.import_module("verifiers.types")


def _client_class() -> Any:
    """A client of verifiers that asks the episode. What else its base wants of one is never called."""
    try:
        base = importlib.import_module("verifiers").Client
        _types()
    except (ImportError, AttributeError) as error:
        raise MissingExtra(
            f"an environment of verifiers needs the package, 0.3: pip install 'verifiers>=0.3,<0.4' ({error})."
        ) from error

    def init(self: Any, rollout: _Rollout) -> None:
        base.__init__(self, None)
        self.rollout = rollout

    async def get_response(self: Any, prompt: Any, *_: Any, tools: Any = None, **__: Any) -> Any:
        return await self.rollout.ask(prompt, tools or ())

    unused = dict.fromkeys(getattr(base, "__abstractmethods__", ()))
    return type("EpisodeClient", (base,), {**unused, "__init__": init, "get_response": get_response})


@dataclass
class _Played:
    """An environment and what all its episodes share, the event loop among it."""

    environment: Any
    name: str
    rows: Any
    timeout: float
    max_turns: int | None
    client_class: Any
    loop: "_Loop | None" = None

    def begin(self, row: int) -> "_Rollout":
        if self.loop is None or self.loop.stuck:
            self.loop = _Loop()
        return _Rollout(self, self.loop, row)


class _Loop:
    """An event loop in a thread of its own, which ends when nobody has it any more. stuck: something blocks it."""

    def __init__(self) -> None:
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        threading.Thread(target=_serve, args=(started,), daemon=True, name="equipoise-verifiers").start()
        self.loop, over = started.result()
        self.stuck = False
        weakref.finalize(self, _call, self.loop, over.set)

    def check(self, seconds: float) -> None:
        """Note whether it is stuck: it does nothing else for so long."""
        turned = threading.Event()
        _call(self.loop, turned.set)
        self.stuck = not turned.wait(seconds)


def _serve(started: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]") -> None:
    async def wait() -> None:
        over = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), over))
        await over.wait()

    asyncio.run(wait())


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], Any]) -> None:
    with contextlib.suppress(RuntimeError):  # closed before
        loop.call_soon_threadsafe(function)


@dataclass
class _Asked:
    """A request for a response, and where it is awaited."""

    prompt: Sequence[Any]
    tools: Sequence[Any]
    answer: "asyncio.Future[Any]"


class _Rollout:
    """One `run_rollout` in the loop. It knows no episode, so that one which is dropped can cancel it."""

    def __init__(self, played: _Played, loop: _Loop, row: int) -> None:
        self._played, self._loop, self._row = played, loop, row
        self._events: queue.SimpleQueue[_Asked | Mapping[str, Any] | BaseException] = queue.SimpleQueue()
        self._running = asyncio.run_coroutine_threadsafe(self._run(), loop.loop)

    async def _run(self) -> None:
        try:
            row, client = self._played.rows[self._row], self._played.client_class(self)
            self._events.put(await self._played.environment.run_rollout(row, client, "equipoise", {}))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit among them, which would end the loop
            self._events.put(error)

    async def ask(self, prompt: Sequence[Any], tools: Sequence[Any]) -> Any:
        asked = _Asked(list(prompt), list(tools), asyncio.get_running_loop().create_future())
        self._events.put(asked)
        return await asked.answer

    def answer(self, asked: _Asked, response: Any) -> None:
        def give() -> None:
            if not asked.answer.done():
                asked.answer.set_result(response)

        _call(self._loop.loop, give)

    def next(self) -> "_Asked | Mapping[str, Any]":
        """What comes next: a request, or the output of the rollout. Raises WorkFailed where it fails or does not come."""
        where = f"{self._played.name}, row {self._row}"
        try:
            event = self._events.get(timeout=0 if self._loop.stuck else self._played.timeout)
        except queue.Empty:
            if self._loop.stuck:
                raise WorkFailed(
                    f"{where}: another episode of this environment hangs, and holds up this one."
                ) from None
            self._loop.check(min(self._played.timeout, 1))
            raise WorkFailed(
                f"{where}: the environment has not answered within {self._played.timeout:g} s"
                + (", and blocks its event loop: something in it waits without await." if self._loop.stuck else ".")
            ) from None
        if isinstance(event, BaseException):
            raise WorkFailed(f"{where}: {type(event).__name__}: {event}") from event
        if isinstance(event, Mapping) and (error := event.get("error")):
            raise WorkFailed(f"{where}: {error.get('error_chain_repr') if isinstance(error, Mapping) else error}")
        return event

    def cancel(self) -> None:
        self._running.cancel()


class VerifiersEnvironment:
    """Episodes of an environment of verifiers, as `from_verifiers` makes them.

    Calls of tools are read from the text (`data.tools.read_action`); one that cannot be read, or names no tool, reaches the
    environment as one that cannot be made, and the reply says what was expected. Beside `Info` the last step tells metrics
    and stop_condition. Raises WorkFailed where the environment fails, hangs, shows an image, or changes what was said
    before: an episode only grows.
    """

    def __init__(self, played: _Played) -> None:
        self.max_turns, self.instances = played.max_turns, len(played.rows)
        self._played = played
        self._end: weakref.finalize[..., Any] | None = None
        self._asked: _Asked | None = None

    def reset(self, seed: int) -> str:
        """Begin a rollout of the seed's row: the first prompt as a text, with the tools that it offers."""
        self.close()
        self._calls: dict[str, tuple[str, str]] = {}  # by their ids: the tool, and what is wrong
        self._rollout = self._played.begin(seed % len(self._played.rows))
        self._end = weakref.finalize(self, self._rollout.cancel)
        with self._closing():
            event = self._rollout.next()
            if not isinstance(event, _Asked):
                raise WorkFailed(
                    f"{self._played.name} ended before it asked for anything ({event.get('stop_condition')})."
                )
            text = _beginning(event)
        self._asked = event
        return text

    def step(self, text: str) -> tuple[str, float, bool, dict[str, Any]]:
        """Answer the rollout; the reward and `success`, a reward of at least 1, come with the end."""
        asked, self._asked = self._asked, None
        if asked is None:
            raise BadInput("the episode has ended or not begun: call reset(seed).")
        with self._closing():
            return self._step(asked, text)

    def close(self) -> None:
        """Cancel a rollout that has not ended."""
        self._asked = None
        if self._end is not None:
            self._end()

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _step(self, asked: _Asked, text: str) -> tuple[str, float, bool, dict[str, Any]]:
        response, info = self._response(asked, text)
        self._rollout.answer(asked, response)
        event = self._rollout.next()
        if isinstance(event, _Asked):
            self._asked = event
            messages = _new(asked.prompt, event.prompt)
            return self._reply(messages), 0.0, False, {**info, "owner": _owner(messages)}
        completion = list(event.get("completion") or ())
        last = max((place for place, each in enumerate(completion) if each.get("role") == "assistant"), default=-1)
        messages, reward = completion[last + 1 :], float(event["reward"])
        info |= {"owner": _owner(messages), "success": reward >= 1 - 1e-9}
        info |= {"metrics": dict(event.get("metrics") or {}), "stop_condition": event.get("stop_condition")}
        return self._reply(messages), reward, True, info

    def _response(self, asked: _Asked, text: str) -> tuple[Any, dict[str, Any]]:
        """The text as verifiers takes a response, and what is told of it."""
        types, action = _types(), read_action(text) if asked.tools else Action()
        offered = [tool.get("name") for tool in asked.tools]
        calls, made, valid = [], [], not action.unfinished
        for call in action.calls:
            if isinstance(call, str):
                name, arguments, problem = "", "", call
            else:
                name, arguments = call["name"], json.dumps(call["arguments"])
                problem = "" if name in offered else f"There is no tool {name!r}. {did_you_mean(name, offered)}"
                made.append(call)
            key = f"call_{len(self._calls)}"
            self._calls[key] = name, problem
            calls.append(types.ToolCall(id=key, name=name, arguments=arguments))
            valid = valid and not problem
        message = types.ResponseMessage(
            content=text[: action.call_at].rstrip() if calls else text,
            tool_calls=calls or None,
            finish_reason="tool_calls" if calls else "stop",
            is_truncated=False,
        )
        response = types.Response(id="", created=int(time.time()), model="equipoise", message=message)
        return response, {"valid": valid, "actions": made}

    def _reply(self, messages: Sequence[Any]) -> str:
        """What messages tell; of a tool with its name, of a call that could not be made what was wrong with it."""
        told = []
        for message in messages:
            name, problem = self._calls.get(message.get("tool_call_id"), ("", ""))
            told.append(problem or (f"{name}: " if name else "") + _content(message))
        return encodable("\n\n".join(filter(None, told)))


def _beginning(asked: _Asked) -> str:
    """The first prompt: system messages, tools, the others; who says what where examples are among them."""
    examples = any(message.get("role") == "assistant" for message in asked.prompt)
    system, others = [], []
    for message in asked.prompt:
        if message.get("role") == "system":
            system.append(_content(message))
        else:
            others.append((f"{message.get('role').capitalize()}: " if examples else "") + _content(message))
    fields = ("name", "description", "parameters")
    tools = [json.dumps({field: tool.get(field) for field in fields}, ensure_ascii=False) for tool in asked.tools]
    offered = [TOOLS.replace("{tools}", "\n".join(tools))] if tools else []
    return encodable("\n\n".join(filter(None, [*system, *offered, *others])))


def _new(before: Sequence[Any], prompt: Sequence[Any]) -> Sequence[Any]:
    """What a prompt holds behind an earlier one and its answer."""
    count = len(before)
    kept = [(message.get("role"), _content(message)) for message in prompt[:count]]
    roles = [message.get("role") for message in prompt[count : count + 1]]
    if kept != [(message.get("role"), _content(message)) for message in before] or roles != ["assistant"]:
        raise WorkFailed(
            "the environment asks anew, or with other earlier messages: an episode only grows by what is said."
        )
    return prompt[count + 1 :]


def _owner(messages: Sequence[Any]) -> str:
    return "tool" if any(message.get("role") == "tool" for message in messages) else "environment"


def _content(message: Any) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    for part in content:
        if part.get("type") != "text":
            raise WorkFailed(f"the environment shows a part of type {part.get('type')!r}: only texts can be read.")
    return "\n".join(part.get("text") for part in content)
