"""Keys and passwords that must stand in no file, log, message or report, wherever the text came from.

A server may echo the header that it was sent, an exception may quote a request: what is written goes through `redact`.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

SECRET_NAME = re.compile(
    r"(?:^|_)(?:keys?|token|secret|passw(?:or)?d|credentials?|auth(?:orization)?|headers?)(?:$|_)|apikey", re.IGNORECASE
)
REDACTED = "[key]"
# Shorter ones, and words such as the "not-needed" of a local server, occur in honest answers.
_SHORTEST, _SHORTEST_WORD = 8, 16
_SPLIT = re.compile(r"[\s,;:=\"']+")


def known_secrets(arguments: Mapping[str, Any] | None = None, url: str | None = None) -> list[str]:
    """Values of environment variables and arguments whose names say that they are secret, and the password in an address.

    The longest first, so that none is left in part. Values that could be words of an answer are left out.
    """
    named = [*os.environ.items(), *(arguments or {}).items()]
    values = [text for name, value in named if SECRET_NAME.search(name) for text in _texts(value)]
    if url is not None and (password := urlsplit(url).password):
        values.append(password)
    return sorted({part for value in values for part in _parts(value)}, key=len, reverse=True)


def redact(text: str, secrets: Iterable[str] | None = None) -> str:
    """The text without these secrets (those of the environment when none are given), as they are or in an address."""
    for secret in known_secrets() if secrets is None else secrets:
        text = text.replace(secret, REDACTED)
    return text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _parts(value: str) -> Iterator[str]:
    """The value and, of one such as "Authorization=Bearer abc", its pieces; each also as an address would hold it."""
    for part in {value.strip(), *_SPLIT.split(value)}:
        if len(part) >= (_SHORTEST_WORD if re.fullmatch(r"[A-Za-z_.-]*", part) else _SHORTEST):
            yield part
            yield quote(part, safe="")
