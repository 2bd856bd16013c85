"""Language models as judges: what fools them (BiasScope), and harder tests made from it (JudgeBench-Pro).

Names are imported on first use. The loop alone is `equipoise.judging.biasscope.biasscope`.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.judging.biases import Bias as Bias
    from equipoise.judging.biases import read_biases as read_biases
    from equipoise.judging.biases import seed_biases as seed_biases
    from equipoise.judging.job import audit_judge as audit_judge
    from equipoise.judging.pairs import Pair as Pair
    from equipoise.judging.pairs import read_pairs as read_pairs
    from equipoise.judging.result import JudgeAudit as JudgeAudit
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
