"""A JSON schema as a grammar of llguidance, which both engines follow: torch through the package, llama.cpp built in."""

from __future__ import annotations

import json

from equipoise.core.errors import BadInput, MissingExtra

# The form of json.dumps. With free white space a small model may go on with blanks until its tokens are spent.
_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def json_grammar(schema: str) -> str:
    """The grammar, in Lark's notation, of the texts that satisfy the JSON schema, on one line.

    Raises BadInput for a schema that cannot be followed (a wrong one, or with a keyword or pattern that llguidance does
    not know), MissingExtra without llguidance.
    """
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise MissingExtra("Answers by a JSON schema need llguidance: pip install 'equipoise[chat]'.") from error

    grammar = "%llguidance {}\nstart: %json " + json.dumps({**json.loads(schema), "x-guidance": _FORM})
    failed, problems = LLMatcher.validate_grammar_with_warnings(grammar)
    if failed:
        raise BadInput(f"The response schema cannot be followed: {' '.join(problems[0].split())[:300]}")
    return grammar
