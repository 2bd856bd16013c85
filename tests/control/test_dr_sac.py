"""DR-SAC beside SAC: one step of the functional dual by autograd, which samples a pair gets, what is counted and trained."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.control import dr_sac
from equipoise.control.agent import seeded
from equipoise.control.dr_sac import DRSAC
from equipoise.control.networks import perceptron
from equipoise.control.robust import dual_value, robust_value
from equipoise.control.transitions import of_arrays
from equipoise.core.errors import BadInput
from equipoise.core.streams import torch_stream

SMALL = {"hidden": (6,), "batch_size": 8, "samples": 6, "nominal_steps": 3, "delta": 0.3, "nominal": "gaussian"}


def logs(n=32, seed=0, **other):
    generator = np.random.default_rng(seed)
    seen = generator.normal(size=(2, n, 2))
    named = {
        "observations": seen[0],
        "actions": generator.uniform(0, 4, size=(n, 1)),
        "rewards": -(seen[0] ** 2).sum(-1),
    }
    named |= {"next_observations": seen[0] + 0.1 * seen[1], "terminated": np.arange(n) % 7 == 6}
    return of_arrays(named | {"action_low": [0.0], "action_high": [4.0]} | other)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_steps_of_the_functional_dual_by_autograd(steps):
    how = SMALL | {"dual": "functional", "dual_steps": steps or 1, "dual_learning_rate": 0.05, "weight_decay": 0.02}
    agent = DRSAC(logs(), **how)
    if not steps:
        agent.settings = agent.settings.model_copy(update={"dual_steps": 0})
    batch = agent._buffer.draw(8, stream(1))
    values = 3 * torch.randn(8, 12, generator=stream(2)) * (0.5 + batch.s[:, :1].abs())
    g = copy.deepcopy(agent.g)
    with seeded(1):  # behind the nominal model, from the seed and one
        type(agent.nominal)(2, 1, (6,))
        for one, other in zip(perceptron(3, (6,), 1).parameters(), g.parameters(), strict=True):
            assert torch.equal(one, other)
    optimizer = torch.optim.AdamW(g.parameters(), lr=0.05, weight_decay=0.02)
    unit = values.std(1, correction=0).mean() / math.sqrt(0.6)

    def multiplier():
        raw = g(torch.cat([batch.s, batch.a], -1))[:, 0]
        return 1e-4 + torch.log1p(torch.exp(raw + math.log(math.e - 1)))

    assert float(agent._optimizers()["g"].param_groups[0]["lr"]) == 0.05
    for _ in range(steps):
        optimizer.zero_grad()
        (-dual_value(values, 0.3, unit * multiplier()).mean() / unit).backward()
        optimizer.step()
    value, found = agent.functional_value(batch, values)
    assert_close(found, (unit * multiplier()).detach(), rtol=1e-4, atol=1e-5)
    assert_close(value, dual_value(values, 0.3, found))


def test_either_dual_is_taken_where_it_is_asked_for_and_the_exact_one_where_there_is_nothing_to_search():
    for dual, delta, functional in (
        ("exact", 0.3, False), ("functional", 0.3, True), ("functional", 0.0, False),
        ("functional", math.log(6), False), ("functional", 1.79, True), ("functional", 5.0, False),
    ):  # fmt: skip
        agent, asked = DRSAC(logs(), **SMALL | {"dual": dual, "delta": delta}), []
        agent.functional_value = lambda batch, values, asked=asked: asked.append(1) or robust_value(values, 0.1)
        agent._next_value(agent._buffer.draw(8, stream()))
        assert bool(asked) == functional


def test_pairs_of_every_eighth_step_are_counted():
    agent = DRSAC(logs(), **SMALL | {"samples": 40})
    assert math.isnan(agent.few)
    counted = []
    agent._count = lambda values, beta: counted.append(agent.steps)
    agent.learn(18)
    assert counted == [0, 8, 16]
    again = DRSAC(logs(), **SMALL)
    again._few, again._seen = 3, 12
    assert again.few == 0.25 and (again.state()["few"], again.state()["seen"], again.state()["trained"]) == (3, 12, 0)


def test_few_samples_are_fewer_than_five_in_effect():
    agent = DRSAC(logs(), **SMALL | {"delta": 0.2})

    def few(*rows, beta=1.0):
        agent._few = agent._seen = 0
        values = torch.tensor(rows)
        agent._count(values, torch.full((len(rows),), beta))
        return agent._few, agent._seen

    # k smallest samples and others so far away that they weigh nothing.
    rows = [[0.0] * k + [1e6] * (8 - k) for k in (1, 4, 5, 6, 8)]
    assert [few(row) for row in rows] == [(1, 1), (1, 1), (0, 1), (0, 1), (0, 1)]
    assert few(*rows) == (2, 5) and few(*rows, beta=0.0) == (2, 5)
    assert few([0.0] * 2) == (0, 1)  # equal ones are no few
    agent.settings = agent.settings.model_copy(update={"delta": 0.0})
    assert few([0.0, 9.0]) == (0, 0)


def test_a_pairs_samples_are_of_its_row_and_the_seed():
    agent = DRSAC(logs(), **SMALL, seed=3)
    s, a = np.array([[0.5, 1.0], [0.5, 1.0], [2.0, -1.0]]), np.array([[0.0], [0.0], [3.0]])
    found = agent.sample_next(s, a, 4, seed=9)
    scaled = torch.tensor([[-1.0], [-1.0], [0.5]])
    for row in range(3):
        pair = torch.tensor(s[row : row + 1], dtype=torch.float32), scaled[row : row + 1]
        due = agent.nominal.sample(*pair, 4, torch_stream(9, row))
        np.testing.assert_allclose(found[row], due[0].numpy(), rtol=1e-6)
    assert not np.allclose(found[0], found[1])
    feared = agent.worst_case(s, a, 4, seed=9)
    np.testing.assert_array_equal(feared["next_observations"], found)
    with torch.no_grad():
        np.testing.assert_allclose(feared["values"], agent.slow_value(torch.tensor(found))[..., 0].numpy(), rtol=1e-5)
    assert agent.sample_next(s[0], a[0]).shape == (1, 200, 2) and agent.worst_case(s[0], a[0])["values"].shape == (
        1,
        200,
    )
    np.testing.assert_array_equal(agent.sample_next(s, a, 1), agent.sample_next(s, a, 1, seed=0))
    assert agent.spread() == agent.nominal.spread(agent._buffer.all(), torch_stream(0))
    assert agent.spread(seed=2) == agent.nominal.spread(agent._buffer.all(), torch_stream(2)) != agent.spread()


@pytest.mark.parametrize(
    ("observations", "actions", "count", "told"),
    [
        (np.zeros((1, 3)), np.zeros((1, 1)), 2, "not pairs"),
        (np.zeros((1, 2)), np.zeros((1, 2)), 2, "not pairs"),
        (np.zeros((2, 2)), np.zeros((1, 1)), 2, "not pairs"),
        (np.zeros((1, 2)), np.zeros((1, 1)), 0, "count is 0"),
        (np.full((1, 2), np.nan), np.zeros((1, 1)), 2, "no number"),
        (np.zeros((1, 2)), np.full((1, 1), 4.01), 2, "outside the box"),
        (np.zeros((1, 2)), np.full((1, 1), -0.01), 2, "outside the box"),
        (np.zeros((1, 2)), np.full((1, 1), np.nan), 2, "no number"),
    ],
)
def test_what_are_no_pairs_is_said(observations, actions, count, told):
    agent = DRSAC(logs(), **SMALL)
    with pytest.raises(BadInput, match=told):
        agent.sample_next(observations, actions, count)
    for edge in (0.0, 4.0):
        assert agent.sample_next(np.zeros((1, 2)), np.full((1, 1), edge), 1).shape == (1, 1, 2)


def test_the_nominal_model_learns_alone_and_then_with_the_agent():
    agent = DRSAC(logs(), **SMALL | {"nominal_steps": 5})
    fitted, fit_units = [], agent.nominal.fit_units
    agent.nominal.fit_units = lambda batch: fitted.append(len(batch.s)) or fit_units(batch)
    assert [agent.pretrain(most) for most in (2, 2)] == [False, False] and agent._trained == 4 and fitted == [32]
    assert agent.pretrain(2) and agent._trained == 5 and agent.pretrain(1) and agent._trained == 5
    agent.learn(2)
    assert agent._trained == 7 and agent.pretrain() and fitted == [32]
    before = copy.deepcopy(agent.nominal.state_dict())
    agent.learn(1)
    assert not torch.equal(agent.nominal.body[0].weight, before["body.0.weight"])
    groups = agent._learnt()
    assert [each.get("lr") for each in groups] == [None, 5e-4]
    rates = DRSAC(logs(), **SMALL | {"nominal_learning_rate": 0.25, "learning_rate": 0.125})._optimizer.param_groups
    assert [each["lr"] for each in rates] == [0.125, 0.25]
    off = DRSAC(logs(), **SMALL, robust=False)
    assert off.pretrain(1) and off._trained == 0 and off.learn(1)._trained == 0 and math.isnan(off.few)


def test_blocks_hold_as_many_pairs_as_numbers_fit(monkeypatch):
    agent, asked = DRSAC(logs(), **SMALL), []
    columns = agent.nominal.columns
    agent.nominal.columns = lambda s, a, count, noise: (
        asked.append((len(s), len(a), count)) or columns(s, a, count, noise)
    )
    batch = agent._buffer.draw(8, stream())
    for block, sizes in ((6 * 6 * 3, [3, 3, 2]), (6 * 6 * 3 - 1, [2, 2, 2, 2]), (1, [1] * 8), (10**6, [8])):
        monkeypatch.setattr(dr_sac, "BLOCK", block)
        asked.clear()
        assert agent._sampled_values(batch).shape == (8, 6)
        assert asked == [(size, size, 6) for size in sizes]


def test_streams_beside_sacs_are_its_own():
    agent = DRSAC(logs(), **SMALL, seed=5)
    assert torch.equal(torch.rand(4, generator=agent._nominal_noise), torch.rand(4, generator=torch_stream(5, 3)))
    assert set(agent._generators()) == {"batches", "acting", "nominal"} and agent._about().simulator is False
