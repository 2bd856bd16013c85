"""How sure a model is of what it says: per token, per answer, and as a sampler.

Names are imported on first use, so that the command line stays light.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.uncertainty.bayes_job import bayesianize as bayesianize
    from equipoise.uncertainty.bayes_job import distill as distill
    from equipoise.uncertainty.job import score as score
    from equipoise.uncertainty.job import select as select
    from equipoise.uncertainty.perturbed import Perturbed as Perturbed
    from equipoise.uncertainty.sampling_fidelity import Fidelity as Fidelity
    from equipoise.uncertainty.sampling_fidelity import measures as measures
    from equipoise.uncertainty.sampling_job import audit_sampling as audit_sampling
    from equipoise.uncertainty.sampling_result import SamplingAudit as SamplingAudit
    from equipoise.uncertainty.sampling_task import SamplingTask as SamplingTask
    from equipoise.uncertainty.selection import Particles as Particles
    from equipoise.uncertainty.selection import particle_filter as particle_filter
    from equipoise.uncertainty.token_result import Selection as Selection
    from equipoise.uncertainty.token_result import TokenScores as TokenScores
    from equipoise.uncertainty.tokur import TokenUncertainty as TokenUncertainty
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
