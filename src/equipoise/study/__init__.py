"""The scales: declare a comparison, run it, store it, judge it, report it. Knows no domain.

Names are imported on first use, so that a study file costs nothing to list.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.study.claims import Claim as Claim
    from equipoise.study.claims import better as better
    from equipoise.study.claims import between as between
    from equipoise.study.claims import both as both
    from equipoise.study.claims import cheaper as cheaper
    from equipoise.study.claims import equal as equal
    from equipoise.study.claims import matched as matched
    from equipoise.study.claims import not_worse as not_worse
    from equipoise.study.claims import statistic as statistic
    from equipoise.study.declare import Arm as Arm
    from equipoise.study.declare import Outcome as Outcome
    from equipoise.study.declare import Select as Select
    from equipoise.study.declare import Study as Study
    from equipoise.study.declare import study as study
    from equipoise.study.run import Preparation as Preparation
    from equipoise.study.run import Run as Run
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
