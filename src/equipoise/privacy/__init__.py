"""Rules learned from people's records that say no more about one person than was agreed.

Names are imported on first use, so that the command line stays light.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.privacy.dp_2erm import DPTreatmentRule as DPTreatmentRule
    from equipoise.privacy.dp_2erm import noise_plan as noise_plan
    from equipoise.privacy.dp_2erm import sensitivity as sensitivity
    from equipoise.privacy.job import evaluate as evaluate
    from equipoise.privacy.job import fit as fit
    from equipoise.privacy.job import plan as plan
    from equipoise.privacy.result import NoisePlan as NoisePlan
    from equipoise.privacy.result import RuleEvaluation as RuleEvaluation
    from equipoise.privacy.result import RuleFit as RuleFit
    from equipoise.privacy.result import RulePlan as RulePlan
    from equipoise.privacy.ruling import load as load
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
