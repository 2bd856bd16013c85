"""The work of `control evaluate`: the same starts for all policies at every level of every perturbation.

Killed at any moment, the same call goes on: returns.jsonl has a row for each policy at each level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.control.agent import Agent
from equipoise.control.environments import (
    episode,
    open_environment,
    parse_levels,
    shown_changes,
    try_out,
    unchanged,
)
from equipoise.control.job import train
from equipoise.control.perturbation import canonical
from equipoise.control.policies import load_policy
from equipoise.control.result import ControlEvaluation, EvaluatePlan, Level
from equipoise.control.returns import iqm, iqm_interval, unpaired_interval
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import sha256_file
from equipoise.core.folder import damage, read_manifest
from equipoise.core.job import Request
from equipoise.core.progress import progress
from equipoise.core.rows import Rows
from equipoise.core.shares import Bounded
from equipoise.core.statistics import item_interval, mean_interval

RETURNS = "returns.jsonl"
DRAWS = 2000
APART = 1_000_000  # from the starts that test to those that choose


@dataclass(frozen=True, eq=False)
class Evaluating(Request):
    """A request to evaluate, read and found right. policies: by the name of their folder; levels: what is tested."""

    policies: dict[str, tuple[tuple[str, Agent], ...]]
    environment: str
    levels: tuple[tuple[str, float], ...]
    validation: tuple[tuple[str, float], ...]
    episodes: int
    seed: int
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(
        cls, runs: Sequence[Path], *, environment: str, perturb: str, choose_by: str | None, episodes: int, seed: int
    ) -> Evaluating:
        """Raises BadInput for a wrong request; plays no episode."""
        tested = _pairs(parse_levels(perturb))
        chosen_by = () if choose_by is None else _pairs(parse_levels(choose_by))
        # By name, however an environment calls it: a level beside one that is tested is nearly that one.
        if both := {canonical(name) for name, _ in chosen_by} & {canonical(name) for name, _ in tested}:
            raise BadInput(f"{min(both)} both chooses and tests: a radius has to be chosen on other perturbations.")
        if idle := [f"{name}={level:g}" for name, level in chosen_by if level == unchanged(name)]:
            raise BadInput(f"{idle[0]} changes nothing, and the environment as it is is tested: choose by a change.")
        if chosen_by and len(runs) < 2:
            raise BadInput("there is nothing to choose from: --choose-by needs further folders, with --against.")
        if len({run.resolve() for run in runs}) < len(runs):
            raise BadInput("a folder is named twice.")
        policies, inputs = {}, {}
        for run in runs:
            found = _policies(run)
            policies[str(run)] = found
            for file, agent in found:
                inputs[f"{run}/{file}"] = sha256_file(run / file)
                agent.check_spaces(open_environment(environment))
        for name, level in (*tested, *chosen_by):
            try_out(environment, {} if level == unchanged(name) else {name: level})
        return cls(policies, environment, tested, chosen_by, episodes, seed, inputs, {})

    def plan(self) -> EvaluatePlan:
        places = [*dict.fromkeys((*self._all(), *self.validation))]
        return EvaluatePlan(
            environment=self.environment,
            policies={name: len(found) for name, found in self.policies.items()},
            levels=tuple(f"{name}={level:g}" for name, level in places),
            episodes=self.episodes * len(places) * sum(map(len, self.policies.values())),
        )

    def work(self, folder: Path | None) -> ControlEvaluation:
        rows = Rows(None if folder is None else folder / RETURNS)
        returns, paths = self._played(rows)
        measured = {
            run: tuple(self._level(returns, run, name, level) for name, level in self._all()) for run in self.policies
        }
        validated = {}
        for run in self.policies if self.validation else ():
            validated[run] = float(np.mean([returns[run, name, level].mean() for name, level in self.validation]))
        return ControlEvaluation(
            environment=self.environment,
            episodes=self.episodes,
            policies={name: len(found) for name, found in self.policies.items()},
            levels=measured,
            gains={run: self._gains(returns, run) for run in list(self.policies)[1:]},
            validated=validated,
            validation=tuple(f"{name}={level:g}" for name, level in self.validation),
            chosen=max(validated, key=validated.__getitem__) if validated else "",
            trajectories=paths,
            unmoved=tuple(f"{name}={level:g}" for name, level in self.levels if self._unmoved(returns, name, level)),
            notes=tuple(f"{each} It was played again." for each in rows.damaged),
        )

    def _all(self) -> tuple[tuple[str, float], ...]:
        """What is tested, and the environment as it is, named by each perturbation."""
        usual = tuple((name, unchanged(name)) for name in dict.fromkeys(name for name, _ in self.levels))
        return tuple(
            sorted(dict.fromkeys((*usual, *self.levels)), key=lambda pair: (list(dict(usual)).index(pair[0]), pair[1]))
        )

    def _played(self, rows: Rows) -> tuple[dict[tuple[str, str, float], NDArray[Any]], dict[str, tuple[float, ...]]]:
        """Returns [policies, episodes] by folder, perturbation and level; and what one episode each shows first."""
        known = {(row["policy"], row["name"], row["level"]): row["returns"] for row in rows}
        places = [*dict.fromkeys((*self._all(), *self.validation))]
        returns: dict[tuple[str, str, float], NDArray[Any]] = {}
        paths: dict[str, tuple[float, ...]] = {}
        total = len(places) * sum(map(len, self.policies.values()))
        with progress("Playing", total=total * self.episodes, unit="episodes") as bar:
            for run, found in self.policies.items():
                for name, level in places:
                    changes = {} if level == unchanged(name) else {name: level}
                    own = []
                    for file, agent in found:
                        key = (f"{run}/{file}", name, level)
                        if key not in known:
                            first_seed = self.seed + (APART if (name, level) in self.validation else 0)
                            known[key] = self._returns(agent, changes, first_seed)
                            rows.add({"policy": key[0], "name": name, "level": level, "returns": known[key]})
                        own.append(known[key])
                        bar.advance(self.episodes)
                    returns[run, name, level] = np.array(own, float)
                first, (name, level) = found[0][1], self.levels[-1]
                for words, changes in (("as it is", {}), (f"{name}={level:g}", {name: level})):
                    _, seen = episode(first, open_environment(self.environment, changes), self.seed)
                    paths[f"{run}, {words}"] = tuple(float(each[0]) for each in seen)
        return returns, paths

    def _returns(self, agent: Agent, changes: dict[str, float], first_seed: int) -> list[float]:
        environment = open_environment(self.environment, changes)
        try:
            found = [episode(agent, environment, first_seed + number)[0] for number in range(self.episodes)]
            if not np.isfinite(found).all():
                raise ArithmeticError("a return is no number")
        except Exception as error:  # others' code, which may fail in any way
            raise WorkFailed(f"{self.environment} fails {shown_changes(changes)}: {error}") from error
        finally:
            environment.close()
        return found

    def _unmoved(self, returns: Any, name: str, level: float) -> bool:
        """Whether a change is none: all returns of all policies are those of the environment as it is."""
        usual = unchanged(name)
        return level != usual and all(
            np.array_equal(returns[run, name, level], returns[run, name, usual]) for run in self.policies
        )

    def _level(self, returns: Any, run: str, name: str, level: float) -> Level:
        scores = returns[run, name, level]
        generator = np.random.default_rng(np.random.SeedSequence([self.seed, 31]))
        low, high = iqm_interval(scores, generator, draws=DRAWS)
        quantiles = np.quantile(scores, [0.1, 0.9]).tolist()
        return Level(name, level, _mean(scores), Bounded(iqm(scores), low, high), *quantiles)

    def _gains(self, returns: Any, run: str) -> tuple[tuple[str, float, Bounded], ...]:
        """How much more the first folder gets than this one, from the same starts."""
        first = next(iter(self.policies))
        found = []
        for name, level in self._all():
            one, other = returns[first, name, level], returns[run, name, level]
            if len(one) == len(other):
                found.append((name, level, _mean(one - other)))
            else:
                found.append((name, level, Bounded(*unpaired_interval(one, other))))
        return tuple(found)


def _mean(values: NDArray[Any]) -> Bounded:
    """Over policies and starts; of one policy over its starts alone."""
    return Bounded.of(mean_interval(values) if len(values) > 1 else item_interval(values[0]))


def _pairs(levels: dict[str, tuple[float, ...]]) -> tuple[tuple[str, float], ...]:
    return tuple((name, level) for name, values in levels.items() for level in values)


def _policies(run: Path) -> tuple[tuple[str, Agent], ...]:
    try:
        command = read_manifest(run)["command"]
        damaged = [name for name, drawn in damage(run).items() if not drawn]
        if command != train.command:
            raise BadInput(f"`equipoise {command}` made it")
        if damaged:
            raise BadInput(f"it is damaged ({', '.join(damaged)})")
        trained = train.stored(run)
    except (BadInput, WorkFailed, OSError) as error:
        raise BadInput(f"{run} is no folder that `equipoise control train` finished: {error}") from error
    return tuple((each.file, load_policy(run / each.file)) for each in trained.policies)
