"""The local side: answers are those of `generate`, alone or among others, from one reading, and end where nobody waits."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from chat_models import TEXTS, untaught
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.records import Message
from equipoise.data.text import unjoined
from equipoise.language.generate import generate
from equipoise.language.model import wrap
from equipoise.routing.router import Router
from equipoise.routing.serving_local import GrowingText, LocalModel, Piece, Sampling, TooLong

LENGTH = Router("length", -20.0, "chat", 3, 32)


@pytest.fixture(scope="module")
def lm():
    return untaught(3)


@pytest.fixture
def local(lm):
    made = LocalModel(lm, LENGTH)
    yield made
    made.close()


def prompt(text):
    return (Message("user", text),)


async def answered(local, text, sampling):
    read = await local.read(prompt(text))
    return [piece async for piece in local.answer(read, sampling)]


def joined(pieces):
    return "".join(piece.text for piece in pieces)


def test_answers_among_others_are_those_of_generate_alone(lm, local):
    texts = [text[: 8 + 5 * index] for index, text in enumerate(TEXTS * 2)]

    async def together():
        return await asyncio.gather(
            *(answered(local, text, Sampling(max_tokens=3 + 4 * index)) for index, text in enumerate(texts))
        )

    for index, (text, pieces) in enumerate(zip(texts, asyncio.run(together()), strict=True)):
        limit = 3 + 4 * index
        assert joined(pieces) == generate(lm, [[*prompt(text)]], max_new_tokens=limit)[0]
        assert pieces[-1].ended == ("length" if pieces[-1].tokens == limit else "stop")
        assert [piece.ended for piece in pieces[:-1]] == [None] * (len(pieces) - 1)


def test_a_draw_is_its_seeds(lm, local):
    sampling = Sampling(temperature=1.0, max_tokens=12, seed=5)
    first, again = (asyncio.run(answered(local, TEXTS[0], sampling)) for _ in range(2))
    other = asyncio.run(answered(local, TEXTS[0], Sampling(temperature=1.0, max_tokens=12, seed=6)))
    expected = generate(
        lm, [[*prompt(TEXTS[0])]], max_new_tokens=12, temperature=1.0, generator=torch.Generator().manual_seed(5)
    )
    assert joined(first) == joined(again) == expected[0] != joined(other)


def test_the_prompt_is_read_once(lm, local, monkeypatch):
    widths = []
    forward = lm.model.forward
    monkeypatch.setattr(
        lm.model,
        "forward",
        lambda *args, **named: (widths.append(named["input_ids"].shape[1]), forward(*args, **named))[1],
    )
    pieces = asyncio.run(answered(local, TEXTS[2], Sampling(max_tokens=6)))
    assert pieces[-1].tokens == 6
    length = widths[0]
    assert length > 20
    assert widths == [length, 1, 1, 1, 1, 1]


def test_a_router_of_bare_instructions_changes_no_answer(lm):
    raw = LocalModel(lm, Router("length", -20.0, "raw", 3, 32))
    try:
        read = asyncio.run(raw.read(prompt(TEXTS[2])))
        assert read.prefill is None
        assert -read.score < len(read.ids)
        pieces = asyncio.run(answered(raw, TEXTS[2], Sampling(max_tokens=8)))
    finally:
        raw.close()
    assert joined(pieces) == generate(lm, [[*prompt(TEXTS[2])]], max_new_tokens=8)[0]


def test_a_model_without_a_cache_answers_the_same(lm, monkeypatch):
    forward = lm.model.forward

    def without_cache(*args, **named):
        output = forward(*args, **{**named, "use_cache": False})
        output.past_key_values = None
        return output

    expected = generate(lm, [[*prompt(TEXTS[0])]], max_new_tokens=6)[0]
    monkeypatch.setattr(lm.model, "forward", without_cache)
    local = LocalModel(lm, LENGTH)
    try:
        assert joined(asyncio.run(answered(local, TEXTS[0], Sampling(max_tokens=6)))) == expected
    finally:
        local.close()


def test_a_closed_answer_stops_the_model(local):
    async def leave():
        read = await local.read(prompt("a"))
        pieces = local.answer(read, Sampling(max_tokens=100))
        await anext(pieces)
        await pieces.aclose()
        for _ in range(200):
            if not local.busy:
                break
            await asyncio.sleep(0.01)
        before = local.written
        await asyncio.sleep(0.1)
        return before, local.written

    before, after = asyncio.run(leave())
    assert before == after < 60
    assert not local.busy


def test_a_cancelled_reading_is_not_done(lm, local, monkeypatch):
    gate, forward, rows = threading.Event(), lm.model.forward, []

    def slow(*args, **named):
        rows.append(named["input_ids"].shape[1])
        gate.wait(5)
        return forward(*args, **named)

    monkeypatch.setattr(lm.model, "forward", slow)

    async def cancel():
        first, second = (asyncio.create_task(local.read(prompt(text))) for text in ("a", "b"))
        while not rows:
            await asyncio.sleep(0.005)
        second.cancel()
        await asyncio.sleep(0.01)
        gate.set()
        await first
        await local.read(prompt("c"))

    asyncio.run(cancel())
    assert len(rows) == 2


def test_one_failure_ends_one_answer(lm, local, monkeypatch):
    forward = lm.model.forward

    def failing(*args, **named):
        if named["input_ids"].shape[1] > 30:
            raise RuntimeError("no memory")
        return forward(*args, **named)

    expected = generate(lm, [[*prompt("a")]], max_new_tokens=5)[0]
    monkeypatch.setattr(lm.model, "forward", failing)

    async def both():
        return await asyncio.gather(
            answered(local, "word " * 20, Sampling(max_tokens=5)),
            answered(local, "a", Sampling(max_tokens=5)),
            return_exceptions=True,
        )

    failed, fine = asyncio.run(both())
    assert isinstance(failed, WorkFailed)
    assert "no memory" not in str(failed)
    assert joined(fine) == expected


def test_a_prompt_without_room_is_told(lm, local):
    with pytest.raises(TooLong):
        asyncio.run(local.read(prompt("river " * 200)))


def test_the_context_ends_an_answer(lm):
    local = LocalModel(lm, LENGTH, max_tokens=4000)
    try:
        read = asyncio.run(local.read(prompt(TEXTS[2])))
        pieces = asyncio.run(answered(local, TEXTS[2], Sampling()))
    finally:
        local.close()
    assert pieces[-1].tokens <= lm.context - len(read.ids)


def test_a_closed_model_answers_nobody(lm):
    local = LocalModel(lm, LENGTH)

    async def close():
        reading = asyncio.create_task(answered(local, TEXTS[0], Sampling(max_tokens=100)))
        while not local.written:
            await asyncio.sleep(0.005)
        await asyncio.to_thread(local.close)
        return await asyncio.gather(reading, return_exceptions=True)

    (outcome,) = asyncio.run(close())
    assert isinstance(outcome, WorkFailed)
    with pytest.raises(WorkFailed):
        asyncio.run(local.read(prompt("a")))
    local.close()


@pytest.mark.parametrize("stop", [(), ("e",), ("the town", "zzz")])
def test_growing_text_is_the_whole_text_cut_at_the_first_stop(lm, stop):
    tokenizer = lm.tokenizer
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 300, (12,), generator=generator).tolist() for _ in range(20)]
    rows += [tokenizer(text + " naïve 漢字 😀 the town", add_special_tokens=False).input_ids for text in TEXTS]
    rows += [tokenizer("    the town\n      is", add_special_tokens=False).input_ids]
    for row in rows:
        text, told = GrowingText(tokenizer, stop), ""
        for token in row:
            told += text.add(token)
            if text.stopped:
                break
        told += text.rest()
        whole = unjoined(tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        places = [whole.find(mark) for mark in stop if mark in whole]
        assert told == (whole[: min(places)] if places else whole)


def test_half_a_stop_string_is_held_back():
    class Words:
        def decode(self, tokens, **_):
            return "".join(tokens)

    text = GrowingText(Words(), ["<end>"])
    assert [text.add(part) for part in ["a <", "en", "x", "<e", "nd", "> tail"]] == ["a ", "", "<enx", "", "", ""]
    assert text.stopped


def test_a_wrapped_model_without_template_answers_a_lone_question(lm):
    plain = wrap(lm.model, lm.tokenizer, chat_template="none")
    local = LocalModel(plain, Router("length", -20.0, "raw", 3, 32))
    try:
        read = asyncio.run(local.read(prompt("What is")))
        assert read.prefill is not None
        assert (
            joined(asyncio.run(answered(local, "What is", Sampling(max_tokens=6))))
            == generate(plain, ["What is"], max_new_tokens=6)[0]
        )
    finally:
        local.close()


@pytest.mark.parametrize("kind", ["mean", "entropy", "length"])
def test_a_model_that_gives_no_numbers_answers_nothing(kind):
    """A destroyed model has a score of nan, or of its length, and a likeliest token all the same."""
    broken = untaught(4)
    with torch.no_grad():
        broken.model.get_output_embeddings().weight.fill_(torch.nan)
    numbers = {"w": np.ones(32, np.float32), "a": np.zeros(3, np.float32)} if kind == "mean" else {}
    made = LocalModel(broken, Router(kind, -100.0, "chat", 3, 32, **numbers))
    try:
        with pytest.raises(WorkFailed, match="no numbers"):
            asyncio.run(made.read(prompt("yes")))
    finally:
        made.close()


def test_states_that_are_no_numbers_give_no_score(lm):
    wrong = Router("mean", 0.5, "chat", 3, 32, w=np.full(32, np.nan, np.float32), a=np.zeros(3, np.float32))
    made = LocalModel(lm, wrong)
    try:
        with pytest.raises(WorkFailed, match="score of a prompt is nan"):
            asyncio.run(made.read(prompt("yes")))
    finally:
        made.close()


def test_a_model_that_breaks_in_mid_answer_says_so(lm, local):
    """From the third token on its states are no numbers."""
    forward, count = lm.model.forward, []

    def breaking(*args, **named):
        output = forward(*args, **named)
        count.append(1)
        if len(count) > 2:
            output.logits = output.logits * torch.nan
        return output

    lm.model.forward = breaking
    try:
        with pytest.raises(WorkFailed, match="no numbers"):
            asyncio.run(answered(local, TEXTS[2], Sampling(max_tokens=6)))
    finally:
        lm.model.forward = forward


def test_limits_of_an_answer(lm, local, monkeypatch):
    """As many tokens as are asked for, as the server allows, and as there is room for: the least of these."""
    for wrong in ({"max_tokens": 0}, {"at_once": 0}):
        with pytest.raises(BadInput, match="must be at least 1"):
            LocalModel(lm, LENGTH, **wrong)
    one = LocalModel(lm, LENGTH, max_tokens=1, at_once=1)
    try:
        assert asyncio.run(answered(one, TEXTS[2], Sampling(max_tokens=9)))[-1] == Piece("", 1, "length")
        assert asyncio.run(answered(one, TEXTS[2], Sampling()))[-1].tokens == one.written - 1 == 1
    finally:
        one.close()
    assert asyncio.run(answered(local, TEXTS[2], Sampling(max_tokens=2)))[-1].tokens == 2
    monkeypatch.setattr(local, "_room", lambda length: 1)
    assert asyncio.run(answered(local, TEXTS[2], Sampling(max_tokens=9)))[-1] == Piece("", 1, "length")
    monkeypatch.setattr(local, "_room", lambda length: 0)
    with pytest.raises(TooLong, match="tokens, and"):
        asyncio.run(local.read(prompt("a")))
    monkeypatch.undo()
    read = asyncio.run(local.read(prompt(TEXTS[2])))
    assert local._room(len(read.ids)) == lm.context - len(read.ids)
    assert read.score == -len(read.ids) and 0 < read.seconds < 60 and read.prefill is not None


def test_no_more_answers_are_written_at_once_than_allowed(lm):
    made, most = LocalModel(lm, LENGTH, at_once=2), []
    step = made._step

    def seen(answer):
        most.append((len(made._running), made.busy))
        return step(answer)

    made._step = seen

    async def three():
        reads = [await made.read(prompt(TEXTS[2])) for _ in range(3)]

        async def written(read):
            return [piece async for piece in made.answer(read, Sampling(max_tokens=5))]

        return await asyncio.gather(*map(written, reads))

    try:
        assert [pieces[-1].tokens for pieces in asyncio.run(three())] == [5, 5, 5]
    finally:
        made.close()
    assert max(running for running, _ in most) == 2 and max(busy for _, busy in most) == 3
    assert made.written == 15 == len(most)


def test_draws_keep_to_the_nucleus(local):
    greedy = asyncio.run(answered(local, TEXTS[0], Sampling(max_tokens=8)))
    narrow = Sampling(temperature=1.0, top_p=1e-9, max_tokens=8, seed=5)
    assert joined(asyncio.run(answered(local, TEXTS[0], narrow))) == joined(greedy)
