"""Reinforcement learning with verifiable rewards: advantages, losses, critics and heads as parts, and a loop of them.

The parts are tensors in, tensors out, for any trainer. Names are imported on first use, so that commands stay light.
"""

from equipoise.core.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
