"""Language models as judges: what fools them (BiasScope), and harder tests made from it (JudgeBench-Pro).

Names are imported on first use. The loop alone is `equipoise.judging.biasscope.biasscope`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.judging.biases import Bias, read_biases, seed_biases
    from equipoise.judging.job import JudgeAudit, audit_judge
    from equipoise.judging.pairs import Pair, read_pairs

_MODULE = {
    "Bias": "biases",
    "JudgeAudit": "job",
    "Pair": "pairs",
    "audit_judge": "job",
    "read_biases": "biases",
    "read_pairs": "pairs",
    "seed_biases": "biases",
}

__all__ = ["Bias", "JudgeAudit", "Pair", "audit_judge", "read_biases", "read_pairs", "seed_biases"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
