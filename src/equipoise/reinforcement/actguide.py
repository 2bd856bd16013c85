"""ActGuide (arXiv:2605.12004): where all rollouts of a task fail, show the shortest start of a recorded list that helps.

A list a_1 .. a_L of actions (name and arguments, no reasoning) gives the hints g_k = (a_1 .. a_k), g_0 none. Of a task whose
rollouts all fail the shortest sufficient one is sought, new rollouts are written with it, and learnt as if it had not been
there:

    k* = min {k : one of the rollouts with g_k succeeds}                                         by bisection
    rho = pi(z | x, ..) / pi_old(z | x, g_k*, ..)            numerator without the hint, denominator with it
    l = max(-A rho, -A clamp(rho, 1 - clip_low, 1 + clip_high))          A within the group, which is all with g_k*

Here are the parts that know no model but its tokens: lists from logs, hints, the search, and the batch without hints. The
stage of the loop is `guiding`. Differs from the released code: the search goes on until it is decided (five rounds do for 31
actions, and then it returned what nobody had tried), a hint without actions is the prompt itself, and actions whose
arguments hold the answer are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.core.errors import BadInput
from equipoise.core.registry import Registry
from equipoise.data.answers import contains
from equipoise.data.problems import GOLDS
from equipoise.data.records import Message, kind_of, read_rows

if TYPE_CHECKING:
    from equipoise.data.problems import Problem
    from equipoise.language.rollouts import Rollouts

Action = Mapping[str, Any]  # {"name": "search", "arguments": {"query": "..."}}
Prompt = str | Sequence[Message]
Template = Callable[[Prompt, Sequence[Action]], Prompt]
TEMPLATES: Registry[Template] = Registry("equipoise.reinforcement", "TEMPLATES")

LEFT_OUT = ("goal",)  # arguments that tell what the agent thought, and nothing that was done
_NAMES, _KEYS = ("arguments", "args", "parameters"), ("id", "prompt", "question")
_BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class ActionLog:
    """Action lists by what names their task: its id, and its prompt.

    rows: that were read. errors: of these, those that say so themselves and were dropped. repeated: those of a task that
    had a list before, of which the shortest stays. unreadable: calls that were no JSON. leaks: actions left out because
    they hold the answer.
    """

    lists: Mapping[str, tuple[Action, ...]]
    rows: int = 0
    errors: int = 0
    repeated: int = 0
    unreadable: int = 0
    leaks: int = 0

    def of(self, problems: Iterable[Problem]) -> dict[str, tuple[Action, ...]]:
        """By the id of each problem that has one its list, without the actions that hold its gold answers."""
        found = {}
        for problem in problems:
            actions = self.lists.get(problem.id) or self.lists.get(problem.prompt)
            if actions and (kept := without_leaks(actions, problem.gold)):
                found[problem.id] = kept
        return found


def read_actions(path: str | Path, *, left_out: Sequence[str] = LEFT_OUT) -> ActionLog:
    """The action lists of a file (JSON lines, a row a recorded episode).

    A row has an id, a question or prompt, or both; and `actions`, a list of {"name", "arguments"}, or `messages`, whose
    assistant's turns hold `tool_calls` as OpenAI writes them, or <tool_call> blocks in their text. Parallel calls count one
    after the other. A row with an `error` is dropped; of several rows of a task the shortest list stays. An action is left
    out where its arguments hold the row's own answer. left_out: names of arguments that no hint shows.
    Raises BadInput, naming file and line, for a row of another form, and for a file without any list.
    """
    lists: dict[str, tuple[Action, ...]] = {}
    rows = errors = repeated = unreadable = leaks = 0
    for place, _, row in read_rows(Path(path), {*_KEYS, *GOLDS, "actions", "messages", "error"}):
        rows += 1
        keys = _keys(row, place)
        if not keys:
            raise BadInput(f"{place}: no id, prompt or question: a list of actions needs the name of its task.")
        if row.get("error"):
            errors += 1
            continue
        calls = list(_calls(row, place))
        actions = tuple(_cleaned(call, left_out) for call in calls if call is not None)
        kept = without_leaks(actions, _golds(row))
        unreadable += len(calls) - len(actions)
        leaks += len(actions) - len(kept)
        repeated += any(key in lists for key in keys)
        for key in keys:
            if kept and (key not in lists or len(kept) < len(lists[key])):
                lists[key] = kept
    if not lists:
        raise BadInput(f"{path} has no list of actions in its {rows} rows, of which {errors} say that they failed.")
    return ActionLog(lists, rows, errors, repeated, unreadable, leaks)


def without_leaks(actions: Sequence[Action], golds: Sequence[str]) -> tuple[Action, ...]:
    """The actions in whose arguments no gold answer stands as words next to each other, whatever their case."""
    return tuple(
        action
        for action in actions
        if not golds or not any(contains(text, golds) for text in _texts(action["arguments"]))
    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = value.values()
    elif isinstance(value, str) or not isinstance(value, Iterable):
        yield str(value)
        return
    for each in value:
        yield from _texts(each)


def _keys(row: Mapping[str, Any], place: str) -> list[str]:
    """What names the row's task: its id and what was asked, of a conversation its last turn."""
    found = []
    for name in _KEYS:
        value = row.get(name)
        if isinstance(value, list) and value:
            said = _said(value[-1].get("content")) if isinstance(value[-1], Mapping) else None
            if said is None:
                raise BadInput(f"{place}: {name} is a list, expected turns of a conversation with role and content.")
            found.append(said)
        elif isinstance(value, Mapping):
            raise BadInput(f"{place}: {name} is {kind_of(value)}, expected a text, or turns of a conversation.")
        elif value not in (None, []):
            found.append(str(value))
    return [each for each in found if each]


def _said(content: Any) -> str | None:
    """The text of a turn, also in parts as OpenAI has them; "" for none, None for what is no text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return None
    texts = [part.get("text", "") if isinstance(part, Mapping) else None for part in content]
    return "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else None


def _golds(row: Mapping[str, Any]) -> list[str]:
    values = [value for name, value in row.items() if name.casefold() in GOLDS]
    golds = [value.get("ground_truth") if isinstance(value, Mapping) else value for value in values]
    return [text for gold in golds if gold is not None for text in _texts(gold)]


def _calls(row: Mapping[str, Any], place: str) -> Iterator[Action | None]:
    """The row's actions in their order; None for one that is no JSON."""
    if row.get("actions") is not None:
        if not isinstance(row["actions"], list):
            raise BadInput(f"{place}: actions is {kind_of(row['actions'])}, expected a list of {{name, arguments}}.")
        for number, action in enumerate(row["actions"]):
            read = _action(action)
            if read is None:
                raise BadInput(
                    f"{place}: action {number} is {kind_of(action)}, expected a name and arguments as an object."
                )
            yield read
        return
    if not isinstance(row.get("messages"), list):
        raise BadInput(f"{place}: neither actions nor messages: expected a list of one of the two.")
    for message in row["messages"]:
        if not isinstance(message, Mapping) or message.get("role") != "assistant":
            continue
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise BadInput(
                f"{place}: tool_calls is {kind_of(calls)}, expected a list of {{function: {{name, arguments}}}}."
            )
        for call in calls:
            yield _action(call.get("function", call) if isinstance(call, Mapping) else call)
        for block in _BLOCK.findall(_said(message.get("content")) or ""):
            try:
                yield _action(json.loads(block))
            except (ValueError, RecursionError):
                yield None


def _action(call: Any) -> Action | None:
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str) or not call["name"]:
        return None
    arguments = next((call[name] for name in _NAMES if call.get(name) is not None), {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    return {"name": call["name"], "arguments": arguments} if isinstance(arguments, Mapping) else None


def _cleaned(action: Action, left_out: Sequence[str]) -> Action:
    arguments = {name: value for name, value in action["arguments"].items() if name not in left_out}
    return {"name": action["name"], "arguments": arguments}


def hinted(prompt: Prompt, actions: Sequence[Action], template: str | Template = "plan") -> Prompt:
    """A prompt, text or conversation, with these actions shown; without any the prompt itself, whatever the template."""
    if not actions:
        return prompt
    return (TEMPLATES[template] if isinstance(template, str) else template)(prompt, actions)


@TEMPLATES.register("plan")
def plan(prompt: Prompt, actions: Sequence[Action]) -> Prompt:
    """The list below what is asked, in the same turn, and that it may not be all."""
    shown = (
        f"\n\nThe beginning of a plan for this, step by step:\n{_numbered(actions)}\n"
        "Make use of it. It may be incomplete: where it ends, go on with steps of your own until you are done."
    )
    if isinstance(prompt, str):
        return prompt + shown
    asked = max((place for place, turn in enumerate(prompt) if turn.role == "user"), default=len(prompt) - 1)
    return tuple(
        replace(turn, content=turn.content + shown) if place == asked else turn for place, turn in enumerate(prompt)
    )


@TEMPLATES.register("prefill")
def prefill(prompt: Prompt, actions: Sequence[Action]) -> Prompt:
    """The list as the beginning of the answer, which the model continues."""
    begun = f"My plan begins so:\n{_numbered(actions)}\n"
    return f"{prompt}\n{begun}" if isinstance(prompt, str) else (*prompt, Message("assistant", begun))


def _numbered(actions: Sequence[Action]) -> str:
    return "\n".join(
        f"{number}. {action['name']}: {json.dumps(action['arguments'], ensure_ascii=False)}"
        for number, action in enumerate(actions, 1)
    )


def shortest_prefix(succeeds: Callable[[int], bool], length: int) -> int:
    """The smallest k in [0, length] of which `succeeds` says yes, by bisection; `length` where it never does.

    It is asked at most ceil(log2(length + 1)) times, never of `length` itself. Where it is not monotone, or draws anew each
    time, what is returned was said yes to once, or is `length`. Raises BadInput for a length below 0.
    """
    return shortest_prefixes(lambda asked: [succeeds(k) for _, k in asked], [length])[0]


def shortest_prefixes(
    succeed: Callable[[Sequence[tuple[int, int]]], Sequence[bool]], lengths: Sequence[int]
) -> list[int]:
    """`shortest_prefix` of several tasks at once: a round asks of all that are undecided, as (place, k) each."""
    if min(lengths, default=0) < 0:
        raise BadInput(f"a list of {min(lengths)} actions has no prefixes: use lengths of at least 0.")
    bounds = [(0, length) for length in lengths]
    while asked := [(place, (low + high) // 2) for place, (low, high) in enumerate(bounds) if low < high]:
        for (place, k), good in zip(asked, succeed(asked), strict=True):
            low, high = bounds[place]
            bounds[place] = (low, k) if good else (k + 1, high)
    return [high for _, high in bounds]


def rebuild(episodes: Rollouts, unguided_prompts: Sequence[Sequence[int]]) -> Rollouts:
    """The same responses to other prompts (token ids, one for each): what is learnt from no longer shows the hint.

    Tokens, masks and turns stay, and so do the log-probabilities: they are those under the hint, the ratio's denominator.
    Raises BadInput for another number of prompts.
    """
    if len(unguided_prompts) != len(episodes.prompts):
        raise BadInput(
            f"there are {len(unguided_prompts)} prompts for {len(episodes.prompts)} groups: give one for each."
        )
    return replace(episodes, prompts=tuple(tuple(prompt) for prompt in unguided_prompts))
