"""What the study of DR-SAC is done in: small worlds that are counted, and a pendulum with torque noise.

Tabular: a seed draws a world of 10 states and 3 actions (`risky`), and logs of so many next states of each pair. Arms know
the logs; their policies are measured in the true world, where the worst kernel of each radius is computed, and in worlds
drawn around it.

Pendulum: a seed's logs are a hand-made controller's with half of its actions uniform. Agents learn from them alone, and are
measured with other lengths, masses, torques and noise, from the same starts.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.control.agent import Agent
from equipoise.control.dr_sac import DRSAC
from equipoise.control.fqi import FQI, RFQI
from equipoise.control.pendulum import LENGTH_OF_EPISODE, TORQUE, Pendulum, seen, swing_up
from equipoise.control.sac import SAC
from equipoise.control.tabular import TabularWorld, evaluate, policy_of, solve
from equipoise.control.transitions import Transitions, of_arrays, read

RADII = (0.0, 0.1, 0.3, 1.0)
DRAWN, APART = 50, 0.3  # worlds drawn around the true one, and the share of each kernel that is drawn anew
TORQUE_NOISE, EPSILON = 0.4, 0.5
# Small enough for two cores, and a discount at which values settle within the steps. Actors stay near the logs: without that
# the values of actions that nobody took ran away in pilots, and SAC's return was -770 after 2,000 steps where it is -190.
AGENT: dict[str, Any] = {
    "hidden": (64, 64), "batch_size": 128, "gamma": 0.95, "tau": 0.02, "learning_rate": 1e-3,
}  # fmt: skip
CLONING = 0.2
LOGS = "logs.npz"
CHANGES: dict[str, dict[str, float]] = {
    "nominal": {},
    "length 0.7": {"length": 0.7},
    "length 1.4": {"length": 1.4},
    "mass 0.7": {"mass": 0.7},
    "mass 1.4": {"mass": 1.4},
    "torque 0.6": {"torque": 0.6},
    "noise 4": {"torque_noise": 4 * TORQUE_NOISE},
}
SHIFTED = tuple(name for name in CHANGES if name != "nominal")


def risky(generator: np.random.Generator) -> TabularWorld:
    """A world with something to fear: two states of ten cost much, and actions differ in how sure their outcome is.

    Rewards are of the state, uniform in [0, 1], -3 in the two, with a tenth of it for the action. Each kernel is drawn with
    a concentration between 0.03 and 3 of its own, from nearly sure to nearly uniform. Where all kernels are alike in that,
    as in a draw that is uniform on the simplex, the best policy is hardly ever another one in the worst world.
    """
    states, actions = 10, 3
    reward = generator.uniform(size=(states, 1)) + 0.1 * generator.uniform(size=(states, actions))
    reward[:2] -= 3.0
    concentration = np.exp(generator.uniform(np.log(0.03), np.log(3.0), size=(states, actions)))
    raw = generator.standard_gamma(concentration[..., None], size=(states, actions, states)) + 1e-6
    return TabularWorld(reward, raw / raw.sum(-1, keepdims=True), 0.9)


def counted(world: TabularWorld, samples: int, generator: np.random.Generator) -> TabularWorld:
    """The world as so many next states of each state and action show it; rewards are known."""
    drawn = generator.multinomial(samples, world.kernel)
    return TabularWorld(world.reward, drawn / samples, world.gamma)


def smoothed(world: TabularWorld, share: float) -> TabularWorld:
    """Each kernel mixed with the uniform one: cautious about everything alike."""
    states = world.kernel.shape[-1]
    return TabularWorld(world.reward, (1 - share) * world.kernel + share / states, world.gamma)


def around(world: TabularWorld, generator: np.random.Generator) -> Iterator[TabularWorld]:
    """Worlds near the true one: a share of each kernel is drawn anew, uniform on the simplex."""
    for _ in range(DRAWN):
        other = generator.dirichlet(np.ones(world.kernel.shape[-1]), size=world.reward.shape)
        yield TabularWorld(world.reward, (1 - APART) * world.kernel + APART * other, world.gamma)


def tabular(seed: int, samples: int, settings: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """Values [S] of an arm's policy in the worst world of each radius, and mean values [50] in worlds around the true one.

    settings: delta; smooth: the share of uniform kernels; known: the true world in place of the logs.
    """
    drawing, logging, shifting = (np.random.default_rng(np.random.SeedSequence([seed, part])) for part in range(3))
    world = risky(drawing)
    nominal = world if settings.get("known") else counted(world, samples, logging)
    policy = policy_of(solve(smoothed(nominal, settings.get("smooth", 0.0)), settings["delta"], tolerance=1e-7))
    worst = {f"{radius:g}": evaluate(world, policy, radius, tolerance=1e-7) for radius in RADII}
    near = [evaluate(each, policy, 0.0, tolerance=1e-6).mean() for each in around(world, shifting)]
    return worst, np.array(near)


def log_pendulum(folder: Path, seed: int, transitions: int) -> None:
    """The logs of a seed, as `Transitions` in the folder."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, 7]))
    world, count = Pendulum(torque_noise=TORQUE_NOISE), max(1, transitions // LENGTH_OF_EPISODE)
    state, parts = world.reset(count, generator), []
    for step in range(LENGTH_OF_EPISODE):
        chance = generator.random(count) < EPSILON
        action = np.where(chance, generator.uniform(-TORQUE, TORQUE, count), swing_up(seen(state)))
        after, reward = world.step(state, action, generator)
        ends = np.full(count, step == LENGTH_OF_EPISODE - 1)
        # Rewards within about one: as the released settings have it, (r + 8) / 8.
        parts.append((seen(state), action[:, None], (reward + 8) / 8, seen(after), ends))
        state = after
    names = ("observations", "actions", "rewards", "next_observations", "truncated")
    arrays = {name: np.concatenate(each) for name, each in zip(names, zip(*parts, strict=True), strict=True)}
    arrays["terminated"] = np.zeros(len(arrays["rewards"]), bool)
    of_arrays(arrays | {"action_low": np.array([-TORQUE]), "action_high": np.array([TORQUE])}).save(folder / LOGS)


def simulate(s: Tensor, a: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """True next states of the pendulum in its nominal world, [B, count, 3]: what an oracle's nominal model draws."""
    world = Pendulum()
    angle = torch.atan2(s[:, 1], s[:, 0]).double()
    noise = TORQUE_NOISE * torch.randn((len(s), count), generator=generator, dtype=torch.float64)
    force = TORQUE * a[:, :1].double().clamp(-1, 1) + noise
    push = 1.5 * world.gravity / world.length * angle.sin()[:, None] + 3 / (world.mass * world.length**2) * force
    speed = (s[:, 2:].double() + 0.05 * push).clamp(-8, 8)
    after = angle[:, None] + 0.05 * speed
    return torch.stack([after.cos(), after.sin(), speed], -1).to(s)


def agent_of(data: Transitions, settings: Mapping[str, Any], seed: int) -> Agent:
    """The agent of an arm. settings: method, of that class the rest; oracle: the true simulator as nominal model."""
    given = {**AGENT, **settings, "seed": seed}
    method, oracle = given.pop("method"), given.pop("oracle", False)
    if method in ("fqi", "rfqi"):
        return {"fqi": FQI, "rfqi": RFQI}[method](data, **given)
    given["behavior_weight"] = CLONING
    if method == "sac":
        return SAC(data, **given)
    robust = {"dual": "exact", "samples": 32, "nominal_steps": 1000}
    return DRSAC(data, simulator=simulate if oracle else None, **robust | given)


def returns(
    predict: Callable[[NDArray[Any]], NDArray[Any]], changes: Mapping[str, float], starts: int, seed: int
) -> NDArray[Any]:
    """Undiscounted returns [starts] of one episode each, all at once, in the changed world."""
    world = Pendulum(**{"torque_noise": TORQUE_NOISE, **changes})
    generator = np.random.default_rng(np.random.SeedSequence([seed, 11]))
    state, total = world.reset(starts, generator), np.zeros(starts)
    for _ in range(LENGTH_OF_EPISODE):
        state, reward = world.step(state, predict(seen(state)), generator)
        total += reward
    return total


def play(agent: Agent, starts: int) -> dict[str, NDArray[Any]]:
    """Returns [starts] under every change, the same starts throughout."""

    def predict(observations: NDArray[Any]) -> NDArray[Any]:
        return agent.predict(observations, deterministic=True)[0][:, 0]

    return {name: returns(predict, changes, starts, seed=0) for name, changes in CHANGES.items()}


def logs(folder: Path) -> Transitions:
    """What `log_pendulum` left."""
    return read(folder / LOGS)
