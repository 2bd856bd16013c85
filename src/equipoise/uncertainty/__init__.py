"""How sure a model is of what it says: per token, per answer, and as a sampler.

Names are imported on first use, so that the command line stays light.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.uncertainty.bayes_job import bayesianize as bayesianize
    from equipoise.uncertainty.bayes_job import distill as distill
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
