"""Certified robustness of feed-forward ReLU networks within an l2 ball: bounds, certificates, and a checker of its own.

`certify` is the job, `check.check` the checker. Names are imported on first use, so that the command line stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.verification.job import Certification, Row, certify
    from equipoise.verification.network import Network, Normalise, from_module, read_network, write_network

__all__ = ["Certification", "Network", "Normalise", "Row", "certify", "from_module", "read_network", "write_network"]

_MODULE = dict.fromkeys(("Certification", "Row", "certify"), "job") | dict.fromkeys(
    ("Network", "Normalise", "from_module", "read_network", "write_network"), "network"
)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
