"""Chat models for pipelines, on Inspect AI's model layer: every call recorded, replayable, counted, within a budget.

Names are imported on first use, so that `import equipoise.chat` needs no extra.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.chat.account import Account, Budget
    from equipoise.chat.calls import Call, Message, Reply
    from equipoise.chat.client import Chat
    from equipoise.chat.record import Record
    from equipoise.chat.templates import Template

_MODULE = {
    "Account": "account",
    "Budget": "account",
    "Call": "calls",
    "Chat": "client",
    "Message": "calls",
    "Record": "record",
    "Reply": "calls",
    "Template": "templates",
}

__all__ = ["Account", "Budget", "Call", "Chat", "Message", "Record", "Reply", "Template"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
