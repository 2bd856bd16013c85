"""Rollouts against scoring, brute force and themselves in other company; what scoring them leaves in memory."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from equipoise.core.errors import BadInput
from equipoise.data.records import Message
from equipoise.language import cache, rollouts
from equipoise.language.encode import IGNORE, Example, encode_prompts
from equipoise.language.rollouts import Rollouts, roll_out, score_responses
from equipoise.language.score import token_log_likelihoods

PROMPTS = ["yes", "Where was Mulum Kunwick born?", "one two three four five six", "no"]
ENDS = [2, *range(100, 150)]


class NoCache(LlamaForCausalLM):
    """As code that a folder brings may be: it takes a cache and gives none back."""

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, **words):
        assert past_key_values is None
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask, **words)
        output.past_key_values = None
        return output


@pytest.fixture(scope="module")
def ending(small):
    """A model of which about every sixth token ends an answer."""
    model = copy.deepcopy(small.model)
    model.generation_config.eos_token_id = ENDS
    return replace(small, model=model)


def rolled(model, prompts=PROMPTS, **changes):
    settings = {"samples": 3, "max_new_tokens": 9, "temperature": 1.0, "seed": 5}
    return roll_out(model, prompts, **{**settings, **changes})


def every(found):
    return range(len(found.ids))


def by_brute_force(model, found, row, temperature):
    """log_softmax of the logits that predict each token of a response, [length, V], from the row alone."""
    prompt, tokens = list(found.prompts[row // found.samples]), found.ids[row][found.mask[row]].tolist()
    with torch.no_grad():
        logits = model.model(torch.tensor([prompt + tokens])).logits[0].to(found.log_probs.dtype)
    return (logits / temperature).log_softmax(-1)[len(prompt) - 1 : -1]


def architecture(small, name):
    torch.manual_seed(1)
    words = {"vocab_size": len(small.tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2}
    heads = {"intermediate_size": 64, "num_attention_heads": 2}
    model = {
        "mamba": lambda: MambaForCausalLM(MambaConfig(state_size=8, **sizes, **words)),
        "no cache": lambda: NoCache(LlamaConfig(**heads, **sizes, **words)),
        "soft-capped": lambda: Gemma2ForCausalLM(
            Gemma2Config(
                num_key_value_heads=1,
                head_dim=16,
                sliding_window=4,
                final_logit_softcapping=1.5,
                **heads,
                **sizes,
                **words,
            )
        ),
    }[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)  # so that what is said depends on the tokens before the last
    model.generation_config.eos_token_id = ENDS
    return replace(small, model=model)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampler_scorer_and_brute_force_agree(ending, dtype, tolerance, temperature):
    """Unequal prompts, several samples, more than fit a batch, rows that end early: three ways to the same numbers."""
    model = replace(ending, model=copy.deepcopy(ending.model).to(dtype))
    found = rolled(model, temperature=temperature, batch_size=2, top=4)
    assert found.log_probs.dtype == found.entropies.dtype == dtype
    assert 1 <= found.lengths.min() < found.lengths.max() == 9 and len({len(p) for p in found.prompts}) > 2
    order = [7, 0, 3, 11, 2, 1]
    scores = score_responses(model.model, found.batch(order), temperature=temperature, entropies=True, top=4)
    near = {"atol": tolerance, "rtol": 0}
    for place, row in enumerate(order):
        length = int(found.lengths[row])
        expected = by_brute_force(model, found, row, temperature)
        tokens = found.ids[row, :length]
        chosen = expected.gather(-1, tokens[:, None])[:, 0]
        entropy = -(expected.exp() * expected).sum(-1)
        values, ids = expected.exp().topk(4)
        assert_close(found.log_probs[row, :length], chosen, **near)
        assert_close(scores.log_probs[place, :length], chosen, **near)
        assert_close(found.entropies[row, :length], entropy, **near)
        assert_close(scores.entropies[place, :length], entropy, **near)
        for top_ids, top_probs in (
            (found.top_ids[row], found.top_probs[row]),
            (scores.top_ids[place], scores.top_probs[place]),
        ):
            assert torch.equal(top_ids[:length], ids)
            assert_close(top_probs[:length], values, **near)
    beyond = ~found.mask
    for each in (found.log_probs, found.entropies, found.top_probs.sum(-1)):
        assert not each[beyond].any()
    assert not scores.log_probs[~found.batch(order)["mask"]].any()
    if temperature == 1:
        examples = []
        for row in every(found):
            prompt, tokens = found.prompts[row // 3], found.ids[row][found.mask[row]].tolist()
            examples.append(Example((*prompt, *tokens), (*[IGNORE] * len(prompt), *tokens)))
        for row, values in enumerate(token_log_likelihoods(model, examples)):
            assert_close(found.log_probs[row][found.mask[row]], values, **near)


def test_the_end_token_counts_and_padding_does_not(ending):
    found = rolled(ending, samples=8, max_new_tokens=5)
    assert found.ids.shape == found.mask.shape == (32, 5) and 0 < int(found.ended.sum()) < 32
    for row in every(found):
        length = int(found.lengths[row])
        tokens = found.ids[row, :length].tolist()
        assert found.mask[row].tolist() == [True] * length + [False] * (5 - length)
        assert found.ids[row, length:].tolist() == [ending.pad_id] * (5 - length)
        assert not set(tokens[:-1]) & set(ENDS)
        assert bool(found.ended[row]) == (tokens[-1] in ENDS)
        if not found.ended[row]:
            assert length == 5
        said = tokens[:-1] if found.ended[row] else tokens
        text = ending.tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert found.texts[row] == text.removeprefix(" ")
    assert any(found.ended[row] and found.lengths[row] == 5 for row in every(found))  # an end at the very last place


def same(one, two, rows=None):
    rows = list(every(two)) if rows is None else rows
    width = two.ids.shape[1]
    assert torch.equal(one.ids[rows][:, :width], two.ids) and torch.equal(one.mask[rows][:, :width], two.mask)
    assert torch.equal(one.ended[rows], two.ended) and tuple(one.texts[row] for row in rows) == two.texts
    assert_close(one.log_probs[rows][:, :width], two.log_probs, atol=1e-5, rtol=0)
    assert_close(one.entropies[rows][:, :width], two.entropies, atol=1e-5, rtol=0)


def test_company_does_not_matter(ending):
    whole = rolled(ending, samples=4)
    assert len({tuple(row) for row in whole.ids.tolist()}) > 12
    for batch_size in (1, 5):  # and 64, which holds them all
        same(whole, rolled(ending, samples=4, batch_size=batch_size))
    same(
        whole,
        rolled(ending, PROMPTS[::-1], samples=4, keys=[3, 2, 1, 0]),
        [*range(12, 16), *range(8, 12), *range(4, 8), *range(4)],
    )
    same(whole, rolled(ending, [PROMPTS[2]], samples=2, keys=[2]), [8, 9])
    torch.manual_seed(7)
    same(whole, rolled(ending, samples=4, seed=[5]))
    shorter = rolled(ending, samples=4, max_new_tokens=4)
    assert torch.equal(shorter.ids, whole.ids[:, :4].where(whole.mask[:, :4], ending.pad_id))
    assert not torch.equal(rolled(ending, samples=4, seed=6).ids, whole.ids)
    assert not torch.equal(rolled(ending, samples=4, seed=[5, 0]).ids[:, :5], whole.ids[:, :5])
    alike = rolled(ending, [PROMPTS[0]] * 2, samples=2, keys=[9, 9])
    assert torch.equal(alike.ids[:2], alike.ids[2:]) and not torch.equal(alike.ids[0], alike.ids[1])


def test_the_likeliest_tokens_have_their_log_probabilities_at_temperature_one(ending):
    found = rolled(ending, samples=2, temperature=0.0, batch_size=3)
    for row in every(found):
        expected = by_brute_force(ending, found, row, 1.0)
        tokens = found.ids[row][found.mask[row]]
        assert torch.equal(tokens, expected.argmax(-1))
        assert_close(found.log_probs[row][found.mask[row]], expected.max(-1).values, atol=1e-5, rtol=0)
    assert torch.equal(found.ids[::2], found.ids[1::2])
    scores = score_responses(ending.model, found.batch(every(found)), temperature=0.0, entropies=True)
    assert_close(scores.log_probs[found.mask], found.log_probs[found.mask], atol=1e-5, rtol=0)
    assert_close(scores.entropies[found.mask], found.entropies[found.mask], atol=1e-5, rtol=0)
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(BadInput, match=f"The temperature is {wrong}: use 0"):
            score_responses(ending.model, found.batch([0]), temperature=wrong)


def test_a_hook_changes_the_distribution_that_is_noted(ending):
    banned, widest = list(range(100, 300)), []

    def ban(logits, states, rows, step):
        widest.append((len(rows), tuple(states.shape)))
        assert_close(ending.model.lm_head(states), logits, atol=1e-5, rtol=0)
        changed = logits.double().clone()  # wider than the model's: what is noted stays as wide as without a hook
        changed[:, banned] = -torch.inf
        return changed

    found = rolled(ending, hook=ban, temperature=0.8, batch_size=5, top=2)
    assert found.ids.max() < 100 and not found.forced.any() and {shape for _, shape in widest} >= {(3, 32)}
    for row in every(found):
        logits = by_brute_force(ending, found, row, 1.0) / 0.8
        logits[:, banned] = -torch.inf
        expected, own = logits.log_softmax(-1), found.mask[row]
        assert_close(
            found.log_probs[row][own], expected.gather(-1, found.ids[row][own][:, None])[:, 0], atol=1e-5, rtol=0
        )
        assert_close(found.entropies[row][own], torch.special.entr(expected.exp()).sum(-1), atol=1e-5, rtol=0)
        assert_close(found.top_probs[row][own], expected.exp().topk(2).values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [2, 64])
def test_a_hook_with_a_state_of_its_own_for_each_row(ending, batch_size):
    """Row r is made to say r + 10 after r free tokens, then to end: whatever batches the rows are in."""
    count = dict.fromkeys(range(12), 0)

    def force(logits, states, rows, step):
        tokens = []
        for row in rows:
            assert count[row] == step
            tokens.append({row % 5: row + 10, row % 5 + 1: 2}.get(step, -1))
            count[row] += 1
        logits = logits.clone()
        logits[:, ENDS] = -torch.inf
        return logits, torch.tensor(tokens)

    found = rolled(ending, hook=force, batch_size=batch_size)
    for row in every(found):
        free = row % 5
        assert found.ids[row, free : free + 2].tolist() == [row + 10, 2] and found.lengths[row] == free + 2
        assert found.forced[row].tolist() == [free <= step < free + 2 for step in range(found.ids.shape[1])]
        assert (
            bool(found.ended[row]) and found.log_probs[row, free + 1] == -torch.inf
        )  # the hook itself had excluded it
        said = by_brute_force(ending, found, row, 1.0)[: free + 1]
        said[:, ENDS] = -torch.inf
        expected = said.log_softmax(-1).gather(-1, found.ids[row, : free + 1, None])[:, 0]
        assert_close(found.log_probs[row, : free + 1], expected, atol=1e-5, rtol=0)


def test_a_hook_may_look_on(ending):
    seen = []
    found = rolled(ending, hook=lambda logits, states, rows, step: seen.append((tuple(rows), step)))
    same(rolled(ending), found)
    for step in range(9):
        assert (
            sorted(row for rows, at in seen if at == step for row in rows)
            == (found.lengths > step).nonzero().flatten().tolist()
        )


def test_conversations_go_through_the_template(ending):
    turns = [Message("user", "yes"), Message("assistant", "no"), Message("user", "one two")]
    found = rolled(ending, [turns, "yes"], samples=1)
    expected, _ = encode_prompts(ending, [turns, "yes"])
    assert found.prompts == tuple(tuple(ids) for ids in expected)
    assert ending.tokenizer.decode(found.prompts[0]).count("<|assistant|>") == 2
    plain = rolled(replace(ending, chat_template="none"), ["yes"], samples=1)
    assert plain.prompts[0] != found.prompts[1] and "<|" not in ending.tokenizer.decode(plain.prompts[0][1:])


@pytest.mark.parametrize("name", ["mamba", "no cache", "soft-capped"])
def test_other_architectures(small, name, monkeypatch):
    """Without a cache of keys and values; and one whose logits are not the output matrix's."""
    model = architecture(small, name)
    found = rolled(model, samples=2, temperature=0.7, batch_size=3)
    assert found.lengths.min() < found.lengths.max()
    same(found, rolled(model, samples=2, temperature=0.7, batch_size=1))
    direct = score_responses(model.model, found.batch(every(found)), temperature=0.7, entropies=True)
    monkeypatch.setattr(rollouts, "_LOGITS_AT_ONCE", 5 * model.vocabulary)
    pieces = score_responses(model.model, found.batch(every(found)), temperature=0.7, entropies=True)
    for row in every(found):
        own = found.mask[row]
        expected = by_brute_force(model, found, row, 0.7)
        chosen = expected.gather(-1, found.ids[row][own][:, None])[:, 0]
        for each in (found, direct, pieces):
            assert_close(each.log_probs[row][: len(own)][own].detach(), chosen, atol=1e-5, rtol=0)
            assert_close(each.entropies[row][own].detach(), -(expected.exp() * expected).sum(-1), atol=1e-5, rtol=0)


def gradients(model, batch, monkeypatch, at_once, **asked):
    """Scores and the gradient of a function of all of them that differs at every place."""
    monkeypatch.setattr(rollouts, "_LOGITS_AT_ONCE", at_once)
    model.zero_grad()
    scores = score_responses(model, batch, temperature=0.8, **asked)
    total = torch.zeros(())
    for each in (scores.log_probs, scores.entropies, scores.gathered):
        if each is not None:
            total = total + (each * torch.arange(each.numel()).view_as(each).sin()).sum()
    total.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return scores, found


@pytest.mark.parametrize("name", ["llama", "soft-capped"])
def test_pieces_give_the_same_values_and_gradients(small, fresh, monkeypatch, name):
    model = fresh.model if name == "llama" else architecture(small, name).model
    found = rolled(replace(small, model=model))
    batch = found.batch([1, 4, 5, 11])
    others = torch.randint(300, (4, batch["mask"].shape[1], 3), generator=torch.Generator().manual_seed(0))
    asked = {"gather": others, "top": 5, "entropies": True}
    whole, expected = gradients(model, batch, monkeypatch, 2**24, **asked)
    for pieces in (1, 7):
        scores, found_gradients = gradients(model, batch, monkeypatch, pieces * 300, **asked)
        assert torch.equal(scores.top_ids, whole.top_ids)
        for part in ("log_probs", "entropies", "gathered", "top_probs"):
            assert_close(getattr(scores, part), getattr(whole, part), atol=1e-6, rtol=1e-6)
        for key, value in expected.items():
            assert (found_gradients[key] - value).norm() < 1e-5 * value.norm()
    full = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach() / 0.8
    assert_close(
        whole.gathered[batch["mask"]], full.log_softmax(-1)[batch["predicts"]].gather(-1, others[batch["mask"]])
    )
    assert not whole.gathered[~batch["mask"]].any()


@pytest.mark.parametrize("rows", [2**24, 6])
def test_no_logits_of_prompts_and_padding_are_made(fresh, monkeypatch, rows):
    """Neither by the output matrix nor for the backward pass; in pieces no more than a piece."""
    found = rolled(fresh, ["one two three four five six " * 4, "no"], samples=2)
    batch = found.batch(range(4))
    tokens, places = int(batch["mask"].sum()), batch["input_ids"].numel()
    made, kept = [], []
    fresh.model.lm_head.register_forward_hook(lambda module, inputs, output: made.append(output.numel() // 300))
    monkeypatch.setattr(rollouts, "_LOGITS_AT_ONCE", rows * 300)

    def pack(tensor):
        if tensor.shape[-1:] == (300,) and tensor.shape != (32, 300):  # that is the output matrix
            kept.append(tensor.numel() // 300)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scores = score_responses(fresh.model, batch, entropies=True)
    scores.log_probs.sum().backward()
    assert tokens < places / 2 and max(made) <= min(rows, tokens)
    assert sum(made) <= tokens + 3 if rows > tokens else sum(made) <= 2 * tokens + 3
    assert max(kept, default=0) <= (tokens if rows > tokens else 1)


@pytest.mark.parametrize(("longest", "order"), [(6, [7, 0, 3, 2, 1, 6, 4, 8]), (1, [0, 1, 2, 3])])
def test_a_prompt_of_several_rows_is_read_once(fresh, monkeypatch, longest, order):
    """The same numbers as from whole rows, in float64, and the same gradients; and fewer tokens read."""
    model = replace(fresh, model=fresh.model.double())
    found = rolled(model, max_new_tokens=longest)
    batch, read = found.batch(order), []
    model.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    others = torch.randint(300, (*batch["mask"].shape, 3), generator=torch.Generator().manual_seed(0))
    asked = {"gather": others, "entropies": True, "top": 2}
    whole_rows = {name: each for name, each in batch.items() if not name.startswith("prompt")}
    expected, of_whole = gradients(model.model, whole_rows, monkeypatch, 2**24, **asked)
    whole = sum(read)
    read.clear()
    scores, of_shared = gradients(model.model, batch, monkeypatch, 2**24, **asked)
    prompts = {row // 3 for row in order}
    assert sum(read) == len(prompts) * max(len(found.prompts[p]) for p in prompts) + len(order) * (longest - 1) < whole
    for part in ("log_probs", "entropies", "gathered", "top_ids", "top_probs"):
        assert_close(getattr(scores, part), getattr(expected, part), atol=1e-11, rtol=1e-10)
    for name, value in of_whole.items():
        assert (
            of_shared[name] - value
        ).norm() < 1e-6 * value.norm()  # norms are taken in float32, whatever the model has


def test_what_cannot_share_a_prompt_reads_whole_rows(small, fresh):
    for name in ("mamba", "no cache", "soft-capped"):
        assert cache.differentiable(architecture(small, name).model) is None
    assert cache.differentiable(fresh.model) is not None
    fresh.model.gradient_checkpointing_enable()  # which leaves the cache out in the backward pass
    assert cache.differentiable(fresh.model) is None


def test_the_room_of_a_cache_does_not_matter(ending, monkeypatch):
    """It is too small at once, and rows leave before and after it is made anew."""
    wide = rolled(ending, samples=8)
    assert len(set(wide.lengths.tolist())) > 5
    monkeypatch.setattr(cache, "_ROOM", 2)
    same(wide, rolled(ending, samples=8))


def test_padding_reaches_neither_value_nor_gradient(fresh, monkeypatch):
    found = rolled(fresh, samples=2, max_new_tokens=5)
    batch = found.batch([0, 2, 5])
    padding = batch["attention_mask"] == 0
    assert padding.any()
    other = batch | {"input_ids": batch["input_ids"].masked_fill(padding, 77)}
    one, expected = gradients(fresh.model, batch, monkeypatch, 2**24, entropies=True)
    two, same_gradients = gradients(fresh.model, other, monkeypatch, 2**24, entropies=True)
    assert torch.equal(one.log_probs, two.log_probs) and torch.equal(one.entropies, two.entropies)
    for key, value in expected.items():
        assert_close(same_gradients[key], value, atol=1e-7, rtol=1e-6)


def test_a_row_that_ended_early_gives_nothing_behind_its_end(ending, monkeypatch):
    model = replace(ending, model=copy.deepcopy(ending.model))
    found = rolled(model)
    batch = found.batch(every(found))
    assert not batch["mask"].all()
    other = batch | {"response": batch["response"].masked_fill(~batch["mask"], 55)}
    one, expected = gradients(model.model, batch, monkeypatch, 2**24)
    two, same_gradients = gradients(model.model, other, monkeypatch, 2**24)
    assert torch.equal(one.log_probs, two.log_probs)
    assert all(torch.equal(same_gradients[key], value) for key, value in expected.items())


def test_the_entropy_has_a_gradient_where_a_probability_is_0():
    logits = torch.tensor([[0.0, 1.0, -300.0, -torch.inf]], dtype=torch.float32, requires_grad=True)
    entropy = rollouts._entropy(logits - logits.logsumexp(-1, keepdim=True))
    entropy.sum().backward()
    p = torch.tensor([0.0, 1.0], dtype=torch.float64).softmax(-1)
    expected = -(p * p.log()).sum()
    assert entropy.item() == pytest.approx(expected.item(), rel=1e-6)
    assert logits.grad[0, :3].tolist() == pytest.approx([*(-p * (p.log() + expected)).tolist(), 0.0], abs=1e-6)


def test_parts_taken_and_joined(ending):
    whole = rolled(ending, top=2)
    parts = [rolled(ending, [PROMPTS[i]], keys=[i], top=2, max_new_tokens=limit) for i, limit in ((2, 9), (0, 2))]
    assert parts[0].ids.shape[1] > parts[1].ids.shape[1]
    joined = Rollouts.joined(parts)
    assert joined.prompts == (whole.prompts[2], whole.prompts[0]) and joined.samples == 3
    cut = whole.take([2, 0])
    assert (
        torch.equal(joined.ids[:3], cut.ids[:3, : joined.ids.shape[1]])
        and joined.texts[:3] == cut.texts[:3] == whole.texts[6:9]
    )
    assert torch.equal(joined.mask[3:, :2], cut.mask[3:, :2]) and not joined.mask[3:, 2:].any()
    assert (joined.ids[3:, 2:] == ending.pad_id).all() and not joined.top_probs[3:, 2:].any()
    assert torch.equal(cut.log_probs, whole.log_probs[[6, 7, 8, 0, 1, 2]])
    batch = cut.batch([4, 0])
    expected = whole.batch([1, 6])
    assert batch.keys() == expected.keys() and all(torch.equal(batch[name], expected[name]) for name in batch)
    nothing = whole.take([])
    assert len(nothing.ids) == 0 and nothing.prompts == nothing.texts == ()
    assert Rollouts.joined([nothing, cut]).prompts == cut.prompts


def test_nothing_asked_is_nothing_answered(small):
    found = rolled(small, [])
    assert found.ids.shape[0] == 0 and found.texts == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"samples": 0}, "samples is 0, max_new_tokens 9 and batch_size 64: at least 1 each."),
        ({"max_new_tokens": 0}, "samples is 3, max_new_tokens 0 and batch_size 64: at least 1 each."),
        ({"batch_size": 0}, "samples is 3, max_new_tokens 9 and batch_size 0: at least 1 each."),
        ({"temperature": -1.0}, "The temperature is -1.0: use 0 for the likeliest answer, or a number above."),
        ({"temperature": float("nan")}, "The temperature is nan: use 0 for the likeliest answer, or a number above."),
        ({"top": 301}, "top is 301: use 0 to 300, the tokens that this model knows."),
        ({"keys": [1]}, "There are 1 keys for 4 prompts: give one for each."),
        ({"seed": -3}, "The seed is -3, the smallest key 0: use numbers of at least 0."),
        ({"keys": [4, 3, -2, 0]}, "The seed is 5, the smallest key -2: use numbers of at least 0."),
    ],
)
def test_requests_that_are_wrong(small, changes, sentence):
    with pytest.raises(BadInput) as caught:
        rolled(small, **changes)
    assert str(caught.value) == sentence


def test_a_prompt_without_room_is_named(small):
    with pytest.raises(
        BadInput, match=r"^Prompt 1 has \d+ tokens; with 9 new ones that is more than the context of 128"
    ):
        rolled(small, ["a", "one " * 130])


@pytest.mark.parametrize("shared", [False, True])
def test_a_cache_is_kept_only_of_prompts_that_several_rows_share(fresh, shared):
    found, given = rolled(fresh, ["one two three", "no"], samples=2), []
    batch = found.batch(range(4))
    if not shared:
        batch = {name: each for name, each in batch.items() if not name.startswith("prompt")}
    fresh.model.register_forward_pre_hook(lambda _, args, named: given.append(named["use_cache"]), with_kwargs=True)
    score_responses(fresh.model, batch)
    assert given == ([True, True] if shared else [False])
