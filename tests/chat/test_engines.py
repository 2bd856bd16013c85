"""Both engines against slow computations of the same: one row, no cache, the whole text anew for every token."""

import json
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import jsonschema
import pytest
import torch

from chat_models import untaught, write_gguf
from equipoise.chat import transformers_engine
from equipoise.chat.batching import GenerationAnswer, GenerationRequest, GenerationSettings, Token
from equipoise.chat.grammar import json_grammar
from equipoise.chat.transformers_engine import TransformersEngine
from equipoise.core.errors import BadInput, MissingExtra, WorkFailed
from equipoise.data.records import Message
from equipoise.data.text import unjoined
from equipoise.language import templates
from equipoise.language.generate import choose, generate
from equipoise.language.model import load

GREEDY = GenerationSettings()
PROMPTS = ["one two three", "What is the capital of Norway?", "yes", "Where was Mulum Kunwick born? " * 3]
SCHEMA = {
    "type": "object",
    "properties": {
        "score": {"type": "number", "minimum": 0.5, "maximum": 9},
        "verdict": {"enum": ["A", "B"]},
        "why": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 6}]},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-c]{2,4}$"}},
    },
    "required": ["score", "verdict", "why", "tags"],
    "additionalProperties": False,
}


def call(text, *, settings=GREEDY, max_tokens=10, seed=0, schema=None, messages=None):
    turns = messages or (Message("user", text),)
    return GenerationRequest(turns, settings, max_tokens, seed, None if schema is None else json.dumps(schema))


def run(engine, requests, wanted=lambda index: True):
    found = {}
    engine.run(requests, lambda index, outcome: found.__setitem__(index, outcome), wanted)
    return [found.get(index) for index in range(len(requests))]


@pytest.fixture(scope="module")
def small():
    return untaught(3)


@pytest.fixture(scope="module")
def engine(small):
    return TransformersEngine(small)


def slow_samples(language_model, text, seed, count, temperature, top_k=0, top_p=1.0):
    """Token by token from the whole text, the distribution written out as a list of sorted pairs."""
    template = f"<|user|>{text}<|assistant|>"
    ids = [
        language_model.tokenizer.bos_token_id,
        *language_model.tokenizer(template, add_special_tokens=False).input_ids,
    ]
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    new = []
    for draw in draws:
        with torch.no_grad():
            logits = language_model.model(torch.tensor([ids + new])).logits[0, -1].double()
        share = (logits / temperature).softmax(-1)
        order = sorted(range(len(share)), key=lambda token: -share[token])
        kept = order[: top_k or None]
        mass, total, nucleus = sum(share[token] for token in kept), 0.0, []
        for token in kept:
            if total >= top_p * mass:
                break
            nucleus.append(token)
            total += share[token]
        place, found = 0.0, None
        for token in sorted(nucleus):
            place += share[token]
            found = token
            if draw * total < place:
                break
        if found in language_model.end_ids:
            break
        new.append(found)
    return language_model.tokenizer.decode(new, skip_special_tokens=True).removeprefix(" ")


@pytest.mark.parametrize("cut", [{}, {"top_k": 7}, {"top_p": 0.6}, {"top_k": 40, "top_p": 0.5}])
def test_samples_are_those_of_a_slow_loop_whatever_the_batch(small, engine, cut):
    settings = GenerationSettings(temperature=1.3, **cut)
    requests = [call(text, settings=settings, max_tokens=6, seed=seed) for seed, text in enumerate(PROMPTS)]
    together = run(engine, requests)
    for request, answer in zip(requests, together, strict=True):
        assert answer.text == slow_samples(small, request.messages[0].content, request.seed, 6, 1.3, **cut)
    assert len({answer.text for answer in together}) == len(PROMPTS)


def test_batch_of_one_and_of_eight(engine):
    settings = GenerationSettings(temperature=0.8, logprobs=3)
    requests = [call(PROMPTS[i % 4], settings=settings, max_tokens=3 + 2 * i, seed=i) for i in range(8)]
    together, alone = run(engine, requests), [run(engine, [request])[0] for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert (one.text, one.ended, one.output_tokens) == (other.text, other.ended, other.output_tokens)
        assert [t.text for t in one.tokens] == [t.text for t in other.tokens]
        torch.testing.assert_close(
            torch.tensor([t.logprob for t in one.tokens]), torch.tensor([t.logprob for t in other.tokens])
        )
    assert {answer.output_tokens for answer in together} >= {3, 5, 7}


def test_greedy_is_generate(small, engine):
    answers = run(engine, [call(text, max_tokens=12) for text in PROMPTS])
    assert [answer.text for answer in answers] == generate(small, PROMPTS, max_new_tokens=12)


@pytest.fixture
def chosen(monkeypatch):
    """The tokens of each step, as they are chosen."""
    steps = []

    def choose_and_note(*arguments, **options):
        steps.append(choose(*arguments, **options).tolist())
        return torch.tensor(steps[-1])

    monkeypatch.setattr(transformers_engine, "choose", choose_and_note)
    return steps


def test_logprobs_are_those_of_the_whole_text(small, engine, chosen):
    """The model's own: neither temperature nor top_k nor the schema shows in them."""
    settings = GenerationSettings(temperature=2.0, top_k=5, logprobs=4)
    (answer,) = run(engine, [call("yes no", settings=settings, seed=3)])
    ids = small.tokenizer("<|begin|><|user|>yes no<|assistant|>", add_special_tokens=False).input_ids
    assert len(answer.tokens) == len(chosen) == 10
    for token, (identity,) in zip(answer.tokens, chosen, strict=True):
        with torch.no_grad():
            expected = small.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert token.logprob == pytest.approx(float(expected[identity]), abs=1e-4)
        assert [top.logprob for top in token.top] == pytest.approx(expected.topk(4).values.tolist(), abs=1e-4)
        assert token.text == small.tokenizer.decode([identity])
        assert token.content == (None if "\ufffd" in token.text else token.text.encode())
        ids.append(identity)


def test_how_an_answer_ends(small, engine):
    (free,) = run(engine, [call("one", max_tokens=8)])
    assert (free.ended, free.output_tokens) == ("max_tokens", 8)
    mark = free.text[len(free.text) // 2 :][:2]
    (stopped,) = run(engine, [call("one", settings=GenerationSettings(stop=(mark,)), max_tokens=8)])
    assert (stopped.text, stopped.ended) == (free.text.split(mark)[0], "stop")
    short = TransformersEngine(small, context=free.input_tokens + 5)
    (cut,) = run(short, [call("one", max_tokens=8)])
    assert (cut.ended, cut.output_tokens) == ("model_length", 5) and free.text.startswith(cut.text)
    long, fine = run(short, [call("one " * 60), call("one", max_tokens=2)])
    assert isinstance(long, BadInput) and f"reads {free.input_tokens + 5} with the answer" in str(long)
    assert fine.output_tokens == 2


def test_end_token_counts_but_is_no_text(small, engine, chosen, monkeypatch):
    run(engine, [call("one", max_tokens=6)])
    tokens = [token for (token,) in chosen]
    monkeypatch.setattr(small.model.generation_config, "eos_token_id", tokens[3])
    (ended,) = run(engine, [call("one", settings=GenerationSettings(logprobs=0), max_tokens=6)])
    place = tokens.index(tokens[3])
    assert (ended.ended, ended.output_tokens, len(ended.tokens)) == ("stop", place + 1, place)


def test_schema_is_kept_at_any_temperature(engine):
    settings = GenerationSettings(temperature=1.5)
    requests = [call("score it", settings=settings, max_tokens=90, seed=seed, schema=SCHEMA) for seed in range(6)]
    plain = call("score it", settings=settings, max_tokens=9, seed=1)
    *answers, free = run(engine, [*requests, plain])
    assert free == run(engine, [plain])[0]
    done = [answer for answer in answers if answer.ended == "stop"]
    assert len(done) >= 2 and all(answer.ended == "max_tokens" for answer in answers if answer not in done)
    for answer in done:
        jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert len({answer.text for answer in answers}) > 2


def test_schema_that_cannot_be_followed(engine):
    lookahead = {"type": "string", "pattern": "(?=x)y"}
    wrong, fine = run(engine, [call("a", schema=lookahead), call("b", schema={"enum": ["yes"]})])
    assert isinstance(wrong, BadInput) and "response schema cannot be followed" in str(wrong)
    assert (fine.text, fine.ended) == ('"yes"', "stop")


def test_without_llguidance(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    (missing,) = run(engine, [call("a", schema=SCHEMA)])
    assert isinstance(missing, MissingExtra) and "pip install 'equipoise[chat]'" in str(missing)


def test_out_of_memory_names_the_batch_size(small, engine, monkeypatch):
    def full(**_):
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(small.model, "forward", full)
    with pytest.raises(WorkFailed, match="batch size 3: try a batch size of 1"):
        run(engine, [call(text) for text in "abc"])


def test_beginning_of_the_answer(small, engine):
    (whole,) = run(engine, [call("one", settings=GenerationSettings(logprobs=0))])
    begun = "".join(token.text for token in whole.tokens[:3])
    turns = (Message("system", "count"), Message("user", "one"))
    (first,) = run(engine, [call("", messages=turns)])
    (second,) = run(engine, [call("", messages=(*turns, Message("assistant", first.text)), max_tokens=3)])
    ids = small.tokenizer(f"<|begin|><|system|>count<|user|>one<|assistant|>{first.text}", add_special_tokens=False)
    with torch.no_grad():
        likeliest = int(small.model(torch.tensor([ids.input_ids])).logits[0, -1].argmax())
    assert begun and second.text.startswith(small.tokenizer.decode([likeliest]).removeprefix(" "))


def test_a_template_that_does_not_end_is_given_up(small, engine, monkeypatch):
    loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
    monkeypatch.setattr(templates, "SECONDS", 1)
    monkeypatch.setattr(small.tokenizer, "chat_template", loops + "{% endfor %}" * 3)
    (refused,) = run(engine, [call("one")])
    assert isinstance(refused, BadInput)
    assert "does not come to an end: 1 seconds of work were not enough" in str(refused)


def test_what_nobody_wants_leaves_the_batch(small, engine, monkeypatch):
    steps = []
    forward = small.model.forward
    monkeypatch.setattr(small.model, "forward", lambda **k: (steps.append(len(k["input_ids"])), forward(**k))[1])
    run(engine, [call("one", max_tokens=9), call("two", max_tokens=9)], wanted=lambda i: i == 0 or len(steps) < 3)
    assert steps == [2, 2, 2, 1, 1, 1, 1, 1, 1]


# llama.cpp


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf")


@pytest.fixture(scope="module")
def llama(gguf):
    pytest.importorskip("xllamacpp", reason="the engine llama.cpp needs xllamacpp")
    from equipoise.chat.llama_engine import LlamaEngine

    engine = LlamaEngine(gguf, name="small", threads=1)
    yield engine
    engine.close()


@pytest.mark.parametrize("text", ["    return 1", " 1", "1", "\n  1"])
def test_what_llama_wrote_keeps_its_indentation(text):
    from equipoise.chat.llama_engine import LlamaEngine

    parts = [{"choices": [{"text": text[:2]}]}, {"choices": [{"text": text[2:], "finish_reason": "stop"}]}]
    assert LlamaEngine.__new__(LlamaEngine)._read(call("a"), parts).text == unjoined(text)


def test_both_engines_compute_the_same(gguf, llama):
    """One file of float32 weights; llama.cpp's kernels and template engine against transformers' own."""
    torch_engine = TransformersEngine(load(gguf, device="cpu"))
    conversation = (Message("system", "Be short."), Message("user", "one?"), Message("assistant", "yes"))
    requests = [call(text, settings=GenerationSettings(logprobs=3), max_tokens=6) for text in PROMPTS[:3]]
    requests += [call("", settings=GenerationSettings(logprobs=3), max_tokens=6, messages=conversation)]
    requests += [
        call("", settings=GenerationSettings(logprobs=3), max_tokens=6, messages=(*conversation, Message("user", "b")))
    ]
    for request in requests:
        (one,), (other,) = run(llama, [request]), run(torch_engine, [request])
        assert (one.text, one.ended, one.input_tokens) == (other.text, other.ended, other.input_tokens)
        assert one.output_tokens == other.output_tokens and len(one.tokens) == len(other.tokens) > 0
        for mine, theirs in zip(one.tokens, other.tokens, strict=True):
            assert mine.logprob == pytest.approx(theirs.logprob, abs=0.02)
            assert [t.logprob for t in mine.top] == pytest.approx([t.logprob for t in theirs.top], abs=0.02)


def test_llama_repeats_itself_in_any_order(llama):
    calls = [call(text, settings=GenerationSettings(logprobs=1), max_tokens=8) for text in PROMPTS[:3]]
    calls += [call(text, settings=GenerationSettings(0.9, logprobs=1), max_tokens=8, seed=4) for text in PROMPTS[:3]]
    first, backwards = run(llama, calls), run(llama, calls[::-1])[::-1]
    assert first == backwards
    assert first[:3] != first[3:]
    assert (
        run(llama, [call(PROMPTS[0], settings=GenerationSettings(0.9), max_tokens=8, seed=5)])[0].text != first[3].text
    )


def test_llama_schema_limits_and_stops(llama, capfd):
    settings = GenerationSettings(temperature=1.5)
    answers = run(llama, [call("it", settings=settings, max_tokens=90, seed=s, schema=SCHEMA) for s in range(6)])
    done = [answer for answer in answers if answer.ended == "stop"]
    assert len(done) >= 2
    for answer in done:
        jsonschema.validate(json.loads(answer.text), SCHEMA)
    (wrong,) = run(llama, [call("a", schema={"type": "string", "pattern": "(?=x)y"})])
    assert isinstance(wrong, BadInput) and "cannot be followed" in str(wrong)
    (free,) = run(llama, [call("one", max_tokens=9)])
    assert (free.ended, free.output_tokens) == ("max_tokens", 9)
    mark = free.text[3:5]
    (stopped,) = run(llama, [call("one", settings=GenerationSettings(stop=(mark,)), max_tokens=9)])
    assert (stopped.text, stopped.ended) == (free.text.split(mark)[0], "stop")
    long, cut = run(llama, [call("one " * 90), call("one", max_tokens=500)])
    assert isinstance(long, BadInput) and "and small reads 128 with the answer" in str(long)
    assert cut.ended in ("stop", "model_length") and cut.output_tokens < 128
    assert capfd.readouterr() == ("", "")  # llama.cpp says nothing of its own


def test_llama_cancelled(llama):
    asked = []

    def wanted(index):
        asked.append(index)
        return len(asked) < 4

    run(llama, [call("one", max_tokens=100), call("two")], wanted)
    assert len(asked) < 8  # neither the rest of the first nor the second was computed


def test_llama_without_template(tmp_path, gguf):
    pytest.importorskip("xllamacpp", reason="the engine llama.cpp needs xllamacpp")
    from equipoise.chat.llama_engine import LlamaEngine

    bare = write_gguf(tmp_path / "bare.gguf", template=None)
    for path, template in ((bare, "auto"), (gguf, "none")):
        engine = LlamaEngine(path, name="bare", threads=1, chat_template=template)
        two = (Message("system", "a"), Message("user", "b"))
        plain, refused = run(engine, [call("one two ", max_tokens=4), call("", messages=two)])
        (other,) = run(
            TransformersEngine(load(path, device="cpu", chat_template=template)), [call("one two ", max_tokens=4)]
        )
        assert isinstance(plain, GenerationAnswer) and (plain.text, plain.input_tokens) == (
            other.text,
            other.input_tokens,
        )
        assert isinstance(refused, BadInput) and "chat_template" in str(refused)
        engine.close()
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(BadInput, match=r"cannot load .*broken\.gguf"):
        LlamaEngine(tmp_path / "broken.gguf", name="broken", threads=1)


def test_threads_follow_the_environment(monkeypatch):
    from equipoise.chat.llama_engine import default_threads

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert 1 <= default_threads() <= (os.cpu_count() or 1)


class Server:
    """Stands for llama.cpp: notes what it is made with and asked, and answers with these chunks."""

    def __init__(self, parameters):
        self.parameters, self.bodies, self.chunks, self.last, self.ends = parameters, [], [], None, []

    def handle(self, kind, body, receive):
        self.bodies.append((kind, body))
        for chunk in self.chunks:
            if isinstance(chunk, Exception):
                raise chunk
            self.ends.append(receive(chunk))
        return self.last

    def handle_chat_completions(self, body, receive):
        return self.handle("chat", body, receive)

    def handle_completions(self, body, receive):
        return self.handle("text", body, receive)


@pytest.fixture
def made(monkeypatch, tmp_path):
    """made(**options): an engine over a Server that notes; its file has a template unless `bare`."""
    from equipoise.chat import llama_engine

    def parameters():
        return SimpleNamespace(model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace())

    formats = SimpleNamespace(COMMON_REASONING_FORMAT_NONE="none")
    library = SimpleNamespace(CommonParams=parameters, Server=Server, common_reasoning_format=formats)
    monkeypatch.setattr(llama_engine, "import_module", lambda name: {"xllamacpp": library}[name])
    (tmp_path / "m.gguf").write_bytes(b"GGUF tokenizer.chat_template")
    (tmp_path / "bare.gguf").write_bytes(b"GGUF")
    (tmp_path / "empty.gguf").write_bytes(b"")

    def make(file="m.gguf", **options):
        return llama_engine.LlamaEngine(tmp_path / file, name="m", **options)

    make.library = library
    return make


def told(namespace):
    return {
        name: vars(value) if isinstance(value, SimpleNamespace) else value for name, value in vars(namespace).items()
    }


def test_what_llama_is_made_with(made, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    plain = {
        "model": {"path": str(tmp_path / "m.gguf")}, "cpuparams": {"n_threads": 5}, "cpuparams_batch": {"n_threads": 5},
        "verbosity": -1, "n_ctx": 8192, "n_parallel": 1, "warmup": False, "cache_prompt": False, "cache_ram_mib": 0,
        "reasoning_format": "none",
    }  # fmt: skip
    assert told(made()._server.parameters) == plain
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    engine = made(threads=2, context=10, parallel=3, chat_template=str(tmp_path / "mine.jinja"))
    threads = {"n_threads": 2}
    assert told(engine._server.parameters) == plain | {
        "cpuparams": threads, "cpuparams_batch": threads, "n_ctx": 30, "n_parallel": 3, "chat_template": "{{ messages }}",
    }  # fmt: skip
    assert engine._uses_template and made("bare.gguf", chat_template=str(tmp_path / "mine.jinja"))._uses_template
    uses = [
        made(file, chat_template=t)._uses_template
        for file in ("m.gguf", "bare.gguf", "empty.gguf")
        for t in ("auto", "none")
    ]
    assert uses == [True, False, False, False, False, False]

    def broken(parameters):
        raise RuntimeError("no")

    made.library.Server = broken
    with pytest.raises(BadInput) as caught:
        made()
    assert str(caught.value) == (
        f"llama.cpp cannot load {tmp_path / 'm.gguf'}: the file may be cut short, of an architecture it does not know, or "
        "too large for the memory at this context. Fetch it again, lower context, or use engine=transformers."
    )


def test_a_template_is_looked_for_in_the_head_of_the_file(tmp_path, monkeypatch):
    from equipoise.chat import llama_engine

    path, field = tmp_path / "m.gguf", b"tokenizer.chat_template"
    assert llama_engine._HEADER == 67_108_864
    monkeypatch.setattr(llama_engine, "_HEADER", 50)
    for content, found in (
        (b"", False), (b"GGUF", False), (field, True), (b"x" * 27 + field, True), (b"x" * 28 + field, False),
        (b"GGUF tokenizer.chat_templat", False),
    ):  # fmt: skip
        path.write_bytes(content)
        assert llama_engine._has_template(path) is found


def test_what_llama_is_asked(made):
    engine = made()
    plain = {
        "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 10, "temperature": 0.0, "top_k": 0,
        "top_p": 1.0, "samplers": ["temperature", "top_k", "top_p"], "seed": 0, "cache_prompt": False,
    }  # fmt: skip
    run(engine, [call("a")])
    settings = GenerationSettings(0.5, 0.25, 3, ("x", "y"), 4)
    run(engine, [call("", settings=settings, seed=2**31 + 7, messages=(Message("system", "s"), Message("user", "u")))])
    run(engine, [call("a", settings=GenerationSettings(logprobs=0), seed=2**31 - 1)])
    messages = [{"role": "user", "content": "a"}]
    assert engine._server.bodies == [
        ("chat", plain | {"messages": messages}),
        ("chat", plain | {
            "temperature": 0.5, "top_p": 0.25, "top_k": 3, "seed": 7, "stop": ["x", "y"], "n_probs": 4,
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}),
        ("chat", plain | {"n_probs": 1, "seed": 2**31 - 1, "messages": messages}),
    ]  # fmt: skip
    bare = made("bare.gguf")
    (plain_answer,) = run(bare, [call(" a  ")])
    assert isinstance(plain_answer, GenerationAnswer) and bare._server.bodies == [("text", plain | {"prompt": " a"})]
    for roles in (("assistant",), ("system", "user"), ("user", "assistant"), ("user", "user")):
        (refused,) = run(bare, [call("", messages=tuple(Message(role, "a") for role in roles))])
        assert isinstance(refused, BadInput) and len(bare._server.bodies) == 1
        assert str(refused) == (
            "The prompt is a conversation, but m has no chat template in use: give a Jinja file as chat_template, or ask "
            "with one text."
        )


def test_what_is_read_of_llama_s_answer(made):
    engine = made()
    server = engine._server
    alike = [{"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "b", "logprob": -1.5, "bytes": [98]}]
    entry = {"token": " a", "logprob": -0.25, "bytes": [32, 97], "top_logprobs": alike}
    server.chunks = [
        {"choices": [{"delta": {"role": "assistant", "content": None}}]},
        {"choices": [{"delta": {"content": "  a"}, "logprobs": {"content": [entry]}}]},
        {"choices": [{"delta": {"content": "b"}, "finish_reason": "stop"}]},
        {"choices": [{"delta": {}, "logprobs": None, "finish_reason": None}]},
    ]
    server.last = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}
    top = tuple(Token(each["token"], each["logprob"], bytes(each["bytes"])) for each in alike)
    for count, kept in ((None, ()), (0, ()), (1, top[:1]), (2, top), (9, top)):
        (answer,) = run(engine, [call("a", settings=GenerationSettings(logprobs=count))])
        assert answer == GenerationAnswer("  ab", "stop", 4, 2, (Token(" a", -0.25, b" a", kept),))
    assert server.ends == [False] * 20  # nothing was ended early
    server.chunks, server.last = (
        [{"choices": [{"text": " x"}], "usage": {"prompt_tokens": 1, "completion_tokens": 9}}],
        None,
    )
    for most, ended in ((8, "max_tokens"), (9, "max_tokens"), (10, "model_length")):
        assert run(engine, [call("a", max_tokens=most)]) == [GenerationAnswer("x", ended, 1, 9)]
    server.chunks = []
    assert run(engine, [call("a")]) == [GenerationAnswer("", "model_length", 0, 0)]


def test_what_llama_says_of_a_failure(made):
    engine = made()
    for chunk, kind, sentence in (
        (
            {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 8}},
            BadInput,
            "The prompt has 9 tokens, and m reads 8 with the answer: shorten it, or raise context where the model was made "
            "for more.",
        ),
        ({"error": {"code": 400, "message": "wrong"}}, BadInput, "llama.cpp could not answer: wrong"),
        ({"error": {"code": 500, "message": "down"}}, WorkFailed, "llama.cpp could not answer: down"),
        ({"error": {"code": 500}}, WorkFailed, "llama.cpp could not answer: {'code': 500}"),
        (ValueError("odd"), BadInput, "llama.cpp refuses the call: odd"),
        (RuntimeError("odder"), BadInput, "llama.cpp refuses the call: odder"),
    ):
        engine._server.chunks = [chunk]
        (error,) = run(engine, [call("a")])
        assert (type(error), str(error)) == (kind, sentence)
    engine._server.chunks = [KeyError("of another kind")]
    with pytest.raises(KeyError):
        run(engine, [call("a")])


def test_threads_unless_they_are_stated(monkeypatch):
    import psutil

    from equipoise.chat.llama_engine import default_threads

    for stated, found in (("3", 3), ("3,2", 3), ("0", 2), ("", 2), ("-1", 2), ("x", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
        monkeypatch.setattr(psutil, "cpu_count", lambda logical: {False: 2}[logical])
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(7)), raising=False)
        assert default_threads() == found
    for physical, allowed, found in ((8, 3, 3), (None, 3, 3), (2, 0, 1), (4, 9, 4)):
        monkeypatch.setattr(psutil, "cpu_count", lambda logical, physical=physical: physical)
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda process, allowed=allowed: set(range(allowed)), raising=False
        )
        assert default_threads() == found
    monkeypatch.delattr(os, "sched_getaffinity")
    for cores, found in ((6, 4), (3, 3), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        assert default_threads() == found


def test_what_llguidance_says_of_a_schema(monkeypatch):
    llguidance = pytest.importorskip("llguidance", reason="response schemas need llguidance")
    asked = []

    class Matcher:
        @staticmethod
        def validate_grammar_with_warnings(grammar):
            asked.append(grammar)
            return len(asked) > 1, ["one\n  two " + "x" * 300, "another"]

    monkeypatch.setattr(llguidance, "LLMatcher", Matcher)
    assert (
        json_grammar('{"type": "null"}')
        == asked[0]
        == (
            '%llguidance {}\nstart: %json {"type": "null", "x-guidance": {"whitespace_flexible": false, '
            '"item_separator": ", ", "key_separator": ": "}}'
        )
    )
    with pytest.raises(BadInput) as caught:
        json_grammar("{}")
    assert str(caught.value) == f"The response schema cannot be followed: one two {'x' * 292}"


def test_room_for_an_answer_is_counted_to_the_last_token(small, engine):
    (whole,) = run(engine, [call("one", max_tokens=4)])
    read = whole.input_tokens
    for context, expected in (
        (read + 4, (4, "max_tokens")),
        (read + 3, (3, "model_length")),
        (read + 1, (1, "model_length")),
    ):
        (answer,) = run(TransformersEngine(small, context=context), [call("one", max_tokens=4)])
        assert (answer.output_tokens, answer.ended, answer.input_tokens) == (*expected, read)
    (full,) = run(TransformersEngine(small, context=read), [call("one", max_tokens=4)])
    assert isinstance(full, BadInput) and str(full) == (
        f"The prompt has {read} tokens, and {small.name} reads {read} with the answer: shorten it."
    )
    assert TransformersEngine(small, context=9999)._context == TransformersEngine(small)._context == small.context


def test_a_token_as_it_is_told(small, engine, monkeypatch):
    word, identity = max(
        small.tokenizer.get_vocab().items(), key=lambda pair: (pair[0].startswith("\u0120"), len(pair[0]))
    )
    text = f" {word[1:]}"
    assert engine._token(identity, -0.5) == Token(text, -0.5, text.encode(), ())
    pieces = {1: ("\u2581yes", "yes"), 2: ("\u2581yes", " yes"), 3: (None, "x"), 4: ("x", "\ufffd")}
    told = SimpleNamespace(
        decode=lambda ids, clean_up_tokenization_spaces: "?" if clean_up_tokenization_spaces else pieces[ids[0]][1],
        convert_ids_to_tokens=lambda i: pieces[i][0],
    )
    sentence_piece = TransformersEngine(SimpleNamespace(name="m", context=9, tokenizer=told))
    assert [sentence_piece._token(i, 0.0).text for i in pieces] == [" yes", " yes", "x", "\ufffd"]
    assert [sentence_piece._token(i, 0.0).content for i in pieces] == [b" yes", b" yes", b"x", None]
    part = {"add_prefix_space": True, "type": "ByteLevel"}
    assert transformers_engine._without_prefix_space(part) == {"add_prefix_space": False, "type": "ByteLevel"}
    for other in ({"add_prefix_space": False}, {"type": "x"}):
        assert transformers_engine._without_prefix_space(other) is other


def test_a_slow_tokenizer_follows_no_schema(small, monkeypatch):
    slow = SimpleNamespace(is_fast=False)
    engine = TransformersEngine(SimpleNamespace(name="m", context=9, tokenizer=slow))
    with pytest.raises(BadInput) as caught:
        engine._grammar(json.dumps(SCHEMA), frozenset())
    assert str(caught.value) == "m has a slow tokenizer, with which no response schema can be followed: use a fast one."


def test_rows_without_a_schema_may_write_anything(engine):
    row = engine._row(0, call("a"))
    assert len(row.uniform) == 0 and len(engine._row(0, call("a", settings=GenerationSettings(0.5))).uniform) == 10
    bound = engine._row(1, call("a", schema={"enum": ["yes"]}))
    logits = torch.zeros(2, 300)
    assert transformers_engine._allowed([row, row], logits) is None
    allowed = transformers_engine._allowed([row, bound], logits)
    assert allowed.shape == (2, 300) and allowed[0].all() and 0 < allowed[1].sum() < 20


def test_a_lost_schema_is_told(engine, monkeypatch):
    row = engine._row(0, call("a", max_tokens=2, schema={"enum": ["yes"]}))
    broken = SimpleNamespace(get_error=lambda: "at token 3", consume_token=lambda token: None, is_stopped=lambda: False)
    monkeypatch.setattr(engine, "_row", lambda index, request: replace(row, grammar=broken))
    monkeypatch.setattr(transformers_engine, "_allowed", lambda rows, logits: None)
    (lost,) = run(engine, [call("a", max_tokens=2)])
    assert isinstance(lost, WorkFailed) and str(lost) == "The schema was lost: at token 3"


@pytest.mark.parametrize("on_a_gpu", [True, False])
def test_what_an_engine_held_on_a_gpu_is_given_back(small, monkeypatch, on_a_gpu):
    given_back = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: on_a_gpu)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(True))
    engine = TransformersEngine(small)
    engine.close()
    assert given_back == [True] * on_a_gpu and not hasattr(engine, "language_model")


def test_without_a_template_one_text_is_read_as_it_is_and_no_conversation(small):
    class Bare:
        uses_chat_template = False

        def __getattr__(self, name):
            return getattr(small, name)

    bare = TransformersEngine(Bare())
    for roles in (("user",), ("assistant",), ("system",), ("system", "user"), ("user", "assistant"), ("user", "user")):
        (found,) = run(bare, [call("", messages=tuple(Message(role, "one") for role in roles), max_tokens=2)])
        assert isinstance(found, GenerationAnswer if roles == ("user",) else BadInput)


def test_a_matcher_writes_nothing_to_the_terminal(small, monkeypatch):
    llguidance = pytest.importorskip("llguidance", reason="response schemas need llguidance")
    made, matcher = [], llguidance.LLMatcher

    class Noted:
        validate_grammar_with_warnings = staticmethod(matcher.validate_grammar_with_warnings)

        def __new__(cls, *given, **named):
            made.append(named)
            return matcher(*given, **named)

    monkeypatch.setattr(llguidance, "LLMatcher", Noted)
    (answer,) = run(TransformersEngine(small), [call("a", schema={"enum": ["yes"]})])
    assert answer.text == '"yes"' and made == [{"log_level": 0}]
