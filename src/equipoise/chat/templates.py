r"""Prompts as text files: slots with types in a header, then the messages of a call.

    ---
    question: text
    answers: list
    count: integer
    mode: brief|thorough
    ---
    # system
    You compare answers. Be {{mode}}.
    # user
    Which of these {{count}} answers is the best one to: {{question}}
    {{answers}}

Types: text, integer, number, list (numbered lines, from 1) and a|b (one of these words). A line that is only `# system`,
`# user` or `# assistant` begins a message; blank lines around a message are dropped. What is filled in stays text: it is
never searched for slots or messages. To write two braces as they are, put a backslash before them: `\{{`. To begin a line
with such a heading as it is, put a backslash before it: `\# user`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.files import read_regular
from equipoise.data.records import Message

TYPES = ("text", "integer", "number", "list")
ROLES = ("system", "user", "assistant")

_FENCE = "---"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CHOICE = re.compile(r"[^\s|]+(?:\|[^\s|]+)+")
_HEADING = re.compile(rf"# *({'|'.join(ROLES)}) *")
_ESCAPED_HEADING = re.compile(rf"^\\(?={_HEADING.pattern}$)", re.MULTILINE)
_PIECE = re.compile(r"\\\{\{|\{\{([^{}]*)\}\}|\{\{")


@dataclass(frozen=True)
class Template:
    """slots: name -> type, in the order of the header. digest: sha256 of the file, for fingerprints."""

    name: str
    slots: Mapping[str, str]
    digest: str
    _parts: tuple[tuple[str, tuple[tuple[bool, str], ...]], ...] = field(
        repr=False
    )  # role -> (is a slot, text or name)

    @classmethod
    def read(cls, source: str | Path | Traversable) -> Template:
        """From a file, or a resource of a package. Raises BadInput naming file and line."""
        source = Path(source) if isinstance(source, str) else source
        try:
            data = read_regular(source) if isinstance(source, Path) else source.read_bytes()
            text = data.decode()
        except OSError as error:
            raise BadInput(f"{source}: the template cannot be read ({error.strerror or error}).") from None
        except UnicodeDecodeError as error:
            raise BadInput(f"{source}: not UTF-8 (byte at offset {error.start}); convert the file.") from None
        return _parsed(str(source), text, hashlib.sha256(data).hexdigest())

    def render(self, **values: Any) -> tuple[Message, ...]:
        """The messages with the slots filled. Raises BadInput for a slot that is missing, unknown or of another type."""
        for name in values.keys() - self.slots.keys():
            raise BadInput(f"{self.name} has no slot {name!r}. {did_you_mean(name, self.slots)}")
        if missing := [name for name in self.slots if name not in values]:
            raise BadInput(f"{self.name} needs {', '.join(missing)}; fill every slot.")
        filled = {name: self._text(name, kind, values[name]) for name, kind in self.slots.items()}
        return tuple(
            Message(role, "".join(filled[text] if slot else text for slot, text in pieces))
            for role, pieces in self._parts
        )

    def _text(self, name: str, kind: str, value: Any) -> str:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if kind == "text" and isinstance(value, str):
            return value
        if kind == "integer" and number and isinstance(value, int):
            return str(value)
        if kind == "number" and number and math.isfinite(value):
            return str(value)
        if kind == "list" and isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return "\n".join(f"{position}. {item}" for position, item in enumerate(value, start=1))
        if "|" in kind and isinstance(value, str) and value in kind.split("|"):
            return value
        what = f"one of {kind.replace('|', ', ')}" if "|" in kind else {"list": "a list of texts"}.get(kind, kind)
        near = f" {did_you_mean(value, kind.split('|'))}" if "|" in kind and isinstance(value, str) else ""
        raise BadInput(f"{self.name}: the slot {name} is {what}, not {type(value).__name__} {str(value)[:40]!r}.{near}")


def _parsed(name: str, text: str, digest: str) -> Template:
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    slots, begin = _header(name, lines)
    used: set[str] = set()
    parts = []
    for role, first, body in _messages(name, lines, begin):
        pieces = tuple(_pieces(name, first, body, slots))
        used |= {piece for slot, piece in pieces if slot}
        parts.append((role, pieces))
    for number, line in enumerate(lines[:begin], start=1):
        if (slot := line.partition(":")[0].strip()) in slots.keys() - used:
            raise BadInput(f"{name}:{number}: the slot {slot!r} is declared and not used; use it, or delete the line.")
    return Template(name, slots, digest, tuple(parts))


def _header(name: str, lines: list[str]) -> tuple[dict[str, str], int]:
    """(slots, index of the first line after the header)."""
    if not lines or lines[0].strip() != _FENCE:
        raise BadInput(
            f"{name}:1: a template begins with a line ---, one line 'slot: type' for each slot, and --- again."
        )
    slots: dict[str, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        if line.strip() == _FENCE:
            return slots, number
        if not line.strip():
            continue
        if _HEADING.fullmatch(line):
            raise BadInput(
                f"{name}:{number}: the header does not end before this line; put a line --- after the slots."
            )
        slot, _, kind = (piece.strip() for piece in line.partition(":"))
        if not _NAME.fullmatch(slot) or slot in slots:
            problem = "stands twice" if slot in slots else "is no name"
            raise BadInput(f"{name}:{number}: the slot {slot!r} {problem}; expected 'slot: type'.")
        if kind not in TYPES and (not _CHOICE.fullmatch(kind) or len(set(kind.split("|"))) < kind.count("|") + 1):
            raise BadInput(
                f"{name}:{number}: no type {kind!r}; expected {', '.join(TYPES)}, or a choice such as yes|no."
            )
        slots[slot] = kind
    raise BadInput(f"{name}:{len(lines)}: the header does not end; put a line --- after the slots.")


def _messages(name: str, lines: list[str], begin: int) -> Iterator[tuple[str, int, str]]:
    """(role, 1-based number of the first line, body) of each message."""
    headings = [(i, match[1]) for i in range(begin, len(lines)) if (match := _HEADING.fullmatch(lines[i]))]
    before = next((i for i in range(begin, headings[0][0] if headings else len(lines)) if lines[i].strip()), None)
    if before is not None or not headings:
        line = begin if before is None else before + 1
        raise BadInput(f"{name}:{line}: text outside of a message; begin one with # {', # '.join(ROLES)}.")
    ends = [index for index, _ in headings[1:]] + [len(lines)]
    for (index, role), end in zip(headings, ends, strict=True):
        first = next((i for i in range(index + 1, end) if lines[i].strip()), None)
        if first is None:
            raise BadInput(f"{name}:{index + 1}: the message of # {role} is empty; write it, or delete the heading.")
        yield role, first + 1, _ESCAPED_HEADING.sub("", "\n".join(lines[first:end]).rstrip())


def _pieces(name: str, first: int, body: str, slots: Mapping[str, str]) -> Iterator[tuple[bool, str]]:
    at = 0
    for match in _PIECE.finditer(body):
        yield False, body[at : match.start()]
        at = match.end()
        line = first + body.count("\n", 0, match.start())
        where = f"{name}:{line}"
        if match[0].startswith("\\"):
            yield False, "{{"
        elif match[1] is None:
            raise BadInput(f"{where}: {{{{ without }}}}; close the slot, or write \\{{{{ for two braces.")
        elif (slot := match[1].strip()) in slots:
            yield True, slot
        else:
            raise BadInput(f"{where}: the slot {slot!r} is not declared. {did_you_mean(slot, slots)}")
    yield False, body[at:]
