"""Reinforcement learning with verifiable rewards: advantages, losses, critics and heads as parts, and the loop that uses them.

The parts are tensors in, tensors out, for any trainer. Names are imported on first use, so that the command line stays light.
"""

from equipoise.core.lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
