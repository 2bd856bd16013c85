"""Baselines that know nothing of a prompt, or only its past: the controls of every critic. R is the reward of a response.

reinforce       R                                   no baseline (Williams, 1992)
batch-mean      R - mean reward of the step         a constant
running-mean    R - mean reward of the prompt in earlier steps; where there is none, of the step
"""

from typing import TYPE_CHECKING

from torch import Tensor

from equipoise.reinforcement.recipe import ADVANTAGES, METHODS, Advantage, Recipe

if TYPE_CHECKING:
    from equipoise.reinforcement.stages import Step


def _running_mean(step: "Step", recipe: Recipe) -> Tensor:
    assert step.baselines is not None
    return step.rewards - step.baselines.unsqueeze(-1)


ADVANTAGES.register("reinforce", Advantage(compute=lambda step, recipe: step.rewards, samples=1))
ADVANTAGES.register("batch-mean", Advantage(compute=lambda step, recipe: step.rewards - step.rewards.mean(), samples=1))
ADVANTAGES.register("running-mean", Advantage(compute=_running_mean, samples=1))
METHODS.register("reinforce", {"advantage": "reinforce"})
