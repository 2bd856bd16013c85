"""Logs of an environment whose every step is known: who acts when, what is counted, where it ends."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.control import collecting
from equipoise.control.collecting import Collecting
from equipoise.control.job import collect
from equipoise.core.errors import BadInput, WorkFailed


class Timed:
    """Episodes of three steps, the second of which ends by a time limit; paid is the number of the step."""

    action_space = SimpleNamespace(low=np.array([-1.0, 0.0]), high=np.array([1.0, 4.0]), dtype=np.dtype(np.float32))

    def __init__(self, wrong=None):
        self.seeds, self.wrong, self.total = [], wrong, 0

    def reset(self, *, seed):
        self.seeds.append(seed)
        self.t = 0
        return np.array([float(seed), 0.0]), {}

    def step(self, action):
        self.t, self.total = self.t + 1, self.total + 1
        seen = np.array([float(self.seeds[-1]), np.nan if self.wrong == "seen" and self.total == 4 else self.t])
        reward = np.inf if self.wrong == "reward" and self.total == 4 else 10.0**self.t * len(self.seeds)
        ends = self.t == 3
        return seen, reward, ends and len(self.seeds) != 2, ends and len(self.seeds) == 2, {}


def policy(noted):
    def predict(observation, *, deterministic):
        assert deterministic
        noted.append(observation.tolist())
        return np.array([0.5, 0.25 * observation[1]]), None

    return SimpleNamespace(predict=predict, name="made by hand")


def asked(steps, by=None, epsilon=1.0, wrong=None):
    return Collecting("Timed-v0", Timed(wrong), by, steps, epsilon, 6, {}, {})


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_a_policy_acts_where_chance_does_not(epsilon):
    noted = []
    data, returns = asked(8, policy(noted), epsilon)._logged()
    draws, due, played = np.random.default_rng(np.random.SeedSequence([6, 0])), [], []
    for place in range(8):
        seen = [6.0 + place // 3, float(place % 3)]
        if draws.random() < epsilon:
            due.append(draws.uniform([-1, 0], [1, 4]))
        else:
            due.append([0.5, 0.25 * (place % 3)])
            played.append(seen)
    np.testing.assert_allclose(data.actions, due, rtol=1e-6)
    assert noted == played and returns == [1110, 2220]
    uniform = np.random.default_rng(np.random.SeedSequence([6, 0])).uniform([-1, 0], [1, 4], size=(8, 2))
    np.testing.assert_allclose(asked(8)._logged()[0].actions, uniform, rtol=1e-6)


@pytest.mark.parametrize(
    ("steps", "counts"),
    [
        # whole episodes, terminated, by a time limit, cut; the mean return of whole ones.
        (2, (0, 0, 0, 1, None)),
        (3, (1, 1, 0, 0, 1110)),
        (4, (1, 1, 0, 1, 1110)),
        (6, (2, 1, 1, 0, 1665)),
        (8, (2, 1, 1, 1, 1665)),
        (9, (3, 2, 1, 0, 2220)),
    ],
)
def test_ends_are_counted_by_what_they_are(steps, counts, monkeypatch):
    advances = []

    @contextlib.contextmanager
    def progress(what, *, total, unit):
        advances.append(-total)
        yield SimpleNamespace(advance=advances.append)

    monkeypatch.setattr(collecting, "progress", progress)
    done = asked(steps).work(None)
    mean = None if np.isnan(done.mean_return) else done.mean_return
    assert (done.episodes, done.terminated, done.truncated, done.cut, mean) == counts
    assert done.transitions == steps and advances == [-steps] + [1] * steps
    data, _ = asked(steps)._logged()
    assert done.covered == pytest.approx(min((data.actions.max(0) - data.actions.min(0)) / [2, 4]))
    assert data.truncated.nonzero()[0].tolist() == [
        place for place in range(steps) if place == 5 or (place == steps - 1 and (place + 1) % 3)
    ]
    assert data.terminated.nonzero()[0].tolist() == [place for place in range(steps) if place in (2, 8)]
    assert data.observations[:, 0].tolist() == [6.0 + place // 3 for place in range(steps)]
    assert data.next_observations[:, 1].tolist() == [1 + place % 3 for place in range(steps)]
    assert data.rewards.tolist() == [10.0 ** (1 + place % 3) * (1 + place // 3) for place in range(steps)]
    assert (data.action_low.tolist(), data.action_high.tolist()) == ([-1, 0], [1, 4])


@pytest.mark.parametrize("wrong", ["seen", "reward"])
def test_what_is_no_number_ends_it(wrong):
    assert len(asked(3, wrong=wrong)._logged()[0]) == 3
    with pytest.raises(WorkFailed, match="nan or infinite"):
        asked(4, wrong=wrong)._logged()


def test_without_a_policy_every_action_is_uniform_and_with_one_half_of_them():
    pytest.importorskip("gymnasium")
    plan = collect.plan("Pendulum-v1", perturb="length=1.2,mass=0.5", steps=7)
    assert (plan.policy, plan.steps, plan.environment) == ("none: uniform actions", 7, "Pendulum-v1")
    request = Collecting.read("Pendulum-v1", policy=None, perturb="length=1.2", steps=7, epsilon=None, seed=3)
    assert request.epsilon == 1.0 and request.inputs == {} and request.environment.unwrapped.l == pytest.approx(1.2)
    with pytest.raises(BadInput, match="one level of mass: write mass=VALUE"):
        collect.plan("Pendulum-v1", perturb="length=1.2,mass=1:2:2")
