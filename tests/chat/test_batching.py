"""The queue, before an engine that says what it was asked: no model, no clock but where waiting itself is measured."""

import asyncio
import threading
import time

import pytest

from equipoise.chat.batching import Batcher, GenerationAnswer, GenerationRequest, GenerationSettings, Token
from equipoise.chat.calls import Call, Reply
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.records import Message


class Teller:
    """Answers with its own name, the text and the temperature; holds each batch until it is let go."""

    def __init__(self, name="teller", held=False):
        self.name = name
        self.batches = []
        self.closed = 0
        self.started = threading.Semaphore(0)
        self.gate = threading.Semaphore(0 if held else 10_000)

    def run(self, requests, reply, wanted):
        self.batches.append([request.messages[0].content for request in requests])
        self.started.release()
        assert self.gate.acquire(timeout=10)
        assert len({request.settings for request in requests}) == 1
        for index, request in enumerate(requests):
            text = request.messages[0].content
            if text.startswith("wrong"):
                reply(index, BadInput(f"{text}: say it otherwise."))
            elif text.startswith("breaks"):
                raise ZeroDivisionError(text)
            elif wanted(index):
                reply(index, GenerationAnswer(f"{self.name} {text} {request.settings.temperature}", "stop", 1, 1))

    def close(self):
        self.closed += 1


def request(text, temperature=0.0):
    return GenerationRequest((Message("user", text),), GenerationSettings(temperature), 8)


def within(work, seconds=10):
    """What is never answered is a failure, and not the end of all tests."""
    return asyncio.run(asyncio.wait_for(work, seconds))


def threads_of(engine):
    return [thread for thread in threading.enumerate() if thread.name == f"equipoise {engine.name}"]


async def started(engine):
    assert await asyncio.to_thread(engine.started.acquire, timeout=10)


def test_a_lone_call_waits_for_nobody():
    batcher = Batcher(Teller(), 8)

    async def lone():
        seconds = []
        for _ in range(40):
            start = time.perf_counter()
            await batcher.ask(request("a"))
            seconds.append(time.perf_counter() - start)
        return sorted(seconds)

    assert within(lone())[20] < 0.005


def test_calls_of_one_turn_start_together():
    engine = Teller()
    batcher = Batcher(engine, 8)

    async def together():
        return await asyncio.gather(*(batcher.ask(request(text)) for text in "abc"))

    assert [answer.text for answer in within(together())] == ["teller a 0.0", "teller b 0.0", "teller c 0.0"]
    assert engine.batches == [["a", "b", "c"]]


def test_what_arrives_meanwhile_makes_the_next_batches():
    engine = Teller(held=True)
    batcher = Batcher(engine, 3)

    async def busy():
        first = asyncio.create_task(batcher.ask(request("first")))
        await started(engine)
        calls = [("b", 0), ("warm", 1), ("ccc", 0), ("dd", 0), ("eeee", 0), ("hotter", 1)]
        rest = [asyncio.create_task(batcher.ask(request(text, temperature))) for text, temperature in calls]
        await asyncio.sleep(0)
        engine.gate.release(10)
        return [answer.text for answer in await asyncio.gather(first, *rest)]

    expected = ["first 0.0", "b 0", "warm 1", "ccc 0", "dd 0", "eeee 0", "hotter 1"]
    assert within(busy()) == [f"teller {text}" for text in expected]
    # The oldest call is in each next batch, with the longest of its temperature; "dd" is left for one more.
    assert engine.batches == [["first"], ["eeee", "ccc", "b"], ["hotter", "warm"], ["dd"]]


def test_temperatures_and_models_never_mix():
    engines = [Teller("one", held=True), Teller("two", held=True)]
    batchers = [Batcher(engine, 4) for engine in engines]

    async def mixed():
        calls = [(i % 2, f"t{i}", (i % 3) / 2) for i in range(24)]
        tasks = [asyncio.create_task(batchers[which].ask(request(text, heat))) for which, text, heat in calls]
        for engine in engines:
            engine.gate.release(100)
        for (which, text, heat), task in zip(calls, tasks, strict=True):
            assert (await task).text == f"{engines[which].name} {text} {heat}"

    within(mixed())
    for engine in engines:  # that a batch has one setting is asserted where it runs
        assert sum(map(len, engine.batches)) == 12 and max(map(len, engine.batches)) > 1


def test_a_failing_call_fails_alone():
    engine = Teller()
    batcher = Batcher(engine, 8)

    async def some_wrong():
        texts = ["good", "wrong", "fine", "breaks", "last"]
        return await asyncio.gather(*(batcher.ask(request(text)) for text in texts), return_exceptions=True)

    good, wrong, fine, breaks, last = within(some_wrong())
    assert [answer.text for answer in (good, fine, last)] == ["teller good 0.0", "teller fine 0.0", "teller last 0.0"]
    assert isinstance(wrong, BadInput) and "say it otherwise" in str(wrong)
    assert isinstance(breaks, ZeroDivisionError)


def test_a_stated_failure_is_not_tried_again():
    class Full(Teller):
        def run(self, requests, reply, wanted):
            self.batches.append(len(requests))
            raise WorkFailed(f"Out of memory at batch size {len(requests)}: try 1.")

    engine = Full()
    batcher = Batcher(engine, 8)

    async def two():
        return await asyncio.gather(*(batcher.ask(request(text)) for text in "ab"), return_exceptions=True)

    assert [str(error) for error in within(two())] == ["Out of memory at batch size 2: try 1."] * 2
    assert engine.batches == [2]


def test_cancelling_one_spares_the_others():
    engine = Teller(held=True)
    batcher = Batcher(engine, 8)

    async def cancelled():
        running = [asyncio.create_task(batcher.ask(request(text))) for text in ("a", "b")]
        await started(engine)
        waiting = [asyncio.create_task(batcher.ask(request(text))) for text in ("c", "d")]
        await asyncio.sleep(0)
        running[0].cancel()
        waiting[0].cancel()
        await asyncio.sleep(0)
        engine.gate.release(10)
        return await asyncio.gather(*running, *waiting, return_exceptions=True)

    a, b, c, d = within(cancelled())
    assert isinstance(a, asyncio.CancelledError) and isinstance(c, asyncio.CancelledError)
    assert (b.text, d.text) == ("teller b 0.0", "teller d 0.0")
    assert sorted(engine.batches[0]) == ["a", "b"] and engine.batches[1:] == [["d"]]


def test_several_loops_and_no_thread_left():
    batcher = Batcher(Teller(), 4)
    for text in ("a", "b"):
        with asyncio.Runner() as runner:
            assert runner.run(batcher.ask(request(text))).text == f"teller {text} 0.0"
    deadline = time.monotonic() + 5
    while threads_of(batcher.engine) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not threads_of(batcher.engine)  # also without close


def test_closing_answers_everybody():
    engine = Teller(held=True)
    batcher = Batcher(engine, 1)

    async def closed():
        tasks = [asyncio.create_task(batcher.ask(request(text))) for text in "abc"]
        await started(engine)
        asyncio.get_running_loop().call_later(0.01, engine.gate.release, 10)
        await asyncio.to_thread(batcher.close)
        with pytest.raises(WorkFailed, match="was closed: get the model anew"):
            await batcher.ask(request("d"))
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [str(error) for error in within(closed())] == ["teller was closed before it answered."] * 3
    assert engine.closed == 1 and engine.batches == [["a"]]
    batcher.close()
    assert engine.closed == 1 and not threads_of(engine)


def test_workers_run_side_by_side():
    engine = Teller(held=True)
    batcher = Batcher(engine, 1, workers=2)

    async def three():
        tasks = [asyncio.create_task(batcher.ask(request(text))) for text in "abc"]
        await started(engine)
        await started(engine)  # the second began before the first was let go
        assert engine.batches == [["a"], ["b"]]
        engine.gate.release(10)
        return [answer.text for answer in await asyncio.gather(*tasks)]

    assert within(three()) == ["teller a 0.0", "teller b 0.0", "teller c 0.0"]


def test_what_is_meant_unless_it_is_said():
    assert GenerationSettings() == GenerationSettings(temperature=0.0, top_p=1.0, top_k=0, stop=(), logprobs=None)
    turn = (Message("user", "a"),)
    assert GenerationRequest(turn, GenerationSettings(), 8) == GenerationRequest(turn, GenerationSettings(), 8, 0, None)
    assert Token("a", -1.0, None).top == () == GenerationAnswer("a", "stop", 1, 1).tokens
    assert Call(turn, "judge") == Call(turn, "judge", schema=None, max_tokens=1024, temperature=0.0, sample=0)
    assert Reply("a", "cut") == Reply("a", "cut", value=None, reason="")
    with pytest.raises(BadInput, match=r"ended is 'stopp'. Did you mean 'stop'"):
        GenerationAnswer("a", "stopp", 1, 1)
    with pytest.raises(BadInput, match=r"status is 'answred'. Did you mean 'answered'"):
        Reply("a", "answred")


def test_an_engine_that_says_nothing_is_told_as_such():
    class Silent(Teller):
        def run(self, requests, reply, wanted):
            self.batches.append(len(requests))
            reply(0, GenerationAnswer("first", "stop", 1, 1))
            reply(0, GenerationAnswer("second thoughts", "stop", 1, 1))

    engine = Silent()
    batcher = Batcher(engine, 8)

    async def three():
        return await asyncio.gather(*(batcher.ask(request(text)) for text in "abc"), return_exceptions=True)

    first, *rest = within(three())
    assert first.text == "first" and engine.batches == [3]
    assert [(type(error), str(error)) for error in rest] == [(WorkFailed, "teller gave no answer.")] * 2


def test_equal_calls_are_computed_apart():
    """Two calls that ask the same are two lines of one batch; of others with its settings the longest come along."""
    engine = Teller(held=True)
    batcher = Batcher(engine, 2)

    async def equal():
        tasks = [asyncio.create_task(batcher.ask(request(text))) for text in ("a", "a", "bb", "bb", "ccc")]
        await asyncio.sleep(0)
        engine.gate.release(10)
        return [answer.text for answer in await asyncio.gather(*tasks)]

    assert within(equal()) == [f"teller {text} 0.0" for text in ("a", "a", "bb", "bb", "ccc")]
    assert engine.batches == [["ccc", "a"], ["bb", "a"], ["bb"]]


def test_no_more_workers_than_were_allowed():
    """However many calls wait, and whenever they came."""
    for workers in (1, 2):
        engine = Teller(held=True)
        batcher = Batcher(engine, 1, workers=workers)

        async def many(engine=engine, batcher=batcher, workers=workers):
            tasks = [asyncio.create_task(batcher.ask(request(text))) for text in "abcd"]
            for _ in range(workers):
                await started(engine)
            tasks += [asyncio.create_task(batcher.ask(request(text))) for text in "ef"]
            await asyncio.sleep(0.02)
            assert engine.batches == [[text] for text in "abcd"[:workers]] and len(threads_of(engine)) == workers
            engine.gate.release(10)
            return [answer.text for answer in await asyncio.gather(*tasks)]

        assert within(many()) == [f"teller {text} 0.0" for text in "abcdef"]


def test_of_two_the_one_that_breaks_is_tried_alone_and_the_answered_one_is_not():
    for texts in (("a good one", "breaks"), ("good", "breaks all")):
        engine = Teller()
        batcher = Batcher(engine, 8)

        async def two(batcher=batcher, texts=texts):
            return await asyncio.gather(*(batcher.ask(request(text)) for text in texts), return_exceptions=True)

        good, breaks = within(two())
        assert good.text == f"teller {texts[0]} 0.0" and isinstance(breaks, ZeroDivisionError)
        longest, other = sorted(texts, key=len, reverse=True)
        again = [[longest], [other]] if longest.startswith("breaks") else [[other]]
        assert engine.batches == [[longest, other], *again]
