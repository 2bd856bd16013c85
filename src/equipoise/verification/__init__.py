"""Certified robustness of feed-forward ReLU networks within an l2 ball: bounds, certificates, and a checker of its own.

`certify` is the job, `check.check` the checker. Names are imported on first use, so that the command line stays light.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.verification.faithful import compare as compare
    from equipoise.verification.from_torch import Normalize as Normalize
    from equipoise.verification.from_torch import from_module as from_module
    from equipoise.verification.job import certify as certify
    from equipoise.verification.network import Network as Network
    from equipoise.verification.network import write_network as write_network
    from equipoise.verification.read import read_network as read_network
    from equipoise.verification.result import Certification as Certification
    from equipoise.verification.result import CertifiedRow as CertifiedRow
    from equipoise.verification.result import Faithfulness as Faithfulness
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
