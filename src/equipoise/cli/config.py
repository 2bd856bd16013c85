"""`--config run.json`: the settings that a job stored, as the options that they are.

Such a file may come from somebody else, so it chooses no code to run, no address that gets keys, and no place to write:
what could is typed, or refused with the words to type.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equipoise.core.errors import BadInput
from equipoise.core.files import read_regular

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_PLACES = ("out", "output", "fresh", "config", "debug")
# Of a provider's arguments, those that cannot name code or an address.
_HARMLESS = ("engine", "chat_template", "context", "device", "dtype", "revision", "batch_size", "threads", "parallel")


def expand(tokens: list[str]) -> list[str]:
    """The tokens of a command with those of its --config file added; an option that is typed beside it wins.

    Raises BadInput for a file that is missing or holds no settings, and for a setting that must be typed.
    """
    place = next((index for index, token in enumerate(tokens) if token.split("=")[0] == "--config"), None)
    if place is None:
        return tokens
    option, _, name = tokens[place].partition("=")
    rest = tokens[:place] + tokens[place + (1 if name else 2) :]
    name = name or (tokens[place + 1] if place + 1 < len(tokens) else "")
    try:
        settings = _settings(Path(name))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise BadInput(f"{option} {name!r}: {error}; expected the run.json that a job stored.") from error
    typed = {token.split("=")[0] for token in rest}
    for key, value in settings.items():
        flag = f"--{key.replace('_', '-')}"
        if value is None or value is False or flag in typed:
            continue
        # In one token: a value that begins with dashes is no option of its own.
        token = flag if value is True else f"{flag}={','.join(map(str, value)) if isinstance(value, list) else value}"
        if danger := _danger(key, value):
            raise BadInput(f"{name} sets {key}, which {danger}; no file decides that. If you want it, type it: {token}")
        rest.append(token)
    return rest


def _settings(path: Path) -> dict[str, Any]:
    settings: Mapping[str, Any] = json.loads(read_regular(path))
    fields = {f"{ours}_field": theirs for ours, theirs in settings.get("fields", {}).items()}
    found = {**{key: value for key, value in settings.items() if key != "fields"}, **fields}
    for key in found:
        if not _NAME.fullmatch(key):
            raise ValueError(f"{key!r} is no name of a setting")
    return found


def _danger(key: str, value: Any) -> str:
    """What a setting could do that its user must want; "" for nothing."""
    if key == "trust_remote_code":
        return "runs code that comes with a model"
    if key == "attn_implementation" and "/" in str(value):
        return "fetches and runs code of the hub"
    if key.endswith("_url"):
        return "names an address that gets your texts and keys"
    if key.endswith("_args"):
        names = [part.partition("=")[0].strip() for part in str(value).split(",")]
        if not set(names) <= set(_HARMLESS):
            return "can make a provider run code or call another address"
    return "says where to write, or how" if key in _PLACES else ""
