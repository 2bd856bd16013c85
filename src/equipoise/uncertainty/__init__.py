"""How sure a model is of what it says: per token, per answer, and as a sampler.

Names are imported on first use, so that the command line stays light.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.uncertainty.sampling_fidelity import Fidelity as Fidelity
    from equipoise.uncertainty.sampling_fidelity import measures as measures
    from equipoise.uncertainty.sampling_job import audit_sampling as audit_sampling
    from equipoise.uncertainty.sampling_result import SamplingAudit as SamplingAudit
    from equipoise.uncertainty.sampling_task import SamplingTask as SamplingTask
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
