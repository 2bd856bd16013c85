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
