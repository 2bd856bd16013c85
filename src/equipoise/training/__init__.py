"""One training loop on Accelerate, and steps of two gradients that a rule combines.

Names are imported on first use, so that `import equipoise.training` loads no torch.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.training.loop import OneLoss as OneLoss
    from equipoise.training.loop import Optimization as Optimization
    from equipoise.training.loop import TrainerSettings as TrainerSettings
    from equipoise.training.loop import TrainerState as TrainerState
    from equipoise.training.loop import TrainResult as TrainResult
    from equipoise.training.loop import fit as fit
    from equipoise.training.two_gradients import TwoGradients as TwoGradients
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
