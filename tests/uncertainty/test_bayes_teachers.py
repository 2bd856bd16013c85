"""TFB, BLoB, Laplace, ensemble, MC dropout: covariances, closed forms, schedules, stored and read again."""

import math
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from scipy.optimize import approx_fprime
from torch.testing import assert_close

from bayes_world import adapted, bare, clone, read
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.language import adapters
from equipoise.training.loop import TrainerSettings
from equipoise.uncertainty import blob, laplace_lora, teachers, tfb
from equipoise.uncertainty.bayes_distill import averaged, distill, one_hot
from equipoise.uncertainty.class_logits import class_logits
from equipoise.uncertainty.ensemble import Ensemble
from equipoise.uncertainty.mc_dropout import McDropout


def factors(m=7, r=3, n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(r, n, generator=generator).double(), torch.randn(m, r, generator=generator).double()


# --- TFB --------------------------------------------------------------------------------------------------------------


def test_tfb_noise_on_the_update_is_isotropic_in_the_range_of_b():
    a, b = factors()
    found = tfb.tfb_noise(a, b, 0.2)
    assert_close(found.b @ found.a, b @ a)
    # Cov(dW) per input column = sigma^2 U U', U U' the projection on the range of B: b diag(std^2) b'.
    covariance = found.b * found.std[:, 0] ** 2 @ found.b.T
    projection = b @ torch.linalg.pinv(b)
    assert_close(covariance, 0.04 * projection)
    assert tfb.tfb_noise(a, b, 0.0).std.eq(0).all()
    with pytest.raises(BadInput, match="sigma"):
        tfb.tfb_noise(a, b, -0.1)
    with pytest.raises(BadInput, match="no factors"):
        tfb.tfb_noise(a, b.T, 0.1)


def test_a_rank_deficient_b_does_not_blow_up():
    a, b = factors()
    b[:, 2] = 2 * b[:, 0]
    found = tfb.tfb_noise(a.float(), b.float(), 0.2)
    assert found.std[2].eq(0).all() and found.std[:2].gt(0).all()
    assert_close(
        (found.b * found.std[:, 0] ** 2 @ found.b.T).double(), 0.04 * b @ torch.linalg.pinv(b), atol=1e-6, rtol=1e-5
    )
    assert tfb.tfb_noise(a, torch.zeros_like(b), 0.2).std.eq(0).all()


def test_draws_of_an_adapter_have_the_covariance():
    """Of what the teacher puts into the model, over 4,000 draws: s = 2, dW = s B (A_n - A)."""
    lm = adapted()
    own = tfb.bases(lm)
    name = next(iter(own))
    a, b, _ = own[name]
    one = {name: own[name]}
    drawn = torch.stack([tfb.Tfb(0.1).factors(one, draw)[name][0] for draw in range(4000)])
    update = 2.0 * (b @ (drawn - a))  # [draws, m, n]
    covariance = torch.einsum("dmi,dki->mk", update, update) / (4000 * a.shape[1])
    u = torch.linalg.svd(b, full_matrices=False).U
    assert_close(covariance, 4 * 0.01 * u @ u.T, atol=1e-3, rtol=0)
    across = torch.einsum("dm,dm->", update[..., 0], update[..., 1]) / 4000  # columns are independent
    assert abs(across) < 0.01


def test_sigma_zero_changes_nothing_and_an_untrained_adapter_is_refused():
    lm = adapted()
    inputs, _ = read(lm, 5)
    before = class_logits(lm, inputs)
    drawn = tfb.Tfb(0.0, 2).on(lm, inputs)(range(5)).detach().double()
    assert_close(drawn[1], before, atol=1e-5, rtol=1e-5)
    spread = tfb.Tfb(0.5, 2).on(lm, inputs)(range(5)).detach()
    assert not spread[0].allclose(spread[1], atol=1e-2)
    assert class_logits(lm, inputs).equal(before)  # the adapter has its own factors again
    with pytest.raises(BadInput, match="was not trained"):
        tfb.Tfb(0.1).on(adapters.attach(bare(), 4, 8.0, ["q_proj"], seed=0), inputs)


def test_the_largest_sigma_within_the_tolerance():
    found = tfb.largest_sigma(lambda sigma: sigma**2, low=0.001, high=1.0, tolerance=0.09, steps=20)
    assert found.sigma <= 0.3 and found.sigma == pytest.approx(0.3, abs=1e-5) and found.edge == ""
    assert tfb.largest_sigma(lambda sigma: 0.0).sigma == 0.015
    assert tfb.largest_sigma(lambda sigma: 0.0).edge == "upper"
    nothing = tfb.largest_sigma(lambda sigma: 1.0)
    assert nothing.sigma == 0 and nothing.edge == "lower"
    assert nothing.tried == {0.015: 1.0, 0.001: 1.0}
    with pytest.raises(BadInput, match="smaller first"):
        tfb.largest_sigma(lambda sigma: 0.0, low=0.1, high=0.1)


def test_compat_returns_the_smallest_tested_sigma_that_violates():
    found = tfb.largest_sigma(lambda sigma: sigma, low=0.0001, high=1.0, tolerance=0.3, steps=5, compat=True)
    assert found.sigma == min(sigma for sigma in found.tried if sigma > 0.3) > 0.3
    assert tfb.largest_sigma(lambda sigma: 0.0, steps=5, compat=True).sigma == 0.015


def test_search_agrees_with_the_definition_and_compat_divides():
    lm = adapted()
    inputs, _ = read(lm, 12)
    found = tfb.search(lm, inputs, draws=4, low=0.002, high=0.2, steps=6)
    assert 0.002 < found.sigma < 0.2
    clean = class_logits(lm, inputs).softmax(-1)
    pseudo = clean.argmax(-1)

    def nll(p):
        return -p[torch.arange(12), pseudo].log().mean().item()

    under = averaged(tfb.Tfb(found.sigma, 4).on(lm, inputs)(range(12)).detach().double())
    change = abs(nll(under) - nll(clean)) / nll(clean)
    assert change <= 0.003 and found.tried[found.sigma] == pytest.approx(change, rel=1e-3, abs=1e-6)
    code = tfb.search(lm, inputs, draws=4, low=0.01, high=2.0, compat=True)
    middle = (0.01 + 2.0) / 2
    again = averaged(tfb.Tfb(middle, 4).on(lm, inputs)(range(12)).detach().double())
    assert code.tried[middle] == pytest.approx(abs(nll(again) - nll(clean)) / nll(clean) / 12, rel=1e-3)


# --- BLoB -------------------------------------------------------------------------------------------------------------


def test_kl_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    mean, root = torch.randn(3, 4, generator=generator), 0.1 + torch.rand(3, 4, generator=generator)
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(mean.double(), root.double() ** 2), normal(0.0, 0.2)).sum()
    assert_close(blob.kl(mean, root, 0.2), theirs.double())


@pytest.mark.parametrize("length", [1, 5, 3000])
def test_a_cycle_of_weights_sums_to_just_under_one(length):
    exact = Fraction(2 ** (length + 1) - 2, 2 ** (length + 1) - 1)
    assert math.fsum(blob.kl_weight(i, length) for i in range(1, length + 1)) == pytest.approx(float(exact), abs=1e-15)
    assert blob.kl_weight(length, length) >= 0.5
    with pytest.raises(BadInput, match="count from 1"):
        blob.kl_weight(0, length)


def test_the_length_of_a_cycle():
    assert blob.cycle(640, 4) == int(100 * 640 ** (3.14159 / 8) / 4) == 316
    assert blob.cycle(4, 1000) == 1


def test_flipout_has_the_mean_and_variance_of_drawn_weights():
    x = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.0, 2.0]])
    std = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.1, 0.05]])
    b = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    torch.manual_seed(0)
    noise = torch.stack([2.0 * blob.flipout(x, std) @ b.T for _ in range(8000)])
    variance = 4 * (x**2 @ (std**2).T) @ (b**2).T  # s^2 sum_k B_ok^2 sum_j Omega_kj^2 x_j^2
    assert_close(noise.var(0), variance, rtol=0.05, atol=0)
    assert noise.mean(0).abs().max() < 0.05
    # Tokens share E, and their signs make them uncorrelated: without signs this would be near 0.9 of the product.
    assert abs((noise[:, 0, 0] * noise[:, 1, 0]).mean() / (variance[0, 0] * variance[1, 0]).sqrt()) < 0.05
    # The outputs' own signs: without them tokens would share the sign of the product of two outputs, and this would be 1.
    one = torch.tensor([[1.0, 0.0, 0.0]] * 2)
    noise = torch.stack([blob.flipout(one, torch.ones(2, 3)) for _ in range(4000)])
    assert abs(noise.prod(dim=-1).prod(dim=-1).mean()) < 0.25
    assert blob.flipout(x, torch.zeros_like(std)).eq(0).all()


def steps(count=12, **more):
    return TrainerSettings(steps=count, learning_rate=5e-3, batch_size=8, seed=0, **more)


def trainable(seed=1):
    return adapters.attach(bare(), 4, 8.0, ["q_proj", "v_proj"], seed=seed)


def test_blob_without_kl_and_noise_is_plain_lora():
    variational, plain = trainable(), trainable()
    inputs, labels = read(plain)
    quiet = blob.BlobSettings(epsilon=1e-12, kl_learning_rate=1e-30)
    found, _ = blob.train(variational, inputs, labels, steps(1, max_grad_norm=None), quiet)
    distill(plain, inputs, one_hot(labels, 3), steps(1, max_grad_norm=None))
    assert_close(class_logits(variational, inputs), class_logits(plain, inputs), atol=1e-5, rtol=1e-5)
    assert not [name for name, _ in variational.model.named_parameters() if "blob" in name]
    assert all(omega.shape == (4, 32) for omega in found.omega.values())


def test_the_kl_step_is_sgd_with_its_weight_on_the_schedule(monkeypatch):
    """One step of BLoB whose NLL moves nothing: M and G move by rate x pi x the KL's gradient, in closed form."""
    lm = trainable()
    inputs, labels = read(lm)
    monkeypatch.setattr(blob, "cycle", lambda *_: 3)
    settings = TrainerSettings(steps=1, learning_rate=1e-30, batch_size=8, seed=0, warmup_ratio=0.0)
    own = next(iter(adapters.adapted_maps(lm).values()))
    before = adapters.factors(own)[0].detach().clone()
    with blob.variational(lm, 0.05, 0) as roots:
        g = next(iter(roots.values())).detach().clone()
    found, _ = blob.train(lm, inputs, labels, settings, blob.BlobSettings(kl_learning_rate=1e-3))
    rate = 1e-3 * 2 / 15
    assert_close(adapters.factors(own)[0].detach(), before - rate * before / 0.04, atol=1e-7, rtol=1e-5)
    moved = g - rate * (2 * g**3 / 0.04 - 2 / g)
    assert_close(next(iter(found.omega.values())), (moved**2), atol=1e-7, rtol=1e-4)


def test_blob_goes_on_bit_by_bit():
    states = []
    whole, again = trainable(), trainable()
    inputs, labels = read(whole)
    one, _ = blob.train(whole, inputs, labels, steps(6), save=lambda state: states.append(clone(state)), save_every=3)
    two, _ = blob.train(again, inputs, labels, steps(6), state=states[0])
    assert all(one.omega[name].equal(two.omega[name]) for name in one.omega)
    assert class_logits(whole, inputs).equal(class_logits(again, inputs))
    drawn = one.on(whole, inputs)([0, 3])
    assert not drawn[0].equal(drawn[1])


# --- Laplace ----------------------------------------------------------------------------------------------------------


def test_hessian_is_that_of_the_loss():
    generator = torch.Generator().manual_seed(0)
    z, w = torch.randn(6, 2, generator=generator).double(), torch.randn(3, 2, generator=generator).double()
    labels = torch.tensor([0, 1, 2, 0, 1, 1])

    def loss(flat):
        return torch.nn.functional.cross_entropy(z @ flat.reshape(3, 2).T, labels, reduction="sum")

    theirs = torch.autograd.functional.hessian(loss, w.flatten())
    assert_close(laplace_lora.hessian(z, (z @ w.T).softmax(-1)), theirs)


def test_the_precision_maximises_the_evidence():
    values = torch.tensor([5.0, 1.0, 0.2, 0.0]).double()
    best = laplace_lora.best_precision(values, 3.0)
    slope = approx_fprime([math.log(best)], lambda at: laplace_lora.log_evidence(math.exp(at[0]), values, 3.0), 1e-6)
    assert abs(slope[0]) < 1e-4
    # MacKay's fixed point: lambda = (number of well determined parameters) / |B|^2.
    assert best == pytest.approx((values / (values + best)).sum().item() / 3.0, rel=1e-4)
    around = [laplace_lora.log_evidence(best * by, values, 3.0) for by in (0.5, 1.0, 2.0)]
    assert around[1] == max(around)


def test_spread_against_explicit_jacobians_and_draws():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator).double()
    covariance = root @ root.T / 6
    posterior = laplace_lora.LastLayerLaplace(covariance, 1.0, samples=40000)
    z, mean = torch.tensor([[1.0, -2.0], [0.5, 0.0]]).double(), torch.zeros(2, 3).double()
    for place in range(2):
        jacobian = torch.block_diag(*[z[place : place + 1]] * 3)  # [C, C k]
        assert_close(posterior.spread(z)[place], jacobian @ covariance @ jacobian.T)
    drawn = posterior.drawn(mean, z)
    for place in range(2):
        assert_close(drawn[:, place].T.cov(), posterior.spread(z)[place], atol=0.15, rtol=0.05)
    assert drawn.mean(0).abs().max() < 0.05  # averaged logits are those of the MAP: the mistake that this would be


def test_laplace_of_an_adapter_on_the_output_matrix():
    lm = adapted(targets=("q_proj", "lm_head"))
    inputs, _ = read(lm)
    sure = laplace_lora.laplace(lm, inputs, inputs.class_ids, precision=1e12)
    own = class_logits(lm, inputs)
    assert_close(averaged(sure.on(lm, inputs)(range(24)).double()), own.softmax(-1), atol=1e-5, rtol=1e-4)
    found = laplace_lora.laplace(lm, inputs, inputs.class_ids)
    assert found.precision > 0 and found.covariance.shape == (12, 12)
    predicted = averaged(found.on(lm, inputs)(range(24)).double())
    entropy = -(predicted * predicted.log()).sum(-1).mean()
    assert entropy > -(own.softmax(-1) * own.log_softmax(-1)).sum(-1).mean()
    with pytest.raises(BadInput, match="lm_head among its target modules"):
        laplace_lora.laplace(adapted(), inputs, inputs.class_ids)


def test_a_laplace_posterior_is_of_the_classes_and_the_rank_that_it_was_fitted_on():
    lm = adapted(targets=("q_proj", "lm_head"))
    inputs, _ = read(lm, 6)
    covariance = torch.eye(12).double()  # of 3 classes at rank 4
    posterior = laplace_lora.LastLayerLaplace(covariance, 1.0, samples=5)
    assert posterior.on(lm, inputs)(range(2, 4)).shape == (5, 2, 3)
    for size in (8, 16):  # of 2 classes, of 4
        other = laplace_lora.LastLayerLaplace(torch.eye(size).double(), 1.0)
        with pytest.raises(BadInput, match="not of 3 classes at rank 4"):
            other.on(lm, inputs)(range(2))


# --- ensemble, dropout, storing ---------------------------------------------------------------------------------------


def test_an_ensemble_is_its_members():
    one, two = adapted(0), adapted(0, scale=0.1)
    inputs, _ = read(one, 5)
    members = [teachers.own_factors(each) for each in (one, two)]
    drawn = Ensemble(members).on(one, inputs)(range(5)).detach().double()
    for place, each in enumerate((one, two)):
        assert_close(drawn[place], class_logits(each, inputs), atol=1e-6, rtol=1e-5)
    with pytest.raises(BadInput, match="two adapters or more"):
        Ensemble(members[:1])
    with pytest.raises(BadInput, match="Adapter 2 of the ensemble"):
        Ensemble([members[0], teachers.own_factors(adapted(0, rank=2))])


def test_dropout_scales_what_it_keeps():
    own = teachers.own_factors(adapted())
    name = next(iter(own))
    drawn = torch.stack([McDropout(0.25).factors(own, draw)[name][0] for draw in range(1500)])
    kept = drawn[:, 0] != 0
    assert_close(drawn[kept[:, 0], :, 0][0], own[name][0][:, 0] / 0.75)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.015)
    assert (kept == (drawn[:, 1] != 0)).all()  # an input is dropped for all of A at once
    assert McDropout(0.0).factors(own, 0)[name][0].equal(own[name][0])
    with pytest.raises(BadInput, match="dropout"):
        McDropout(1.0)


def test_teachers_are_read_as_they_were_written(tmp_path):
    lm = adapted(targets=("q_proj", "lm_head"))
    inputs, _ = read(lm, 4)
    own = teachers.own_factors(lm)
    written = [
        tfb.Tfb(0.2, 2, 3),
        McDropout(0.2, 2, 3),
        blob.Blob({name: 0.1 + 0 * a for name, (a, _) in own.items()}, 2, 3),
        Ensemble([own, own]),
        laplace_lora.laplace(lm, inputs, inputs.class_ids, samples=5),
    ]
    for teacher in written:
        teachers.save(teacher, tmp_path)
        again = teachers.load(tmp_path)
        assert type(again) is type(teacher) and again.passes == teacher.passes
        assert again.on(lm, inputs)(range(4)).equal(teacher.on(lm, inputs)(range(4)))
    with pytest.raises(BadInput, match="bayesianize"):
        teachers.load(tmp_path / "nothing")
    path = tmp_path / teachers.POSTERIOR
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WorkFailed, match="altered"):
        teachers.load(tmp_path)


# --- figures by hand --------------------------------------------------------------------------------------------------


def searched(change, compat=False, steps=3):
    return tfb.largest_sigma(change, low=1.0, high=9.0, tolerance=4.5, steps=steps, compat=compat)


def test_a_bisection_of_three_steps_by_hand():
    """Between 1 and 9 with a change of sigma itself: 5 is too much, 3 and 4 are not."""
    found = searched(lambda sigma: sigma)
    assert found == tfb.SigmaSearch(4.0, {9.0: 9.0, 1.0: 1.0, 5.0: 5.0, 3.0: 3.0, 4.0: 4.0}, "")
    found = searched(lambda sigma: sigma, compat=True)
    assert found == tfb.SigmaSearch(5.0, {5.0: 5.0, 3.0: 3.0, 4.0: 4.0}, "")
    found = searched(lambda sigma: 10.0 * (sigma > 1))
    assert (found.sigma, found.edge) == (1.0, "lower") and list(found.tried) == [9.0, 1.0, 5.0, 3.0, 2.0]
    found = searched(lambda sigma: 4.5, compat=True)  # the tolerance itself is borne
    assert found == tfb.SigmaSearch(9.0, {5.0: 4.5, 7.0: 4.5, 8.0: 4.5}, "upper")
    assert searched(lambda sigma: 4.5) == tfb.SigmaSearch(9.0, {9.0: 4.5}, "upper")
    for low, high in ((0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)):
        with pytest.raises(BadInput, match="above 0"):
            tfb.largest_sigma(lambda sigma: sigma, low=low, high=high)


def test_a_search_takes_ten_bisections_or_the_code_s_five():
    lm = adapted()
    inputs, _ = read(lm, 6)
    settings = {"draws": 2, "low": 0.001, "high": 2.0, "anchors": [0, 2, 3]}
    assert len(tfb.search(lm, inputs, **settings).tried) == 2 + 10
    assert len(tfb.search(lm, inputs, **settings, steps=3).tried) == 2 + 3
    code = tfb.search(lm, inputs, **settings, compat=True)
    assert len(code.tried) == 5
    # Of the anchors alone, under the draws of the seed: the NLL of the labels that the adapter itself gives.
    clean = class_logits(lm, inputs, indices=[0, 2, 3]).log_softmax(-1)
    labels, sigma = clean.argmax(-1), (0.001 + 2.0) / 2
    under = averaged(tfb.Tfb(sigma, 2).on(lm, inputs)([0, 2, 3]).detach().double()).log()
    before, after = (-each[torch.arange(3), labels].mean().item() for each in (clean, under))
    assert code.tried[sigma] == pytest.approx(abs(after - before) / before / 3, rel=1e-6)


def test_tfb_s_noise_of_a_wide_b_and_of_factors_that_do_not_fit():
    a, b = factors(m=2, r=4)
    found = tfb.tfb_noise(a, b, 0.2)
    assert found.std.shape == (2, 5) and found.a.shape == (2, 5)
    singular = torch.linalg.svdvals(b)
    assert_close(found.std[:, 3], 0.2 / singular)
    for wrong in ((a[0], b), (a, b[0]), (a[:3], b)):
        with pytest.raises(BadInput, match="no factors of one update"):
            tfb.tfb_noise(*wrong, 0.1)


@pytest.mark.parametrize("teacher", ["tfb", "blob", "mc-dropout"])
def test_each_draw_and_each_map_has_a_stream_of_its_own(teacher):
    lm = adapted()
    own = tfb.bases(lm) if teacher == "tfb" else teachers.own_factors(lm)

    def made(seed):
        if teacher == "blob":
            return blob.Blob({name: torch.ones_like(pair[0]) for name, pair in own.items()}, seed=seed)
        return tfb.Tfb(0.5, seed=seed) if teacher == "tfb" else McDropout(0.5, seed=seed)

    def moved(seed, draw):
        return [a - own[name][0] for name, (a, _) in made(seed).factors(own, draw).items()]

    first, second = moved(0, 0)[:2]
    shared = min(len(first), len(second))
    assert not first[:shared].equal(second[:shared])
    assert first.equal(moved(0, 0)[0]) and not first.equal(moved(0, 1)[0]) and not first.equal(moved(1, 0)[0])
    for name, (_, b) in made(0).factors(own, 0).items():
        assert b.equal(own[name][1])


def test_blob_s_noise_is_omega_in_size():
    own = {"map": (torch.zeros(2, 3), torch.ones(4, 2))}
    omega = torch.tensor([[0.1, 1.0, 2.0], [0.5, 0.0, 3.0]])
    drawn = torch.stack([blob.Blob({"map": omega}).factors(own, draw)["map"][0] for draw in range(4000)])
    assert_close(drawn.std(0), omega, rtol=0.06, atol=1e-9)
    assert drawn.mean(0).abs().max() < 0.2


def test_the_roots_begin_between_epsilon_over_root_two_and_epsilon():
    lm = trainable()
    with blob.variational(lm, 0.5, 3) as roots:
        every = torch.cat([root.detach().flatten() for root in roots.values()])
        first, second = list(roots.values())[:2]
        assert not first.equal(second)
    assert every.min() >= 0.5 / math.sqrt(2) and every.max() <= 0.5
    assert every.min().item() == pytest.approx(0.5 / math.sqrt(2), abs=0.005)
    assert every.max().item() == pytest.approx(0.5, abs=0.005)
    with blob.variational(lm, 0.5, 4) as roots:
        assert not first.equal(next(iter(roots.values())))


def test_steps_of_the_kl_have_the_weights_of_the_cycle_and_the_rates_of_the_schedule(monkeypatch):
    """Three steps in cycles of two: pi is 2/7, 4/7 and 2/7 again, at the rates of a schedule that falls to 0."""
    lm = trainable()
    inputs, labels = read(lm)
    monkeypatch.setattr(blob, "cycle", lambda *_: 2)
    settings = TrainerSettings(steps=3, learning_rate=1e-30, batch_size=8, seed=0, warmup_ratio=0.0, schedule="linear")
    own = next(iter(adapters.adapted_maps(lm).values()))
    mean = adapters.factors(own)[0].detach().clone()
    rates = settings.model_copy(update={"learning_rate": 1e-2})
    blob.train(lm, inputs, labels, settings, blob.BlobSettings(kl_learning_rate=1e-2))
    for step, weight in enumerate((2 / 7, 4 / 7, 2 / 7)):
        mean = mean - rates.learning_rate_at(step) * weight * mean / 0.2**2
    assert_close(adapters.factors(own)[0].detach(), mean, atol=1e-7, rtol=1e-5)
    with pytest.raises(BadInput, match="Step 3 of a cycle of 2"):
        blob.kl_weight(3, 2)


def test_cycles_of_other_sizes():
    assert blob.cycle(1, 1) == 100 and blob.cycle(1, 100) == 1 and blob.cycle(1, 50) == 2
    assert blob.cycle(256, 16, gamma=3.14159) == 100 * 256 // 16


def test_the_evidence_by_hand_and_its_ends():
    """H = 0 has no best lambda but for |B|^2: k / |B|^2 would be right where H is large, and the ends where it is not."""
    values = torch.tensor([4.0, 1.0]).double()
    expected = 0.5 * (2 * math.log(2.0) - 2.0 * 3.0 - math.log(6.0) - math.log(3.0))
    assert laplace_lora.log_evidence(2.0, values, 3.0) == pytest.approx(expected)
    huge = torch.full((2,), 1e12).double()
    assert laplace_lora.best_precision(huge, 0.5) == pytest.approx(4.0, rel=1e-4)
    assert laplace_lora.best_precision(huge, 1e-12) == pytest.approx(1e8, rel=1e-3)
    assert laplace_lora.best_precision(huge, 1e12) == pytest.approx(1e-6, rel=1e-3)


def test_laplace_draws_are_a_root_of_the_covariance_times_normal_numbers():
    covariance = torch.diag(torch.tensor([1.0, 4.0, 9.0, 16.0], dtype=torch.float64))  # 2 classes at rank 2
    one = laplace_lora.LastLayerLaplace(covariance, 1.0, samples=6, seed=1)
    mean, z = torch.tensor([[1.0, -1.0], [0.0, 5.0]]).double(), torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
    drawn = one.drawn(mean, z)
    assert drawn.shape == (6, 2, 2) and one.passes == 1
    normal = (drawn - mean) / torch.tensor([[1.0, 3.0], [2.0, 4.0]]).double()
    assert_close(normal[:, 0].abs(), normal[:, 1].abs())  # the same numbers for all inputs
    assert not laplace_lora.LastLayerLaplace(covariance, 1.0, samples=6, seed=2).drawn(mean, z).allclose(drawn)
    nothing = laplace_lora.LastLayerLaplace(0 * covariance - 1e-12, 1.0, samples=3)  # rounded below 0
    assert_close(nothing.drawn(mean, z), mean.expand(3, 2, 2))


def test_laplace_is_the_inverse_of_the_curvature_and_the_prior():
    lm = adapted(targets=("q_proj", "lm_head"))
    inputs, _ = read(lm, 7)
    found = laplace_lora.laplace(lm, inputs, inputs.class_ids, precision=0.5, batch_size=3)
    mean, z = laplace_lora._read(lm, inputs, range(7))
    own = class_logits(lm, inputs)
    assert_close(mean, own, atol=1e-6, rtol=1e-5)
    curvature = laplace_lora.hessian(z, own.softmax(-1))
    assert_close(found.covariance, torch.linalg.inv(curvature + 0.5 * torch.eye(12).double()), atol=1e-5, rtol=1e-4)
    # What B reads, with the adapter's scale of 2: B z is what the adapter adds to the logits.
    head = laplace_lora.adapted_head(lm)
    b = adapters.factors(head)[1].detach().double()[list(inputs.class_ids)]
    before = b @ z.T
    kept = adapters.factors(head)[1].data
    adapters.factors(head)[1].data = torch.zeros_like(kept)
    assert_close(own - class_logits(lm, inputs), before.T, atol=1e-4, rtol=1e-4)
    adapters.factors(head)[1].data = kept
    best = laplace_lora.laplace(lm, inputs, inputs.class_ids)
    values = torch.linalg.eigvalsh(curvature)
    assert best.precision == pytest.approx(laplace_lora.best_precision(values, b.square().sum().item()), rel=1e-3)


def test_factors_are_taken_as_they_are_and_put_back():
    lm = adapted()
    maps = adapters.adapted_maps(lm)
    before = {name: [each.detach().clone() for each in adapters.factors(own)] for name, own in maps.items()}
    given = {name: (0 * a, 0 * b) for name, (a, b) in before.items()}
    with pytest.raises(RuntimeError, match="inside"), teachers.placed(lm, given):
        assert not any(each.any() for own in maps.values() for each in adapters.factors(own))
        raise RuntimeError("inside")
    for name, own in maps.items():
        assert all(now.equal(then) for now, then in zip(adapters.factors(own), before[name], strict=True))
    half = teachers._widened(torch.ones(2, dtype=torch.bfloat16))
    double = teachers._widened(torch.ones(2, dtype=torch.float64))
    assert half.dtype == torch.float32 and double.dtype == torch.float64


def test_dropout_without_probability_is_allowed_and_below_nought_is_not():
    own = {"map": (torch.ones(2, 1000), torch.ones(3, 2))}
    kept = McDropout(0.25).factors(own, 0)["map"][0]
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (kept == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    for wrong in (-0.01, 1.0, 1.5):
        with pytest.raises(BadInput, match="from 0 to below 1"):
            McDropout(wrong)
    assert (McDropout().p, McDropout().passes) == (0.1, 10)


def test_the_best_of_the_grid_is_refined_between_its_neighbours(monkeypatch):
    """64 steps of 14 decades; at an end of the grid it is a neighbour itself."""
    asked = []
    monkeypatch.setattr(
        laplace_lora,
        "minimize_scalar",
        lambda function, **how: asked.append(how) or SimpleNamespace(x=math.log(2.0)),
    )
    huge = torch.full((4,), 1e30, dtype=torch.float64)  # so well determined that lambda is 4 / |B|^2
    step = 14 / 64
    for norm, ends in (
        (4.0 / 10 ** (-6 + 40.2 * step), (39, 41)),
        (4.0 / 10 ** (-6 + 1.1 * step), (0, 2)),
        (4.0 / 10 ** (-6 + 62.9 * step), (62, 64)),
        (1e12, (0, 1)),
        (1e-12, (63, 64)),
    ):
        assert laplace_lora.best_precision(huge, norm) == pytest.approx(2.0)
        how = asked.pop()
        assert [(end / math.log(10) + 6) / step for end in how["bounds"]] == pytest.approx(ends, abs=1e-4)
        assert (how["method"], how["options"]) == ("bounded", {"xatol": 1e-8})


def test_what_is_nought_up_to_rounding_is_so_at_any_scale():
    """Of a B of rank one the other directions are roundings of the first, however large that is; of no B all are."""
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(3, 5, generator=generator).double(), torch.randn(7, 1, generator=generator).double()
    b = b @ torch.randn(1, 3, generator=generator).double()
    size = torch.linalg.svdvals(b)[0]
    for scale in (1e-9, 1.0, 1e9):
        found = tfb.tfb_noise(a, scale * b, 0.2).std
        assert_close(found[0], (0.2 / (scale * size)).expand(5))
        assert not found[1:].any()
    assert not tfb.tfb_noise(a, 0 * b, 0.2).std.any()
    eps = torch.finfo(torch.float64).eps
    there = tfb.tfb_noise(a, torch.diag(torch.tensor([1.0, 3.1 * eps, 2.9 * eps], dtype=torch.float64)), 0.2).std
    assert [bool(row.any()) for row in there] == [True, True, False]
