"""FQI and RFQI: one step against its equations, the dual against a linear program, actions that stay with the logs."""

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch.testing import assert_close

from equipoise.control.agent import Batch, seeded
from equipoise.control.fqi import FQI, RFQI, ActionModel, total_variation_value
from equipoise.control.networks import perceptron
from equipoise.control.policies import load_policy
from equipoise.control.transitions import of_arrays
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.streams import torch_stream

SMALL = {"hidden": (16,), "batch_size": 8, "acting_actions": 7}


def logs(n=64, seed=0, **other):
    generator = np.random.default_rng(seed)
    observations = generator.normal(size=(n, 3))
    named = {"observations": observations, "actions": generator.uniform(-2, 2, size=(n, 1))}
    named |= {"rewards": -(observations**2).sum(-1), "next_observations": 0.9 * observations}
    named |= {"terminated": np.arange(n) % 7 == 6, "action_low": [-2.0], "action_high": [2.0]}
    return of_arrays(named | other)


def parameters(agent):
    return {f"{name}.{key}": each for name, net in agent._networks().items() for key, each in net.state_dict().items()}


def test_a_step_is_its_equations():
    how = {
        **SMALL,
        "gamma": 0.9,
        "tau": 0.1,
        "target_actions": 5,
        "perturbation": 0.3,
        "weight_decay": 0.0,
        "critics": 3,
    }
    agent, other = FQI(logs(), **how), FQI(logs(), **how)
    for each in (agent, other):
        with torch.no_grad():
            for weight in each.slow_perturbation.parameters():
                weight.mul_(-1.5)
            each.slow_critics.biases[-1].add_(torch.tensor([3.0, 1.0, 2.0])[:, None, None])
    batch = agent._buffer.draw(8, torch.Generator().manual_seed(4))
    assert set(batch.going.tolist()) == {0.0, 1.0}
    before = {name: each.clone() for name, each in parameters(other).items()}
    losses = agent.update(batch)

    def draw(count):
        return torch.randn(count, 2, generator=other._batches)

    def likes(s, z):
        return torch.tanh(other.actions.decoder(torch.cat([s, z], -1))).detach()

    def moved(s, a, net):
        return (a + 0.3 * torch.tanh(net(torch.cat([s, a], -1)))).clamp(-1, 1)

    mean, log_std = other.actions.encoder(torch.cat([batch.s, batch.a], -1)).chunk(2, -1)
    posterior = torch.distributions.Normal(mean, log_std.exp())
    again = torch.tanh(other.actions.decoder(torch.cat([batch.s, mean + log_std.exp() * draw(8)], -1)))
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    action_loss = (again - batch.a).square().mean() + 0.5 * divergence.mean()
    z = draw(40).clamp(-0.5, 0.5).view(8, 5, 2)
    best = torch.full((8,), -torch.inf)
    for j in range(5):
        a = moved(batch.s2, likes(batch.s2, z[:, j]), other.slow_perturbation)
        found = other.slow_critics(batch.s2, a)
        best = torch.maximum(best, 0.75 * found.min(0).values + 0.25 * found.max(0).values)
    target = (batch.r + 0.9 * batch.going * best).detach()
    critic_loss = sum((q - target).square().mean() for q in other.critics(batch.s, batch.a))
    tried = moved(batch.s, likes(batch.s, draw(8).clamp(-0.5, 0.5)), other.perturbation)
    pairs = [
        ("actions", other.actions, action_loss),
        ("critics", other.critics, critic_loss),
        ("perturbation", other.perturbation, -other.critics(batch.s, tried)[0].mean()),
    ]
    found, wanted = parameters(agent), parameters(other)
    every = []
    for name, net, loss in pairs:
        assert losses[name] == pytest.approx(float(loss.detach()), rel=1e-4)
        every.append(torch.autograd.grad(loss, list(net.parameters()), retain_graph=True))
    for (_, net, _), gradients in zip(pairs, every, strict=True):
        optimizer = torch.optim.AdamW(net.parameters(), lr=5e-4, weight_decay=0.0)
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for name in found:
        slow = name.startswith("slow_")
        expected = 0.9 * before[name] + 0.1 * found[name.removeprefix("slow_")] if slow else wanted[name]
        assert_close(found[name], expected, atol=5e-6, rtol=1e-4)
        assert not torch.equal(found[name], before[name])


@pytest.mark.parametrize("rho", [0.1, 0.5, 0.9])
def test_the_dual_is_the_linear_program_of_total_variation(rho):
    values, least = torch.randn(9, generator=torch.Generator().manual_seed(1), dtype=torch.float64), -4.0
    # p on the samples and on one state more, the worst there may be: sum of what is above 1/9 at most rho.
    points = np.append(values.numpy(), least)
    nominal = np.append(np.full(9, 1 / 9), 0.0)
    upper = np.hstack([np.eye(10), -np.eye(10)])
    found = linprog(
        np.append(points, np.zeros(10)),
        A_ub=np.vstack([upper, np.append(np.zeros(10), np.ones(10))]),
        b_ub=np.append(nominal, rho),
        A_eq=[np.append(np.ones(10), np.zeros(10))],
        b_eq=[1],
    )
    grid = torch.linspace(least, 6, 20_001, dtype=torch.float64)
    duals = total_variation_value(values, grid[:, None].expand(-1, 9), rho, least).mean(1)
    assert float(duals.max()) == pytest.approx(found.fun, abs=1e-3)
    assert bool((duals <= found.fun + 1e-9).all())  # of any eta a lower bound


@pytest.mark.parametrize("rho", [0.2, 0.5])
def test_eta_is_fitted_to_the_quantile_of_what_follows(rho):
    agent = RFQI(logs(), **SMALL, gamma=0.5, rho=rho, dual_steps=400, dual_learning_rate=1e-2)
    least = float(agent._buffer.r.min()) / 0.5
    values = least + torch.rand(200, generator=torch.Generator().manual_seed(2)) * -least
    # Two pairs, each with a hundred outcomes of its own.
    s = torch.cat([torch.zeros(100, 3), torch.ones(100, 3)])
    values[:100] *= 0.5
    batch = Batch(s, s[:, :1], values, s, torch.ones(200))
    eta = agent.fit_eta(batch, values)
    for rows in (slice(0, 100), slice(100, 200)):
        # Of the least it takes rho, from the best outcomes.
        kept = values[rows].sort().values[: round(100 * (1 - rho))]
        worst = float(kept.sum()) / 100 + rho * least
        got = float(total_variation_value(values[rows], eta[rows], rho, least).mean())
        assert worst - 0.02 * abs(least) <= got <= worst + 1e-4


def test_steps_of_eta_follow_the_gradient_of_its_dual():
    agent = RFQI(
        logs(rewards=np.linspace(-1, 0, 64)), **SMALL, gamma=0.5, rho=0.9, dual_steps=3, dual_learning_rate=0.1
    )
    batch = agent._buffer.draw(16, torch.Generator().manual_seed(0))
    values = torch.linspace(-2, 3, 16)
    eta = copy.deepcopy(agent._start)
    optimizer = torch.optim.AdamW(eta.parameters(), lr=0.1, weight_decay=0.0)

    def fitted():
        raw = values.mean() + values.std(correction=0) * eta(torch.cat([batch.s, batch.a], -1))[:, 0]
        return raw.clamp(*limits)

    limits = (-2.0, -2.0 + 2 / 0.9)
    outside = fitted() == limits[1]
    assert 0 < int(outside.sum()) < 16  # where nothing pulls
    for _ in range(3):
        optimizer.zero_grad()
        (-total_variation_value(values, fitted(), 0.9, -2.0).mean() / values.std(correction=0)).backward()
        optimizer.step()
    assert_close(agent.fit_eta(batch, values), fitted().detach())


def test_the_ball_of_nothing_and_of_everything():
    values = torch.linspace(-1, 0, 8)
    for rho, wanted in ((1e-6, values.mean()), (1.0, torch.tensor(0.0))):
        agent = RFQI(logs(rewards=np.linspace(0, 1, 64)), **SMALL, gamma=0.5, rho=rho, dual_steps=300)
        batch = agent._buffer.draw(8, torch.Generator().manual_seed(0))
        found = agent._next_value(batch, values + 1)
        assert float(found.mean()) == pytest.approx(float(wanted) + (1 if rho < 1 else 0), abs=0.02)
    assert agent._range() == (0.0, 2.0)


def test_robust_values_are_lower():
    plain, robust = FQI(logs(), **SMALL, gamma=0.9), RFQI(logs(), **SMALL, gamma=0.9, dual_steps=50)
    assert robust.learn(3).losses["q"] < plain.learn(3).losses["q"] - 0.1


def test_actions_stay_with_those_of_the_logs():
    narrow = logs(actions=np.random.default_rng(1).uniform(1.0, 1.2, size=(64, 1)))
    agent = FQI(narrow, **SMALL, perturbation=0.05, learning_rate=1e-2).learn(150)
    seen = np.random.default_rng(2).normal(size=(50, 3))
    found = agent.predict(seen, deterministic=True)[0]
    assert found.min() > 0.8 and found.max() < 1.4  # 0.05 of half the range is 0.1, and the model errs a little
    alone = np.stack([agent.predict(each, deterministic=True)[0] for each in seen])
    np.testing.assert_allclose(alone, found, atol=1e-5)
    assert not np.array_equal(agent.predict(seen)[0], agent.predict(seen)[0])


@pytest.mark.parametrize("kind", [FQI, RFQI])
def test_an_interrupted_agent_comes_to_the_same_bytes(kind, tmp_path):
    data, how = logs(), SMALL | ({"dual_steps": 3} if kind is RFQI else {})
    kind(data, **how).learn(4).save(tmp_path / "whole")
    kind(data, **how).learn(1).save(tmp_path / "cut")
    again = kind.load(tmp_path / "cut", data).learn(3)
    again.save(tmp_path / "resumed")
    assert (tmp_path / "whole.zip").read_bytes() == (tmp_path / "resumed.zip").read_bytes()
    policy = load_policy(tmp_path / "whole.zip")
    assert type(policy) is kind
    seen = np.ones((3, 3))
    np.testing.assert_array_equal(
        policy.predict(seen, deterministic=True)[0], again.predict(seen, deterministic=True)[0]
    )


def test_what_does_not_fit_is_refused():
    with pytest.raises(BadInput, match="rho"):
        RFQI(logs(), rho=0.0)
    with pytest.raises(BadInput, match="alpha"):
        FQI(logs(), alpha=0.1)
    with pytest.raises(WorkFailed, match="no numbers any more"):
        FQI(logs(rewards=np.full(64, 3e38)), **SMALL).learn(5)


def test_it_acts_by_the_best_of_its_candidates():
    agent = FQI(logs(), **SMALL, seed=4, perturbation=0.4, latent=3)
    with torch.no_grad():
        for weight in agent.perturbation.parameters():
            weight.mul_(5)
    seen = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))

    def due(z):
        """z: [6, 7, 3]."""
        chosen = []
        for row, own in zip(seen, z, strict=True):
            like = torch.tanh(agent.actions.decoder(torch.cat([row.expand(7, -1), own], -1)))
            moved = like + 0.4 * torch.tanh(agent.perturbation(torch.cat([row.expand(7, -1), like], -1)))
            moved = moved.clamp(-1, 1)
            chosen.append(moved[int(agent.critics(row.expand(7, -1), moved)[0].argmax())])
        return 2 * torch.stack(chosen).detach().numpy()

    fixed = torch.randn(7, 3, generator=torch_stream(4, 3)).clamp(-0.5, 0.5)
    found = agent.predict(seen.numpy(), deterministic=True)[0]
    np.testing.assert_allclose(found, due(fixed.expand(6, -1, -1)), atol=1e-5)
    drawn = torch.randn(42, 3, generator=torch_stream(4, 2)).clamp(-0.5, 0.5).view(6, 7, 3)
    np.testing.assert_allclose(agent.predict(seen.numpy())[0], due(drawn), atol=1e-5)
    assert FQI(logs(), **SMALL).actions.latent == 2 and len(found) == 6


def test_bounds_of_values_are_rewards_for_ever_with_nothing_between():
    for rewards, gamma, due in (
        ((-3.0, -1.0), 0.75, (-12, 0)), ((1.0, 2.0), 0.5, (0, 4)), ((-1.0, 3.0), 0.5, (-2, 6)),
    ):  # fmt: skip
        agent = RFQI(logs(rewards=np.linspace(*rewards, 64)), **SMALL, gamma=gamma)
        assert agent._range() == pytest.approx(due)


def test_an_actions_model_limits_its_deviation():
    model = ActionModel(3, 1, (4,), 2)
    s, a = torch.randn(5, 3), torch.rand(5, 1)
    for bias, limit in ((-30.0, -4.0), (30.0, 15.0)):
        with torch.no_grad():
            model.encoder[-1].weight.zero_()
            model.encoder[-1].bias.copy_(torch.tensor([0.0, 0.0, bias, bias]))
            model.decoder[-1].weight.zero_()
            model.decoder[-1].bias.fill_(0.3)
        divergence = 0.5 * (np.exp(2 * limit) - 1) - limit
        due = float((np.tanh(0.3) - a).square().mean()) + 0.5 * divergence
        assert float(model.loss(s, a, torch.zeros(5, 2)).detach()) == pytest.approx(due, rel=1e-4)


def test_values_that_are_all_the_same_are_a_unit_of_one():
    agent = RFQI(logs(), **SMALL, gamma=0.5, rho=0.5, dual_steps=1)
    batch = agent._buffer.draw(8, torch.Generator().manual_seed(0))
    values = torch.full((8,), -1.0)
    eta, least = agent.fit_eta(batch, values), agent._range()[0]
    other = perceptron_of(agent)
    optimizer = torch.optim.AdamW(other.parameters(), lr=agent.settings.dual_learning_rate, weight_decay=0.0)

    def raw():
        return values + other(torch.cat([batch.s, batch.a], -1))[:, 0]

    (-total_variation_value(values, raw().clamp(least, least - least / 0.5), 0.5, least).mean()).backward()
    optimizer.step()
    assert_close(eta, raw().detach(), atol=1e-6, rtol=0)


def perceptron_of(agent):
    """The network that eta starts from, made anew from the seed."""
    with seeded(agent.settings.seed + 1):
        return perceptron(4, agent.settings.hidden, 1)
