"""Probes against closed forms: the Dirichlet's moments and gradients, single layers, logistic regression, scikit-learn."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from equipoise.core.errors import BadInput
from equipoise.routing import probes
from equipoise.routing.probe_dirichlet import ProbeDirichlet, concentration, draw
from equipoise.routing.probes import FEWEST, ProbeLayer, ProbeMax, ProbeMean, ProbeSoftmax, fused, train

sklearn = pytest.importorskip("sklearn")
DRAWS = 100_000  # as on the card


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def world(n=400, layers=4, width=6, seed=0, noise=1.0):
    """Features of which layers 1 and 2 each show the label through noise of their own; the last shows nothing."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 2, n)
    z = generator.normal(size=(n, layers, width)).astype(np.float32)
    z[:, 1:3, 0] += (2 * y[:, None] - 1) * noise
    return z, y


def auroc(score, y):
    return (score[y == 1][:, None] > score[y == 0]).mean()


def test_the_draws_have_the_moments_of_the_dirichlet_distribution():
    a = torch.linspace(-1, 1.5, 33)
    g = torch.tensor(1.0)
    beta = concentration(a, g).double()
    b = math.e
    assert float(beta.sum()) == pytest.approx(b, rel=1e-6)
    m = torch.softmax(a.double(), 0)
    alpha = draw(a, g, DRAWS, torch.Generator().manual_seed(5)).double()
    torch.testing.assert_close(alpha.sum(1), torch.ones(DRAWS, dtype=torch.float64), atol=1e-6, rtol=0)
    sigma = (m * (1 - m) / (b + 1) / DRAWS).sqrt()
    assert ((alpha.mean(0) - m).abs() < 4 * sigma).all()  # 33 of them together
    q = torch.linspace(-2, 3, 33, dtype=torch.float64) ** 2
    logit = alpha @ q
    variance = float((m * q**2).sum() - (m * q).sum() ** 2) / (b + 1)
    spread = float(((logit - logit.mean()) ** 2).std()) / math.sqrt(DRAWS)
    assert abs(float(logit.mean()) - float(m @ q)) < 3 * math.sqrt(variance / DRAWS)
    assert abs(float(logit.var()) - variance) < 3 * spread

    start = draw(torch.ones(33), torch.ones(()), DRAWS, torch.Generator().manual_seed(6)).double()
    squares = (start**2).sum(1)
    expected = (1 / 33 + 1 / b) / (1 + 1 / b)
    assert expected == pytest.approx(0.291, abs=5e-4)  # about 3.4 layers a draw
    assert abs(float(squares.mean()) - expected) < 3 * float(squares.std()) / math.sqrt(DRAWS)


def test_gradients_reach_a_and_g_in_training_and_are_those_of_the_variance():
    """E (alpha . q)^2 = (m . q)^2 + V with V = S / (B + 1), S the spread of q under m: differentiable in closed form."""
    a, g = torch.tensor([0.3, -0.5, 1.0, 0.0]), torch.tensor(0.7)
    q = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)

    def moment(a, g):
        m = a.softmax(0)
        return (m @ q) ** 2 + ((m * q**2).sum() - (m @ q) ** 2) / (g.exp() + 1)

    exact = [each.double().requires_grad_() for each in (a, g)]
    wanted = torch.autograd.grad(moment(*exact), exact)
    given = [each.clone().requires_grad_() for each in (a, g)]
    blocks = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        alpha = draw(*given, 1000, generator).double()
        blocks.append(torch.cat([each.flatten() for each in torch.autograd.grad(((alpha @ q) ** 2).mean(), given)]))
    blocks = torch.stack(blocks).double()
    error = (blocks.mean(0) - torch.cat([each.flatten() for each in wanted])).abs()
    assert (error < 3.5 * blocks.std(0) / 10).all()
    assert blocks.mean(0)[-1].abs() > 10 * blocks.std(0)[-1] / 10  # of g: far from zero

    scored = fused(torch.ones(2, 4, 3), torch.ones(3), torch.zeros(()), given[0].softmax(0)).sum()
    at_score = torch.autograd.grad(scored, given, allow_unused=True)
    assert at_score[1] is None and float(at_score[0].abs().max()) < 1e-6  # all layers agree here


def test_noise_costs_half_the_variance_of_the_logit():
    """E BCE = BCE at the mean + p (1 - p) V / 2, to second order; at B = e^5 the rest is small."""
    a, g = torch.tensor([0.3, -0.5, 1.0, 0.0]), torch.tensor(5.0)
    q, m, b = torch.tensor([1.0, -2.0, 0.5, 3.0]).double(), a.double().softmax(0), math.exp(5)
    alpha = draw(a, g, DRAWS, torch.Generator().manual_seed(1)).double()
    losses = torch.nn.functional.softplus(-(alpha @ q))
    p = float(torch.sigmoid(m @ q))
    variance = float((m * q**2).sum() - (m @ q) ** 2) / (b + 1)
    extra = float(losses.mean()) - math.log1p(math.exp(-float(m @ q)))
    assert abs(extra - p * (1 - p) * variance / 2) < 3 * float(losses.std()) / math.sqrt(DRAWS) + 0.02 * variance


def test_at_a_high_concentration_training_is_scoring():
    z = torch.randn(64, 31, 16, generator=torch.Generator().manual_seed(2))
    w, a, g = (
        torch.randn(16, generator=torch.Generator().manual_seed(3)) / 4,
        torch.linspace(-1, 1, 31),
        torch.tensor(20.0),
    )
    alpha = draw(a, g, 64, torch.Generator().manual_seed(4))
    noisy = fused(z, w, torch.zeros(()), alpha)
    assert float((noisy - fused(z, w, torch.zeros(()), a.softmax(0))).abs().max()) < 1e-3
    alone = draw(a, torch.tensor(1.0), 64, torch.Generator().manual_seed(4))
    assert float((fused(z, w, torch.zeros(()), alone) - fused(z, w, torch.zeros(()), a.softmax(0))).abs().max()) > 0.1


def test_one_layer_alone_is_a_probe_of_that_layer():
    z, y = world()
    single = ProbeLayer(2, epochs=5).fit(z, y)
    flat = ProbeMean(epochs=5).fit(z[:, 2], y)
    assert np.array_equal(single.coef_, flat.coef_) and np.array_equal(
        single.score_prompts(z), flat.score_prompts(z[:, 2])
    )
    one_hot = ProbeSoftmax(epochs=1).fit(z, y)
    one_hot.coef_, one_hot.intercept_ = single.coef_, single.intercept_
    one_hot.a_ = np.where(np.arange(4) == 2, 0, -np.inf).astype(np.float32)
    np.testing.assert_allclose(one_hot.score_prompts(z), single.score_prompts(z), rtol=1e-6)
    assert (ProbeLayer(epochs=1).kind, ProbeLayer(3).kind, single.kind) == ("last", "layer", "layer")
    with pytest.raises(BadInput, match="layer is 4, and there are 4"):
        ProbeLayer(4).fit(z, y)


def test_scores_are_the_formula_and_the_router_gives_the_same():
    z, y = world(300)
    for probe, join in (
        (ProbeMean(epochs=3), lambda one: one.mean(0)),
        (ProbeMax(epochs=3), lambda one: one.max(0)),
        (ProbeLayer(epochs=3), lambda one: one[-1]),
        (ProbeDirichlet(epochs=3), None),
        (ProbeSoftmax(epochs=3), None),
    ):
        probe.fit(z, y)
        weights = np.exp(probe.a_) / np.exp(probe.a_).sum()
        joined = [join(one) if join else weights @ one for one in z]
        by_hand = expit(np.array(joined) @ probe.coef_ + probe.intercept_)
        np.testing.assert_allclose(probe.score_prompts(z), by_hand, rtol=2e-5)
        np.testing.assert_allclose(probe.router(0.5, reads="raw").score(z), by_hand, rtol=2e-5)
        probe.calibrate(z, y)
        router = probe.router(0.5, reads="raw")
        np.testing.assert_allclose(router.probability(router.score(z)), probe.predict_proba(z)[:, 1], rtol=1e-5)
    assert math.isnan(ProbeSoftmax(epochs=1).fit(z, y).g_)


@pytest.mark.slow
def test_layers_together_find_what_the_last_does_not_show():
    z, y = world(400)
    fresh, truth = world(1000, seed=1)
    scores = {
        probe.kind: auroc(probe.fit(z, y).score_prompts(fresh), truth)
        for probe in (
            kind(epochs=15, learning_rate=0.01) for kind in (ProbeLayer, ProbeMean, ProbeSoftmax, ProbeDirichlet)
        )
    }
    assert scores["last"] < 0.56 and min(scores["mean"], scores["softmax"], scores["dirichlet"]) > 0.85
    moved = ProbeDirichlet(learning_rate=0.02, epochs=20).fit(z, y)
    assert moved.a_[1:3].min() > moved.a_[[0, 3]].max() and moved.g_ != 1.0


def test_training_reaches_logistic_regression_and_keeps_the_lowest_held_out_loss():
    from sklearn.linear_model import LogisticRegression

    z, y = world(1500, layers=1, width=3, noise=0.7)
    z[:, 0, 0] += (2 * y - 1) * 0.7
    found = ProbeMean(learning_rate=0.02, epochs=60, random_state=3).fit(z, y)
    seed = int(np.random.RandomState(3).randint(2**31 - 1))
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(seed)).numpy()
    held, rest = order[:300], order[300:]
    reference = LogisticRegression(C=1e6).fit(z[rest, 0], y[rest])
    assert np.abs(found.coef_ - reference.coef_[0]).max() < 0.12
    p = found.score_prompts(z[held])
    loss = -np.log(np.where(y[held] == 1, p, 1 - p)).mean()
    assert found.validation_loss_ == pytest.approx(loss, rel=1e-5)
    assert 10 < found.epochs_ <= 60


def test_a_rate_that_gains_nothing_is_halved_and_training_ends():
    """Of labels that are pure luck the held-out loss rises: the best epoch is early, the end is the first that may be."""
    generator = np.random.default_rng(0)
    z, y = generator.normal(size=(60, 1, 200)).astype(np.float32), generator.integers(0, 2, 60)
    given = {"weighs": False, "noise": None, "learning_rate": 0.01, "batch_size": 8, "validation_fraction": 0.2}
    long = train(z, y, epochs=200, generator=torch.Generator().manual_seed(0), **given)
    assert 11 <= long["epochs"] < 30
    short = train(z, y, epochs=long["epochs"] - 8, generator=torch.Generator().manual_seed(0), **given)
    assert short["loss"] == long["loss"] and np.array_equal(short["w"], long["w"])


def test_training_ends_where_the_loss_is_no_number_and_keeps_the_best(monkeypatch):
    z, y = world(60)
    given = {"weighs": True, "noise": None, "learning_rate": 0.01, "batch_size": 16, "validation_fraction": 0.2}

    def trained(losses):
        left = iter(losses)
        monkeypatch.setattr(probes, "_loss", lambda *_: next(left))
        return train(z, y, epochs=6, generator=torch.Generator().manual_seed(0), **given)

    found, short = trained([0.6, 0.5, math.nan]), trained([0.6, 0.5, 0.55, 0.55, 0.55, 0.55])
    assert found["loss"] == short["loss"] == 0.5 and found["epochs"] == 3 and short["epochs"] == 6
    assert np.array_equal(found["w"], short["w"]) and np.array_equal(found["a"], short["a"])
    assert not np.array_equal(found["w"], trained([0.4, 0.5, math.inf])["w"])
    with pytest.raises(BadInput, match="not a number from the first epoch"):
        trained([math.inf])


def test_a_fit_is_a_function_of_its_seed_and_leaves_the_global_one_alone(tmp_path):
    z, y = world(120)
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    first, again = (ProbeDirichlet(epochs=3).fit(z, y) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.array_equal(first.coef_, again.coef_) and np.array_equal(first.a_, again.a_) and first.g_ == again.g_
    assert not np.array_equal(first.coef_, ProbeDirichlet(epochs=3, random_state=1).fit(z, y).coef_)
    np.save(tmp_path / "z.npy", z.astype(np.float16))
    stored = ProbeDirichlet(epochs=3).fit(np.load(tmp_path / "z.npy", mmap_mode="r"), y)
    np.testing.assert_allclose(stored.coef_, first.coef_, atol=1e-3)


def test_scikit_learn_knows_them():
    from sklearn.base import clone
    from sklearn.model_selection import cross_val_score

    z, y = world(200)
    probe = ProbeLayer(1, epochs=4, learning_rate=0.01)
    copy = clone(probe)
    assert copy.get_params() == probe.get_params() and copy.layer == 1 and copy.epochs == 4
    named = ProbeDirichlet(epochs=4, learning_rate=0.02).fit(z, np.where(y == 1, "solved", "missed"))
    assert set(named.predict(z)) <= {"solved", "missed"} and named.classes_[1] == "solved"
    assert named.score(z, np.where(y == 1, "solved", "missed")) > 0.7
    assert cross_val_score(ProbeMean(epochs=4, learning_rate=0.02), z, y, cv=3, scoring="roc_auc").min() > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("probe", [ProbeMean(), ProbeDirichlet(), ProbeLayer(0)])
def test_scikit_learns_own_checks(probe):
    from sklearn.utils.estimator_checks import check_estimator

    check_estimator(probe)


def test_calibration_keeps_the_order_and_mends_the_scale():
    z, y = world(600)
    other, truth = world(600, seed=4)
    probe = ProbeMean(learning_rate=0.02).fit(z, y)
    before = probe.score_prompts(other)
    probe.coef_, probe.intercept_ = probe.coef_ * 5, probe.intercept_ * 5
    wild = probe.predict_proba(other)[:, 1]
    probe.calibrate(other[:300], truth[:300])
    tame = probe.predict_proba(other)[:, 1]
    assert (np.argsort(tame, kind="stable") == np.argsort(before, kind="stable")).mean() > 0.95

    def loss(p):
        return -np.log(np.where(truth[300:] == 1, p[300:], 1 - p[300:])).mean()

    assert loss(tame) < loss(wild) - 0.2
    assert np.abs(tame - before).mean() < 0.06


def test_what_cannot_be_learnt_from_is_refused():
    z, y = world(40)
    with pytest.raises(BadInput, match="one class"):
        ProbeMean().fit(z, np.ones(40))
    with pytest.raises(BadInput, match="Only binary"):
        ProbeMean().fit(z, np.arange(40) % 3)
    with pytest.raises(BadInput, match="epochs is 0"):
        ProbeMean(epochs=0).fit(z, y)
    with pytest.raises(BadInput, match=r"give \[prompts, layers, width\]"):
        ProbeMean().fit(z[..., None], y)
    fitted = ProbeMean(epochs=1).fit(z, y)
    with pytest.raises(BadInput, match=r"fitted on \[n, 4, 6\]"):
        fitted.score_prompts(z[..., :5])
    with pytest.raises(ValueError, match="NaN"):
        ProbeMean().fit(np.full_like(z, np.nan), y)
    few = ProbeMean(epochs=2).fit(z[: FEWEST - 1], np.arange(FEWEST - 1) % 2)
    assert math.isfinite(few.validation_loss_)
    held = ProbeMean(epochs=2, validation_fraction=0.99).fit(z[:FEWEST], np.arange(FEWEST) % 2)
    assert held.coef_.any()  # one prompt is left to learn from


def rates(monkeypatch, losses):
    """The learning rate of each epoch under these held-out losses, and what was trained."""
    made, seen, left = [], [], iter(losses)
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *args, **how: made.append(adam(*args, **how)) or made[-1])
    monkeypatch.setattr(probes, "_loss", lambda *_: seen.append(made[-1].param_groups[0]["lr"]) or next(left))
    z, y = world(20, layers=2)
    given = {"weighs": True, "noise": None, "learning_rate": 0.8, "batch_size": 64, "validation_fraction": 0.2}
    found = train(z, y, epochs=40, generator=torch.Generator().manual_seed(0), **given)
    monkeypatch.undo()
    return seen, found


@pytest.mark.parametrize(("better", "end"), [(1, 11), (2, 11), (3, 11), (4, 12), (9, 17)])
def test_the_rate_is_halved_after_five_epochs_and_training_ends_after_eight_past_the_tenth(monkeypatch, better, end):
    """The loss falls for so many epochs and then stays."""
    seen, found = rates(monkeypatch, [*(1 - 0.01 * each for each in range(better)), *[1 - 0.01 * (better - 1)] * 40])
    assert found["epochs"] == len(seen) == end and found["loss"] == 1 - 0.01 * (better - 1)
    assert seen == [0.8 / 2 ** (max(epoch - better, 0) // 5) for epoch in range(end)]


def test_patience_begins_anew_with_every_gain(monkeypatch):
    losses = [1.0, *[1.0] * 5, 0.9, *[0.95] * 7, 0.8, *[0.8] * 40]
    seen, found = rates(monkeypatch, losses)
    assert found["epochs"] == 15 + 8 and found["loss"] == 0.8
    assert seen == [0.8] * 6 + [0.4] * 6 + [0.2] * 8 + [0.1] * 3
    assert rates(monkeypatch, [1 - 0.001 * each for each in range(40)])[1]["epochs"] == 40


def test_what_is_held_out_and_what_is_watched(monkeypatch):
    """A fifth of ten prompts or more, rounded, one at least, all but one at most; of fewer all, which are fitted on, too."""
    watched, fitted_on = [], []
    rows, loss = probes._rows, probes._loss
    monkeypatch.setattr(probes, "_loss", lambda z, y, some, given: watched.append(some) or loss(z, y, some, given))
    monkeypatch.setattr(probes, "_rows", lambda z, some: fitted_on.append(len(some)) or rows(z, some))
    for n, share, held in (
        (9, 0.2, 0),
        (10, 0.2, 2),
        (13, 0.2, 3),
        (12, 0.2, 2),
        (10, 0.01, 1),
        (10, 0.99, 9),
        (40, 0.25, 10),
    ):
        watched.clear(), fitted_on.clear()
        given = {"weighs": False, "noise": None, "learning_rate": 0.1, "batch_size": 4, "validation_fraction": share}
        train(*world(n), epochs=1, generator=torch.Generator().manual_seed(7), **given)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(7))
        assert watched[0].tolist() == (order[:held] if held else order).tolist()
        rest = n - held
        assert fitted_on == [*[4] * (rest // 4), *[rest % 4] * (rest % 4 > 0), held or n]


def test_the_first_step_is_adams_on_the_gradient_of_the_mean_loss():
    """At zero weights the gradient of w is the mean of (1/2 - y) z, and Adam moves by the rate times its sign."""
    z, y = world(9, layers=3)
    given = {"learning_rate": 0.01, "batch_size": 99, "validation_fraction": 0.2, "epochs": 1}
    found = train(z, y, weighs=False, noise=None, generator=torch.Generator().manual_seed(0), **given)
    slope = ((0.5 - y)[:, None] * z.mean(1)).mean(0)
    np.testing.assert_allclose(found["w"], -0.01 * np.sign(slope), rtol=1e-3)
    assert found["b"] == pytest.approx(-0.01 * np.sign((0.5 - y).mean()), rel=1e-3)
    assert found["a"].tolist() == [1, 1, 1] and found["g"] == 1 and found["epochs"] == 1
    logit = z.mean(1) @ found["w"] + found["b"]
    assert found["loss"] == pytest.approx(np.logaddexp(0, np.where(y == 1, -logit, logit)).mean(), rel=1e-5)
    two = train(z, y, weighs=True, noise=None, generator=torch.Generator().manual_seed(0), **{**given, "epochs": 2})
    assert (two["a"] != 1).any() and two["g"] == 1
    both = train(z, y, weighs=True, noise=draw, generator=torch.Generator().manual_seed(0), **{**given, "epochs": 2})
    assert (both["a"] != 1).any() and both["g"] != 1


def test_a_draw_is_that_of_a_seed_from_the_generator():
    a, g = torch.tensor([0.3, -0.5, 1.0]), torch.tensor(0.7)
    generator, twin = (torch.Generator().manual_seed(8) for _ in range(2))
    found = draw(a, g, 5, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=twin)))
        beta = math.exp(g) * a.double().softmax(0)
        expected = torch.distributions.Dirichlet(beta).sample(torch.Size([5]))
    assert found.shape == (5, 3) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


def test_ends_of_the_settings_and_of_the_layers():
    z, y = world(40)
    for settings in (
        {"learning_rate": 0.0},
        {"batch_size": 0},
        {"validation_fraction": 0.0},
        {"validation_fraction": 1.0},
    ):
        with pytest.raises(BadInput, match=f"{next(iter(settings))} is .*, out of its range"):
            ProbeMean(**settings).fit(z, y)
    single = ProbeMean(batch_size=1, epochs=1, learning_rate=0.5).fit(z, y)
    assert single.epochs_ == 1 and single.calibration_.slope == 1.0 and single.calibration_.intercept == 0.0
    p = single.predict_proba(z)
    np.testing.assert_allclose(p[:, 1], single.score_prompts(z), rtol=1e-12)
    assert p.sum(1) == pytest.approx(np.ones(40)) and (single.predict(z) == (p[:, 1] > 0.5)).all()
    single.coef_, single.intercept_ = 0 * single.coef_, 0.0
    assert set(single.predict(z)) == {0}  # a logit of 0 is no success
    first, last = ProbeLayer(-4, epochs=2).fit(z, y), ProbeLayer(3, epochs=2).fit(z, y)
    assert first.a_.tolist() == [0, -np.inf, -np.inf, -np.inf] and last.a_.tolist() == [-np.inf, -np.inf, -np.inf, 0]
    assert np.array_equal(first.coef_, ProbeMean(epochs=2).fit(z[:, 0], y).coef_)
    assert np.array_equal(last.coef_, ProbeLayer(epochs=2).fit(z, y).coef_)
    with pytest.raises(BadInput, match="layer is -5"):
        ProbeLayer(-5).fit(z, y)
    two = ProbeMean(epochs=1).fit(z[:2], [0, 1])
    assert two.coef_.any()
    with pytest.raises(ValueError, match="minimum of 2"):
        ProbeMean().fit(z[:1], y[:1])
    with pytest.raises(BadInput, match="give"):
        ProbeMean().fit(np.ones((4, 0, 3)), [0, 1, 0, 1])


def test_what_a_router_gets_of_a_probe():
    z, y = world(60)
    probe = ProbeDirichlet(epochs=2).fit(z, y).calibrate(z, y)
    chosen = {"n": 60}
    router = probe.router(0.25, reads="chat", model="m", fingerprint="f", chosen=chosen)
    assert (router.kind, router.threshold, router.reads, router.layers, router.width) == (
        "dirichlet",
        0.25,
        "chat",
        4,
        6,
    )
    assert np.array_equal(router.w, probe.coef_) and router.b == probe.intercept_ and router.g == probe.g_
    assert np.array_equal(router.a, probe.a_) and (router.model, router.fingerprint) == ("m", "f")
    assert (router.slope, router.intercept) == (probe.calibration_.slope, probe.calibration_.intercept)
    assert router.chosen == chosen and probe.router(0.25, reads="raw").chosen == {}
    target = y == probe.classes_[1]
    wanted = probes.Calibration.of(probe.decision_function(z), target.astype(float))
    assert (wanted.slope, wanted.intercept) == (router.slope, router.intercept)
    tags = probe.__sklearn_tags__()
    assert not tags.classifier_tags.multi_class and tags.input_tags.three_d_array
