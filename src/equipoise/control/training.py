"""The work of `control train`: one agent after the other on the same logs, each from a seed of its own.

Killed at any moment, the same call goes on from the last state that was stored, and comes to the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.control.dr_sac import DRSAC
from equipoise.control.policies import load_policy
from equipoise.control.result import ControlTraining, TrainedPolicy, TrainPlan
from equipoise.control.sac import SAC
from equipoise.control.settings import AgentSettings, RobustSettings
from equipoise.control.transitions import Transitions, read
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import read_regular, seal, sha256_file, unseal, write_atomic
from equipoise.core.job import Request
from equipoise.core.progress import progress
from equipoise.core.serialize import deserialize, serialize
from equipoise.core.state import save_state, stored_state

STATE = "training.safetensors"
SAVE_EVERY = 1000
POINTS = 40  # of the curve of values


# Settings that only one word of another uses.
OWN = {
    "latent": ("nominal", "vae"), "vae_loss": ("nominal", "vae"),
    "dual_steps": ("dual", "functional"), "dual_learning_rate": ("dual", "functional"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Training(Request):
    """A request to train, read and found right."""

    data: Transitions
    name: str
    method: str
    steps: int
    seeds: int
    settings: RobustSettings
    inputs: Mapping[str, str]
    resolved: Mapping[str, Any]

    @classmethod
    def read(cls, data: Any, *, method: str, steps: int, seeds: int, given: Mapping[str, Any]) -> Training:
        """Raises BadInput for a wrong request; trains nothing."""
        settings = RobustSettings(**given)
        # Options arrive complete: what differs from its default was meant.
        unused = [
            name
            for name, field in RobustSettings.model_fields.items()
            if name not in AgentSettings.model_fields and getattr(settings, name) != field.default
        ]
        if method == "sac" and unused:
            raise BadInput(f"{', '.join(unused)} would be ignored: sac has no ball and no nominal model. Leave it out.")
        for own, (setting, word) in OWN.items():
            if own in unused and getattr(settings, setting) != word:
                raise BadInput(f"{own} would be ignored: it belongs to {setting} {word}. Leave it out, or give that.")
        found = read(data)
        path = isinstance(data, str | Path) and not str(data).startswith("minari:")
        return cls(
            data=found,
            name=str(data) if isinstance(data, str | Path) else f"{len(found)} transitions",
            method=method,
            steps=steps,
            seeds=seeds,
            settings=settings,
            inputs={"data": sha256_file(Path(data)) if path else found.digest()},
            resolved=settings.model_dump(),
        )

    def plan(self) -> TrainPlan:
        return TrainPlan(
            method=self.method,
            data=self.name,
            transitions=len(self.data),
            episodes=self.data.episodes,
            terminated=int(self.data.terminated.sum()),
            observations=self.data.observations.shape[1],
            actions=self.data.actions.shape[1],
            steps=self.steps,
            nominal_steps=self.settings.nominal_steps if self.method == "dr-sac" else 0,
            seeds=self.seeds,
        )

    def work(self, folder: Path | None) -> ControlTraining:
        trained, notes = [], []
        with progress("Training", total=self.seeds * self.steps, unit="steps") as bar:
            for place in range(self.seeds):
                one, told = self._trained(place, folder, bar)
                trained.append(one)
                notes += told
        data = self.data
        covered = (data.actions.max(0) - data.actions.min(0)) / (data.action_high - data.action_low)
        return ControlTraining(
            method=self.method,
            data=self.name,
            transitions=len(data),
            episodes=data.episodes,
            terminated=int(data.terminated.sum()),
            covered=float(covered.min()),
            most=self._most(max(each.alpha for each in trained)),
            delta=self.settings.delta if self.method == "dr-sac" else math.nan,
            policies=tuple(trained),
            notes=tuple(dict.fromkeys(notes)),
        )

    def scratch(self) -> tuple[str, ...]:
        return (STATE,)

    def _most(self, alpha: float) -> float:
        """What no soft value can exceed: the largest reward for ever, or once where it is a cost and episodes can end, and
        after it the entropy of uniform actions at the highest temperature that is known of."""
        reward, gamma = float(self.data.rewards.max()), self.settings.gamma
        once = reward < 0 and bool(self.data.terminated.any())
        entropy = max(alpha, self.settings.alpha) * self.data.actions.shape[1] * math.log(2)
        return (reward if once else reward / (1 - gamma)) + gamma * entropy / (1 - gamma)

    def _agent(self, place: int) -> SAC:
        given: dict[str, Any] = self.settings.model_dump() | {"seed": self.settings.seed + place}
        if self.method == "dr-sac":
            return DRSAC(self.data, **given)
        return SAC(self.data, **{name: given[name] for name in AgentSettings.model_fields})

    def _trained(self, place: int, folder: Path | None, bar: Any) -> tuple[TrainedPolicy, list[str]]:
        """One policy, from what the folder already holds."""
        told: list[str] = []
        if folder is not None:
            known, told = _stored(folder, place)
            if known is not None:
                bar.advance(self.steps)
                return known, []
        agent = self._agent(place)
        curve: list[tuple[int, float]] = []
        state, notes = ({}, []) if folder is None else stored_state(folder / STATE)
        notes = [*told, *notes]
        if state.get("place") == place:
            try:
                agent.restore(state["agent"])
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                raise WorkFailed(
                    f"{folder} holds half of a training that this version cannot go on with ({error}): give --fresh."
                ) from error
            curve = [tuple(each) for each in state["curve"]]
        bar.advance(agent.steps)

        def save() -> None:
            if folder is not None:
                save_state(folder / STATE, {"place": place, "agent": agent.state(), "curve": curve})

        if isinstance(agent, DRSAC):
            while not agent.pretrain(SAVE_EVERY):
                save()
        every = max(1, self.steps // POINTS)
        while agent.steps < self.steps:
            ahead = min(self.steps, (agent.steps // every + 1) * every, (agent.steps // SAVE_EVERY + 1) * SAVE_EVERY)
            before = agent.steps
            agent.learn(ahead - before)
            if agent.steps % every == 0:
                curve.append((agent.steps, agent.losses["q"]))
            if agent.steps % SAVE_EVERY == 0:
                save()
            bar.advance(agent.steps - before)
        done = TrainedPolicy(
            file=f"policy-{place}.zip",
            seed=self.settings.seed + place,
            value=agent.losses["q"],
            alpha=agent.losses["alpha"],
            spread=agent.spread() if isinstance(agent, DRSAC) else math.nan,
            few=agent.few if isinstance(agent, DRSAC) else math.nan,
            curve=tuple(curve),
        )
        if folder is not None:
            agent.save(folder / done.file)
            self._check(agent, folder / done.file)
            row = {"policy": serialize(done), "sha256": sha256_file(folder / done.file)}
            write_atomic(folder / f"seed-{place}.json", seal(row, indent=1))
        return done, notes

    def _check(self, agent: SAC, path: Path) -> None:
        """Raises WorkFailed where the stored policy acts otherwise than the one that was trained."""
        seen = self.data.observations[:100]
        if not np.array_equal(
            load_policy(path).predict(seen, deterministic=True)[0], agent.predict(seen, deterministic=True)[0]
        ):
            raise WorkFailed(f"{path} acts otherwise than the policy that was trained.")


def _stored(folder: Path, place: int) -> tuple[TrainedPolicy | None, list[str]]:
    """A policy that an earlier attempt finished, None where it is not whole; what was damaged is said."""
    about = folder / f"seed-{place}.json"
    if not about.exists():
        return None, []
    try:
        row, sealed = unseal(read_regular(about))
        known = deserialize(TrainedPolicy, row["policy"])
        if not sealed or known.file != f"policy-{place}.zip" or sha256_file(folder / known.file) != row["sha256"]:
            raise ValueError("it is not the policy that was trained")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, [f"What {about.name} holds was altered ({error}): that policy was trained again."]
    return known, []
