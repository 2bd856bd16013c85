"""Entropies of tokens against TRL's, on random logits: of the whole vocabulary, and as rollouts are scored."""

import pytest
import torch
from torch.testing import assert_close

from equipoise.language.confidence import entropy
from equipoise.language.rollouts import roll_out, score_responses
from reinforcement_world import model

pytestmark = pytest.mark.slow
utils = pytest.importorskip("trl.trainer.utils", reason="needs TRL: pip install 'equipoise[trl]'")


def test_entropy_of_random_logits():
    draw = torch.Generator().manual_seed(0)
    for scale in (0.01, 1.0, 30.0):
        logits = scale * torch.randn(7, 50, 1000, generator=draw, dtype=torch.float64)
        assert_close(entropy(logits), utils.entropy_from_logits(logits, chunk_size=13))


def test_entropy_of_responses_that_are_scored():
    language_model = model()
    rolled = roll_out(language_model, ["one two", "no"], samples=2, max_new_tokens=6, temperature=0.7, seed=1)
    batch = rolled.batch(range(4))
    found = score_responses(language_model.model, batch, entropies=True).entropies
    with torch.no_grad():
        logits = language_model.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = utils.entropy_from_logits(logits[batch["predicts"]])
    assert_close(found[batch["mask"]].detach(), expected, rtol=1e-4, atol=1e-4)
