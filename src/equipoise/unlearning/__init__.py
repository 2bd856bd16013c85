"""Making a model forget: objectives, rules that combine two gradients, and the job that does it to a model of yours.

`unlearn` is the job. Names are imported on first use, so that the command line stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.unlearning.job import Plan, Unlearned, plan, unlearn
    from equipoise.unlearning.recipe import METHODS, Recipe

__all__ = ["METHODS", "Plan", "Recipe", "Unlearned", "plan", "unlearn"]

_MODULE = {"METHODS": "recipe", "Recipe": "recipe"} | dict.fromkeys(("Plan", "Unlearned", "plan", "unlearn"), "job")


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
