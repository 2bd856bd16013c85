"""One step of SAC against Stable-Baselines3's: the same weights, batch and noise.

Theirs has no network of state values: what follows is min_i Q'_i(s', a') - alpha log pi(a'|s') at one action of the policy,
to which our value network is fitted; here it takes the network's place. Theirs takes half of each critic's error, and
updates the critics before the actor: their step of the critics is held back where the actor is compared.
"""

import copy

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.control.agent import Batch
from equipoise.control.networks import squash
from equipoise.control.sac import SAC

peers = pytest.importorskip("stable_baselines3")
gymnasium = pytest.importorskip("gymnasium")

OBSERVATIONS, ACTIONS, WIDTH, ROWS = 3, 2, 16, 12
GAMMA, TAU, RATE = 0.9, 0.1, 1e-3


class Still(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-9, 9, (OBSERVATIONS,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (ACTIONS,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(OBSERVATIONS, np.float32), {}

    def step(self, action):
        return np.zeros(OBSERVATIONS, np.float32), 0.0, False, False, {}


def draws(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def batch():
    a = torch.tanh(draws(ROWS, ACTIONS, seed=1))
    going = (torch.arange(ROWS) % 3 > 0).float()
    return Batch(draws(ROWS, OBSERVATIONS, seed=0), a, draws(ROWS, seed=2), draws(ROWS, OBSERVATIONS, seed=3), going)


class Ours(SAC):
    """Our step with what follows as theirs has it."""

    following: torch.Tensor  # noise of the actions that follow

    def _next_value(self, batch):
        action, log_prob = squash(*self.actor(batch.s2), self.following)
        return self.slow_critics(batch.s2, action).amin(0) - self.log_alpha.exp() * log_prob


@pytest.fixture
def ours():
    agent = Ours(
        Still(), hidden=(WIDTH, WIDTH), gamma=GAMMA, tau=TAU, learning_rate=RATE, weight_decay=0.0, alpha=0.3, seed=5,
        actor_through="critics",
    )  # fmt: skip
    agent.following = draws(ROWS, ACTIONS, seed=7)
    with torch.no_grad():
        for network in (agent.actor, agent.critics, agent.slow_critics):
            for place, each in enumerate(network.parameters()):
                each.add_(0.2 * draws(*each.shape, seed=20 + place))  # wide enough for the actor to matter
        for each in agent.slow_critics.parameters():
            each.mul_(0.9)
    return agent


@pytest.fixture
def theirs(ours, batch, monkeypatch):
    """Theirs with our weights, our batch and our noise, and the gradients of each of its optimizers as it steps."""
    from stable_baselines3.common.logger import configure
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    networks = {"net_arch": [WIDTH, WIDTH]}
    more = {"policy_kwargs": networks, "ent_coef": "auto_0.3", "device": "cpu", "buffer_size": 10}
    agent = peers.SAC("MlpPolicy", Still(), learning_rate=RATE, gamma=GAMMA, tau=TAU, **more)
    agent.set_logger(configure(format_strings=[]))
    own = ours.actor.body
    with torch.no_grad():
        for place in (0, 2):
            agent.actor.latent_pi[place].load_state_dict(own[place].state_dict())
        for head, rows in ((agent.actor.mu, slice(0, ACTIONS)), (agent.actor.log_std, slice(ACTIONS, 2 * ACTIONS))):
            head.weight.copy_(own[4].weight[rows])
            head.bias.copy_(own[4].bias[rows])
        for mine, networks in ((ours.critics, agent.critic), (ours.slow_critics, agent.critic_target)):
            for number, network in enumerate(networks.q_networks):
                for layer, place in enumerate((0, 2, 4)):
                    network[place].weight.copy_(mine.weights[layer][number].T)
                    network[place].bias.copy_(mine.biases[layer][number, 0])
    a_row = (batch.s, batch.a, batch.s2, 1 - batch.going[:, None], batch.r[:, None])
    monkeypatch.setattr(agent.replay_buffer, "sample", lambda *_, **__: ReplayBufferSamples(*a_row))
    acting = torch.Generator()
    acting.set_state(ours._batches.get_state())
    noise = [torch.randn(ROWS, ACTIONS, generator=acting), ours.following]
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", lambda *_, **__: noise.pop(0))
    agent.gradients, agent.held = {}, set()
    for name, network in (("actor", agent.actor), ("critic", agent.critic)):
        step = network.optimizer.step

        def keep(*_, name=name, network=network, step=step):
            agent.gradients[name] = [each.grad.clone() for each in network.parameters()]
            if name not in agent.held:
                step()

        monkeypatch.setattr(network.optimizer, "step", keep)
    return agent


def test_the_actors_and_the_temperatures_step(ours, theirs, batch):
    theirs.held.add("critic")
    losses = ours.update(batch)
    theirs.train(1, ROWS)
    assert losses["actor"] == pytest.approx(theirs.logger.name_to_value["train/actor_loss"], rel=1e-4)
    assert losses["alpha"] == pytest.approx(theirs.logger.name_to_value["train/ent_coef"], rel=1e-6) == 0.3
    own = {place: ours.actor.body[place] for place in (0, 2, 4)}
    found = dict(zip([name for name, _ in theirs.actor.named_parameters()], theirs.gradients["actor"], strict=True))
    heads = [torch.cat([found[f"mu.{name}"], found[f"log_std.{name}"]]) for name in ("weight", "bias")]
    bodies = [found[f"latent_pi.{place}.{name}"] for place in (0, 2) for name in ("weight", "bias")]
    mine = [getattr(own[place], name).grad for place in (0, 2, 4) for name in ("weight", "bias")]
    for gradient, wanted in zip(mine, [*bodies, *heads], strict=True):
        assert float(wanted.abs().max()) > 1e-3
        # They add 1e-6 within the logarithm of the squashing.
        assert_close(gradient, wanted, rtol=1e-3, atol=2e-5)
    assert_close(ours.log_alpha.grad, theirs.log_ent_coef.grad[0], rtol=1e-4, atol=1e-6)
    assert_close(ours.log_alpha.detach(), theirs.log_ent_coef.detach()[0], rtol=1e-6, atol=1e-7)
    assert_close(own[4].weight[:ACTIONS].detach(), theirs.actor.mu.weight.detach(), rtol=1e-4, atol=1e-5)


def test_the_critics_step_and_their_slow_copies(ours, theirs, batch):
    before = copy.deepcopy(ours.critics.state_dict())
    losses = ours.update(batch)
    theirs.train(1, ROWS)
    assert losses["critics"] == pytest.approx(2 * theirs.logger.name_to_value["train/critic_loss"], rel=1e-4)
    # Two critics of six parameters each: weight and bias of three layers.
    for number in range(2):
        for layer in range(3):
            weight, bias = theirs.gradients["critic"][6 * number + 2 * layer : 6 * number + 2 * layer + 2]
            assert_close(ours.critics.weights[layer].grad[number].T, 2 * weight, rtol=1e-3, atol=1e-5)
            assert_close(ours.critics.biases[layer].grad[number, 0], 2 * bias, rtol=1e-3, atol=1e-5)
            for mine, networks in ((ours.critics, theirs.critic), (ours.slow_critics, theirs.critic_target)):
                peer = networks.q_networks[number][2 * layer]
                # Adam's first step is the rate times the gradient's sign, but for gradients near its 1e-8; a wrong
                # sign would be 2e-3 away.
                near = {"rtol": 0, "atol": RATE / 5}
                assert_close(mine.weights[layer][number].T.detach(), peer.weight.detach(), **near)
                assert_close(mine.biases[layer][number, 0].detach(), peer.bias.detach(), **near)
    assert all(not torch.equal(each, before[name]) for name, each in ours.critics.state_dict().items())


def test_what_a_value_network_is_fitted_to_is_their_target(ours, theirs, batch):
    """V of s' has the target that theirs has for what follows, where the actions are the same."""
    ours.update(batch)  # of which the noise is theirs, too
    again = Ours(Still(), **ours.settings.model_dump())
    for name in ("actor", "slow_critics"):
        getattr(again, name).load_state_dict(getattr(ours, name).state_dict())
    with torch.no_grad():
        again.value[-1].weight.zero_()
        again.value[-1].bias.zero_()
    again.following = draws(ROWS, ACTIONS, seed=9)
    noise = torch.Generator()
    noise.set_state(again._batches.get_state())
    ours.following = torch.randn(ROWS, ACTIONS, generator=noise)
    ours.log_alpha.data.copy_(again.log_alpha.data)
    soft = ours._next_value(batch).detach()
    assert again.update(batch._replace(s=batch.s2))["value"] == pytest.approx(float(soft.square().mean()), rel=1e-4)
