"""The scales: declare a comparison, run it, store it, judge it, report it. Knows no domain.

Names are imported on first use, so that a study file costs nothing to list.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.study.claims import Claim, better, between, both, cheaper, equal, matched, not_worse, statistic
    from equipoise.study.declare import Arm, Outcome, Select, Study, study
    from equipoise.study.run import Preparation, Run

__all__ = [
    "Arm",
    "Claim",
    "Outcome",
    "Preparation",
    "Run",
    "Select",
    "Study",
    "better",
    "between",
    "both",
    "cheaper",
    "equal",
    "matched",
    "not_worse",
    "statistic",
    "study",
]

_HOME: dict[str, str] = dict.fromkeys(("Arm", "Outcome", "Select", "Study", "study"), "declare")
_HOME |= dict.fromkeys(("Preparation", "Run"), "run")
_HOME |= {name: "claims" for name in __all__ if name not in _HOME}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
