"""`--config run.json`: the settings that a job stored, as the options that they are."""

import json
from pathlib import Path

from equipoise.core.errors import BadInput


def expand(tokens: list[str]) -> list[str]:
    """The tokens of a command with those of its --config file added; an option that is typed beside it wins.

    Raises BadInput for a file that is missing or holds no settings.
    """
    place = next((index for index, token in enumerate(tokens) if token.split("=")[0] == "--config"), None)
    if place is None:
        return tokens
    option, _, name = tokens[place].partition("=")
    rest = tokens[:place] + tokens[place + (1 if name else 2) :]
    name = name or (tokens[place + 1] if place + 1 < len(tokens) else "")
    try:
        settings = json.loads(Path(name).read_text(encoding="utf-8"))
        renamed = {f"{ours}_field": theirs for ours, theirs in settings.pop("fields", {}).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise BadInput(f"{option} {name!r}: {error}; expected the run.json that a job stored.") from error
    typed = {token.split("=")[0] for token in rest}
    for key, value in {**settings, **renamed}.items():
        flag = f"--{key.replace('_', '-')}"
        if value is not None and value is not False and flag not in typed:
            rest += [flag] if value is True else [flag, str(value)]
    return rest
