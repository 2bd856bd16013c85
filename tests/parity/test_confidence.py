"""Scores of tokens and answers against lm-polygraph's estimators, on the same log-probabilities.

lm-polygraph calls higher what is less sure, so that its self-certainty is minus the published one. Its packages import some
thirty others when they begin, of which these estimators need none: they are imported from packages without a beginning, and
with a base class that does not write down what they depend on.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from equipoise.language import confidence as c

FOUND = importlib.util.find_spec("lm_polygraph")
pytestmark = pytest.mark.skipif(
    FOUND is None, reason="lm-polygraph is not installed: pip install --no-deps lm-polygraph"
)


@pytest.fixture
def estimators(monkeypatch):
    """A class of lm_polygraph.estimators, by its module and name."""
    assert FOUND is not None and FOUND.origin is not None
    for name in ("lm_polygraph", "lm_polygraph.estimators"):
        package = ModuleType(name)
        package.__path__ = [str(Path(FOUND.origin).parent.joinpath(*name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, package)
    base: Any = ModuleType("lm_polygraph.estimators.estimator")
    base.Estimator = type("Estimator", (), {"__init__": lambda self, statistics, level: None})
    monkeypatch.setitem(sys.modules, base.__name__, base)
    return lambda module, name: getattr(importlib.import_module(f"lm_polygraph.estimators.{module}"), name)


def test_tokens_and_answers_against_lm_polygraph(estimators):
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
        (estimators("self_certainty", "SelfCertainty")(), -c.over_answer(c.self_certainty(logits), mask)),
        (estimators("token_entropy", "MeanTokenEntropy")(), c.over_answer(c.entropy(logits), mask)),
        (estimators("max_probability", "MaximumSequenceProbability")(), -c.over_answer(chosen, mask, over="sum")),
        (
            estimators("perplexity", "Perplexity")(),
            c.perplexity(chosen, mask).log(),
        ),  # theirs is the logarithm of what the name says
    ]
    for estimator, ours in pairs:
        assert_close(torch.as_tensor(np.asarray(estimator(stats))), ours)


def test_semantic_entropy_against_lm_polygraph(estimators):
    log_probs = [-3.0, -1.5, -4.0, -2.0, -2.5]
    labels = [0, 1, 0, 2, 1]
    classes = {"class_to_sample": [[[0, 2], [1, 4], [3]]], "sample_to_class": [labels]}
    stats = {"sample_texts": [list("abcde")], "sample_log_probs": [log_probs], "semantic_classes_entail": classes}
    theirs = estimators("semantic_entropy", "SemanticEntropy")()(stats)[0]
    ours = c.semantic_entropy(labels, torch.tensor(log_probs, dtype=torch.float64), estimate="monte-carlo")
    assert ours.item() == pytest.approx(theirs)
    counts = estimators("semantic_entropy", "SemanticEntropy")(class_probability_estimation="frequency")(stats)[0]
    assert c.semantic_entropy(labels).item() == pytest.approx(counts)
