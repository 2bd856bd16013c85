"""Making a model forget: objectives, rules that combine two gradients, and the job that does it to a model of yours.

`unlearn` is the job, `audit_forgetting` the one that says what comes back. `detoxify` takes directions of an unwanted style
out without training, and `undo` puts them back. Names are imported on first use, so that the
command line stays light.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.unlearning.audit_job import audit_forgetting as audit_forgetting
    from equipoise.unlearning.audit_result import ForgettingAudit as ForgettingAudit
    from equipoise.unlearning.audit_result import ForgettingAuditPlan as ForgettingAuditPlan
    from equipoise.unlearning.checkpoint_edit import undo as undo
    from equipoise.unlearning.detoxified import Detoxified as Detoxified
    from equipoise.unlearning.detoxified import DetoxifyPlan as DetoxifyPlan
    from equipoise.unlearning.detoxify_job import detoxify as detoxify
    from equipoise.unlearning.job import unlearn as unlearn
    from equipoise.unlearning.recipe import METHODS as METHODS
    from equipoise.unlearning.recipe import Recipe as Recipe
    from equipoise.unlearning.result import Unlearned as Unlearned
    from equipoise.unlearning.result import UnlearnPlan as UnlearnPlan
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
