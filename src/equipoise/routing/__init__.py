"""Routing between a weak model kept local and a strong one: scores of prompts, thresholds, and how routers are measured.

Names are imported on first use, so that the command line stays light.
"""

from typing import TYPE_CHECKING

from equipoise.core.lazy import lazy

if TYPE_CHECKING:
    from equipoise.routing.controller import Controller as Controller
    from equipoise.routing.controller import Decision as Decision
    from equipoise.routing.job import evaluate as evaluate
    from equipoise.routing.job import fit as fit
    from equipoise.routing.job import label as label
    from equipoise.routing.probe_dirichlet import ProbeDirichlet as ProbeDirichlet
    from equipoise.routing.probes import ProbeLayer as ProbeLayer
    from equipoise.routing.probes import ProbeMax as ProbeMax
    from equipoise.routing.probes import ProbeMean as ProbeMean
    from equipoise.routing.probes import ProbeSoftmax as ProbeSoftmax
    from equipoise.routing.prompt_states import Prefill as Prefill
    from equipoise.routing.prompt_states import prefill as prefill
    from equipoise.routing.result import RouteEvaluation as RouteEvaluation
    from equipoise.routing.result import RouteFit as RouteFit
    from equipoise.routing.result import RouteLabels as RouteLabels
    from equipoise.routing.router import Router as Router
    from equipoise.routing.router import load as load
    from equipoise.routing.thresholds import Threshold as Threshold
    from equipoise.routing.thresholds import threshold as threshold
else:
    __getattr__, __dir__, __all__ = lazy(__name__, __file__)
