"""Nominal models term by term: units, losses, draws and spread, written out with the noise of the same stream."""

import math

import pytest
import torch
from torch.testing import assert_close

from equipoise.control.agent import Batch
from equipoise.control.nominal import NOMINAL, Ensemble, GaussianHead, Nominal, VariationalAutoencoder


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def logs(n=40):
    s = torch.randn(n, 2, generator=stream()) * torch.tensor([3.0, 0.5]) + torch.tensor([1.0, -2.0])
    a = torch.rand(n, 1, generator=stream(1)) * 2 - 1
    s2 = s + torch.cat([a, 2 - a], -1) + 0.1 * torch.randn(n, 2, generator=stream(2))
    return Batch(s, a, s[:, 0], s2, torch.ones(n))


def made(name, **how):
    torch.manual_seed(3)
    model = NOMINAL[name](2, 1, (5,), **{"latent": 3, "vae_loss": "mean", **how})
    model.fit_units(logs())
    return model


def test_units_are_those_of_states_and_changes():
    model, batch = made("gaussian"), logs()
    change = batch.s2 - batch.s
    assert_close(model.state_mean, batch.s.mean(0))
    assert_close(model.state_std, batch.s.std(0, correction=0))
    assert_close(model.change_mean, change.mean(0))
    assert_close(model.change_std, change.std(0, correction=0))
    assert_close(model.inputs(batch.s, batch.a)[:, :2].std(0, correction=0), torch.ones(2))
    assert torch.equal(model.inputs(batch.s, batch.a)[:, 2:], batch.a)
    assert_close(model.change(batch).mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    assert_close(model.change(batch).std(0, correction=0), torch.ones(2))


def test_what_is_within_rounding_is_a_constant():
    """Of the largest value of a component, before or after the step."""
    base = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    after = base + torch.tensor([[0.0, 1e-3], [0.0, -1e-3], [0.0, 1e-3], [0.0, -1e-3]])
    model = GaussianHead(2, 1, (3,))
    model.fit_units(Batch(base, base[:, :1], base[:, 0], after, base[:, 0]))
    assert model.state_std.tolist() == [1, 1] and model.change_std.tolist() == pytest.approx([1, 1e-3])
    wide = torch.tensor([[1e4, 0.0], [1e4, 0.0]], dtype=torch.float64)
    for step, std in ((1.01e-3, 1.01e-3), (0.99e-3, 1.0)):  # a ten millionth of 1e4 is 1e-3
        moved = wide + torch.tensor([[step, 0.0], [-step, 0.0]])
        for one, other in ((wide, moved), (moved, wide)):
            model.fit_units(Batch(one, wide[:, :1], wide[:, 0], other, wide[:, 0]))
            assert float(model.change_std[0]) == pytest.approx(std, rel=1e-3)


@pytest.mark.parametrize("reduced", ["mean", "sum"])
def test_the_loss_of_the_autoencoder(reduced):
    model, batch = made("vae", vae_loss=reduced), logs()
    found = model.loss(batch, stream(5))
    inputs, change = model.inputs(batch.s, batch.a), model.change(batch)
    mean, log_variance = model.encoder(torch.cat([inputs, change], -1)).split(3, -1)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    z = mean + posterior.stddev * torch.randn(40, 3, generator=stream(5))
    error = (model.decoder(torch.cat([inputs, z], -1)) - change) ** 2
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    wanted = error.mean() + divergence.mean() if reduced == "mean" else (error.sum() + divergence.sum()) / 40
    assert_close(found, wanted)


def test_the_loss_of_a_gaussian_head_and_of_five():
    model, batch = made("gaussian"), logs()
    mean, log_std = model.body(model.inputs(batch.s, batch.a)).split(2, -1)
    density = torch.distributions.Normal(mean, log_std.exp()).log_prob(model.change(batch)).sum(-1).mean()
    assert_close(model.loss(batch, stream()), -density - math.log(2 * math.pi))
    several = made("ensemble")
    assert len(several.members) == 5
    assert_close(several.loss(batch, stream()), sum(each.loss(batch, stream()) for each in several.members))
    for member in several.members:
        assert torch.equal(member.change_std, several.change_std) and torch.equal(member.state_mean, several.state_mean)


def test_standard_deviations_have_limits():
    for bias, limit in ((-50.0, -7.0), (50.0, 2.0)):
        model = made("gaussian")
        with torch.no_grad():
            model.body[-1].weight.zero_()
            model.body[-1].bias.copy_(torch.tensor([1.5, -0.5, bias, bias]))
        mean, log_std = model.moments(torch.zeros(1, 3))
        assert mean.tolist() == [[1.5, -0.5]] and log_std.tolist() == [[limit, limit]]
        auto = made("vae", vae_loss="sum")
        with torch.no_grad():
            auto.encoder[-1].weight.zero_()
            auto.encoder[-1].bias.copy_(torch.tensor([0.0] * 3 + [bias] * 3))
            auto.decoder[-1].weight.zero_()
            auto.decoder[-1].bias.zero_()
        log_variance = {-50.0: -20.0, 50.0: 10.0}[bias]
        divergence = 3 * 0.5 * (math.exp(log_variance) - 1 - log_variance)
        batch = logs()
        assert float(auto.loss(batch, stream()).detach()) == pytest.approx(
            2.0 + divergence, rel=1e-4
        )  # a unit of each change


def test_draws_are_of_the_models_noise():
    batch = logs(6)
    model = made("gaussian")
    inputs = model.inputs(batch.s, batch.a)
    mean, log_std = model.body(inputs).detach().split(2, -1)
    noise = torch.randn(6, 4, 2, generator=stream(8))
    due = mean[:, None] + log_std.exp()[:, None] * noise
    assert_close(model.draw(inputs, 4, stream(8)).detach().movedim(0, -1), due)
    unscaled = batch.s[:, None] + model.change_mean + model.change_std * due
    assert_close(model.sample(batch.s, batch.a, 4, stream(8)), unscaled)
    assert_close(model.columns(batch.s, batch.a, 4, stream(8)), unscaled.movedim(-1, 0))
    auto = made("vae")
    z = torch.randn(24, 3, generator=stream(8)).view(6, 4, 3)
    due = auto.decoder(torch.cat([inputs[:, None].expand(-1, 4, -1), z], -1)).detach()
    assert_close(auto.draw(inputs, 4, stream(8)).detach().movedim(0, -1), due)
    several, generator = made("ensemble"), stream(8)
    whose = torch.randint(5, (6, 4), generator=generator)
    noise = torch.randn(6, 4, 2, generator=generator)
    assert len(whose.unique()) > 2
    drawn = several.draw(inputs, 4, stream(8)).detach()
    for row in range(6):
        for place in range(4):
            mean, log_std = several.members[int(whose[row, place])].moments(inputs[row : row + 1])
            assert_close(drawn[:, row, place], (mean + log_std.exp() * noise[row, place]).detach()[0])


class Known(Nominal):
    """Draws that are given: of each row its number, and around it."""

    def draw(self, inputs, count, generator):
        base = torch.tensor([1.0, -1.0])[:, None, None].expand(2, len(inputs), count)
        return base + torch.linspace(-2, 2, count)


def test_spread_is_that_of_samples_over_the_error_of_their_mean():
    model, batch = Known(2, 1), logs()
    model.fit_units(batch)
    wanted = torch.linspace(-2, 2, 7).var()
    missed = (torch.tensor([1.0, -1.0]) - model.change(batch)).square().mean()
    assert model.spread(batch, stream(), count=7) == pytest.approx(float((wanted / missed).sqrt()), rel=1e-4)
    hundred = torch.linspace(-2, 2, 100).var()
    assert model.spread(batch, stream()) == pytest.approx(float((hundred / missed).sqrt()), rel=1e-4)


def test_names_are_the_models_that_they_say():
    kinds = {"vae": VariationalAutoencoder, "gaussian": GaussianHead, "ensemble": Ensemble}
    assert {name: NOMINAL[name] for name in kinds} == kinds
    model = made("vae")
    assert [each.in_features for each in (model.encoder[0], model.decoder[0])] == [5, 6]
    assert [each.out_features for each in (model.encoder[-1], model.decoder[-1])] == [6, 2]
    assert VariationalAutoencoder(2, 1, (5,)).latent == 5 and GaussianHead(2, 1, (5,)).body[-1].out_features == 4
