"""Entropy and perplexity of one text, from weights to number: our scorer against lm-polygraph's statistics and estimators.

Its statistics are of what a model generates greedily, so it generates, and our scorer reads the same tokens in parallel.
What it needs of a model is a handful of names; its packages, which import some thirty others, are imported from packages
without a beginning, and without the base classes that write down what they depend on.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from chat_models import untaught
from equipoise.language.confidence import perplexity
from equipoise.uncertainty.perturbed import perturb
from equipoise.uncertainty.tokur import Encoded, confidences, score_tokens

FOUND = importlib.util.find_spec("lm_polygraph")
pytestmark = pytest.mark.skipif(
    FOUND is None, reason="lm-polygraph is not installed: pip install --no-deps lm-polygraph"
)
PROMPTS = ("What is the capital of Norway?", "Where was Mulum Kunwick born?", "yes no maybe one two")


@pytest.fixture
def peer(monkeypatch):
    """A class of lm_polygraph, by its package, module and name."""
    assert FOUND is not None and FOUND.origin is not None
    for name in ("lm_polygraph", "lm_polygraph.estimators", "lm_polygraph.stat_calculators"):
        package = ModuleType(name)
        package.__path__ = [str(Path(FOUND.origin).parent.joinpath(*name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, package)
    for name, words in {
        "estimators.estimator": {
            "Estimator": type("Estimator", (), {"__init__": lambda self, statistics, level: None})
        },
        "stat_calculators.stat_calculator": {"StatCalculator": type("StatCalculator", (), {})},
        "utils": {},
        "utils.model": {"WhiteboxModel": object},
        "model_adapters": {"WhiteboxModel": object, "WhiteboxModelvLLM": object},
    }.items():
        made: Any = ModuleType(f"lm_polygraph.{name}")
        vars(made).update(words)
        monkeypatch.setitem(sys.modules, made.__name__, made)
    return lambda package, module, name: getattr(importlib.import_module(f"lm_polygraph.{package}.{module}"), name)


def generated(lm, **how):
    """Greedily, with log-probabilities as scores, as its adapters of models give them."""
    out = lm.model.generate(do_sample=False, pad_token_id=lm.pad_id, **how)
    return SimpleNamespace(sequences=out.sequences, scores=[each.log_softmax(dim=-1) for each in out.scores])


def test_entropy_and_perplexity_of_the_same_text(peer):
    lm = untaught(0)
    lm.model.generation_config.eos_token_id = None  # else it bars the end token, whose probability ours counts
    ids = [lm.tokenizer.encode(prompt, add_special_tokens=False) for prompt in PROMPTS]
    stats: dict[str, list[Any]] = {"greedy_log_probs": [], "greedy_log_likelihoods": [], "greedy_tokens": []}
    for row in ids:  # one at a time, as it pads on the left without telling the positions
        model = SimpleNamespace(
            tokenize=lambda _, row=row: {
                "input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.int64)
            },
            device=lambda: "cpu",
            generate=lambda **how: generated(lm, **how),
            tokenizer=lm.tokenizer,
            model_type="CausalLM",
            generation_parameters=SimpleNamespace(allow_newlines=True),
        )  # fmt: skip
        calculator = peer("stat_calculators", "greedy_probs", "GreedyProbsCalculator")
        found = calculator(output_attentions=False)({}, ["a text"], model, max_new_tokens=12)
        for name, each in stats.items():
            each += found[name]
    stats |= peer("stat_calculators", "entropy", "EntropyCalculator")()(stats)

    rows = [Encoded(tuple(row), tuple(said), ()) for row, said in zip(ids, stats["greedy_tokens"], strict=True)]
    ours = score_tokens(perturb(lm), rows, members=1, seed=0, batch_size=3)
    for place, (entropies, likelihoods) in enumerate(
        zip(stats["entropy"], stats["greedy_log_likelihoods"], strict=True)
    ):
        count = len(entropies)
        assert count == len(rows[place].answer) == 12
        assert ours.entropies[place, :count].numpy() == pytest.approx(np.array(entropies), abs=2e-5)
        assert ours.tu[place, :count].numpy() == pytest.approx(
            np.array(entropies), abs=2e-5
        )  # without noise: the entropy
        assert ours.log_probs[place, :count].numpy() == pytest.approx(np.array(likelihoods), abs=2e-5)
    scores = confidences(ours)
    mean = peer("estimators", "token_entropy", "MeanTokenEntropy")()(stats)
    assert -scores["entropy_mean"].numpy() == pytest.approx(mean, abs=2e-5)
    logarithm = peer("estimators", "perplexity", "Perplexity")()(stats)  # of what the name says
    assert perplexity(ours.log_probs, ours.mask).log().numpy() == pytest.approx(logarithm, abs=2e-5)
    assert mean.std() > 1e-3 and logarithm.std() > 1e-3  # each text has its own
