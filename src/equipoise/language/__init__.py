"""Causal language models: loading, adapters, encoding, scoring, generation, hidden states.

Names are imported on first use, so that `import equipoise.language` loads no torch. A function with the name of its
module is imported from there: `from equipoise.language.encode import encode`, likewise `generate` and `tiny`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.language.adapters import attach, detach, export, merge
    from equipoise.language.encode import IGNORE, Example, collate, notes
    from equipoise.language.model import LanguageModel, load
    from equipoise.language.rehearsal import rehearse
    from equipoise.language.score import (
        Choices,
        log_likelihoods,
        multiple_choice,
        perplexity,
        text_loss,
        token_log_likelihoods,
    )
    from equipoise.language.states import editing, places, recording
    from equipoise.language.tiny import teach

_WHERE = {
    "adapters": ("attach", "detach", "export", "merge"),
    "encode": ("IGNORE", "Example", "collate", "notes"),
    "model": ("LanguageModel", "load"),
    "rehearsal": ("rehearse",),
    "score": ("Choices", "log_likelihoods", "multiple_choice", "perplexity", "text_loss", "token_log_likelihoods"),
    "states": ("editing", "places", "recording"),
    "tiny": ("teach",),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "IGNORE",
    "Choices",
    "Example",
    "LanguageModel",
    "attach",
    "collate",
    "detach",
    "editing",
    "export",
    "load",
    "log_likelihoods",
    "merge",
    "multiple_choice",
    "notes",
    "perplexity",
    "places",
    "recording",
    "rehearse",
    "teach",
    "text_loss",
    "token_log_likelihoods",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
