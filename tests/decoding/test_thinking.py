"""The machine of steering step by step: its draws, its room, what is barred, what a nucleus leaves, by loops and tables."""

import contextlib
import math
import string
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.core.errors import BadInput
from equipoise.decoding import thinking
from equipoise.decoding.alphaone import AlphaOne
from equipoise.decoding.thinking import (
    Decision,
    Tags,
    ThinkingControl,
    ThinkingHook,
    Vocabulary,
    chance_of,
    tags_of,
    thought_of,
    write_thoughts,
)
from equipoise.decoding.thinking_rivals import HardCap, Plain
from equipoise.language.generate import choose
from equipoise.language.rollouts import drawing
from thinking_models import tokenizer_of, untaught


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of()


def ids_of(tokenizer, *tokens):
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


class Wanting(ThinkingControl):
    """Wants the same before every token."""

    wanted = Decision()

    def decide(self, state):
        return self.wanted


def wanting(tokenizer, wanted=None, **common):
    control = Wanting(tokenizer, **common)
    control.wanted = wanted or Decision()
    return control


def behind(control, *ids, key=0, sample=0):
    state = control.begin(key, None, sample)
    for each in ids:
        control.wrote(state, each)
    return state


@pytest.mark.parametrize(("key", "sample", "spawn"), [(4, 0, (1,)), (4, 3, (1, 3)), (9, 1, (1, 1))])
def test_every_sequence_has_its_stream(tokenizer, key, sample, spawn):
    named = np.random.SeedSequence([7, key], spawn_key=spawn)
    wanted = np.random.Generator(np.random.PCG64(named)).random(5)
    control = Plain(tokenizer, seed=7)
    assert control.begin(key, None, sample).generator.random(5).tolist() == wanted.tolist()
    hook = ThinkingHook(Plain(tokenizer, seed=7, keys=[2, key]), 4)
    hook(torch.zeros(1, len(tokenizer)), torch.empty(0), [4 + sample], 0)
    assert hook.states[4 + sample].generator.random(5).tolist() == wanted.tolist()


def alone(text, at, word):
    """Whether a word stands at a place of a text as itself, by regular borders."""
    letters = string.ascii_letters
    left = word[0] not in letters or at == 0 or text[at - 1] not in letters
    end = at + len(word)
    return (
        text.startswith(word, at) and left and (word[-1] not in letters or end == len(text) or text[end] not in letters)
    )


@pytest.mark.parametrize("word", ["Wait", "ab", "</t>", "a.", ".b"])
def test_what_completes_a_word_is_found_by_trying_every_piece(word):
    pieces = (
        "Wait",
        "Waiter",
        "xWait",
        "Wait Waiter",
        "WaiterWait",
        "it",
        "ite",
        "ab",
        "b.",
        "</",
        "t>",
        "a.",
        "bab ab",
    )
    vocabulary = Vocabulary(tokenizer_of(pieces=pieces, characters=string.ascii_letters + "<>/. "))
    for tail in ("", "W", "Wa", ". Wa", "xWa", "Wai", "<", "</", "x</t", "a", ".a", "ba", "Wait", " ", ".", "a."):
        due = set()
        for identity, piece in enumerate(vocabulary.pieces):
            text = tail + piece
            new = any(alone(piece, at, word) for at in range(len(piece)))
            # Or it begins in the tail, and ends in the piece.
            split = any(
                alone(text, at, word)
                for at in range(max(0, len(tail) - len(word) + 1), len(tail))
                if at + len(word) > len(tail)
            )
            due |= {identity} if new or split else set()
        assert set(vocabulary.completing(word, tail)) == due, (word, tail)


def test_near_its_most_tokens_the_end_stands_for_the_word():
    tokenizer = tokenizer_of(pieces=("\n\n",), characters="abWit<>/hnk ")  # the word has 4 tokens, the tag 8
    control = wanting(tokenizer, tags=Tags("<think>", "</think>"), max_thinking=20)
    word, closing, a = control.word, control.closing, ids_of(tokenizer, "a")
    assert (len(word), len(closing)) == (4, 8)
    for count in range(16):
        state = behind(control, *a * count)
        control.wanted = Decision(insert=word, chance=0.5, of=(3,), instead=word)
        found = control._decision(state)
        if 20 - 8 - count <= 0:
            assert found == Decision(insert=closing, chance=1.0)
        else:
            due = word if 20 - 8 - count >= 4 else closing
            assert found == Decision(insert=due, chance=0.5, of=(3,), instead=due)
    free = wanting(tokenizer, Decision(insert=word, chance=0.5), tags=Tags("<think>", "</think>"))
    assert free._decision(behind(free, *a * 60)) == Decision(insert=word, chance=0.5)


def test_before_its_least_tokens_every_end_is_barred(tokenizer):
    a, other = ids_of(tokenizer, "a", "b")
    control = wanting(tokenizer, min_thinking=3, ends=[other])
    closing, eos = control.closing[0], tokenizer.eos_token_id
    for count in range(5):
        state = behind(control, *[a] * count)
        control.wanted = Decision(of=(closing, 7), instead=control.word)
        found = control._decision(state)
        barred = {eos, other} if count < 3 else set()  # what is answered otherwise need not be barred
        assert set(found.barred) == barred and (found.of, found.instead) == ((closing, 7), control.word)
        control.wanted = Decision(of=(7,), instead=control.closing, barred=(5,))
        found = control._decision(state)
        assert set(found.barred) == ({5, closing, eos, other} if count < 3 else {5})
        assert found.of == (() if count < 3 else (7,)) and found.instead == (() if count < 3 else control.closing)
        control.wanted = Decision(insert=control.closing, chance=1.0)
        assert control._decision(state).insert == (() if count < 3 else control.closing)
    control.wanted, state = Decision(), behind(control, a)
    logits = torch.full((len(tokenizer),), -math.inf)
    logits[closing] = 1.0
    forced, left = control.steer(state, logits)  # it would write nothing but the end
    assert forced == control.word[0] and state.forced == {1} and float(left[closing]) == -math.inf


def test_what_a_chance_comes_to_is_drawn_only_where_it_is_one(tokenizer):
    a, b = ids_of(tokenizer, "a", "b")
    logits = torch.zeros(len(tokenizer))
    for chance, drawn in ((0.0, False), (0.4, True), (1.0, False)):
        control = wanting(tokenizer, Decision(insert=(b,), chance=chance), seed=3)
        state = behind(control, a, key=5)
        forced, _ = control.steer(state, logits)
        draw = control.begin(5).generator.random()
        (noted,) = state.trace
        taken = chance == 1 or (drawn and draw < chance)
        assert (noted.position, noted.what, noted.p, noted.taken) == (1, "word", chance, taken)
        assert noted.draw == draw if drawn else math.isnan(noted.draw)
        assert forced == (b if taken else None) and state.count == taken
    # What the model would write of itself is noted where it was exchanged, and never else.
    likely = logits.clone()
    likely[a] = 50.0
    for of, count in ((a, 1), (b, 0)):
        control = wanting(tokenizer, Decision(of=(of,), instead=wanting(tokenizer).closing))
        state = control.begin(0)
        control.steer(state, likely)
        assert [each.what for each in state.trace] == ["end"] * count and state.count == count


@pytest.mark.parametrize("top_p", [0.9, 0.6])
def test_within_a_nucleus_the_token_is_drawn_by_the_control(tokenizer, top_p):
    chances = torch.full((len(tokenizer),), 1e-12, dtype=torch.float64)
    chances[10:16] = torch.tensor([0.3, 0.25, 0.2, 0.12, 0.08, 0.05], dtype=torch.float64)
    control = wanting(tokenizer, Decision(of=(11,), instead=(4,)), temperature=0.5, top_p=top_p, seed=1)
    inside = {0.9: [10, 11, 12, 13, 14], 0.6: [10, 11, 12]}[top_p]
    share = float(chances[11] / chances[inside].sum())
    others = [each for each in inside if each != 11]
    edges = np.cumsum([float(chances[each]) for each in others])
    seen = set()
    for key in range(60):
        state, draws = control.begin(key), control.begin(key).generator
        forced, left = control.steer(state, chances.log() * 0.5)
        if draws.random() < share:
            assert forced == 4 and state.trace[0].p == pytest.approx(share)
            continue
        token = others[int(np.searchsorted(edges, edges[-1] * draws.random(), side="right"))]
        assert forced is None and left.isfinite().nonzero().tolist() == [[token]] and float(left[token]) == 0
        seen.add(token)
    assert seen == set(others)


def test_a_nucleus_is_the_fewest_likeliest_of_equals_the_first():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64).log()
    for ids, top_p, wanted in (
        ([0], 0.5, 1.0),
        ([1], 0.5, 0.0),
        ([1], 0.51, 0.25 / 0.75),
        ([0, 1], 0.75, 1.0),
        ([2], 0.75, 0.0),
        ([2], 0.875, 0.125 / 0.875),
        ([3], 0.875, 0.0),
        ([3, 1], 0.875, 0.25 / 0.875),
        ([3], 0.88, 0.125),
        ([2, 3], 1.0, 0.25),
    ):
        assert chance_of(logits, ids, top_p=top_p) == pytest.approx(wanted, abs=1e-12)
    assert chance_of(logits, [1], temperature=0.5) == pytest.approx(0.0625 / (0.25 + 0.0625 + 2 / 64))
    assert chance_of(logits, [0], temperature=0) == 1 and chance_of(logits, [1, 2, 3], temperature=0) == 0


def test_in_transformers_a_forced_row_has_one_token_and_the_others_are_left(tokenizer):
    scores = torch.randn(3, len(tokenizer), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([ids_of(tokenizer, "a", "b")] * 3)
    idle = Plain(tokenizer)
    assert idle(ids, scores) is scores
    control = HardCap(tokenizer, moment=1)
    assert control(ids, scores) is scores  # nothing is thought yet
    written = torch.tensor([ids_of(tokenizer, each) for each in ("a", "</think>", "<e>")])
    found = control(torch.cat([ids, written], 1), scores)
    assert found[0].isfinite().nonzero().tolist() == [[control.closing[0]]] and found[0, control.closing[0]] == 0
    assert torch.equal(found[1:], scores[1:]) and found is not scores
    assert [state.finished for state in control.states] == [False, False, True]
    rows = ThinkingHook(HardCap(tokenizer, moment=1), 2)
    left, forced = rows(scores, torch.empty(0), [0, 1, 3], 0)
    assert left is scores and forced.tolist() == [-1, -1, -1] and sorted(rows.states) == [0, 1, 3]
    rows.wrote([0, 1, 3], written[:, 0])
    left, forced = rows(scores, torch.empty(0), [0, 1, 3], 1)
    assert forced.tolist() == [control.closing[0], -1, -1] and rows.states[3].finished


def test_least_and_greatest_settings(tokenizer):
    Plain(tokenizer, min_thinking=4, max_thinking=4, temperature=0, top_p=1, seed=0, keys=[0, 3])
    Plain(tokenizer, max_thinking=0)
    for wrong in (
        {"min_thinking": -1}, {"max_thinking": -2}, {"min_thinking": 5, "max_thinking": 4}, {"temperature": -0.1},
        {"temperature": math.inf}, {"top_p": 0.0}, {"top_p": 1.01}, {"seed": -1}, {"keys": [3, -1]},
    ):  # fmt: skip
        with pytest.raises(BadInput):
            Plain(tokenizer, **wrong)
    for wrong in (
        ("<a>", ""), ("<a>", "<a>"), ("", "b", ""), ("<a>", "b", "ab"), ("<a>", "b", "a", ("c", "abc")),
        ("<a>", "b", "a", ("",)),
    ):  # fmt: skip
        with pytest.raises(BadInput):
            Tags(*wrong)
    assert Tags("", "b", "a", ()).replaced == ()
    assert tags_of(tokenizer) == Tags("<think>", "</think>") and tags_of(tokenizer, "qwen3").opened_by == "model"
    others = tokenizer_of(pieces=("[THINK]", "[/THINK]", "Wait"))
    assert tags_of(others) == Tags("[THINK]", "[/THINK]")
    with pytest.raises(BadInput, match=r"looked for: </think>\)"):
        tags_of(others, "qwq")


@pytest.mark.parametrize(
    ("prompt", "template", "model"),
    [
        # (whether it thinks, behind how many tokens it began, where it ended) by who opens the thinking.
        ("ab", (True, 0, None), (False, None, None)),
        ("a<think>", (True, 0, None), (True, 0, None)),
        ("<think>b", (True, 0, None), (True, 0, None)),
        ("<think>a</think>", (False, 0, 0), (False, 0, 0)),
        ("<think>a</think>\n\n ", (False, 0, 0), (False, 0, 0)),
        ("<think>a</think>ab", (True, 0, None), (False, None, None)),
        ("a</think>", (True, 0, None), (False, None, None)),
        ("<think>a</think>b<think>", (True, 0, None), (True, 0, None)),
    ],
)
def test_a_prompt_tells_whether_its_thinking_has_begun_or_is_over(tokenizer, prompt, template, model):
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    for by, due in (("template", template), ("model", model)):
        state = Plain(tokenizer, tags=Tags("<think>", "</think>", opened_by=by)).begin(0, ids)
        assert (state.thinking, state.begun, state.ended) == due
    assert Plain(tokenizer, tags=Tags("", "</think>")).begin(0, ids).thinking or "</think>" in prompt


def test_a_thought_is_taken_apart_where_its_thinking_ended(tokenizer):
    control = HardCap(tokenizer, moment=2)
    state = control.begin(0)
    for token in ids_of(tokenizer, "a", "b"):
        control.wrote(state, token)
    control.wrote(state, control.steer(state, torch.zeros(len(tokenizer)))[0])
    for token in ids_of(tokenizer, "1", "</think>", "2", "<e>", "3"):  # nothing is written behind an end
        control.wrote(state, token)
    found = thought_of(control, state, True)
    assert found.ids == tuple(ids_of(tokenizer, "a", "b", "</think>", "1", "</think>", "2"))
    assert (found.thinking, found.answer, found.thinking_tokens, found.answer_tokens) == ("ab", "1</think>2", 3, 3)
    assert (found.closed, found.ended, found.forced, found.tokens) == (True, True, 1, 6)
    assert [(each.position, each.what, each.taken) for each in found.trace] == [(2, "end", True)]


def test_thoughts_need_a_token_and_a_prompt_at_a_time(tokenizer):
    model, control = untaught(tokenizer), Plain(tokenizer, temperature=0)
    for wrong in ({"max_new_tokens": 0}, {"max_new_tokens": 3, "batch_size": 0}):
        with pytest.raises(BadInput, match="both must be at least 1"):
            write_thoughts(model, ["a"], control, **wrong)
    prompts = ["abc", "a", "abceg", "ab"]
    found = write_thoughts(model, prompts, control, max_new_tokens=1, batch_size=1)
    assert [len(each.ids) for each in found] == [1] * 4 and not any(each.ended for each in found)
    for prompt, each in zip(prompts, found, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt)])
        assert int(model.model(ids).logits[0, -1].argmax()) == each.ids[0]


def test_alphaone_inserts_from_the_second_token_until_the_moment(tokenizer):
    a, end = ids_of(tokenizer, "a", "\n\n")
    control = AlphaOne(tokenizer, moment=5.9)
    for count in range(1, 8):
        found = control.decide(behind(control, *[a] * (count - 1), end))
        if count >= 5:
            assert found == Decision(of=control.going_on(behind(control, end)), instead=control.closing)
        elif count >= 2:
            assert found.insert == control.word and found.chance == pytest.approx(1 - count / 5.9)
        else:
            assert found == Decision()
        if count < 5:
            assert control.decide(behind(control, *[a] * count)) == Decision()
    assert not control.at_paragraph(control.begin(0))
    endless = AlphaOne(tokenizer, moment=math.inf)
    assert endless.slow(10**9) and endless.decide(behind(endless, a, end)).chance == 1


def test_the_longest_prompts_are_thought_about_first_each_with_its_own_draws(tokenizer, monkeypatch):
    model, control = untaught(tokenizer), Plain(tokenizer, temperature=1.7)
    prompts, keys, seen, advances = ["abc", "a", "abcegh", "ab", "9"], [7, 3, 9, 4, 1], [], []
    write, advised = thinking.write, []

    def noted(language_model, encoded, *others):
        seen.append([len(ids) for ids in encoded])
        yield from write(language_model, encoded, *others)

    @contextlib.contextmanager
    def progress(what, *, total, unit):
        advances.append(-total)
        yield SimpleNamespace(advance=advances.append)

    @contextlib.contextmanager
    def memory_advice(size):
        advised.append(size)
        yield

    monkeypatch.setattr(thinking, "write", noted)
    monkeypatch.setattr(thinking, "progress", progress)
    monkeypatch.setattr(thinking, "memory_advice", memory_advice)
    found = write_thoughts(model, prompts, control, max_new_tokens=3, seed=5, keys=keys, batch_size=2)
    assert seen == [[6, 3], [2, 1], [1]] and advances == [-5, 1, 1, 1, 1, 1] and advised == [2]
    uniform = drawing(5, 1, 5, keys).next(range(5), 3)
    for place, (prompt, thought) in enumerate(zip(prompts, found, strict=True)):
        ids = torch.tensor([tokenizer.encode(prompt)])
        with torch.no_grad():
            token = choose(model.model(ids).logits[:, -1], 1.7, uniform[place : place + 1, 0])
        assert thought.ids[0] == int(token) or (not thought.ids and thought.ended)
    again = write_thoughts(model, prompts[:2], control, max_new_tokens=3, seed=5)
    named = write_thoughts(model, prompts[:2], control, max_new_tokens=3, seed=5, keys=[0, 1])
    assert [each.ids for each in again] == [each.ids for each in named]


def test_blanks_before_signs_stay_as_they_were_written():
    """Also of a tokenizer that would take them out if it were let."""
    tokenizer = tokenizer_of()
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    ids = tokenizer.encode("a . b ? c", add_special_tokens=False)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=True) == "a. b? c"
    control = Plain(tokenizer)
    assert control.vocabulary.decode([*ids, tokenizer.eos_token_id]) == "a . b ? c<e>"
    state = behind(control, *ids, *ids_of(tokenizer, "</think>"), *ids, *ids_of(tokenizer, "<p>", "<e>"))
    found = thought_of(control, state, True)
    assert (found.thinking, found.answer, found.answer_tokens) == ("a . b ? c", "a . b ? c", len(ids) + 1)


def test_a_tag_in_pieces_is_barred_by_the_piece_that_would_complete_it():
    tokenizer = tokenizer_of(pieces=("k>", "Wait", "\n\n"), characters="ab<>/think ")
    control = wanting(tokenizer, tags=Tags("<think>", "</think>"), min_thinking=20)
    close, both, end = (tokenizer.convert_tokens_to_ids(each) for each in (">", "k>", "<e>"))
    for text, barred in (("a", []), ("a</thi", []), ("a</thin", [both]), ("a</think", [close]), ("</think ", [])):
        state = behind(control, *tokenizer.encode(text, add_special_tokens=False))
        assert control.closings(state) == tuple(barred), text
        assert set(control._decision(state).barred) == {*barred, end}
    whole = wanting(tokenizer_of())
    assert whole.closings(whole.begin(0)) == whole.closing and len(whole.closing) == 1


@pytest.mark.parametrize(
    ("text", "word", "held"),
    [
        ("ab", "ab", True), ("1ab2", "ab", True), ("x1ab1x", "ab", True), ("xab ab", "ab", True), ("ab", "abc", False),
        ("1xab", "ab", False), ("x1yab", "ab", False), ("abx1", "ab", False), ("xaba", "ab", False),
        ("xa.", "a.", False), ("a.x", "a.", True), ("x.b", ".b", True), (".bx", ".b", False),
    ],
)  # fmt: skip
def test_a_text_holds_a_word_that_no_letter_continues(text, word, held):
    assert thinking._holds(text, word) is held
