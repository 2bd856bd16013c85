"""Changes as they are typed, and episodes in an environment whose every step is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.control import environments
from equipoise.control.environments import episode, parse_levels, shown_changes, try_out, unchanged
from equipoise.core.errors import BadInput


class Counting:
    """Ends at the step `length`; what is seen is the number of the step, and paid is the action."""

    action_space = SimpleNamespace(low=np.array([0.0, -4.0]), high=np.array([1.0, 2.0]), dtype=np.float32)

    def __init__(self, length=3, by="terminated", wrong=None):
        self.length, self.by, self.wrong, self.closed, self.asked = length, by, wrong, 0, []

    def reset(self, *, seed=None):
        self.t = 0
        self.asked.append(seed)
        return np.array([np.nan if self.wrong == "first" else 0.0]), {}

    def step(self, action):
        self.t += 1
        self.asked.append(np.asarray(action).tolist())
        ends = self.t >= self.length
        seen = np.array([np.nan if self.wrong == "after" else float(self.t)])
        reward = np.inf if self.wrong == "reward" else 10.0**self.t
        return seen, reward, ends and self.by == "terminated", ends and self.by == "truncated", {}

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("by", ["terminated", "truncated"])
def test_an_episode_is_all_that_is_paid_until_it_ends(by):
    def predict(observation, *, deterministic):
        assert deterministic
        return observation * 2, None

    world = Counting(3, by)
    total, seen = episode(SimpleNamespace(predict=predict), world, 17)
    assert total == 1110 and [each.tolist() for each in seen] == [[0], [1], [2], [3]]
    assert world.asked == [17, [0], [2], [4]]
    assert episode(SimpleNamespace(predict=predict), world, 1, most=3)[0] == 1110
    with pytest.raises(BadInput, match="after 2 steps"):
        episode(SimpleNamespace(predict=predict), world, 1, most=2)


def test_an_environment_is_tried_in_the_middle_of_its_box_and_closed(monkeypatch):
    made = []
    monkeypatch.setattr(environments, "open_environment", lambda name, changes: made.append(world) or world)
    world = Counting()
    try_out("Counting-v0")
    assert world.asked == [0, [0.5, -1.0]] and world.closed == 1
    for wrong in ("first", "after", "reward"):
        world = Counting(wrong=wrong)
        with pytest.raises(BadInput, match=r"fails under length=2, delay=1 at its first step: .*nan or infinite"):
            try_out("Counting-v0", {"length": 2.0, "delay": 1.0})
        assert world.closed == 1
    assert shown_changes({}) == shown_changes(None) == "as it is"


def test_levels_are_counted_rounded_and_named_once():
    assert len(parse_levels("length=1:2:200")["length"]) == 200
    assert parse_levels("length=1:2:2") == {"length": (1.0, 2.0)}
    assert parse_levels("length=0:1:4,mass=1:1:3") == {"length": (0.0, 0.333333, 0.666667, 1.0), "mass": (1.0,)}
    for wrong in ("length=1:2:201", "length=1:2:1", "length=1:2", "length=1:2:2.5", "length=1:2:3:4", "=2", "length=a"):
        with pytest.raises(BadInput):
            parse_levels(wrong)
    with pytest.raises(BadInput, match="write each name once"):
        parse_levels("observation-noise=1,observation_noise=2")
    assert [unchanged(name) for name in ("length", "delay", "observation_noise")] == [1.0, 0.0, 0.0]
