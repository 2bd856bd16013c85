"""SAC and DR-SAC: the density of actions, one step against its equations, robust off, interruptions, bad input."""

import json
import math
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.control import dr_sac
from equipoise.control.agent import Batch, Buffer, check_boxes
from equipoise.control.dr_sac import DRSAC
from equipoise.control.networks import Critics, by_columns, perceptron, set_gradients, squash
from equipoise.control.nominal import NOMINAL, Simulated
from equipoise.control.policies import load_policy
from equipoise.control.robust import dual_value, robust_value
from equipoise.control.sac import SAC
from equipoise.control.transitions import Transitions, of_arrays, read
from equipoise.core.errors import BadInput, WorkFailed

SMALL = {"hidden": (16,), "batch_size": 8}
ROBUST = SMALL | {"samples": 6, "nominal_steps": 3, "delta": 0.3}


def logs(n=64, seed=0, **other):
    generator = np.random.default_rng(seed)
    observations = generator.normal(size=(n, 3))
    actions = generator.uniform(-2, 2, size=(n, 2))
    after = observations + 0.1 * np.pad(actions, ((0, 0), (0, 1))) + 0.05 * generator.normal(size=(n, 3))
    rewards = -(observations**2).sum(-1)
    named = {"observations": observations, "actions": actions, "rewards": rewards, "next_observations": after}
    named |= {"terminated": np.arange(n) % 7 == 6, "action_low": [-2.0, -2.0], "action_high": [2.0, 2.0]}
    return of_arrays(named | other)


def parameters(agent):
    return {f"{name}.{key}": each for name, net in agent._networks().items() for key, each in net.state_dict().items()}


def test_the_density_of_actions_by_a_change_of_variables():
    mean, log_std = torch.tensor([[0.3, -1.0]], dtype=torch.float64), torch.tensor([[-0.5, 0.2]], dtype=torch.float64)
    noise = torch.tensor([[0.7, -1.1]], dtype=torch.float64)
    action, log_prob = squash(mean, log_std, noise)
    raw = torch.atanh(action)
    density = torch.distributions.Normal(mean, log_std.exp()).log_prob(raw) - torch.log(1 - action.square())
    assert_close(log_prob, density.sum(-1))
    # In one dimension it integrates to 1.
    raw = torch.linspace(-9, 9, 20_001, dtype=torch.float64)[:, None]
    action, log_prob = squash(torch.full_like(raw, 0.3), torch.full_like(raw, -0.5), (raw - 0.3) / math.exp(-0.5))
    assert float(torch.trapezoid(log_prob.exp(), action[:, 0])) == pytest.approx(1, abs=1e-6)
    far = squash(torch.tensor([[40.0]]), torch.tensor([[0.0]]), torch.tensor([[0.0]]))[1]
    assert float(far) == pytest.approx(-0.5 * math.log(2 * math.pi) - 2 * (math.log(2) - 40), rel=1e-6)


def test_critics_in_one_product_are_critics_one_by_one():
    torch.manual_seed(0)
    critics = Critics(3, 2, (5, 4), 3)
    s, a = torch.randn(6, 3), torch.randn(6, 2)
    for place in range(3):
        hidden = torch.cat([s, a], -1)
        for layer, (weight, bias) in enumerate(zip(critics.weights, critics.biases, strict=True)):
            hidden = hidden @ weight[place] + bias[place]
            hidden = hidden.relu() if layer < 2 else hidden
        assert_close(critics(s, a)[place], hidden[:, 0])


def test_a_step_is_its_equations():
    """Written out again with a loss, a backward pass and an optimizer for each network."""
    agent = SAC(logs(), **SMALL, gamma=0.9, tau=0.1, alpha=0.2)
    batch = agent._buffer.draw(8, torch.Generator().manual_seed(4))
    assert set(batch.going.tolist()) == {0.0, 1.0}
    other = SAC(logs(), **SMALL, gamma=0.9, tau=0.1, alpha=0.2)
    for each in (agent, other):
        with torch.no_grad():
            each.slow_value[-1].bias.fill_(3.0)  # so that what follows an end would be seen
    before = {name: each.clone() for name, each in parameters(other).items()}
    losses = agent.update(batch)

    mean, log_std = other.actor(batch.s)
    noise = torch.randn(mean.shape, generator=other._batches)
    action = torch.tanh(mean + log_std.exp() * noise)
    normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(mean + log_std.exp() * noise)
    log_prob = (normal - torch.log(1 - action.square())).sum(-1)
    lowest = other.slow_critics(batch.s, action).min(0).values
    target = batch.r + 0.9 * batch.going * other.slow_value(batch.s2)[:, 0]
    pairs = [
        (other.value, (other.value(batch.s)[:, 0] - (lowest - 0.2 * log_prob).detach()).square().mean()),
        (other.critics, sum((q - target).square().mean() for q in other.critics(batch.s, batch.a))),
        (other.actor, (0.2 * log_prob - lowest).mean()),
    ]
    for (net, loss), name in zip(pairs, ("value", "critics", "actor"), strict=True):
        assert losses[name] == pytest.approx(float(loss.detach()), rel=1e-4)
        optimizer = torch.optim.AdamW(net.parameters(), lr=5e-4)
        gradients = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    found, wanted = parameters(agent), parameters(other)
    for name in (each for each in found if not each.startswith("slow")):
        assert_close(found[name], wanted[name], atol=2e-6, rtol=1e-4)
        assert not torch.equal(found[name], before[name])
    for name in (each for each in found if each.startswith("slow")):
        assert_close(found[name], 0.9 * before[name] + 0.1 * found[name.removeprefix("slow_")])
    # Below the target entropy of -2 nats the temperature falls, above it rises: here entropy is about 1.2.
    assert float(log_prob.detach().mean()) < 2 and float(agent.log_alpha.detach()) < math.log(0.2)


@pytest.mark.parametrize(
    "how",
    [
        {"actor_through": "critics"},
        {"behavior_weight": 0.3},
        {"behavior_weight": 1.0, "actor_through": "critics"},
        {"learn_alpha": False},
        {"target_entropy": 1.25, "critics": 3},
    ],
)
def test_a_step_of_every_variant_is_its_equations(how):
    settings = {"gamma": 0.9, "alpha": 0.3, "learning_rate": 0.01, "weight_decay": 0.0} | SMALL | how
    agent, other = (SAC(logs(), **settings) for _ in range(2))
    with torch.no_grad():
        for each in (agent, other):
            each.slow_critics.biases[-1].add_(0.5 * torch.randn(each.settings.critics, 1, 1, generator=batches(3)))
    batch = agent._buffer.draw(8, batches(4))
    losses = agent.update(batch)
    mean, log_std = other.actor(batch.s)
    action, log_prob = squash(mean, log_std, torch.randn(mean.shape, generator=other._batches))
    followed = other.slow_critics if how.get("actor_through", "slow") == "slow" else other.critics
    weight = how.get("behavior_weight", 0.0)
    loss = (0.3 * log_prob - followed(batch.s, action).min(0).values).mean() * (1 - weight)
    loss = loss + weight * (torch.tanh(mean) - batch.a).square().mean()
    assert losses["actor"] == pytest.approx(float(loss.detach()), rel=1e-4)
    optimizer = torch.optim.AdamW(other.actor.parameters(), lr=0.01, weight_decay=0.0)
    for parameter, gradient in zip(
        other.actor.parameters(), torch.autograd.grad(loss, list(other.actor.parameters())), strict=True
    ):
        parameter.grad = gradient
    optimizer.step()
    for one, two in zip(agent.actor.parameters(), other.actor.parameters(), strict=True):
        assert_close(one, two, atol=2e-5, rtol=1e-3)
    with torch.no_grad():
        targets = batch.r + 0.9 * batch.going * other.slow_value(batch.s2)[:, 0]
        errors = sum((q - targets).square().mean() for q in other.critics(batch.s, batch.a))
    assert losses["critics"] == pytest.approx(float(errors), rel=1e-4)
    assert losses["q"] == pytest.approx(float(targets.mean()), rel=1e-4) and losses["alpha"] == pytest.approx(0.3)
    # AdamW's first step is one of the learning rate, down where entropy is above its target.
    too_high = float(-log_prob.detach().mean()) > how.get("target_entropy", -2.0)
    step = 0.0 if "learn_alpha" in how else -0.01 if too_high else 0.01
    assert float(agent.log_alpha.detach()) == pytest.approx(math.log(0.3) + step, abs=1e-5)


def batches(seed):
    return torch.Generator().manual_seed(seed)


def test_the_temperature_rises_where_the_policy_is_too_sure():
    agent = SAC(logs(), **SMALL, target_entropy=5.0, weight_decay=0.0)
    agent.learn(3)
    assert float(agent.log_alpha.detach()) > math.log(0.12)


def test_a_time_limit_is_no_end():
    batches = [SAC(logs(truncated=np.full(64, flag)), **SMALL)._buffer.all() for flag in (False, True)]
    assert_close(batches[0].going, batches[1].going)


def test_the_actor_may_follow_the_critics_and_the_logs():
    plain, through, cloned = (
        SAC(logs(), **SMALL, **more).learn(2) for more in ({}, {"actor_through": "critics"}, {"behavior_weight": 1.0})
    )
    assert not torch.equal(plain.actor.body[0].weight, through.actor.body[0].weight)
    assert not torch.equal(plain.actor.body[0].weight, cloned.actor.body[0].weight)
    # The first step's critics are those that both follow: a frozen pass leaves them no gradient of the actor's.
    assert_close(plain.critics.weights[0], through.critics.weights[0])


def test_robust_off_is_sac_to_the_bit():
    sac, off = SAC(logs(), **SMALL).learn(4), DRSAC(logs(), robust=False, **ROBUST).learn(4)
    mine = parameters(off)
    assert all(torch.equal(each, mine[name]) for name, each in parameters(sac).items())
    on = DRSAC(logs(), **ROBUST).learn(4)
    assert not torch.equal(parameters(on)["critics.weights.0"], mine["critics.weights.0"])


def test_without_a_radius_and_with_true_samples_the_target_is_sacs_in_expectation():
    def simulator(s, a, count, generator):
        noise = torch.randn((len(s), count, s.shape[1]), generator=generator)
        return s[:, None] + 0.05 * noise

    agent = DRSAC(logs(), simulator=simulator, delta=0.0, hidden=(16,), samples=4000)
    batch = agent._buffer.draw(5, torch.Generator().manual_seed(1))
    found = agent._next_value(batch)
    drawn = simulator(batch.s, batch.a, 4000, torch.Generator().manual_seed(9))
    plain = torch.stack([SAC._next_value(agent, batch._replace(s2=drawn[:, j])) for j in range(0, 4000, 10)]).mean(0)
    assert_close(found, plain, atol=2e-3, rtol=0)


def test_the_functional_dual_stays_below_the_exact_one_and_comes_near():
    agent = DRSAC(logs(), **ROBUST | {"dual": "functional", "dual_steps": 1, "dual_learning_rate": 1e-2})
    batch = agent._buffer.draw(32, torch.Generator().manual_seed(2))
    values = torch.randn(32, 40, generator=torch.Generator().manual_seed(3)) * (0.2 + batch.s[:, :1].abs())
    exact, _ = robust_value(values, 0.3)
    gaps = []
    for _ in range(60):
        value, g = agent.functional_value(batch, values)
        assert bool((value <= exact + 1e-5).all()) and bool((g > 0).all())
        gaps.append(float((exact - value).mean()))
    assert gaps[-1] < 0.3 * gaps[0] and gaps[-1] < 0.02 * float(exact.abs().mean())


def test_the_slope_of_the_dual_is_its_derivative():
    values = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = torch.tensor([0.3, 0.7, 1.5, 4.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(dual_value(values, 0.2, g).sum(), g)
    weights = torch.softmax(-values / g.detach()[:, None], 1)
    assert_close(slope, (weights * (weights * 9).log()).sum(1) - 0.2)


@pytest.mark.parametrize("dual", ["exact", "functional"])
def test_an_interrupted_agent_comes_to_the_same_bytes(dual, tmp_path):
    data = logs()
    DRSAC(data, **ROBUST, dual=dual).learn(5).save(tmp_path / "whole")
    DRSAC(data, **ROBUST, dual=dual).learn(2).save(tmp_path / "cut")
    again = DRSAC.load(tmp_path / "cut", data)
    again.learn(3).save(tmp_path / "resumed")
    assert (tmp_path / "whole.zip").read_bytes() == (tmp_path / "resumed.zip").read_bytes()
    seen = np.zeros((4, 3))
    whole = DRSAC.load(tmp_path / "whole")
    np.testing.assert_array_equal(whole.predict(seen)[0], again.predict(seen)[0])
    one, state = whole.predict(np.ones(3), deterministic=True)
    assert one.shape == (2,) and state is None and np.all(np.abs(one) <= 2)
    with pytest.raises(BadInput, match=r"DRSAC\.load"):
        SAC.load(tmp_path / "whole")
    damaged = bytearray((tmp_path / "whole.zip").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "whole.zip").write_bytes(damaged)
    with pytest.raises(WorkFailed):
        DRSAC.load(tmp_path / "whole")


def test_columns_are_rows_and_their_gradients_those_of_autograd():
    torch.manual_seed(0)
    network = perceptron(3, (7, 5), 2).double()
    rows = torch.randn(11, 3, dtype=torch.float64)
    slope = torch.randn(11, 2, dtype=torch.float64)
    found = network(rows)
    wanted = torch.autograd.grad(found, list(network.parameters()), slope)
    kept: list[torch.Tensor] = []
    with torch.no_grad():
        assert_close(by_columns(network, rows.T, kept), found.T)
        set_gradients(network, kept, slope.T)
    assert_close([each.grad for each in network.parameters()], list(wanted))


@pytest.mark.parametrize("name", list(NOMINAL))
def test_samples_of_a_pair_are_the_same_in_any_company(name):
    agent, drawn = DRSAC(logs(), **ROBUST | {"nominal": name}).learn(2), np.random.default_rng(0)
    s, a = drawn.normal(size=(3, 3)), drawn.uniform(-1, 1, size=(3, 2))
    alone, together = (agent.worst_case(s[:n], a[:n], 7) for n in (1, 3))
    assert_close(alone["next_observations"][0], together["next_observations"][0])
    assert_close(alone["value"][0], together["value"][0])
    assert_close(agent.sample_next(s[:1], a[:1], 7)[0], agent.sample_next(s, a, 7)[0])
    assert not np.allclose(agent.sample_next(s[[0, 0]], a[[0, 0]], 7)[0], agent.sample_next(s[[0, 0]], a[[0, 0]], 7)[1])


def test_who_only_acts_needs_no_optimizer(tmp_path):
    agent = DRSAC(logs(), **ROBUST).learn(2)
    state = agent.state()
    state["optimizers"] = {"another": {}}
    actor = DRSAC(**ROBUST)
    actor._build(3, agent.low, agent.high)
    actor.restore(state)
    seen = np.ones((2, 3))
    assert_close(actor.predict(seen, deterministic=True)[0], agent.predict(seen, deterministic=True)[0])
    with pytest.raises(KeyError):
        DRSAC(logs(), **ROBUST).restore(state)


class Line:
    """A point that is pushed along a line, ten steps an episode; a time limit, no end."""

    observation_space = SimpleNamespace(low=np.full(1, -9.0), high=np.full(1, 9.0), shape=(1,))
    action_space = SimpleNamespace(low=np.array([-1.0]), high=np.array([3.0]), shape=(1,))

    def reset(self, seed=None):
        self.x, self.t, self.acts = 0.0, 0, []
        return np.array([self.x]), {}

    def step(self, action):
        assert -1 <= action[0] <= 3
        self.x, self.t = self.x + float(action[0]), self.t + 1
        return np.array([self.x]), -abs(self.x - 1), False, self.t == 10, {}


def test_it_learns_in_an_environment():
    agent = DRSAC(Line(), **ROBUST | {"nominal": "gaussian"}, learning_starts=6, buffer_size=16)
    agent.learn(20)
    assert agent.steps == 20 and agent._buffer.size == 16 and agent._trained == 3 + 15
    assert bool((agent._buffer.going == 1).all()) and 0 <= agent.few <= 1
    stopped = SAC(Line(), **SMALL).learn(10, callback=lambda each: each.steps < 3)
    assert stopped.steps == 3


@pytest.mark.parametrize("name", list(NOMINAL))
def test_nominal_models_learn_what_follows_and_how_sure_they_are(name):
    generator = torch.Generator().manual_seed(0)
    s, a = torch.randn(2000, 2, generator=generator), torch.rand(2000, 1, generator=generator) * 2 - 1
    noise = 0.3 * torch.randn(2000, 2, generator=generator)
    batch = Batch(s, a, s[:, 0], 0.9 * s + torch.cat([a, -a], 1) + noise, torch.ones(2000))
    torch.manual_seed(0)
    model = NOMINAL[name](2, 1, (16,), latent=2, vae_loss="sum")
    model.fit_units(batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        rows = torch.randint(2000, (128,), generator=generator)
        loss = model.loss(Batch(*(each[rows] for each in batch)), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = model.sample(s[:200], a[:200], 50, generator)
    assert drawn.shape == (200, 50, 2)
    error = (drawn.mean(1) - (0.9 * s + torch.cat([a, -a], 1))[:200]).square().mean().sqrt()
    assert float(error) < 0.15
    # The VAE's decoder adds no noise of its own, and its prior outweighs a change that the pair explains.
    low, high = (0.7, 1.3) if name != "vae" else (0.0, 1.3)
    assert low <= model.spread(batch, generator) <= high


def test_what_it_fears():
    agent = DRSAC(logs(), **ROBUST).learn(2)
    found = agent.worst_case(np.zeros((2, 3)), np.zeros((2, 2)), 50)
    assert found["next_observations"].shape == (2, 50, 3)
    weights, values = found["weights"], found["values"]
    assert np.all(np.diff(weights[0][np.argsort(values[0])]) <= 1e-7)  # the worse, the heavier
    np.testing.assert_allclose((weights * values).sum(1), found["value"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["effective"], 1 / (weights**2).sum(1), rtol=1e-4)
    assert agent.spread() >= 0


def test_files_are_read_as_they_were_written(tmp_path):
    data = logs()
    data.save(tmp_path / "d.npz")
    again = read(tmp_path / "d.npz")
    for name in Transitions.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(data, name))
    assert data.episodes == 9 and len(again) == 64


def test_a_simulator_gives_so_many_next_states_of_each_pair():
    def simulator(s, a, count, generator):
        return s[:, None] + torch.arange(float(count))[None, :, None] + a.sum(-1)[:, None, None]

    model = Simulated(3, 2, simulator)
    s, a = torch.arange(12.0).reshape(4, 3), torch.full((4, 2), 0.25)
    columns = model.columns(s, a, 5, torch.Generator())
    assert columns.shape == (3, 4, 5) and float(columns[2, 3, 4]) == 11 + 4 + 0.5
    assert_close(model.sample(s, a, 5, torch.Generator()), simulator(s, a, 5, None))
    for wrong in ((4, 5, 2), (4, 3, 5), (5, 4, 3), (4, 5)):
        with pytest.raises(BadInput, match=r"expected \(4, 5, 3\)"):
            Simulated(3, 2, lambda *_, wrong=wrong: torch.zeros(wrong)).columns(s, a, 5, torch.Generator())


def test_a_ring_of_transitions_is_stored_and_goes_on_where_it_was():
    def filled(count, capacity=3):
        ring = Buffer(capacity, 2, 1)
        for place in range(count):
            ring.add(np.full(2, place), np.full(1, 10 + place), 0.5 * place, np.full(2, 100 + place), place % 2 == 1)
        return ring

    assert filled(2).all().r.tolist() == [0, 0.5] and (filled(2).size, filled(2).place) == (2, 2)
    ring = filled(4)  # the first is written over
    assert (ring.size, ring.place) == (3, 1) and ring.all().s[:, 0].tolist() == [3, 1, 2]
    stored = ring.state()
    assert stored["size"] == 3 and stored["place"] == 1 and stored["going"].tolist() == [0, 0, 1]
    assert stored["s2"].tolist() == [[103, 103], [101, 101], [102, 102]] and stored["a"].tolist() == [[13], [11], [12]]
    for count in (0, 2, 3, 4):
        own, again = filled(count), Buffer(3, 2, 1)
        again.restore(own.state())
        for each in (own, again):
            each.add(np.full(2, 7), np.full(1, 8), 9.0, np.full(2, 6), False)
        assert (again.size, again.place) == (own.size, own.place)
        assert all(one.equal(other) for one, other in zip(again.all(), own.all(), strict=True))
    drawn = ring.draw(2000, torch.Generator().manual_seed(0))
    assert [round(float((drawn.s[:, 0] == place).float().mean()), 1) for place in (3, 1, 2)] == [0.3] * 3
    assert (drawn.s2[:, 1] - drawn.s[:, 0] == 100).all() and (drawn.r == drawn.s[:, 1] / 2).all()


def test_boxes_that_policies_can_have_are_flat_and_of_bounded_actions():
    def space(low, high):
        return SimpleNamespace(low=np.array(low), high=np.array(high), shape=np.shape(low))

    def checked(seen, action):
        check_boxes(SimpleNamespace(observation_space=seen, action_space=action))

    flat, open_box = space([-1.0, 0.0], [1.0, 2.0]), space([-np.inf], [np.inf])
    checked(open_box, flat)  # what is seen needs no bounds
    for seen, action in ((space([[0.0]], [[1.0]]), flat), (flat, space([[0.0]], [[1.0]])), (flat, SimpleNamespace())):
        with pytest.raises(BadInput, match="other spaces than flat boxes"):
            checked(seen, action)
    for action in (space([0.0, -np.inf], [1.0, 1.0]), space([0.0, 0.0], [np.inf, 1.0])):
        with pytest.raises(BadInput, match="no bounds"):
            checked(flat, action)


def test_logs_name_what_is_missing_and_what_there_is():
    with pytest.raises(BadInput, match=r"no actions, next_observations .*found: observations, rewards, terminated"):
        of_arrays({"observations": np.zeros((2, 1)), "rewards": np.zeros(2), "terminated": np.zeros(2)})
    with pytest.raises(BadInput, match="found: nothing"):
        of_arrays({})
    for name in ("rewards", "terminated", "truncated", "actions"):
        rows = getattr(logs(truncated=np.zeros(64)), name)[:-1]
        with pytest.raises(BadInput, match=rf"{name} have 63 rows, observations 64"):
            logs(**({"truncated": np.zeros(64)} | {name: rows}))
    for low, high in (([-2.0], [2.0, 2.0]), ([-2.0, -2.0], [2.0]), ([-2.0] * 3, [2.0] * 3)):
        with pytest.raises(BadInput, match="one number an action"):
            logs(action_low=low, action_high=high)
    for wrong in ({"observations": np.zeros(64)}, {"actions": np.zeros(64)}, {"observations": np.zeros((64, 0))}):
        with pytest.raises(BadInput, match=r"\[n, width\]"):
            logs(**wrong)
    room = 4e-5  # of a box of four
    assert logs(actions=np.full((64, 2), 2 + 0.9 * room)).actions.max() > 2
    for side in (1, -1):
        actions = np.zeros((64, 2))
        actions[5, 1] = side * (2 + 1.2 * room)
        with pytest.raises(BadInput, match="row 5 has an action outside"):
            logs(actions=actions)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rewards": np.full(64, np.nan)}, "rewards hold nan"),
        ({"actions": np.full((64, 2), 2.5)}, "outside the box"),
        ({"action_low": [2.0, 2.0]}, "box of actions is empty"),
        ({"next_observations": np.zeros((64, 2))}, "next_observations have shape"),
        ({"terminated": np.full(64, 0.5)}, "true or false"),
        ({"extra": np.zeros(3)}, "would be ignored"),
        ({"rewards": np.zeros(63)}, "63 rows"),
        ({"rewards": 1.0}, "single number"),
        ({"rewards": None}, "no numbers"),
        ({"rewards": np.full(64, 1e300)}, "rewards hold nan or an infinity"),
        ({"observations": [[1], [1, 2]]}, "no table"),
        ({"terminals": np.ones(64)}, "the same thing"),
        ({"actions": np.zeros((64, 0)), "action_low": [], "action_high": []}, "one row or more|expected"),
    ],
)
def test_logs_that_are_none_are_refused_by_name(wrong, told):
    with pytest.raises(BadInput, match=told):
        logs(**wrong)


def test_files_that_are_cut_or_altered_are_refused(tmp_path):
    data = logs()
    data.save(tmp_path / "d.npz")
    whole = (tmp_path / "d.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    np.save(tmp_path / "one.npy", np.zeros(3))
    for content in (whole[: len(whole) // 2], bytes(flipped), (tmp_path / "one.npy").read_bytes(), b""):
        (tmp_path / "d.npz").write_bytes(content)
        with pytest.raises(BadInput, match="cannot be read as an NPZ"):
            read(tmp_path / "d.npz")
    assert data.digest() == logs().digest() != logs(seed=1).digest()


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(BadInput, match="gamma"):
        SAC(logs(), gamma=1.0)
    with pytest.raises(BadInput, match="delta"):
        DRSAC(logs(), delta=-1.0)
    with pytest.raises(BadInput, match="nothing to learn from"):
        SAC().learn(1)
    agent = SAC(logs(), **SMALL)
    agent.save(tmp_path / "agent")
    with pytest.raises(BadInput, match="the agent has 3 observations"):
        SAC.load(tmp_path / "agent", Line())
    with pytest.raises(BadInput, match="made for"):
        agent.predict(np.zeros(4))
    with pytest.raises(BadInput, match="nan"):
        agent.predict(np.full(3, np.nan))
    with pytest.raises(BadInput, match="no file"):
        SAC.load(tmp_path / "nothing")
    with pytest.raises(WorkFailed, match="no numbers any more"):
        SAC(logs(rewards=np.full(64, 3e38)), **SMALL).learn(5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_minari_keeps_ends_of_episodes_apart(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    gymnasium = pytest.importorskip("gymnasium")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    from minari.data_collector import EpisodeBuffer

    box = gymnasium.spaces.Box
    episodes = [
        EpisodeBuffer(
            id=place,
            observations=place + np.arange(18, dtype=np.float32).reshape(6, 3),
            actions=np.full((5, 1), 0.5, np.float32),
            rewards=[-1.0] * 5,
            terminations=[False] * 5,
            truncations=[False] * 4 + [True],
        )
        for place in range(2)
    ]
    minari.create_dataset_from_buffers(
        "equipoise/small-v0",
        episodes,
        action_space=box(-2, 2, (1,), np.float32),
        observation_space=box(-99, 99, (3,), np.float32),
    )
    data = read("minari:equipoise/small-v0")
    assert len(data) == 10 and data.truncated.sum() == 2 and not data.terminated.any()
    assert data.action_low.tolist() == [-2.0] and data.actions[3, 0] == 0.5
    np.testing.assert_array_equal(data.observations[1:5], data.next_observations[:4])
    assert not np.array_equal(data.observations[5], data.next_observations[4])
    with pytest.raises(BadInput, match="no data set"):
        read("minari:equipoise/none-v0")


def unchanging(s, a, count, generator):
    return s[:, None].expand(-1, count, -1)


def test_blocks_of_pairs_are_the_pairs(monkeypatch):
    def simulator(s, a, count, generator):
        return s[:, None] + torch.linspace(-1, 1, count)[:, None] * a.sum(-1)[:, None, None]

    agent = DRSAC(logs(), simulator=simulator, **ROBUST | {"samples": 7})
    batch = agent._buffer.draw(10, torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = agent._sampled_values(batch)
        assert_close(whole, agent.slow_value(simulator(batch.s, batch.a, 7, None)).squeeze(-1))
        for size in (1, 3 * 7 * max(agent.settings.hidden)):  # one pair at a time, and blocks of 3, 3, 3 and 1
            monkeypatch.setattr(dr_sac, "BLOCK", size)
            assert_close(agent._sampled_values(batch), whole)


def test_an_agent_with_a_simulator_is_saved_without_it(tmp_path):
    data = logs()

    def simulator(s, a, count, generator):
        return s[:, None] + torch.randn((len(s), count, 3), generator=generator)

    DRSAC(data, simulator=simulator, **ROBUST).learn(3).save(tmp_path / "whole")
    DRSAC(data, simulator=simulator, **ROBUST).learn(1).save(tmp_path / "cut")
    DRSAC.load(tmp_path / "cut", data, simulator=simulator).learn(2).save(tmp_path / "resumed")
    assert (tmp_path / "whole.zip").read_bytes() == (tmp_path / "resumed.zip").read_bytes()
    alone = load_policy(tmp_path / "cut.zip")
    assert alone.predict(np.zeros(3))[0].shape == (2,)
    for act in (
        lambda: DRSAC.load(tmp_path / "cut", data).learn(1),
        lambda: alone.sample_next(np.zeros(3), np.zeros(2)),
    ):
        with pytest.raises(BadInput, match="simulator"):
            act()
    DRSAC(data, **ROBUST).save(tmp_path / "learnt")
    with pytest.raises(BadInput, match="learnt nominal model"):
        DRSAC.load(tmp_path / "learnt", simulator=simulator)


def test_the_last_losses_are_kept(tmp_path):
    agent = SAC(logs(), **SMALL).learn(2)
    agent.save(tmp_path / "agent")
    assert SAC.load(tmp_path / "agent").losses == agent.losses != {}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "agent.zip"
    SAC(logs(), **SMALL).learn(1).save(path)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda about: [about],
        lambda about: {name: each for name, each in about.items() if name != "settings"},
        lambda about: about | {"settings": [1]},
        lambda about: about | {"class": []},
        lambda about: about | {"format": 2},
        lambda about: about | {"more": 1},
        lambda about: about | {"observations": 4},
        lambda about: about | {"observations": 10**12},  # refused before any network of that size is made
        lambda about: about | {"observations": "3"},
        lambda about: about | {"settings": about["settings"] | {"hidden": [8]}},
        lambda about: about | {"settings": about["settings"] | {"hidden": [8192, 8192, 8192]}},
        lambda about: about | {"settings": about["settings"] | {"critics": 100}},
        lambda about: about | {"action_low": [float("nan"), -2.0]},
        lambda about: about | {"action_low": [9.0, 9.0]},
        lambda about: about | {"action_low": [-2.0]},
    ],
)
def test_models_that_others_wrote_are_refused(stored, change, tmp_path):
    with zipfile.ZipFile(stored) as archive:
        about, state = json.loads(archive.read("model.json")), archive.read("state.safetensors")
    with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
        archive.writestr("model.json", json.dumps(change(about)))
        archive.writestr("state.safetensors", state)
    with pytest.raises(WorkFailed):
        SAC.load(tmp_path / "agent.zip")
    with pytest.raises(BadInput, match="no policy"):
        load_policy(tmp_path / "agent.zip")


def test_states_of_something_else_are_refused(stored, tmp_path):
    from equipoise.core.state import load_state, save_state

    with zipfile.ZipFile(stored) as archive:
        about = archive.read("model.json")
        (tmp_path / "old").write_bytes(archive.read("state.safetensors"))
    old = load_state(tmp_path / "old")
    without = {name: each for name, each in old.items() if name != "optimizers"}
    broken = {**old, "networks": {**old["networks"], "actor": old["networks"]["value"]}}
    weights = {name: torch.full_like(each, math.nan) for name, each in old["networks"]["actor"].items()}
    for state in ({"networks": {}}, without, broken, {**old, "networks": {**old["networks"], "actor": weights}}):
        save_state(tmp_path / "state", state)
        with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
            archive.writestr("model.json", about)
            archive.writestr("state.safetensors", (tmp_path / "state").read_bytes())
        with pytest.raises(WorkFailed, match=r"another agent|other networks|no agent|no numbers"):
            SAC.load(tmp_path / "agent.zip", logs())
    (tmp_path / "agent.zip").write_bytes(b"")
    with pytest.raises(WorkFailed, match="cannot be read"):
        SAC.load(tmp_path / "agent.zip")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"delta": math.inf}, "delta"),
        ({"alpha": math.inf}, "alpha"),
        ({"target_entropy": math.nan}, "target_entropy"),
        ({"seed": 2**70}, "seed"),
    ],
)
def test_settings_that_no_step_could_take_are_refused_at_once(settings, told):
    with pytest.raises(BadInput, match=told):
        DRSAC(logs(), **settings)


def test_what_could_never_learn_is_refused():
    with pytest.raises(BadInput, match="never learn"):
        SAC(Line(), learning_starts=20, buffer_size=10)
    with pytest.raises(BadInput, match="no networks"):
        SAC().save("nowhere")
    agent = DRSAC(logs(), **ROBUST)
    agent._buffer = None
    del agent._buffer
    for act in (agent.pretrain, agent.spread):
        with pytest.raises(BadInput, match="nothing to learn from"):
            act()

    class Broken(Line):
        def reset(self, seed=None):
            return np.array([math.nan]), {}

    with pytest.raises(WorkFailed, match="the environment gave"):
        SAC(Broken(), **SMALL).learn(1)


def test_observations_in_any_order_of_memory():
    agent, seen = SAC(logs(), **SMALL), np.arange(12, dtype=np.float32).reshape(4, 3)
    backwards = agent.predict(seen[::-1], deterministic=True)[0]
    np.testing.assert_array_equal(backwards[::-1], agent.predict(seen, deterministic=True)[0])


@pytest.mark.parametrize(
    "pair",
    [
        (np.full((1, 3), np.nan), np.zeros((1, 2))),
        (np.zeros((1, 3)), np.full((1, 2), 9.0)),
        (np.zeros(3), np.zeros(2), 0),
    ],
)
def test_what_has_no_worst_case_is_refused(pair):
    with pytest.raises(BadInput):
        DRSAC(logs(), **ROBUST).worst_case(*pair)


@pytest.mark.parametrize("delta", [math.log(6), 10.0, 1e30, 1e60])
def test_beyond_its_samples_either_dual_is_the_worst_of_them(delta):
    agents = [DRSAC(logs(), **ROBUST | {"delta": delta, "dual": dual}).learn(3) for dual in ("exact", "functional")]
    assert agents[0].losses == agents[1].losses and all(each.few == 1 for each in agents)


@pytest.mark.parametrize("dual", ["exact", "functional"])
def test_equal_samples_are_no_few(dual):
    agent = DRSAC(logs(), simulator=unchanging, **ROBUST | {"dual": dual}).learn(2)
    assert agent.few == 0
    batch = agent._buffer.draw(4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(agent._next_value(batch), agent.slow_value(batch.s).squeeze(-1))
    mixed = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    agent._few = agent._seen = 0
    agent._count(mixed, robust_value(mixed, 0.3)[1])
    assert (agent._few, agent._seen) == (1, 2)


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_the_functional_dual_knows_no_unit(unit):
    values = torch.randn(32, 40, generator=torch.Generator().manual_seed(3))
    found = []
    for factor in (1.0, unit):
        agent = DRSAC(logs(), **ROBUST | {"dual_learning_rate": 1e-2})
        batch = agent._buffer.draw(32, torch.Generator().manual_seed(2))
        for _ in range(5):
            value, g = agent.functional_value(batch, factor * values)
        found.append((value / factor, g / factor))
    assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_nominal_models_know_no_unit(unit):
    def fitted(factor):
        data = logs()
        scaled = of_arrays({
            **{name: getattr(data, name) for name in ("actions", "rewards", "terminated", "action_low", "action_high")},
            "observations": factor * data.observations, "next_observations": factor * data.next_observations,
        })  # fmt: skip
        agent = DRSAC(scaled, **ROBUST | {"nominal": "gaussian", "nominal_steps": 5})
        agent.pretrain()
        return agent.spread()

    assert fitted(unit) == pytest.approx(fitted(1.0), rel=1e-3)


def test_a_component_that_never_moves_is_no_unit():
    data = logs()
    still = np.float32(1e4) + np.zeros((64, 1), np.float32)
    named = {name: getattr(data, name) for name in Transitions.__dataclass_fields__}
    named |= {name: np.hstack([named[name], still]) for name in ("observations", "next_observations")}
    agent = DRSAC(of_arrays(named), **ROBUST)
    agent.pretrain()
    assert agent.nominal.change_std[3] == 1 and agent.nominal.state_std[3] == 1


@pytest.mark.parametrize("dual", ["exact", "functional"])
def test_one_row_one_transition(dual):
    agent = DRSAC(logs(1), **ROBUST | {"batch_size": 1, "dual": dual, "samples": 2}).learn(2)
    assert math.isfinite(agent.losses["q"]) and agent.spread() >= 0
