"""A tool set as an environment: Python functions that a model calls by JSON until it answers.

    def search(query: str) -> str:
        \"\"\"Find a paragraph about the query.\"\"\"

    def make():                                 equipoise's name for it: shop.py:make
        return ToolEnvironment([ToolTask("Who wrote Ulysses?", "James Joyce")], {"search": search})

What a model writes in a turn (`read_action`), behind its thinking:

    <tool_call>{"name": "search", "arguments": {"query": "Ulysses"}}</tool_call>        or such an object without tags
    <answer>James Joyce</answer>                                                        or a line "Answer: James Joyce"

Several calls of a turn are made at once, and are one step. Where a turn has calls, an answer in it is not read: it was
written before their replies.
"""

import ast
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.options import check_fields
from equipoise.data.text import after_thinking, encodable
from equipoise.data.verify import Kind, check_gold, verify

CALL = '<tool_call>{"name": "NAME", "arguments": {"ARGUMENT": "VALUE"}}</tool_call>'
ANSWER = "<answer>ANSWER</answer>"
INSTRUCTIONS = f"""Answer the question. These tools can be called:
{{tools}}
Write a call as {CALL}. You are then told what it gives.
When you know the answer, write {ANSWER}.

Question: {{question}}"""

_TAG = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"\A```\w*\s*|\s*```\Z")
_ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_ANSWER_LINE = re.compile(
    r"^[\s*#>_-]*(?:the )?(?:final )?answer(?: is)?[*_ ]*:[*_]*\s*(\S.*)$", re.IGNORECASE | re.MULTILINE
)
_ARGUMENTS = ("arguments", "parameters", "args")
_DECODER = json.JSONDecoder()

Call = dict[str, Any]  # {"name", "arguments"}


@dataclass(frozen=True, slots=True)
class Action:
    """What a turn says. calls: in their order, a sentence in place of one that cannot be read. answer: None without one.

    call_at: where in the text the first call begins; None without calls. unfinished: thinking has begun and not ended.
    """

    calls: tuple[Call | str, ...] = ()
    answer: str | None = None
    call_at: int | None = None
    unfinished: bool = False


def read_action(text: str) -> Action:
    """The calls and the answer of a turn, as the module says. Of several answers the last counts."""
    said = after_thinking(text)
    if said is None:
        return Action(unfinished=True)
    begin = _behind_thinking(text, said)
    read = text[begin:]
    answers = [*_ANSWER_TAG.finditer(read)] or [*_ANSWER_LINE.finditer(read)]
    tagged = [(tag.start(), call) for tag in _TAG.finditer(read) for call in _in_tag(tag[1])]
    found = tagged or [
        (place, call)
        for place, call in _bare(read)
        if not any(answer.start() <= place < answer.end() for answer in answers)
    ]
    return Action(
        tuple(call for _, call in found),
        answers[-1][1].strip() if answers else None,
        begin + found[0][0] if found else None,
    )


def _behind_thinking(text: str, said: str) -> int:
    """Where the end that both have in common begins."""
    begin = len(text)
    for written, kept in zip(reversed(text), reversed(said), strict=False):
        if written != kept:
            break
        begin -= 1
    return begin


def _in_tag(body: str) -> list[Call | str]:
    body = _FENCE.sub("", body.strip())
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        try:
            found = ast.literal_eval(body)  # as Python writes it, with single quotes
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [f"This call is no JSON ({error}): {body[:80]!r}. Write {CALL}."]
    calls = [(each, _call(each)) for each in (found if isinstance(found, list) and found else [found])]
    return [call or f"This call has no name and arguments: {str(each)[:80]!r}. Write {CALL}." for each, call in calls]


def _call(found: Any, *, arguments: bool = False) -> Call | None:
    """The call that a value is; None for one that is none. arguments: whether they must be there."""
    if isinstance(found, dict) and isinstance(found.get("function"), dict):
        found = found["function"]
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    given = [found[name] for name in _ARGUMENTS if name in found]
    if arguments and not given:
        return None
    value = given[0] if given else {}
    if isinstance(value, str):  # as in OpenAI's messages
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return {"name": found["name"], "arguments": value} if isinstance(value, dict) else None


def _bare(text: str) -> list[tuple[int, Call]]:
    """The objects of a text that are calls, and where each begins."""
    found: list[tuple[int, Call]] = []
    place = text.find("{")
    while place >= 0:
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1
        else:
            if call := _call(value, arguments=True):
                found.append((place, call))
        place = text.find("{", end)
    return found


@dataclass(frozen=True, slots=True)
class ToolTask:
    """A question, its gold answer, or several of which the best counts, and how it is verified (`data.verify`).

    score: (answer, task) -> a finite number, in place of `kind`. no_call: in [0, 1], the share of its score that an answer
    without any call is worth, where rewards ask for it (`entropy_tools.outcome_reward` with no_call="task-default").
    """

    question: str
    gold: str | Sequence[str]
    kind: Kind = "f1"
    score: Callable[[str, "ToolTask"], float] | None = None
    no_call: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.no_call <= 1:
            raise BadInput(f"no_call of the task {self.question[:40]!r} is {self.no_call}: use a share, 0 to 1.")


@dataclass
class ToolEnvironment:
    """Tasks whose answer is sought with tools; the episode of a seed is the task of that number, counted around.

    tools: by the names that a model calls them by; each is described by its signature and the first paragraph of its
    docstring, is called with the arguments by their names, and gives a text, or what is shown as JSON. One that raises
    gives its error as the reply. max_reply: characters of a reply to one call, the rest is cut with a note. instructions:
    what is shown first, with {tools} and {question}. The answer ends the episode, the reward is its score, and `success`
    means one of at least 1.
    """

    tasks: Sequence[ToolTask]
    tools: Mapping[str, Callable[..., Any]]
    max_turns: int = 8
    max_reply: int = 2000
    instructions: str = INSTRUCTIONS
    chance: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tasks or not self.tools:
            raise BadInput(f"there are {len(self.tasks)} tasks and {len(self.tools)} tools: give at least one of each.")
        for name, tool in self.tools.items():
            if not callable(tool):
                raise BadInput(f"the tool {name!r} is a {type(tool).__name__}, expected a function.")
        if min(self.max_turns, self.max_reply) < 1:
            raise BadInput(f"max_turns is {self.max_turns} and max_reply {self.max_reply}: at least 1 each.")
        if missing := [name for name in ("{tools}", "{question}") if name not in self.instructions]:
            raise BadInput(f"the instructions have no {' and no '.join(missing)}: say where that is to stand.")

    @property
    def instances(self) -> int:
        """How many different episodes there are."""
        return len(self.tasks)

    def reset(self, seed: int) -> str:
        """The task of the seed, and the tools that there are. Raises BadInput for a gold that cannot be compared with."""
        self._task = self.tasks[seed % self.instances]
        if self._task.score is None:
            check_gold(self._task.kind, _golds(self._task))
        tools = "\n".join(described(name, tool) for name, tool in self.tools.items())
        before, _, after = self.instructions.partition("{question}")  # a question may have braces, too
        return before.replace("{tools}", tools) + self._task.question + after.replace("{tools}", tools)

    def step(self, text: str) -> tuple[str, float, bool, dict[str, Any]]:
        """Make the turn's calls, or score its answer.

        Beside `Info` it tells call_at, errors (of each call that was made, whether it raised), reason (why an answer is not
        right) and no_call.
        """
        action = read_action(text)
        info: dict[str, Any] = {"call_at": action.call_at, "no_call": self._task.no_call}
        if action.calls:
            return self._called(action, info)
        if action.answer:
            value, reason = self._scored(action.answer)
            return "", value, True, {**info, "success": value >= 1, "valid": True, "reason": reason}
        problem = "The thinking did not end." if action.unfinished else "That is neither a call nor an answer."
        return f"{problem} Write {CALL} or {ANSWER}.", 0.0, False, {**info, "valid": False}

    def _called(self, action: Action, info: dict[str, Any]) -> tuple[str, float, bool, dict[str, Any]]:
        replies, made, errors = [], [], []
        for call in action.calls:
            problem = call if isinstance(call, str) else self._problem(call)
            if problem or isinstance(call, str):
                replies.append(problem)
                continue
            reply, raised = self._made(call)
            replies.append(reply if len(action.calls) == 1 else f"{call['name']}: {reply}")
            made.append(call)
            errors.append(raised)
        if action.answer is not None:
            replies.append("The answer was not read: it was written before what the calls gave.")
        told = {"valid": len(made) == len(action.calls), "actions": made, "errors": errors}
        return "\n".join(replies), 0.0, False, {**info, **told, "owner": "tool" if made else "environment"}

    def _problem(self, call: Call) -> str:
        """Why a call cannot be made; "" for one that can."""
        name, arguments = call["name"], call["arguments"]
        if name not in self.tools:
            return encodable(f"There is no tool {name!r}. {did_you_mean(name, self.tools)}")
        try:
            signature = inspect.signature(self.tools[name])
        except ValueError:  # of some functions that are not written in Python nobody knows it
            return ""
        try:
            signature.bind(**arguments)
        except TypeError as error:
            return encodable(f"{name} cannot be called so: {error}. It is {described(name, self.tools[name])}")
        return ""

    def _made(self, call: Call) -> tuple[str, bool]:
        """What a call gives, as a text, and whether the tool raised."""
        try:
            given = self.tools[call["name"]](**call["arguments"])
            text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False, default=str)
            raised = False
        except Exception as error:
            text, raised = f"Error: {type(error).__name__}: {error}", True
        text = encodable(text)
        beyond = len(text) - self.max_reply
        return (f"{text[: self.max_reply]} [{beyond} more characters]" if beyond > 0 else text or "(nothing)"), raised

    def _scored(self, answer: str) -> tuple[float, str]:
        if self._task.score is not None:
            return float(self._task.score(answer, self._task)), ""
        score = verify(self._task.kind, answer, self._task.gold)
        return score.value, score.reason


def _golds(task: ToolTask) -> Sequence[str]:
    return (task.gold,) if isinstance(task.gold, str) else task.gold


def described(name: str, tool: Callable[..., Any]) -> str:
    """A tool in a line: its signature, and the first paragraph of its docstring."""
    try:
        signature = str(inspect.signature(tool))
    except ValueError:
        signature = "(...)"
    first = (inspect.getdoc(tool) or "").partition("\n\n")[0]
    return f"{name}{signature}" + (f": {' '.join(first.split())}" if first else "")
