"""Widths, beginnings and limits of the networks."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from equipoise.control.networks import Actor, Critics, perceptron, squash


def test_a_perceptron_has_these_widths():
    layers = perceptron(3, (5, 4), 2)
    assert [type(each) for each in layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [(each.in_features, each.out_features) for each in layers[::2]] == [(3, 5), (5, 4), (4, 2)]
    hidden = x = torch.randn(6, 3)
    for place in (0, 2):
        hidden = (hidden @ layers[place].weight.T + layers[place].bias).clamp_min(0)
    assert_close(layers(x), hidden @ layers[4].weight.T + layers[4].bias)


def test_an_actor_begins_near_zero_and_its_deviation_has_limits():
    torch.manual_seed(0)
    actor = Actor(3, 2, (200,))
    for each in actor.body[-1].parameters():
        assert 0.5e-3 < float(each.detach().abs().max()) <= 1e-3 and each.min() < 0 < each.max()
    assert actor.body[-1].out_features == 4 and actor.body[0].weight.abs().max() > 0.1
    for bias, limit in ((-99.0, -20.0), (99.0, 2.0)):
        with torch.no_grad():
            actor.body[-1].bias.copy_(torch.tensor([7.0, -7.0, bias, bias]))
        mean, log_std = actor(torch.zeros(5, 3))
        assert mean.shape == log_std.shape == (5, 2) and (log_std == limit).all()
        assert_close(mean, torch.tensor([[7.0, -7.0]]).expand(5, -1), atol=0.3, rtol=0)


def test_critics_begin_within_their_bounds():
    torch.manual_seed(0)
    critics = Critics(3, 1, (25, 16), 2)
    assert [tuple(each.shape) for each in critics.weights] == [(2, 4, 25), (2, 25, 16), (2, 16, 1)]
    assert [tuple(each.shape) for each in critics.biases] == [(2, 1, 25), (2, 1, 16), (2, 1, 1)]
    for weight, bound in zip(critics.weights, (0.5, 0.2, 3e-3), strict=True):
        assert 0.85 * bound < float(weight.detach().max()) <= bound
        assert -bound <= float(weight.detach().min()) < -0.85 * bound
    assert (critics.biases[0] == 0.1).all() and (critics.biases[1] == 0.1).all()
    assert (critics.biases[2].abs() <= 3e-3).all() and not (critics.biases[2] == 0).any()
    # A hidden layer of one is the last of nothing.
    narrow = [float(Critics(1, 1, (1,), 1).weights[0].detach().abs().max()) for _ in range(20)]
    assert max(narrow) <= 1 / math.sqrt(2)


def test_frozen_critics_pass_gradients_to_their_inputs_alone():
    critics = Critics(2, 1, (4,), 2)
    s, a = torch.randn(5, 2, requires_grad=True), torch.randn(5, 1, requires_grad=True)
    assert_close(critics(s, a, frozen=True), critics(s, a))
    critics(s, a, frozen=True).sum().backward()
    assert a.grad is not None and a.grad.abs().sum() > 0 and all(each.grad is None for each in critics.parameters())
    critics(s, a).sum().backward()
    assert all(each.grad is not None for each in critics.parameters())


@pytest.mark.parametrize("raw", [-3.0, 0.0, 0.4, 2.0])
def test_a_squashed_draw_has_its_density(raw):
    mean, log_std = torch.tensor([[raw - 0.5, 0.1]]).double(), torch.tensor([[-0.7, 0.3]]).double()
    noise = torch.tensor([[0.5, -0.25]]).double() / log_std.exp()
    action, log_prob = squash(mean, log_std, noise)
    points = torch.tensor([raw, 0.1 - 0.25]).double()
    assert_close(action[0], torch.tanh(points))
    density = torch.distributions.Normal(mean[0], log_std[0].exp()).log_prob(points) - torch.log(
        1 / torch.cosh(points) ** 2
    )
    assert_close(log_prob, density.sum()[None])
