"""Policies for systems with states and actions, and what a change of the system does to them.

Names are imported on first use, so that the command line stays light.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.control.dr_sac import DRSAC as DRSAC
    from equipoise.control.fqi import FQI as FQI
    from equipoise.control.fqi import RFQI as RFQI
    from equipoise.control.job import collect as collect
    from equipoise.control.job import evaluate as evaluate
    from equipoise.control.job import train as train
    from equipoise.control.perturbation import perturb as perturb
    from equipoise.control.result import ControlEvaluation as ControlEvaluation
    from equipoise.control.result import ControlLogs as ControlLogs
    from equipoise.control.result import ControlTraining as ControlTraining
    from equipoise.control.robust import robust_value as robust_value
    from equipoise.control.robust import worst_case_weights as worst_case_weights
    from equipoise.control.sac import SAC as SAC
    from equipoise.control.transitions import Transitions as Transitions
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
