"""Rollouts as tables: batches, joins, streams of numbers, and how rows are put together."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chat_models import untaught
from equipoise.core.errors import BadInput
from equipoise.language import rollouts
from equipoise.language.rollouts import Draws, Rollouts, drawing, fill, padded, roll_out, score_responses


def table():
    """Two prompts with two samples: 3, 1, 2 and 1 tokens, of which the third row's first is the environment's."""
    ids = torch.tensor([[11, 12, 13], [21, 0, 0], [31, 32, 0], [41, 0, 0]])
    owner = torch.tensor([[1, 1, 1], [1, 0, 0], [2, 1, 0], [1, 0, 0]], dtype=torch.int8)
    mask = owner == 1
    values = torch.arange(12.0).view(4, 3) * mask
    return Rollouts(
        prompts=((1, 2), (3,)), samples=2, pad_id=9, ids=ids, mask=mask, log_probs=values, entropies=2 * values,
        forced=torch.zeros_like(mask), ended=torch.tensor([True, False, True, False]), texts=("a", "b", "c", "d"),
        top_ids=ids[..., None].repeat(1, 1, 2), top_probs=values[..., None].repeat(1, 1, 2), owner=owner,
        turn=torch.tensor([[0, 0, 0], [0, -1, -1], [0, 1, -1], [0, -1, -1]]), episodes=("e0", "e1", "e2", "e3"),
    )  # fmt: skip


def test_a_batch_by_hand():
    found = table().batch([2, 0, 3])
    lists = {name: each.tolist() for name, each in found.items()}
    no, yes = False, True
    assert lists == {
        "input_ids": [[3, 31, 32, 9, 9], [1, 2, 11, 12, 13], [3, 41, 9, 9, 9]],
        "attention_mask": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]],
        "predicts": [[no, yes, no, no, no], [no, yes, yes, yes, no], [yes, no, no, no, no]],
        "response": [[31, 32, 0], [11, 12, 13], [41, 0, 0]],
        "mask": [[no, yes, no], [yes, yes, yes], [yes, no, no]],
        "present": [[yes, yes, no], [yes, yes, yes], [yes, no, no]],
        "prompt_ids": [[3, 9], [1, 2]],
        "prompt_mask": [[1, 0], [1, 1]],
        "prompt": [0, 1, 0],
    }
    short = table().batch([1])
    assert short["response"].tolist() == [[21]] and short["input_ids"].tolist() == [[1, 2, 21]]
    assert short["mask"].shape == short["present"].shape == (1, 1)


def test_lengths_tokens_and_what_is_there():
    rolled = table()
    assert rolled.lengths.tolist() == [3, 1, 1, 1] and rolled.token_ids == [[11, 12, 13], [21], [32], [41]]
    assert rolled.present.sum(dim=-1).tolist() == [3, 1, 2, 1]
    assert replace(rolled, owner=None).present.equal(rolled.mask)


def test_taken_prompts_and_joined_parts():
    rolled = table()
    second = rolled.take([1])
    assert second.prompts == ((3,),) and second.texts == ("c", "d") and second.episodes == ("e2", "e3")
    assert second.ids.tolist() == rolled.ids[2:].tolist() and second.ended.tolist() == [True, False]
    both = rolled.take([1, 0])
    assert both.texts == ("c", "d", "a", "b") and both.top_ids[0].equal(rolled.top_ids[2])
    short = replace(second, **{name: each[:, :2] for name, each in second._tensors().items() if each.dim() > 1})
    joined = Rollouts.joined([short, rolled])
    assert joined.prompts == ((3,), (1, 2), (3,)) and joined.texts == ("c", "d", "a", "b", "c", "d")
    assert joined.ids.tolist() == [[31, 32, 9], [41, 0, 9], *rolled.ids.tolist()]
    assert joined.turn[:2].tolist() == [[0, 1, -1], [0, -1, -1]] and joined.mask[:2, 2].tolist() == [False, False]
    assert joined.log_probs[:2, 2].tolist() == [0, 0] and joined.owner[:2, 2].tolist() == [0, 0]
    assert joined.top_ids.shape == (6, 3, 2) and joined.top_ids[0, 2].tolist() == [0, 0]
    assert joined.ended.tolist() == [True, False, True, False, True, False] and len(joined.episodes) == 6


def test_numbers_are_named_by_seeds_key_and_sample():
    draws = Draws([7, 2], 3, [5, 6])

    def stream(*words):
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))

    first = draws.next([4, 0], 2)
    one, zero = stream(5, 6, 2, 1), stream(5, 6, 7, 0)
    assert first.tolist() == [one.random(2).tolist(), zero.random(2).tolist()]
    assert draws.next([4], 3).tolist() == [one.random(3).tolist()]  # where it was left
    assert draws.next([], 3).shape == (0, 3) and first.dtype == torch.float64
    default = drawing(2, 1, 8, None)
    assert default.next([1], 2).tolist() == [stream(8, 1, 0).random(2).tolist()]
    assert drawing(1, 1, 0, [0]).next([0], 1).shape == (1, 1)
    for arguments, words in (((2, 1, 0, [1]), "1 keys for 2 prompts"), ((1, 1, -1, None), "at least 0"),
                             ((2, 1, [3, -2], None), "at least 0"), ((2, 1, 0, [0, -1]), "smallest key -1")):  # fmt: skip
        with pytest.raises(BadInput, match=words):
            drawing(*arguments)


def test_rows_of_any_length_are_padded_on_the_right():
    ids, mask = padded([[5, 6, 7], [8]], 1, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("repeats", "batch_size", "calls"),
    [
        # Longest first. Of five continuations four are written together, the fifth of all contexts in one batch.
        (5, 4, [([2], 4, [11, 11, 11, 11], [20, 21, 22, 23]), ([0], 4, [10] * 4, [0, 1, 2, 3]),
                ([1], 4, [12] * 4, [10, 11, 12, 13]), ([2, 0, 1], 1, [11, 10, 12], [24, 4, 14])]),
        (2, 4, [([2, 0], 2, [11, 11, 10, 10], [20, 21, 0, 1]), ([1], 2, [12, 12], [10, 11])]),
        (1, 1, [([2], 1, [11], [20]), ([0], 1, [10], [0]), ([1], 1, [12], [10])]),
        (3, 7, [([2, 0], 3, [11] * 3 + [10] * 3, [20, 21, 22, 0, 1, 2]), ([1], 3, [12] * 3, [10, 11, 12])]),
    ],
)  # fmt: skip
def test_what_is_written_together(monkeypatch, repeats, batch_size, calls):
    contexts, limits, first = [[1, 2], [3], [4, 5, 6]], [10, 12, 11], [0, 10, 20]
    asked, done = [], []
    noted = SimpleNamespace(rows=[], choose=None, texts=[""] * 30, ended=[False] * 30)

    def write(language_model, read, ends, allowed, choose, *, repeats):
        asked.append(([contexts.index(each) for each in read], repeats, allowed, list(noted.rows)))
        for line in range(len(allowed)):
            yield line, SimpleNamespace(text=f"{line}", ended=line == 0)

    monkeypatch.setattr(rollouts, "write", write)
    fill(noted, None, contexts, frozenset(), limits, first, repeats, batch_size, done.append)
    assert asked == calls and done == [row for call in calls for row in call[3]]
    assert noted.ended[calls[0][3][0]] and sum(noted.ended) == len(calls)


def test_settings_of_rollouts_at_their_limits():
    lm = untaught(0)
    given = {"samples": 1, "max_new_tokens": 1, "temperature": 1.0, "seed": 0}
    every = roll_out(lm, ["yes"], **given, top=lm.vocabulary, batch_size=1)
    assert every.top_ids.shape == (1, 1, lm.vocabulary) and every.top_probs.sum().item() == pytest.approx(1, abs=1e-5)
    assert every.ids.shape == (1, 1) and not roll_out(lm, [], **given).ids.shape[0]
    for wrong in (
        {"samples": 0}, {"max_new_tokens": 0}, {"batch_size": 0}, {"temperature": -0.1}, {"temperature": float("inf")},
        {"top": -1}, {"top": lm.vocabulary + 1},
    ):  # fmt: skip
        with pytest.raises(BadInput):
            roll_out(lm, ["yes"], **{**given, **wrong})
    batch = every.batch([0])
    for temperature in (-0.1, float("inf")):
        with pytest.raises(BadInput, match="The temperature is"):
            score_responses(lm.model, batch, temperature=temperature)
    with torch.no_grad():
        scores = score_responses(lm.model, batch, temperature=0.0, top=10**6, entropies=True)
    assert scores.top_ids.shape == (1, 1, lm.vocabulary)
    assert scores.log_probs.item() == pytest.approx(every.log_probs.item(), abs=1e-4)
    assert scores.entropies.item() == pytest.approx(every.entropies.item(), abs=1e-4)


def test_logits_are_made_in_pieces_of_bounded_size(monkeypatch):
    lm = untaught(0)
    rolled = roll_out(lm, ["yes", "no"], samples=2, max_new_tokens=4, temperature=1.0, seed=0)
    batch, sizes = rolled.batch(range(4)), []
    whole = score_responses(lm.model, batch, top=2, entropies=True, gather=batch["response"][..., None])
    tokens, rows = int(batch["mask"].sum()), lm.model.get_input_embeddings().weight.shape[0]
    entropy = rollouts._entropy
    monkeypatch.setattr(rollouts, "_entropy", lambda logs: sizes.append(len(logs)) or entropy(logs))
    for amount, pieces in ((3, [3] * (tokens // 3) + [tokens % 3] * bool(tokens % 3)), (tokens, [tokens])):
        monkeypatch.setattr(rollouts, "_LOGITS_AT_ONCE", amount * rows + rows - 1)
        sizes.clear()
        with torch.no_grad():
            cut = score_responses(lm.model, batch, top=2, entropies=True, gather=batch["response"][..., None])
        assert sizes == pieces
        for name in ("log_probs", "entropies", "gathered", "top_probs"):
            torch.testing.assert_close(getattr(cut, name), getattr(whole, name).detach(), atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(rollouts, "_LOGITS_AT_ONCE", 1)
    sizes.clear()
    with torch.no_grad():
        score_responses(lm.model, batch, entropies=True)
    assert sizes == [1] * tokens


@pytest.mark.parametrize(("prompts", "rows", "shared"), [(2, 4, True), (2, 3, False), (1, 2, True), (2, 5, True)])
def test_prompts_are_read_once_where_each_has_two_rows(monkeypatch, prompts, rows, shared):
    from equipoise.language import cache

    monkeypatch.setattr(cache, "differentiable", lambda model: "a cache")
    batch = {"prompt_ids": torch.zeros(prompts, 1), "mask": torch.zeros(rows, 1)}
    assert rollouts._shared_reading(None, batch) == ("a cache" if shared else None)
    assert rollouts._shared_reading(None, {"mask": batch["mask"]}) is None
