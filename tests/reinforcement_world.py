"""A small world for the loop of reinforcement: an untaught model whose answers end early, problems, a reward, a run."""

import copy
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import torch

from chat_models import untaught
from equipoise.core.state import load_state, save_state
from equipoise.data.problems import Problem
from equipoise.reinforcement.critic import Critic
from equipoise.reinforcement.recipe import METHODS, recipe
from equipoise.reinforcement.training import prepare, train

ENDS = [2, *range(100, 150)]  # about every sixth token of an untaught model ends its answer
PROBLEMS = [
    Problem(f"p{index}", prompt, ("a",))
    for index, prompt in enumerate(["yes", "Where was Mulum Kunwick born?", "one two three four", "no", "Norway? Oslo"])
]
SMALL = {"steps": 2, "prompts_per_step": 3, "max_new_tokens": 5, "learning_rate": 1e-3}
ALL = {name: {"head_steps": 1, "policy_steps": 1} if name == "r2po" else {} for name in METHODS}


_untaught = cache(untaught)


def model(seed=4, dtype=torch.float32):
    made = _untaught(seed)
    copied = copy.deepcopy(made.model).to(dtype)
    copied.generation_config.eos_token_id = ENDS
    return replace(made, model=copied)


def odd(problems, texts):
    """1 for an answer of an odd number of characters, else 0."""
    return [float(len(text) % 2) for text in texts]


def reinforced(method, *, language_model=None, problems=PROBLEMS, reward=odd, how=None, critic=None, **settings):
    """The run of a preset: model, critic, result, weights at the end, and what was logged of each step."""
    chosen = recipe(method, **{**SMALL, **(ALL[method] if method else {}), **settings})
    start = language_model or model()
    if critic is None and chosen.critic != "none":
        critic = Critic.of(start, seed=0)
    ready, seen = prepare(start, chosen), []
    how = {"callbacks": [seen.append], **(how or {})}
    result = train(ready, chosen, problems, reward, critic=critic, **how)
    return SimpleNamespace(
        language_model=ready, critic=critic, result=result, recipe=chosen, steps=[each.step for each in seen],
        metrics=[each.metrics for each in seen], weights=weights(ready.model),
    )  # fmt: skip


def weights(module):
    return {name: each.detach().clone() for name, each in module.named_parameters()}


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def copied(state, folder):
    """A state through the file that a job would write."""
    save_state(folder / "copied.state", state)
    return load_state(folder / "copied.state")


class Books:
    """Of a run: what was spent and stored."""

    def __init__(self, stored=None):
        self.stored, self.spent, self.states = stored, [], []

    def resume(self):
        return self.stored

    def checkpoint(self, state):
        self.states.append(state)

    def spend(self, *, phase, **amounts):
        assert phase == "build"
        self.spent.append(amounts)
