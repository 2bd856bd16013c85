"""Certified robustness of feed-forward ReLU networks within an l2 ball: bounds, certificates, and a checker of its own.

`certify` is the job, `check.check` the checker. Names are imported on first use, so that the command line stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.verification.faithful import Faithfulness, compare
    from equipoise.verification.from_torch import Normalise, from_module
    from equipoise.verification.job import Certification, Row, certify
    from equipoise.verification.network import Network, write_network
    from equipoise.verification.read import read_network

__all__ = [
    "Certification",
    "Faithfulness",
    "Network",
    "Normalise",
    "Row",
    "certify",
    "compare",
    "from_module",
    "read_network",
    "write_network",
]

_MODULE = {
    **dict.fromkeys(("Certification", "Row", "certify"), "job"),
    **dict.fromkeys(("Network", "write_network"), "network"),
    **dict.fromkeys(("Normalise", "from_module"), "from_torch"),
    **dict.fromkeys(("Faithfulness", "compare"), "faithful"),
    "read_network": "read",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
