"""The work of `control collect`: a policy acts, with uniform actions among its own, and everything is logged."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.control.agent import check_boxes, finite
from equipoise.control.environments import open_environment, parse_levels, try_out
from equipoise.control.policies import load_policy
from equipoise.control.result import CollectPlan, ControlLogs
from equipoise.control.transitions import Transitions
from equipoise.core.errors import BadInput
from equipoise.core.files import sha256_file
from equipoise.core.job import Request
from equipoise.core.progress import progress

DATA = "data.npz"
EPSILON = 0.5  # of a policy's actions that are uniform


@dataclass(frozen=True, eq=False)
class Collecting(Request):
    """A request to collect, read and found right."""

    name: str
    environment: Any
    policy: Any
    steps: int
    epsilon: float
    seed: int
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls, name: str, *, policy: Path | None, perturb: str | None, steps: int, epsilon: float | None, seed: int
    ) -> Collecting:
        """Raises BadInput for a wrong request."""
        levels = {} if perturb is None else parse_levels(perturb)
        if several := [each for each, values in levels.items() if len(values) > 1]:
            raise BadInput(f"logs are made at one level of {several[0]}: write {several[0]}=VALUE.")
        if policy is None and epsilon is not None:
            raise BadInput("epsilon would be ignored: without a policy every action is uniform. Leave it out.")
        changes = {each: values[0] for each, values in levels.items()}
        environment = open_environment(name, changes)
        check_boxes(environment)
        try_out(name, changes)
        agent = None
        if policy is not None:
            agent = load_policy(policy)
            agent.check_spaces(environment)
        inputs = {} if policy is None else {"policy": sha256_file(policy)}
        chance = 1.0 if policy is None else EPSILON if epsilon is None else epsilon
        return cls(name, environment, agent, steps, chance, seed, inputs, {})

    def plan(self) -> CollectPlan:
        return CollectPlan(self.name, "none: uniform actions" if self.policy is None else self.policy.name, self.steps)

    def work(self, folder: Path | None) -> ControlLogs:
        with tempfile.TemporaryDirectory() as made:
            data, returns = self._logged()
            data.save((folder or Path(made)) / DATA)
        cut = data.episodes - len(returns)
        mean = float(np.mean(returns)) if returns else float("nan")
        box = data.action_high - data.action_low
        covered = (data.actions.max(0) - data.actions.min(0)) / box
        return ControlLogs(
            environment=self.name,
            transitions=len(data),
            episodes=len(returns),
            terminated=int(data.terminated.sum()),
            truncated=int(data.truncated.sum()) - cut,
            cut=cut,
            mean_return=mean,
            covered=float(covered.min()),
        )

    def _logged(self) -> tuple[Transitions, list[float]]:
        generator = np.random.default_rng(np.random.SeedSequence([self.seed, 0]))
        box = self.environment.action_space
        rows: dict[str, list[Any]] = {name: [] for name in ("s", "a", "r", "s2", "terminated", "truncated")}
        returns, total, number = [], 0.0, 0
        seen, _ = self.environment.reset(seed=self.seed)
        with progress("Collecting", total=self.steps, unit="steps") as bar:
            for _ in range(self.steps):
                if self.policy is None or generator.random() < self.epsilon:
                    action = generator.uniform(box.low, box.high).astype(box.dtype)
                else:
                    action = self.policy.predict(seen, deterministic=True)[0]
                after, reward, terminated, truncated, _ = self.environment.step(action)
                finite(after)
                finite(reward)
                for name, value in zip(rows, (seen, action, reward, after, terminated, truncated), strict=True):
                    rows[name].append(np.array(value))
                total, seen = total + float(reward), after
                if terminated or truncated:
                    number += 1
                    returns.append(total)
                    total = 0.0
                    seen, _ = self.environment.reset(seed=self.seed + number)
                bar.advance(1)
        stacked = {name: np.stack(values) for name, values in rows.items()}
        if not stacked["truncated"][-1] and not stacked["terminated"][-1]:
            stacked["truncated"][-1] = True  # the logs end here, the episode does not
        data = Transitions(
            stacked["s"], stacked["a"], stacked["r"], stacked["s2"], stacked["terminated"], stacked["truncated"],
            box.low, box.high,
        )  # fmt: skip
        return data, returns
