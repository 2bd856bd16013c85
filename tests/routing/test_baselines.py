"""Baselines against what they are defined as, prompt by prompt."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chat_models import untaught
from equipoise import routing
from equipoise.core.errors import BadInput
from equipoise.language import confidence
from equipoise.routing import baselines, prompt_states
from equipoise.routing.logit_scores import logit_scores
from equipoise.routing.router import Router

pytest.importorskip("sklearn")
TEXTS = ["yes", "Where was Mulum Kunwick born?", "one two three four", "no", "Norway? Oslo"]


@pytest.fixture(scope="module")
def lm():
    return untaught(3)


@pytest.fixture(scope="module")
def rows(lm):
    return prompt_states.encode(lm, TEXTS, "chat")


def test_next_token_scores_are_those_of_a_prefill_whatever_shares_the_batch(lm, rows):
    together, alone = (baselines.next_token_scores(lm, rows, batch_size=size) for size in (4, 1))
    for index, ids in enumerate(rows):
        scores = logit_scores(routing.prefill(lm, ids).logits[None])
        for name, values in scores.items():
            assert together[name][index] == pytest.approx(float(values[0]), rel=2e-4, abs=1e-4)
    for name in together:
        np.testing.assert_allclose(together[name], alone[name], rtol=2e-4, atol=1e-4)


class OnMps(torch.Tensor):
    """A tensor of a device that has no float64, as Apple's GPUs; `cpu` brings it here."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    to = double


def test_scores_are_widened_where_there_is_float64(lm, rows, monkeypatch):
    expected = baselines.next_token_scores(lm, rows)

    def on_mps(logits):
        return {name: values.as_subclass(OnMps) for name, values in logit_scores(logits).items()}

    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    router = Router("entropy", 0.5, "raw", 1, 1)
    alone = router.score_logits(logits)
    monkeypatch.setattr(baselines, "logit_scores", on_mps)
    monkeypatch.setattr("equipoise.routing.logit_scores.logit_scores", on_mps)
    for name, values in baselines.next_token_scores(lm, rows).items():
        np.testing.assert_array_equal(values, expected[name])
    np.testing.assert_array_equal(router.score_logits(logits), alone)


def test_likelihood_is_minus_the_logarithm_of_the_perplexity(lm, rows):
    found = baselines.prompt_likelihood(lm, [*rows, [5]], batch_size=2)
    for index, ids in enumerate(rows):
        with torch.no_grad():
            log_probs = lm.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        said = log_probs[:-1].gather(-1, torch.tensor(ids)[1:, None])[:, 0]
        assert found[index] == pytest.approx(
            -math.log(float(confidence.perplexity(said, torch.ones(len(said))))), rel=1e-5
        )
    assert math.isnan(found[-1])


def test_the_chain_of_embedding_by_hand():
    z = np.array([[[3.0, 4.0], [0.0, 5.0], [-10.0, 0.0]]])
    assert baselines.ChainOfEmbedding().score_prompts(z)[0] == pytest.approx((10 + 15 + 0.8 + 0) / 4)
    m = [math.hypot(3, 1), math.hypot(10, 5)]
    a = [math.acos(0.8), math.pi / 2]
    whole, turned = math.hypot(13, 4), math.acos(-30 / 50)
    real = sum(x / whole - y / turned for x, y in zip(m, a, strict=True)) / 2
    assert baselines.ChainOfEmbedding("real").score_prompts(z)[0] == pytest.approx(real)
    total = sum(x * complex(math.cos(y), math.sin(y)) for x, y in zip(m, a, strict=True)) / 2
    assert baselines.ChainOfEmbedding("complex").score_prompts(z)[0] == pytest.approx(abs(total))
    assert baselines.chain_features(z).tolist() == [[10, 15, pytest.approx(0.8), 0]]
    with pytest.raises(BadInput, match="at least two layers"):
        baselines.ChainOfEmbedding().score_prompts(z[:, :1])
    with pytest.raises(BadInput, match="form"):
        baselines.ChainOfEmbedding("imaginary")


def test_fixed_scores_get_probabilities_and_keep_their_order():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(300, 40))
    logits[:, 0] += 4 * generator.random(300)
    y = (logits.max(1) + generator.normal(size=300) > 4).astype(int)
    for scorer in (baselines.MaxLogit(), baselines.Margin(), baselines.LogitMargin(), baselines.Entropy()):
        p = scorer.fit(logits, y).predict_proba(logits)[:, 1]
        assert (np.argsort(p, kind="stable") == np.argsort(scorer.score_prompts(logits), kind="stable")).all()
        assert abs(p.mean() - y.mean()) < 0.02
    down, up = baselines.Top10Variance(), baselines.Top10Variance(reversed=True)
    assert np.array_equal(down.score_prompts(logits), -up.score_prompts(logits))
    np.testing.assert_allclose(
        down.fit(logits, y).predict_proba(logits), up.fit(logits, y).predict_proba(logits), atol=1e-6
    )
    assert baselines.Length().score_prompts([[3], [9]]).tolist() == [-3, -9]
    one, two = (baselines.Random(random_state=seed).score_prompts(logits) for seed in (1, 2))
    assert np.array_equal(one, baselines.Random(random_state=1).score_prompts(logits)) and not np.array_equal(one, two)
    with pytest.raises(BadInput, match="1 classes"):
        baselines.Length().fit([1, 2], [1, 1])


def test_the_likelier_class_is_told_by_its_own_name():
    lengths = np.repeat(np.arange(1, 41), 3)
    y = np.where((lengths < 18) ^ (np.arange(120) % 7 == 0), "well", "badly")  # short prompts, by and large
    scorer = baselines.Length().fit(lengths[:, None], y)
    assert scorer.classes_.tolist() == ["badly", "well"]
    p, named = scorer.predict_proba(lengths[:, None]), scorer.predict(lengths[:, None])
    assert p.sum(1) == pytest.approx(np.ones(120)) and set(named) == {"badly", "well"}
    assert ((named == "well") == (p[:, 1] > p[:, 0])).all() and (named[:45] == "well").all()
    even = SimpleNamespace(classes_=np.array(["a", "b"]), predict_proba=lambda _: np.array([[0.5, 0.5], [0.49, 0.51]]))
    assert baselines.Length.predict(even, [1, 2]).tolist() == ["a", "b"]
    with pytest.raises(NotImplementedError):
        baselines.FixedScore().score_prompts([[1.0]])


def test_classifiers_of_vectors_find_what_is_there_and_keep_their_scales():
    from sklearn.base import clone

    generator = np.random.default_rng(1)
    y = generator.integers(0, 2, 400)
    vectors = generator.normal(size=(400, 8)) * np.array([100, 1, 1, 1, 1, 1, 1, 1])
    vectors[:, 1] += 3 * (2 * y - 1)
    for estimator in (baselines.EmbeddingLogistic(), baselines.EmbeddingMLP(learning_rate=3e-3, epochs=15)):
        fitted = clone(estimator).fit(vectors[:300], y[:300])
        score = fitted.score_prompts(vectors[300:])
        assert ((score > 0.5) == y[300:]).mean() > 0.95
        assert np.abs(fitted.score_prompts(vectors[300:301]) - score[0]).max() < 1e-6  # z-scores are those of the fit
    unit = vectors[:, 1:] / np.linalg.norm(vectors[:, 1:], axis=1, keepdims=True)
    nearest = baselines.EmbeddingKNN(5).fit(unit[:300], y[:300]).score_prompts(unit[300:])
    cosines = unit[300:] @ unit[:300].T
    by_hand = y[:300][np.argsort(-cosines, axis=1)[:, :5]].mean(axis=1)
    np.testing.assert_allclose(nearest, by_hand)


def test_what_a_model_says_of_itself(lm, monkeypatch):
    asked = []

    def replies(language_model, prompts, **how):
        asked.extend(prompts)
        assert how["max_new_tokens"] == 10
        return ["Confidence: 85%", "I am 20 or 40", "Confidence: 7"]

    monkeypatch.setattr(baselines, "generate", replies)
    found = baselines.verbalised(lm, TEXTS[:3])
    assert found.score.tolist() == [0.85, 0.5, 0.07] and found.unread == 1
    assert asked[0].startswith("yes\n\n")


def test_agreement_is_that_of_the_sampled_answers(lm):
    found = baselines.semantic_agreement(lm, TEXTS[:3], samples=4, max_new_tokens=4, batch_size=3)
    again = baselines.semantic_agreement(lm, TEXTS[:3], samples=4, max_new_tokens=4, batch_size=12)
    assert np.array_equal(found.score, again.score) and found.tokens > 0
    assert ((found.score >= 0.25 - 1e-9) & (found.score <= 1)).all()
    greedy = baselines.semantic_agreement(lm, TEXTS[:3], samples=4, max_new_tokens=4, top_p=1e-9)
    assert greedy.score == pytest.approx(np.ones(3))  # the nucleus is the likeliest token alone
    wild = baselines.semantic_agreement(lm, TEXTS[:3], samples=4, max_new_tokens=6, temperature=50.0, top_p=1.0)
    assert wild.score.mean() < 0.5


def test_a_chain_has_an_angle_also_where_rounding_and_zeros_leave_none():
    """Layers in one direction, or in the opposite one, whose cosines round beyond 1; a state of zeros is a right angle."""
    base = np.random.default_rng(0).normal(size=(700, 1, 3))
    z = base * np.array([1.0, 3.0, -0.7])[None, :, None]
    cosine = (z[:, :-1] * z[:, 1:]).sum(2) / (np.linalg.norm(z, axis=2)[:, :-1] * np.linalg.norm(z, axis=2)[:, 1:])
    assert cosine.max() > 1 and cosine.min() < -1
    size = np.linalg.norm(base[:, 0], axis=1)
    found = baselines.ChainOfEmbedding("complex").score_prompts(z)
    np.testing.assert_allclose(found, np.abs(2 * size - 3.7 * size) / 2, rtol=1e-6)
    np.testing.assert_allclose(baselines.ChainOfEmbedding().score_prompts(z), (4 * size + 3.7 * size) / 4, rtol=1e-6)
    real = ((2 / 1.7 - 0) + (3.7 / 1.7 - 1)) / 2
    np.testing.assert_allclose(baselines.ChainOfEmbedding("real").score_prompts(z), real, rtol=1e-6)
    features = baselines.chain_features(z)
    assert np.abs(features[:, 2:]).max() == 1.0 and features.shape == (700, 4)
    still = np.array([[[3.0, 4.0], [0.0, 0.0]]])
    assert baselines.ChainOfEmbedding("complex").score_prompts(still) == pytest.approx(5.0)
    assert baselines.chain_features(still).tolist() == [[5.0, 0.0]]
    assert baselines.ChainOfEmbedding().score_prompts(z[:0]).shape == (0,)
    with pytest.raises(BadInput, match="at least two layers"):
        baselines.chain_features(z[0])


def test_classifiers_are_set_up_as_they_are_described():
    knn, few = (baselines.EmbeddingKNN()._pipeline(n)[-1] for n in (100, 7))
    assert (knn.n_neighbors, few.n_neighbors, knn.metric, knn.algorithm) == (20, 7, "cosine", "brute")
    logistic = baselines.EmbeddingLogistic(C=0.5)._pipeline(9)
    assert (logistic[-1].C, logistic[-1].max_iter, len(logistic)) == (0.5, 2000, 2)
    layers = baselines.EmbeddingMLP(epochs=7, alpha=0.25, learning_rate=0.125, random_state=5)
    mlp, small = layers._pipeline(100)[-1], layers._pipeline(9)[-1]
    assert (mlp.hidden_layer_sizes, mlp.alpha, mlp.batch_size, small.batch_size) == ((256, 64), 0.25, 32, 9)
    assert (mlp.learning_rate_init, mlp.max_iter, mlp.n_iter_no_change, mlp.random_state) == (0.125, 7, 7, 5)
    assert (mlp.activation, mlp.solver) == ("relu", "adam")
    vectors = np.random.default_rng(0).normal(size=(30, 3))
    fitted = baselines.EmbeddingLogistic().fit(vectors, np.where(vectors[:, 0] > 0, "well", "badly"))
    assert fitted.classes_.tolist() == ["badly", "well"] and set(fitted.predict(vectors)) == {"badly", "well"}
    p = fitted.predict_proba(vectors)
    assert np.array_equal(fitted.score_prompts(vectors), p[:, 1]) and (p[vectors[:, 0] > 0.5, 1] > 0.5).all()
    with pytest.raises(NotImplementedError):
        baselines._Classified().fit(vectors, vectors[:, 0] > 0)


def test_a_draw_and_a_length_are_of_each_prompt():
    drawn = baselines.Random(random_state=3).score_prompts(np.empty((4, 0)))
    assert np.array_equal(drawn, np.random.default_rng(3).random(4))
    assert baselines.Length().score_prompts([[7], [2]]).tolist() == [-7.0, -2.0]
    with pytest.raises(BadInput, match="3 classes"):
        baselines.Length().fit([1, 2, 3], [0, 1, 2])


def test_likelihoods_of_two_tokens_and_of_none_that_has_two(lm):
    two, one = baselines.prompt_likelihood(lm, [[5, 9], [7]])
    with torch.no_grad():
        wanted = lm.model(input_ids=torch.tensor([[5, 9]])).logits[0, 0].double().log_softmax(-1)[9]
    assert two == pytest.approx(float(wanted), rel=1e-5) and math.isnan(one)
    assert np.isnan(baselines.prompt_likelihood(lm, [[7], [8]])).all()


def test_stated_confidences_are_asked_for_in_a_few_tokens(lm, monkeypatch):
    given = []
    monkeypatch.setattr(baselines, "generate", lambda *args, **how: given.append(how) or ["90%", "none", "?"])
    found = baselines.verbalised(lm, TEXTS[:3], max_new_tokens=4, batch_size=7)
    assert given == [{"max_new_tokens": 4, "batch_size": 7}]
    assert (found.tokens, found.unread, found.score.tolist()) == (12, 2, [0.9, 0.5, 0.5])
    assert baselines.verbalised(lm, TEXTS[:3]).tokens == 30


def test_samples_are_drawn_from_the_nucleus_and_counted(lm, monkeypatch):
    """Of shares 0.5, 0.3, 0.15, 0.05 those that begin below top_p stay; the temperature is applied before they are cut."""
    given = []
    texts = ["a b c", "a b c", "x y z", "q r s", "same words", "same words", "same words", "same words"]

    def rolled(language_model, prompts, **how):
        given.append(how)
        return SimpleNamespace(texts=texts, mask=torch.tensor([[1, 1, 0]] * 8))

    monkeypatch.setattr(baselines, "roll_out", rolled)
    how = {"samples": 4, "temperature": 0.5, "seed": 6, "keys": [4, 5], "max_new_tokens": 3, "batch_size": 9}
    found = baselines.semantic_agreement(lm, TEXTS[:2], top_p=0.8, **how)
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert found.score == pytest.approx([math.exp(-entropy), 1.0]) and (found.unread, found.tokens) == (0, 16)
    hook = given[0].pop("hook")
    assert given[0] == {**how, "seed": [6, 13]}
    shares = torch.tensor([[0.15, 0.5, 0.05, 0.3], [0.15, 0.5, 0.05, 0.3]], dtype=torch.float64)
    logits = shares.log() * 0.5  # at this temperature they are the shares
    for top_p, kept in (
        (0.8, [1, 3]),
        (0.81, [0, 1, 3]),
        (0.5, [1]),
        (0.51, [1, 3]),
        (1e-9, [1]),
        (0.96, [0, 1, 2, 3]),
    ):
        baselines.semantic_agreement(lm, TEXTS[:2], top_p=top_p - 1e-12, **how)
        left = given[-1]["hook"](logits, torch.empty(0), [0, 1], 0)
        for row in left:
            assert torch.isfinite(row).nonzero()[:, 0].tolist() == kept, top_p
        assert torch.equal(left[:, 1], logits[:, 1])
    assert hook is not None
    baselines.semantic_agreement(lm, TEXTS[:2], top_p=1.0, **how)
    assert given[-1]["hook"] is None
