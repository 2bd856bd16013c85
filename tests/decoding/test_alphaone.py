"""AlphaOne and its rivals against tables whose text is known, enumerated laws, plain sampling, and themselves in "
"company."""

import math
import re

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from equipoise.core.errors import BadInput
from equipoise.data.records import Message
from equipoise.decoding.alphaone import AlphaOne, mean_thinking, schedule
from equipoise.decoding.thinking import PRESETS, Tags, chance_of, tags_of, thought_of, write_thoughts
from equipoise.decoding.thinking_rivals import BudgetForcing, HardCap, Plain, RandomWaits, expected_waits, waits_to_draw
from equipoise.language.catalog import is_cached
from equipoise.language.generate import choose
from equipoise.language.model import load
from equipoise.language.rollouts import drawing, roll_out
from thinking_models import follow, lengthened, tokenizer_of, untaught

PROMPTS = ["ab", "cegh", "ikno tW", "a", "Mr.", "0123", "4 5", "99"]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of()


@pytest.fixture(scope="module")
def model(tokenizer):
    return untaught(tokenizer)


@pytest.fixture(scope="module")
def endless(model):
    """It neither ends its answer nor, by itself, its thinking."""
    tokenizer = model.tokenizer
    return lengthened(model, [1, tokenizer.convert_tokens_to_ids("</think>")])


def ids_of(tokenizer, *tokens):
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


# Schedules.


def test_linear_anneal_is_the_released_form():
    budget, mean, alpha = 8192, 2435, 1.4
    threshold = budget - alpha * mean
    for t in (0, 2, 17, 1000, 3408):
        left = budget - t
        assert schedule(t, alpha * mean) == pytest.approx((left - threshold) / (budget - threshold), abs=1e-12)
    assert schedule(0, 50) == 1 and schedule(50, 50) == 0
    assert schedule(51, 50, "increase") == 0 and schedule(50, 50, "increase") == 1 and schedule(0, 50, "increase") == 0
    assert schedule(7, 50, "constant", p=0.3) == 0.3
    assert schedule(10, 50, "exponential") == pytest.approx(math.exp(-3))
    assert schedule(10, 50, "exponential", gamma=0.5, tau=20) == pytest.approx(math.exp(-0.25))


@pytest.mark.parametrize("wrong", [{"t": -1}, {"moment": 0}, {"p": 1.1}, {"gamma": -1}, {"tau": 0}, {"kind": "lineal"}])
def test_a_schedule_out_of_range_is_refused(wrong):
    with pytest.raises(BadInput):
        schedule(**{"t": 1, "moment": 10, **wrong})


# What is read from the vocabulary.


def test_paragraphs_end_at_tokens_whose_own_text_does(tokenizer):
    control = AlphaOne(tokenizer, moment=10)
    assert control.vocabulary.delimiters == set(ids_of(tokenizer, "\n\n", ".\n\n"))  # not "],", a part of "],\n\n"


def test_without_such_a_token_the_text_decides():
    plain = tokenizer_of(pieces=("</think>", "Wait"))
    control = AlphaOne(plain, moment=1000, kind="constant", p=1)
    text, _ = follow(control, "a", {"a": "\n", "Wait": "b", "b": "c", "c": "a"}, 9, otherwise="\n")
    assert text == "\n\nWaitbca\n\nWait"


def test_tokens_that_complete_a_word(tokenizer):
    control = AlphaOne(tokenizer, moment=10)
    completing = control.vocabulary.completing
    assert set(completing("Wait", "ab")) == set(ids_of(tokenizer, "Wait", "\nWait,"))  # "Waiter" is another word
    assert set(completing("Wait", "b. Wa")) == set(ids_of(tokenizer, "Wait", "\nWait,", "it"))
    assert set(ids_of(tokenizer, "it")) & set(completing("Wait", "bWa")) == set()
    assert set(ids_of(tokenizer, "t")) <= set(completing("Wait", "Wai"))


# The rule.

TABLE = {"a": "b", "b": ".\n\n", ".\n\n": "a", "Wait": ","}


def test_both_phases_word_for_word(tokenizer):
    """A table that goes a b . a b . and would begin to think again after the moment."""
    control = AlphaOne(tokenizer, moment=11, kind="constant", p=1.0, temperature=0)
    text, state = follow(control, "a", TABLE | {",": "a"}, 11)
    assert text == "b.\n\nWait,ab.\n\nWait,ab"
    assert [(each.position, each.what, each.p, each.taken) for each in state.trace] == [
        (2, "word", 1.0, True),
        (7, "word", 1.0, True),
    ]
    later = AlphaOne(tokenizer, moment=4, kind="constant", p=0.0, temperature=0)
    text, state = follow(later, "a", TABLE | {",": "a", ".\n\n": "Wait", "</think>": "o", "o": "k", "k": "<e>"}, 30)
    assert text == "b.\n\nWait,ab.\n\n</think>ok<e>" and state.ended == 8
    assert [(each.position, each.what, each.p, each.taken) for each in state.trace] == [
        (2, "word", 0.0, False),
        (7, "end", 1.0, True),
    ]


def test_the_whole_word_is_forced():
    tokenizer = tokenizer_of(pieces=("</think>", "\n\n"))  # "Wait" is four tokens
    control = AlphaOne(tokenizer, moment=20, kind="constant", p=1)
    text, state = follow(control, "a", {"a": "b", "b": "\n\n", "t": "a"}, 9)
    assert text == "b\n\nWaitab\n\n" and state.forced == {2, 3, 4, 5}


def test_waits_have_the_mean_and_the_variance_of_their_chances(tokenizer):
    """The stream is fixed: whatever is forced, the next tokens are those of the stream."""
    stream = [*ids_of(tokenizer, "a", "b", ".\n\n"), *ids_of(tokenizer, "c", "\n\n", "e", "g", "\n\n")] * 6
    ends = set(ids_of(tokenizer, ".\n\n", "\n\n"))
    moment, places = 41.5, [t for t in range(2, 41) if stream[t - 1] in ends]
    control, counts = AlphaOne(tokenizer, moment=moment, seed=3), []
    logits = torch.zeros(len(tokenizer))
    for key in range(600):
        state = control.begin(key)
        for token in stream:
            if len(state.written) >= 41:
                break
            control.steer(state, logits)
            state._queue.clear()
            control.wrote(state, token)
        counts.append(sum(each.taken for each in state.trace))
        assert [each.position for each in state.trace] == places
    chances = np.array([1 - t / moment for t in places])
    mean, variance = chances.sum(), (chances * (1 - chances)).sum()
    assert np.mean(counts) == pytest.approx(mean, abs=4 * math.sqrt(variance / 600))
    assert np.var(counts) == pytest.approx(variance, rel=0.25)
    assert expected_waits(control, [tuple(stream)]) == pytest.approx(mean)


def test_without_chance_and_end_the_samples_are_the_plain_ones(model):
    settings = {"samples": 2, "max_new_tokens": 24, "temperature": 0.9, "seed": 4}
    plain = roll_out(model, PROMPTS, **settings)
    control = AlphaOne(model.tokenizer, moment=20, kind="constant", p=0, force_end=False, temperature=0.9)
    hook = control.hook(samples=2)
    steered = roll_out(model, PROMPTS, hook=hook, **settings)
    assert torch.equal(plain.ids, steered.ids) and torch.equal(plain.log_probs, steered.log_probs)
    written = [state.written for _, state in sorted(hook.states.items())]
    assert written == plain.token_ids
    found = []
    for processors in ([], [AlphaOne(model.tokenizer, moment=20, kind="constant", p=0, force_end=False)]):
        torch.manual_seed(0)
        ids = torch.tensor([model.tokenizer.encode("abc")] * 3)
        found.append(model.model.generate(ids, do_sample=True, max_new_tokens=20, top_k=0, logits_processor=processors))
    assert torch.equal(*found)


def test_with_chance_one_every_paragraph_before_the_moment_goes_on_with_the_word(endless):
    control = AlphaOne(endless.tokenizer, moment=40, kind="constant", p=1.0, force_end=False)
    word, found = control.word[0], 0
    for thought in write_thoughts(endless, PROMPTS, control, max_new_tokens=60):
        for t in range(2, len(thought.ids)):
            if thought.ids[t - 1] in control.vocabulary.delimiters and t < 40:
                assert thought.ids[t] == word
                found += 1
    assert found > 20


@pytest.mark.parametrize("guard", [True, False])
def test_after_the_moment_the_word_never_comes(endless, guard):
    """Not as one token, and not in pieces either."""
    control = AlphaOne(endless.tokenizer, moment=10, kind="constant", p=0.5, guard=guard)
    thoughts = write_thoughts(endless, PROMPTS * 3, control, max_new_tokens=50)
    decode, ended = control.vocabulary.decode, 0
    for thought in thoughts:
        thinking = thought.ids[10 : thought.thinking_tokens] if guard else thought.ids[10:]
        assert not set(control.vocabulary.completing("Wait", "")) & set(thinking)
        assert "Wait" not in decode(thinking).replace("Waiter", "").replace("Waite", "")
        closings = thought.ids.count(control.closing[0])
        assert closings == thought.closed if guard else closings >= thought.closed
        assert len(thought.ids) <= 50
        ended += thought.closed
    assert ended > 8
    late = write_thoughts(endless, PROMPTS, AlphaOne(endless.tokenizer, moment=50), max_new_tokens=50)
    assert not any(thought.closed for thought in late) and any(each.what == "word" for t in late for each in t.trace)


def test_the_law_is_that_of_drawing_first_and_exchanging_afterwards(tokenizer):
    control = AlphaOne(tokenizer, moment=2, temperature=0.7)
    logits = torch.randn(len(tokenizer), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    plain = (logits / 0.7).softmax(-1)
    state = control.begin(0)
    for token in ids_of(tokenizer, "a", "b"):
        control.wrote(state, token)
    replaced = list(control.going_on(state))
    exchanged = plain.clone()
    exchanged[control.closing[0]] += exchanged[replaced].sum()
    exchanged[replaced] = 0
    chance = chance_of(logits, replaced, 0.7)
    assert chance == pytest.approx(float(plain[replaced].sum()), abs=1e-12)
    left = (logits.index_fill(-1, torch.tensor(replaced), -torch.inf) / 0.7).softmax(-1)
    left = left * (1 - chance)
    left[control.closing[0]] += chance
    assert torch.allclose(left, exchanged, atol=1e-12)
    taken = 0
    for key in range(800):
        state = control.begin(key)
        state.written = ids_of(tokenizer, "a", "b")
        forced, kept = control.steer(state, logits)
        taken += forced == control.closing[0]
        assert forced is not None or bool((kept[replaced] == -torch.inf).all())
    assert taken / 800 == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 800))


def test_within_a_nucleus_the_law_is_that_of_drawing_first_too(tokenizer):
    """The words of transition are half of the nucleus, behind which the others would be cut anew, or let new ones in."""
    control = AlphaOne(tokenizer, moment=2, temperature=0.8, top_p=0.9)
    state = control.begin(0)
    state.written = ids_of(tokenizer, "a", "b")
    replaced = control.going_on(state)[:1]
    others = [each for each in range(20) if each not in control.going_on(state) and each not in control.closing][:6]
    chances = torch.full((len(tokenizer),), 1e-9, dtype=torch.float64)
    chances[list(replaced)], chances[others] = (
        0.5,
        torch.tensor([0.2, 0.1, 0.08, 0.06, 0.04, 0.02], dtype=torch.float64),
    )
    logits = chances.log() * 0.8
    exact = torch.tensor([0.2, 0.1, 0.08, 0.06], dtype=torch.float64) / 0.94  # the nucleus has five
    draws, counts, closed = 4000, dict.fromkeys(others, 0), 0
    tokens = np.random.default_rng(0).random(draws)
    for key in range(draws):
        state = control.begin(key)
        state.written = ids_of(tokenizer, "a", "b")
        forced, left = control.steer(state, logits)
        if forced is not None:
            closed += forced == control.closing[0]
            continue
        counts[int(choose(left[None], 0.8, torch.tensor([tokens[key]], dtype=torch.float64), top_p=0.9))] += 1
    assert closed / draws == pytest.approx(0.5 / 0.94, abs=0.03)
    assert [counts[each] / draws for each in others[:4]] == pytest.approx(exact.tolist(), abs=0.017)
    assert not counts[others[4]] and not counts[others[5]]


def test_words_beyond_the_nucleus_leave_the_logits_as_they_are(tokenizer):
    control = AlphaOne(tokenizer, moment=2, temperature=0.8, top_p=0.9)
    state = control.begin(0)
    state.written = ids_of(tokenizer, "a", "b")
    logits = torch.randn(len(tokenizer), generator=torch.Generator().manual_seed(0))
    logits[list(control.going_on(state))] = -20.0
    assert control.steer(state, logits)[1] is logits


def test_what_the_model_would_choose_is_within_its_nucleus():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    assert chance_of(logits, [1], top_p=0.7) == pytest.approx(0.3 / 0.8)
    assert chance_of(logits, [3], top_p=0.9) == 0 and chance_of(logits, [3]) == pytest.approx(0.05)
    assert chance_of(logits, [0, 2], temperature=0) == 1 and chance_of(logits, [1, 2], temperature=0) == 0


class OnApple(torch.Tensor):
    """A tensor that says it lies on an Apple GPU; see `Apple`."""


class Apple(TorchFunctionMode):
    """An Apple GPU as far as a control meets it: no float64, and no tensors of two devices in one operation."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, given = dict(kwargs or {}), [each for each in args if isinstance(each, torch.Tensor)]
        there = [isinstance(each, OnApple) for each in given]
        if func == torch.Tensor.device.__get__ and any(there):  # pyright: ignore[reportAttributeAccessIssue]
            return torch.device("mps")
        if any(there) and (func is torch.Tensor.double or torch.float64 in (*args, kwargs.get("dtype"))):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        if len(set(there)) > 1:
            raise RuntimeError("Expected all tensors to be on the same device")
        made_there = str(kwargs.get("device")) == "mps" or any(there)
        kwargs |= {"device": "cpu"} if "device" in kwargs else {}
        with torch._C.DisableTorchFunctionSubclass():
            plain = [each.as_subclass(torch.Tensor) if isinstance(each, OnApple) else each for each in args]
            found = func(*plain, **kwargs)
            stays = isinstance(found, torch.Tensor) and made_there and func is not torch.Tensor.cpu
            return found.as_subclass(OnApple) if stays else found


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_an_apple_gpu_which_has_no_float64_gets_the_same_tokens(tokenizer, top_p):
    logits = torch.randn(len(tokenizer), generator=torch.Generator().manual_seed(0))
    control = AlphaOne(tokenizer, moment=2, top_p=top_p)
    logits[list(control.going_on(control.begin(0)))] += 4
    found = []
    for key in range(12):
        state = control.begin(key)
        state.written = ids_of(tokenizer, "a", "b")
        forced, left = control.steer(state, logits)
        again = control.begin(key)
        again.written = ids_of(tokenizer, "a", "b")
        with Apple():
            there, other = control.steer(again, logits.as_subclass(OnApple))
        assert isinstance(other, OnApple) and there == forced and again.trace == state.trace
        assert torch.equal(other.as_subclass(torch.Tensor), left)
        found.append(forced)
    assert None in found and control.closing[0] in found


@pytest.mark.parametrize("key", [0, 5, 2**40])
def test_a_control_does_not_draw_the_numbers_of_the_tokens(tokenizer, key):
    """With the same seed and key, which is what the job gives to both."""
    own = AlphaOne(tokenizer, moment=9, seed=3).begin(key).generator.random(8)
    assert not set(own) & set(drawing(1, 1, [3], [key]).next([0], 64).flatten().tolist())


# Company and frameworks.


def drawn(thought):
    """Without the chances, whose last digits depend on the shape of a batch."""
    return (
        thought.ids,
        thought.answer,
        [(each.position, each.what, str(each.draw), each.taken) for each in thought.trace],
    )


@pytest.mark.parametrize("make", [AlphaOne, RandomWaits])
def test_a_thought_is_the_same_alone_and_together(model, make):
    words = {"moment": 12, "temperature": 0.8, "top_p": 0.9, "seed": 2} | (
        {"expected": 2.5} if make is RandomWaits else {}
    )
    keys = [5, 3, 8, 1, 9, 2, 7, 4]
    together = write_thoughts(
        model, PROMPTS, make(model.tokenizer, **words), max_new_tokens=40, keys=keys, batch_size=8
    )
    alone = write_thoughts(model, PROMPTS, make(model.tokenizer, **words), max_new_tokens=40, keys=keys, batch_size=1)
    (last,) = write_thoughts(model, PROMPTS[-1:], make(model.tokenizer, **words), max_new_tokens=40, keys=keys[-1:])
    assert [drawn(each) for each in together] == [drawn(each) for each in alone] and drawn(last) == drawn(together[-1])
    assert any(thought.trace for thought in together)


def test_transformers_rollouts_and_the_own_loop_agree(model):
    """Greedily, where all three draw nothing but the control's own numbers: the same ids from each."""
    words = {"moment": 14, "temperature": 0, "seed": 6}
    ids = [model.tokenizer.encode(prompt) for prompt in ("abceg", "hikno", "W 012")]
    control = AlphaOne(model.tokenizer, **words)
    out = model.model.generate(torch.tensor(ids), do_sample=False, max_new_tokens=40, logits_processor=[control])
    by_generate = [row[5:].tolist() for row in out]
    hook = AlphaOne(model.tokenizer, **words).hook(samples=1)
    prompts = ["abceg", "hikno", "W 012"]
    rolled = roll_out(model, prompts, samples=1, max_new_tokens=40, temperature=0.0, seed=0, hook=hook)
    thoughts = write_thoughts(model, prompts, AlphaOne(model.tokenizer, **words), max_new_tokens=40)
    for line, thought in enumerate(thoughts):
        written = rolled.token_ids[line]
        assert by_generate[line][: len(written)] == written
        assert tuple(token for token in written if token != 1) == thought.ids
        assert rolled.forced[line].sum() == thought.forced
    assert sum(thought.forced for thought in thoughts) > 3
    one = AlphaOne(model.tokenizer, keys=[2], **words)
    alone = model.model.generate(torch.tensor(ids[2:]), do_sample=False, max_new_tokens=40, logits_processor=[one])
    assert alone[0, 5:].tolist() == by_generate[2][: alone.shape[1] - 5]


def test_a_rolled_out_sample_is_the_same_whatever_others_there_are(model):
    """Where the control draws, and does so otherwise for each sample of a prompt."""
    words, settings = {"kind": "constant", "p": 0.5}, {"max_new_tokens": 40, "temperature": 1.5, "seed": 0}

    def rolled(samples, keys=None):
        control = AlphaOne(model.tokenizer, moment=200, temperature=1.5, keys=keys, **words)
        hook = control.hook(samples=samples)
        ids = roll_out(model, ["2 ab", "3 ab"], samples=samples, keys=keys, hook=hook, **settings).token_ids
        return ids, [[each.draw for each in hook.states[row].trace] for row in range(2 * samples)]

    (alone, one), (together, four), (named, _) = rolled(1), rolled(4), rolled(4, [1, 0])
    assert alone == [together[0], together[4]] and one == [four[0], four[4]] and all(one)
    assert named[:4] == rolled(4, [1, 7])[0][:4]
    firsts = [draws[0] for draws in four if draws]
    assert len(firsts) > 4 and len(set(firsts)) == len(firsts)


def test_what_a_hook_leaves_to_the_model_has_its_probability(model):
    """Where a word is barred, that is the probability among the others; rollouts know nothing of a nucleus."""
    control = AlphaOne(model.tokenizer, moment=1, temperature=2.0, max_thinking=30)
    settings = {"samples": 1, "max_new_tokens": 20, "temperature": 2.0, "seed": 0}
    rolled = roll_out(model, PROMPTS, hook=control.hook(samples=1), **settings)
    own = rolled.mask & ~rolled.forced
    assert own.sum() > 40 and (rolled.log_probs[own] < 0).all() and (rolled.entropies[own] > 0).all()
    with pytest.raises(BadInput, match="top_p=1"):
        AlphaOne(model.tokenizer, moment=1, top_p=0.95).hook(samples=1)
    with pytest.raises(BadInput, match="at least 1"):
        control.hook(samples=0)


def test_another_generate_needs_a_reset_and_beams_are_refused(model):
    control = AlphaOne(model.tokenizer, moment=5)
    ids = torch.tensor([model.tokenizer.encode("abc")])
    model.model.generate(ids, do_sample=False, max_new_tokens=4, logits_processor=[control])
    with pytest.raises(BadInput, match="reset"):
        model.model.generate(ids, do_sample=False, max_new_tokens=4, logits_processor=[control])
    control.reset()
    model.model.generate(ids, do_sample=False, max_new_tokens=4, logits_processor=[control])
    with pytest.raises(BadInput, match="one for each"):
        AlphaOne(model.tokenizer, moment=5, keys=[1, 2])(ids, torch.zeros(1, len(model.tokenizer)))


# Thinking and what is around it.


def test_outside_the_thinking_nothing_is_done(tokenizer):
    table = {"a": "</think>", "</think>": "o", "o": "\n\n", "\n\n": "k", "k": "Wait", "Wait": "<e>"}
    guarded, _ = follow(AlphaOne(tokenizer, moment=5, kind="constant", p=1, temperature=0), "a", table, 12)
    assert guarded == "</think>o\n\nkWait<e>"
    released = AlphaOne(tokenizer, moment=5, kind="constant", p=1, temperature=0, guard=False)
    text, _ = follow(released, "a", table | {"Wait": "o"}, 7)
    assert text == "</think>o\n\nWaito\n\nk"  # the sixth token would begin after the moment


def test_thinking_that_a_prompt_has_ended_or_not_begun(tokenizer):
    control = AlphaOne(tokenizer, moment=5, kind="constant", p=1)
    assert not control.begin(0, tokenizer.encode("<think>a</think>")).thinking
    assert control.begin(0, tokenizer.encode("a<think>")).thinking and control.begin(0, tokenizer.encode("a")).thinking
    by_model = AlphaOne(tokenizer, moment=30, kind="constant", p=1, preset="qwen3")
    text, state = follow(by_model, "a", {"a": "b", "b": "\n\n", "\n\n": "<think>", "<think>": "c", "c": "\n\n"}, 6)
    assert text == "b\n\n<think>c\n\nWait" and state.begun == 3
    (answered,) = [follow(by_model, "a", {"a": "b", "b": "\n\n", "\n\n": "c", "c": "<e>"}, 9)]
    assert answered[0] == "b\n\nc<e>" and answered[1].thought == 0


def test_thoughts_of_earlier_turns_are_not_those_of_this_answer(tokenizer):
    given = tokenizer.encode("a<think>b</think>ok\n\nab")
    state = AlphaOne(tokenizer, moment=5).begin(0, given)
    assert state.thinking and state.ended is None
    state = AlphaOne(tokenizer, moment=5, preset="qwen3").begin(0, given)
    assert not state.thinking and state.begun is None and state.ended is None
    assert AlphaOne(tokenizer, moment=5).begin(0, tokenizer.encode("<think>\n\n</think>\n\n")).ended == 0


def test_least_and_most_tokens_of_thinking(tokenizer):
    table = {"a": "b", "b": "</think>", "</think>": "o", "o": "<e>", "Wait": "a"}
    text, state = follow(Plain(tokenizer, min_thinking=6), "a", table, 20)
    assert state.thought >= 6 and text.count("</think>") == 1
    text, state = follow(Plain(tokenizer, max_thinking=4), "a", {"a": "a", "</think>": "o", "o": "<e>"}, 20)
    assert text == "aaa</think>o<e>" and state.thought == 4
    text, state = follow(Plain(tokenizer, max_thinking=0), "a", {"a": "a", "</think>": "o", "o": "<e>"}, 20)
    assert text == "</think>o<e>" and state.thought == 1
    early = follow(AlphaOne(tokenizer, moment=1, min_thinking=5, temperature=0), "a", {"a": "Wait", "Wait": "a"}, 20)
    assert early[0].startswith("WaitaWaita") and early[1].ended is not None and early[1].ended > 5
    with pytest.raises(BadInput, match="min_thinking"):
        Plain(tokenizer, min_thinking=6, max_thinking=5)


@pytest.mark.parametrize("most", [12, 13, 14, 15, 16])
def test_most_tokens_hold_with_words_and_tags_of_several_tokens(most):
    words = {"max_thinking": most, "tags": Tags("<think>", "</think>"), "temperature": 0}
    tag_in_pieces, tag_whole = (
        tokenizer_of(pieces=pieces, characters="abcWit<>/hnk ") for pieces in (("\n\n",), ("\n\n", "</think>"))
    )
    for control, table in (
        (AlphaOne(tag_in_pieces, moment=99, kind="constant", p=1, **words), {"a": "\n\n", ">": "<e>"}),
        (BudgetForcing(tag_whole, times=9, **words), {"a": "</think>", "</think>": "<e>"}),
    ):
        text, state = follow(control, "a", table, 40)
        assert text.count("</think>") == 1 and text.endswith("</think><e>") and state.thought <= most, text


def test_what_comes_before_the_opening_is_counted_and_shown_with_the_thinking(tokenizer):
    for preset in ("qwen3", "r1"):
        control = Plain(tokenizer, preset=preset)
        state = control.begin(0, [])
        for token in ids_of(tokenizer, "a", "<think>", "b", "b", "</think>", "1", "2", "<e>"):
            control.wrote(state, token)
        thought = thought_of(control, state, True)
        assert (thought.thinking_tokens, thought.answer_tokens, len(thought.ids)) == (5, 2, 7)
        assert (thought.thinking, thought.answer, state.thought) == ("a<think>bb", "12", 5)
    cut = Plain(tokenizer, preset="qwen3", max_thinking=4)
    text, state = follow(cut, "b", {"b": "a", "a": "<think>", "<think>": "c", "c": "c", "</think>": "<e>"}, 9)
    assert text == "a<think>c</think><e>" and state.thought == 4


def test_what_never_opens_its_thinking_is_answer_and_what_never_closes_it_is_none(tokenizer):
    def thought(preset, *tokens, ended=True):
        control = Plain(tokenizer, preset=preset)
        state = control.begin(0, [])
        for token in ids_of(tokenizer, *tokens):
            control.wrote(state, token)
        return thought_of(control, state, ended)

    at_once = thought("qwen3", "a", "b", "1", "<e>")
    assert (at_once.thinking, at_once.answer, at_once.thinking_tokens, at_once.answer_tokens) == ("", "ab1", 0, 3)
    assert at_once.closed and at_once.ended and len(at_once.ids) == 3 and at_once.forced == 0
    open_end = thought("r1", "a", "b", "1", ended=False)
    assert (open_end.thinking, open_end.answer, open_end.thinking_tokens, open_end.answer_tokens) == ("ab1", "", 3, 0)
    assert not open_end.closed and not open_end.ended
    just = thought("r1", "</think>", "2", ended=False)
    assert (just.thinking, just.answer, just.thinking_tokens, just.answer_tokens) == ("", "2", 1, 1) and just.closed


def test_a_closing_tag_of_several_tokens():
    tokenizer = tokenizer_of(pieces=("Wait", "\n\n"), characters="abcW<>/think ")
    tags = Tags("<think>", "</think>")
    text, state = follow(HardCap(tokenizer, moment=3, tags=tags), "a", {"a": "b", "b": "a", ">": "c", "c": "<e>"}, 20)
    assert text == "bab</think>c<e>" and state.ended == 11 and len(state.forced) == 8
    with pytest.raises(BadInput, match="makes 8 tokens"):  # the first seven would stay before "Wait"
        BudgetForcing(tokenizer, tags=tags)
    with pytest.raises(BadInput, match="cannot write the word"):
        HardCap(tokenizer, moment=3, tags=Tags("<think>", "</think>", word="Zo"))


# Rivals.


def test_budget_forcing_makes_two_replacements_of_a_model_that_always_stops(tokenizer):
    table = {"a": "</think>", "Wait": "b", "b": "</think>", "</think>": "o", "o": "<e>"}
    text, state = follow(BudgetForcing(tokenizer, temperature=0), "a", table, 30)
    assert text == "WaitbWaitb</think>o<e>" and [each.position for each in state.trace] == [0, 2]
    for wrong in (lambda: BudgetForcing(tokenizer, times=0), lambda: HardCap(tokenizer, moment=0)):
        with pytest.raises(BadInput):
            wrong()


def test_random_waits_come_as_often_as_expected_and_uniformly(tokenizer):
    control = RandomWaits(tokenizer, moment=2000, expected=3.4, seed=1)
    table = {"a": "b", "b": "\n\n", "\n\n": "a", "Wait": "a"}
    places = [each.position for key in range(60) for each in follow(control, "a", table, 400, key=key)[1].trace]
    chance = 3.4 * 400 / 2000  # of the 2000 tokens the first 400 are looked at
    assert len(places) / 60 == pytest.approx(chance, abs=4 * math.sqrt(chance / 60))
    assert abs(np.mean(places) - 200) < 4 * 400 / math.sqrt(12 * len(places))
    with pytest.raises(BadInput):
        RandomWaits(tokenizer, moment=math.inf, expected=1)


def test_so_many_times_are_drawn_that_as_many_waits_come_as_are_wanted(tokenizer):
    """One paragraph at half the moment: c times bring a wait with the chance 1 - 2^-c."""
    control, ids = AlphaOne(tokenizer, moment=6), tuple(ids_of(tokenizer, "a", "b", "\n\n", "a"))
    assert waits_to_draw(control, [ids], 0.5) == pytest.approx(1, abs=0.3)
    assert waits_to_draw(control, [ids, ids], 0.75) == pytest.approx(2, abs=0.6)
    assert waits_to_draw(control, [ids], 1.0) == 4 and waits_to_draw(control, [ids[:2]], 0.5) == 0
    assert waits_to_draw(control, [ids], 0.0) == waits_to_draw(control, [], 0.5) == 0


def test_no_wait_is_expected_before_the_thinking_is_opened(tokenizer):
    """As AlphaOne inserts none there; where the template opens the thinking, all is thinking."""
    after = ids_of(tokenizer, "a", "b", "\n\n", "<think>", "c", "\n\n", "c")
    for preset, places in (("qwen3", [6]), ("r1", [3, 6])):
        control = AlphaOne(tokenizer, moment=20, preset=preset)
        assert expected_waits(control, [tuple(after)]) == pytest.approx(sum(1 - t / 20 for t in places))
    opened_by_the_prompt = AlphaOne(tokenizer, moment=20, preset="qwen3")
    assert expected_waits(opened_by_the_prompt, [tuple(after[:3])]) == pytest.approx(1 - 3 / 20)


def test_mean_thinking(model):
    thoughts = write_thoughts(model, PROMPTS[:3], Plain(model.tokenizer, max_thinking=6), max_new_tokens=30)
    assert mean_thinking(thoughts) == sum(thought.thinking_tokens for thought in thoughts) / 3
    with pytest.raises(BadInput):
        mean_thinking([])


# Refusals.


def test_a_model_without_an_end_of_thinking_is_refused_by_name(tokenizer):
    other = tokenizer_of(pieces=("Wait", "\n\n"))
    other.name_or_path = "some/model"
    for preset in ("auto", "r1"):
        with pytest.raises(BadInput, match="some/model has no tag that ends its thinking"):
            AlphaOne(other, moment=5, preset=preset)
    other.chat_template = "{{ '<think>' }}{{ '</think>' }}"
    assert tags_of(other).closing == "</think>" and tags_of(tokenizer, "qwq") == PRESETS["qwq"]
    with pytest.raises(BadInput, match="preset"):
        AlphaOne(tokenizer, moment=5, preset="r2")
    with pytest.raises(BadInput, match="kind"):
        AlphaOne(tokenizer, moment=5, kind="steep")
    with pytest.raises(BadInput, match="moment"):
        AlphaOne(tokenizer, moment=0)


@pytest.mark.slow
@pytest.mark.skipif(not is_cached("smollm2"), reason="smollm2 is not in the cache: equipoise models fetch smollm2")
def test_the_mechanics_on_a_real_model():
    """SmolLM2 does not think, but writes paragraphs: where the word comes, how often, and what comes after the moment."""
    lm = load("smollm2", device="cpu")
    asked = ["Explain in five steps how to make tea.", "Write five short tips for sleeping well."]
    prompts = [[Message("user", text)] for text in asked * 3]
    common = {"tags": Tags("", "</think>"), "temperature": 0.8, "top_p": 0.95}
    moment, budget = 60, 90
    control = AlphaOne(lm.tokenizer, moment=moment, **common)
    thoughts = write_thoughts(lm, prompts, control, max_new_tokens=budget, batch_size=6)
    drawn = [each for thought in thoughts for each in thought.trace if each.what == "word"]
    assert len(drawn) > 6 and all(len(thought.ids) <= budget for thought in thoughts)
    for each in drawn:
        assert each.p == schedule(each.position, moment) and each.taken == (each.draw < each.p)
    chances = np.array([each.p for each in drawn])
    put = sum(each.taken for each in drawn)
    assert abs(put - chances.sum()) < 4 * np.sqrt((chances * (1 - chances)).sum()) and put
    for thought in thoughts:
        for each in thought.trace:
            before, word = thought.ids[: each.position], thought.ids[each.position :]
            if each.what == "word":
                assert control.vocabulary.decode(before).endswith("\n\n") and each.position < moment
                assert not each.taken or word[: len(control.word)] == control.word
            else:
                assert each.position >= moment and word[: len(control.closing)] == control.closing
        after = control.vocabulary.decode(thought.ids[moment : max(thought.thinking_tokens, moment)])
        assert not re.search(r"(?<![A-Za-z])Wait(?![A-Za-z])", after)
    idle = AlphaOne(lm.tokenizer, moment=moment, kind="constant", p=0, force_end=False, **common)
    written = [
        write_thoughts(lm, prompts[:2], each, max_new_tokens=20) for each in (idle, Plain(lm.tokenizer, **common))
    ]
    assert [thought.ids for thought in written[0]] == [thought.ids for thought in written[1]]
