"""Scores of tokens and answers against lm-polygraph's estimators, on the same log-probabilities.

lm-polygraph calls higher what is less sure, so that its self-certainty is minus the published one.
"""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.language import confidence as c

reason = "lm-polygraph is not installed: pip install --no-deps lm-polygraph"
estimators = pytest.importorskip("lm_polygraph.estimators", reason=reason)


def test_tokens_and_answers_against_lm_polygraph():
    logits = torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[0, 2, 7:] = -torch.inf
    said = logits.argmax(dim=-1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    log_probs = logits.log_softmax(dim=-1)
    chosen = log_probs.gather(-1, said.unsqueeze(-1)).squeeze(-1)
    rows = [range(int(count)) for count in mask.sum(dim=-1)]
    stats = {
        "greedy_log_probs": [[log_probs[i, t].numpy() for t in row] for i, row in enumerate(rows)],
        "greedy_log_likelihoods": [[chosen[i, t].item() for t in row] for i, row in enumerate(rows)],
        "entropy": [[c.entropy(logits)[i, t].item() for t in row] for i, row in enumerate(rows)],
    }
    pairs = [
        (estimators.SelfCertainty(), -c.over_answer(c.self_certainty(logits), mask)),
        (estimators.MeanTokenEntropy(), c.over_answer(c.entropy(logits), mask)),
        (estimators.MaximumSequenceProbability(), -c.over_answer(chosen, mask, over="sum")),
        (estimators.Perplexity(), c.perplexity(chosen, mask).log()),  # theirs is the logarithm of what the name says
    ]
    for estimator, ours in pairs:
        assert_close(torch.as_tensor(np.asarray(estimator(stats))), ours)


def test_semantic_entropy_against_lm_polygraph():
    log_probs = [-3.0, -1.5, -4.0, -2.0, -2.5]
    labels = [0, 1, 0, 2, 1]
    classes = {"class_to_sample": [[[0, 2], [1, 4], [3]]], "sample_to_class": [labels]}
    stats = {"sample_texts": [list("abcde")], "sample_log_probs": [log_probs], "semantic_classes_entail": classes}
    theirs = estimators.SemanticEntropy()(stats)[0]
    ours = c.semantic_entropy(labels, torch.tensor(log_probs, dtype=torch.float64), estimate="monte-carlo")
    assert ours.item() == pytest.approx(theirs)
    counts = estimators.SemanticEntropy(class_probability_estimation="frequency")(stats)[0]
    assert c.semantic_entropy(labels).item() == pytest.approx(counts)
