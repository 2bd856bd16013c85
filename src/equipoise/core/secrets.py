"""Keys and passwords that must stand in no file, log, message or report, wherever the text came from.

A server may echo the header that it was sent, an exception may quote a request: what is written goes through `redact`, and
what others said of an error through `one_line`.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

SECRET_NAME = re.compile(
    r"(?:token|secret|passw(?:or)?d|credentials?)(?:$|_)|(?:^|_)(?:keys?|auth(?:orization)?|headers?)(?:$|_)"
    r"|(?:api|access|private)key",
    re.IGNORECASE,
)
REDACTED = "[key]"
LONGEST_LINE = 240  # characters of foreign text that a sentence quotes
# Shorter ones, and words such as the "not-needed" of a local server, occur in honest answers.
_SHORTEST, _SHORTEST_WORD = 8, 16
_SPLIT = re.compile(r"[\s,;:=\"']+")
# What a secret looks like that no variable or argument holds.
_LIKE_SECRETS = (
    re.compile(r"(?i)\b(?:bearer|basic)\s+[\w.~+/=-]{6,}"),
    re.compile(r"(?i)\b(?:authorization|x-api-key|api[-_]?key)\b[\"']?\s*[:=]\s*\S+"),
    re.compile(r"\b(?:sk|pk|key|hf|gsk|xai)[-_][\w-]{8,}"),
    re.compile(r"(?<=//)[^/\s@]+@"),
    re.compile(r"(?i)[?&](?:[\w-]*key|token|signature|sig)=[^&\s]+"),
)


def known_secrets(arguments: Mapping[str, Any] | None = None, url: str | None = None) -> list[str]:
    """Values of environment variables and arguments whose names say that they are secret, and the password in an address.

    The longest first, so that none is left in part. Values that could be words of an answer are left out.
    """
    values = [text for given in (os.environ, arguments or {}) for _, text in named_secrets(given)]
    if url is not None and (password := urlsplit(url).password):
        values.append(password)
    return sorted({part for value in values for part in _parts(value)}, key=len, reverse=True)


def named_secrets(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of each text whose name, or that of what it stands in, says that it is secret, however deep it stands."""
    if isinstance(value, Mapping):
        for key, held in value.items():
            secret = SECRET_NAME.search(str(key).replace("-", "_"))
            yield from named_secrets(held, name or (str(key) if secret else ""))
    elif isinstance(value, list | tuple):
        for held in value:
            yield from named_secrets(held, name)
    elif name and isinstance(value, str):
        yield name, value


def redact(text: str, secrets: Iterable[str] | None = None) -> str:
    """The text without these secrets (those of the environment when none are given), as they are or in an address."""
    for secret in known_secrets() if secrets is None else secrets:
        text = text.replace(secret, REDACTED)
    return text


def one_line(text: str, secrets: Iterable[str] | None = None) -> str:
    """Foreign text for a reader: one line, not too long, as `redact`, and without what looks like a secret."""
    text = redact(text, secrets)
    for pattern in _LIKE_SECRETS:
        text = pattern.sub(REDACTED, text)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 1]}…"


def _parts(value: str) -> Iterator[str]:
    """The value and, of one such as "Authorization=Bearer abc", its pieces; each also as an address would hold it."""
    for part in {value.strip(), *_SPLIT.split(value)}:
        if len(part) >= (_SHORTEST_WORD if re.fullmatch(r"[A-Za-z_.-]*", part) else _SHORTEST):
            yield part
            yield quote(part, safe="")
