"""What agents share: how they act before and after learning starts, scale actions, end, and store what they are."""

import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.control import agent as agent_file
from equipoise.control.agent import read_model, zip_path
from equipoise.control.sac import SAC
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.streams import torch_stream

SMALL = {"hidden": (8,), "batch_size": 4}


class Walk:
    """Three steps an episode; what is seen is the number of the episode and of the step, what was done is noted."""

    observation_space = SimpleNamespace(low=np.full(2, -9.0), high=np.full(2, 9.0), shape=(2,))
    action_space = SimpleNamespace(low=np.array([-1.0, 2.0]), high=np.array([3.0, 4.0]), shape=(2,))

    def __init__(self, by="terminated"):
        self.by, self.seeds, self.acts = by, [], []

    def reset(self, seed=None):
        self.seeds.append(seed)
        self.t = 0
        return np.array([len(self.seeds), 0.0]), {}

    def step(self, action):
        self.t += 1
        self.acts.append(np.array(action))
        ends = self.t == 3
        seen = np.array([len(self.seeds), float(self.t)])
        return (
            seen,
            10.0 * len(self.seeds) + self.t,
            ends and self.by == "terminated",
            ends and self.by == "truncated",
            {},
        )


@pytest.mark.parametrize("by", ["terminated", "truncated"])
def test_it_acts_at_random_until_learning_starts_and_by_itself_then(by):
    world = Walk(by)
    agent = SAC(world, **SMALL, seed=7, learning_starts=4, buffer_size=20)
    learnt = []
    agent.update = lambda batch: learnt.append((agent.steps, agent._buffer.size)) or {}
    draws = torch_stream(7, 2)
    agent.learn(8)
    low, width = np.array([-1.0, 2.0]), np.array([4.0, 2.0])
    for place in range(4):
        np.testing.assert_allclose(world.acts[place], low + width * torch.rand(2, generator=draws).numpy(), rtol=1e-6)
    for place, seen in ((4, [2, 1]), (5, [2, 2]), (6, [3, 0]), (7, [3, 1])):
        mean, log_std = agent.actor(torch.tensor([seen], dtype=torch.float32))
        squashed = torch.tanh(mean + log_std.exp() * torch.randn(1, 2, generator=draws)).detach().numpy()[0]
        np.testing.assert_allclose(world.acts[place], low + width * (squashed + 1) / 2, rtol=1e-5)
    assert world.seeds == [7, 10, 13] and learnt == [(step, step + 1) for step in range(3, 8)]
    seen = agent._buffer.all()
    assert seen.s.tolist() == [[1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2], [3, 0], [3, 1]]
    assert seen.s2[:, 1].tolist() == [1, 2, 3, 1, 2, 3, 1, 2] and seen.r.tolist() == [11, 12, 13, 21, 22, 23, 31, 32]
    assert seen.going.tolist() == [1, 1, 0, 1, 1, 0, 1, 1] if by == "terminated" else seen.going.tolist() == [1] * 8
    np.testing.assert_allclose(seen.a.numpy(), (np.array(world.acts) - low) / width * 2 - 1, atol=1e-5)


def test_two_transitions_are_the_least_to_learn_from():
    agent = SAC(Walk(), **SMALL, learning_starts=1, buffer_size=2)
    learnt = []
    agent.update = lambda batch: learnt.append(agent.steps) or {}
    agent.learn(3)
    assert learnt == [1, 2] and agent.steps == 3
    assert agent.learn(0) is agent and agent.steps == 3
    SAC(Walk(), **SMALL, learning_starts=5, buffer_size=5)
    for starts, size in ((1, 1), (5, 4)):
        with pytest.raises(BadInput, match=f"keeps only {size} transitions"):
            SAC(Walk(), **SMALL, learning_starts=starts, buffer_size=size)
    with pytest.raises(BadInput, match="total_timesteps is -1"):
        agent.learn(-1)


def test_a_callback_ends_the_learning_with_false_alone():
    agent = SAC(Walk(), **SMALL, learning_starts=50)
    calls = []
    agent.learn(4, callback=lambda each: calls.append(each.steps))
    assert calls == [1, 2, 3, 4]
    for answer, steps in ((0, 9), (False, 5)):
        agent.steps = 4
        agent.learn(5, callback=lambda each, answer=answer: answer)
        assert agent.steps == steps


def test_actions_have_the_units_of_the_box_and_stay_in_it():
    agent = SAC(Walk(), **SMALL)
    scaled = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 0.5], [1.5, -7.0]], np.float32)
    assert agent._unscaled(scaled).tolist() == [[-1, 2], [1, 3], [3, 3.5], [3, 2]]
    assert agent._scaled(np.array([[-1, 2], [1, 3], [3, 3.5]])).tolist() == scaled[:3].tolist()
    one, state = agent.predict(np.zeros(2), state="kept", deterministic=True)
    several, _ = agent.predict(np.zeros((3, 2)), deterministic=True)
    assert one.shape == (2,) and state == "kept" and several.shape == (3, 2) and (several == one).all()
    mean, _ = agent.actor(torch.zeros(1, 2))
    np.testing.assert_allclose(one, agent._unscaled(torch.tanh(mean).detach().numpy())[0], rtol=1e-6)
    for wrong in (np.zeros((1, 1, 2)), np.float32(0.0), np.zeros((2, 3)), np.zeros(1)):
        with pytest.raises(BadInput, match=r"this agent was made for \[2\]"):
            agent.predict(wrong)


def test_another_box_is_another_agents():
    agent = SAC(Walk(), **SMALL)
    agent.check_spaces(Walk())
    for low, high, width in (([-1.0, 2.0], [3.0, 5.0], 2), ([-2.0, 2.0], [3.0, 4.0], 2), ([-1.0, 2.0], [3.0, 4.0], 3)):
        other = Walk()
        other.action_space = SimpleNamespace(low=np.array(low), high=np.array(high), shape=(2,))
        other.observation_space = SimpleNamespace(low=np.zeros(width), high=np.ones(width), shape=(width,))
        with pytest.raises(BadInput, match="the agent has 2 observations"):
            agent.check_spaces(other)


def test_a_model_is_a_zip_of_two_and_the_same_bytes_whenever_it_is_made(tmp_path, monkeypatch):
    assert [zip_path(tmp_path / name).name for name in ("a", "a.zip", "a.model")] == ["a.zip", "a.zip", "a.model"]
    agent = SAC(Walk(), **SMALL, seed=3)
    agent.steps = 12
    agent.save(tmp_path / "a")
    about, state = read_model(tmp_path / "a.zip")
    assert (about.kind, about.observations, about.actions, about.steps, about.simulator) == ("SAC", 2, 2, 12, False)
    assert (about.action_low, about.action_high, about.settings["seed"]) == ([-1, 2], [3, 4], 3)
    assert state["steps"] == 12 and set(state["generators"]) == {"batches", "acting"}
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        sizes = [each.file_size for each in archive.infolist()]
        assert {each.date_time for each in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    monkeypatch.setattr(agent_file, "LARGEST", sum(sizes))
    read_model(tmp_path / "a.zip")
    monkeypatch.setattr(agent_file, "LARGEST", sum(sizes) - 1)
    with pytest.raises(WorkFailed, match="something else"):
        read_model(tmp_path / "a.zip")
    monkeypatch.undo()
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("more.json", "{}")
    with pytest.raises(WorkFailed, match="something else"):
        read_model(tmp_path / "a.zip")
    again = SAC(**SMALL, seed=3)
    with pytest.raises(BadInput, match="no networks yet"):
        again.save(tmp_path / "b")


def test_streams_of_an_agent_are_its_own():
    agent = SAC(Walk(), **SMALL, seed=5)
    for part, generator in ((1, agent._batches), (2, agent._acting)):
        assert torch.equal(torch.rand(4, generator=generator), torch.rand(4, generator=torch_stream(5, part)))
    before = torch.random.get_rng_state()
    SAC(Walk(), **SMALL, seed=6)
    assert torch.equal(torch.random.get_rng_state(), before)
