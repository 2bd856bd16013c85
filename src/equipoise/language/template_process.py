"""Renders chat templates in a process of its own, bounded in work and memory; run as a script by `language.templates`.

A template is a program that came with a model: two nested loops can run for days, a few doubled strings fill a machine, and
neither can be interrupted from inside. One JSON line in, one out; imports jinja2 and the standard library alone.
"""

import contextlib
import datetime
import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

LONGEST = 2**24  # characters of a rendered conversation
FULL = 77  # the exit code where memory ran out
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July",
          "August", "September", "October", "November", "December")  # fmt: skip


class Generation(Extension):
    """{% generation %}, with which some templates surround what an assistant said: here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def formatted(date: datetime.date, form: str) -> str:
    """date.strftime(form) at midnight, with English names whatever the locale is."""
    day, month = DAYS[date.weekday()], MONTHS[date.month - 1]
    english = {
        "a": day[:3], "A": day, "b": month[:3], "h": month[:3], "B": month, "p": "AM",
        "c": date.ctime(), "x": f"{date:%m/%d/%y}", "X": "00:00:00", "r": "12:00:00 AM", "%": "%%",
    }  # fmt: skip
    told = re.sub(r"%(.)", lambda match: english.get(match[1], match[0]), form, flags=re.DOTALL)
    return datetime.datetime.combine(date, datetime.time()).strftime(told)


def refuse(message: str) -> None:
    """What a template calls as `raise_exception`."""
    raise TemplateError(message)


def as_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """transformers' filter: jinja's own escapes what HTML would read."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def compiled(text: str) -> Template:
    """As transformers compiles it, but for the clock and the random filter, which would make two readings differ."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    del environment.filters["random"], environment.globals["lipsum"]
    return environment.from_string(text)


def rendered(template: Template, variables: dict[str, Any], date: datetime.date) -> str:
    """The text that a template writes. Raises TemplateError for one that is too long."""
    now: Callable[[str], str] = lambda form: formatted(date, form)  # noqa: E731
    text = template.render({**variables, "strftime_now": now, "date_string": formatted(date, "%d %b %Y")})
    if len(text) > LONGEST:
        raise TemplateError(f"it writes {len(text):,} characters")
    return text


def answer(request: dict[str, Any]) -> list[tuple[str | None, str | None]]:
    """(text, None) or (None, what is wrong) for each conversation of the request."""
    date = datetime.date.fromisoformat(request["date"])
    found: list[tuple[str | None, str | None]] = []
    for messages in request["conversations"]:
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        allowed = int(time.process_time()) + request["seconds"] + 1
        resource.setrlimit(resource.RLIMIT_CPU, (allowed if most < 0 else min(allowed, most), most))
        try:
            variables = {**request["variables"], "messages": messages}
            found.append((rendered(compiled(request["template"]), variables, date), None))
        except MemoryError:
            os._exit(FULL)  # what is left in memory would be in the way of the next template
        except Exception as error:  # whatever a template does wrong is told, and the next conversation is rendered
            found.append((None, str(error) or type(error).__name__))
    return found


def main() -> None:
    """Answer requests, a line of JSON each, until the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; its end closes stdin
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    bound = int(sys.argv[1])
    with contextlib.suppress(ValueError, OSError):  # macOS has the limit and refuses to set it
        resource.setrlimit(resource.RLIMIT_AS, (bound if most < 0 else min(bound, most), most))
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
