"""The provider as Inspect's users meet it: `get_model("equipoise/...")`, its answers, refusals and life."""

import asyncio
import hashlib
import json
import subprocess
import sys
import threading
from types import SimpleNamespace

import jsonschema
import pytest

from chat_models import untaught, write_gguf

pytest.importorskip("inspect_ai", reason="the provider needs inspect-ai")
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ResponseSchema,
    get_model,
)
from inspect_ai.tool import ToolInfo
from inspect_ai.util import JSONSchema

from equipoise.chat import provider
from equipoise.core.errors import BadInput, MissingExtra
from equipoise.data.records import Message

TEXTS = ["one two three", "What is the capital of Norway?", "yes no", "maybe"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models as folders, and one as a GGUF file."""
    root = tmp_path_factory.mktemp("models")
    for seed in (3, 4):
        untaught(seed).save(root / f"model{seed}")
    write_gguf(root / "small.gguf")
    return root


@pytest.fixture
def model(folders):
    model = get_model(f"equipoise/{folders}/model3", memoize=False, device="cpu")
    yield model
    model.api.close()


def answers(calls):
    """calls: (model, text or messages, settings) that are made at once."""

    async def ask():
        return await asyncio.gather(*(m.generate(text, config=GenerateConfig(**config)) for m, text, config in calls))

    return asyncio.run(ask())


def test_mixed_temperatures_and_two_models_answer_as_alone(folders, monkeypatch):
    batches = []
    run = provider.Batcher._run
    monkeypatch.setattr(
        provider.Batcher,
        "_run",
        lambda self, batch: (batches.append((self, [call.request.settings for call in batch])), run(self, batch))[1],
    )
    models = [get_model(f"equipoise/{folders}/model{seed}", memoize=False, device="cpu") for seed in (3, 4)]
    settings = [{"max_tokens": 5, **config} for config in ({}, {"temperature": 0.7}, {"temperature": 1.5, "top_k": 9})]
    calls = [(model, text, config) for text in TEXTS for config in settings for model in models]
    together = answers(calls)
    assert len({batcher for batcher, _ in batches}) == 2
    assert all(len(set(shared)) == 1 for _, shared in batches) and max(len(shared) for _, shared in batches) == 4
    alone = [answers([call])[0] for call in calls]
    assert [reply.completion for reply in together] == [reply.completion for reply in alone]
    assert len({reply.completion for reply in together}) > 18
    for model in models:
        model.api.close()


def test_seeds_and_choices(model):
    warm = {"temperature": 1.5, "max_tokens": 6}
    calls = [warm, warm, {**warm, "seed": 1}, {**warm, "seed": 2}, {**warm, "seed": 1}, {**warm, "num_choices": 3}]
    same, again, one, two, one_again, three = answers([(model, "yes", config) for config in calls])
    assert same.completion == again.completion and one.completion == one_again.completion
    assert len({same.completion, one.completion, two.completion}) == 3
    assert three.choices[0].message.text == same.completion
    assert len({choice.message.text for choice in three.choices}) == 3
    assert three.usage.output_tokens == sum(6 for _ in three.choices)


def test_what_an_answer_tells(model):
    (reply,) = answers([(model, "one", {"max_tokens": 5, "logprobs": True, "top_logprobs": 2})])
    assert reply.stop_reason == "max_tokens" and reply.time > 0
    assert reply.usage.output_tokens == 5 and reply.usage.total_tokens == reply.usage.input_tokens + 5
    content = reply.choices[0].logprobs.content
    assert "".join(entry.token for entry in content).removeprefix(" ") == reply.completion
    assert [len(entry.top_logprobs) for entry in content] == [2] * 5
    assert content[0].logprob == content[0].top_logprobs[0].logprob < 0  # greedy without a temperature
    (plain,) = answers([(model, "one", {"max_tokens": 5})])
    assert plain.completion == reply.completion and plain.choices[0].logprobs is None
    (mark,) = answers([(model, "one", {"max_tokens": 5, "stop_seqs": [reply.completion[3:5]]})])
    assert (mark.completion, mark.stop_reason) == (reply.completion.split(reply.completion[3:5])[0], "stop")


@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_response_schema(folders, engine):
    pytest.importorskip("llguidance", reason="response schemas need llguidance")
    place = "small.gguf" if engine == "llama.cpp" else "model3"
    if engine == "llama.cpp":
        pytest.importorskip("xllamacpp", reason="the engine llama.cpp needs xllamacpp")
    model = get_model(f"equipoise/{folders}/{place}", memoize=False, engine=engine)
    properties = {"choice": JSONSchema(enum=["A", "B"]), "sure": JSONSchema(type="boolean")}
    schema = JSONSchema(type="object", properties=properties, required=["choice", "sure"], additionalProperties=False)
    asked = {"response_schema": ResponseSchema(name="verdict", json_schema=schema), "temperature": 2.0}
    replies = answers([(model, text, {**asked, "max_tokens": 40}) for text in TEXTS])
    for reply in replies:
        assert reply.stop_reason == "stop"
        jsonschema.validate(json.loads(reply.completion), schema.model_dump(exclude_none=True))
    (cut,) = answers([(model, "one", {**asked, "max_tokens": 3})])
    assert cut.stop_reason == "max_tokens"
    model.api.close()


def test_conversations(model):
    turns = [ChatMessageSystem(content="be brief"), ChatMessageUser(content="one"), ChatMessageAssistant(content="two")]
    (begun,) = answers([(model, turns, {"max_tokens": 4})])
    (next_turn,) = answers([(model, [*turns, ChatMessageUser(content="three")], {"max_tokens": 4})])
    tokenizer = model.api._loaded.batcher.engine.language_model.tokenizer
    rendered = "<|begin|><|system|>be brief<|user|>one<|assistant|>two"
    for reply, text in ((begun, rendered), (next_turn, rendered + "<|end|><|user|>three<|assistant|>")):
        assert reply.usage.input_tokens == len(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty is not known"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"stop_seqs": [""]}, "stop sequence is empty"),
    ],
)
def test_settings_that_are_refused(model, config, message):
    with pytest.raises(BadInput, match=message):
        answers([(model, "one", config)])


def test_what_cannot_be_asked(model):
    async def with_tool():
        return await model.generate("one", tools=[ToolInfo(name="search", description="searches")])

    with pytest.raises(BadInput, match="calls no tools: leave 'search' out"):
        asyncio.run(with_tool())
    with pytest.raises(BadInput, match="'image'; these models read text alone"):
        answers([(model, [ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])], {})])
    with pytest.raises(BadInput, match="reads 128 with the answer: shorten it"):
        answers([(model, "one " * 200, {})])
    assert not model.api.should_retry(BadInput("too long"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bach_size": 3}, "no argument 'bach_size'. Did you mean 'batch_size'"),
        ({"engine": "llama"}, "Engine 'llama' is unknown. Did you mean 'llama.cpp'"),
        ({"engine": "transformers", "threads": 2}, "engine transformers has no threads"),
        ({"device": "cpu", "engine": "llama.cpp"}, "engine llama.cpp has no device"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"engine": "llama.cpp"}, "is no GGUF file"),
        ({"device": "gpu"}, "Device 'gpu' is unknown"),
    ],
)
def test_arguments_that_are_refused(folders, arguments, message):
    with pytest.raises(BadInput, match=message):
        get_model(f"equipoise/{folders}/model3", memoize=False, **arguments)


def test_names_that_cannot_be_loaded(folders):
    with pytest.raises(BadInput, match="Did you mean"):
        get_model("equipoise/smollm3", memoize=False)
    with pytest.raises(BadInput, match="does not exist"):
        get_model(f"equipoise/{folders}/none.gguf", memoize=False, engine="llama.cpp")


def test_default_engine(folders, monkeypatch):
    import torch

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = provider.importlib.util.find_spec
    monkeypatch.setattr(provider.importlib.util, "find_spec", lambda name: True if name == "xllamacpp" else found(name))
    gguf = str(folders / "small.gguf")
    assert [provider._default_engine(name, {}) for name in ("smollm2", gguf)] == ["llama.cpp"] * 2
    others = ("owner/name", str(folders), "a.bin", "a.safetensors")
    assert [provider._default_engine(name, {}) for name in others] == ["transformers"] * 4
    assert provider._default_engine(gguf, {"dtype": "float32"}) == "transformers"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert provider._default_engine("smollm2", {}) == "transformers"
    assert provider._default_engine("smollm2", {"threads": 1}) == "llama.cpp"
    monkeypatch.setattr(provider.importlib.util, "find_spec", lambda name: None)
    assert provider._default_engine(gguf, {}) == "transformers"
    with pytest.raises(MissingExtra, match=r"pip install 'equipoise\[llamacpp\]'"):
        get_model(f"equipoise/{gguf}", memoize=False, engine="llama.cpp")


def test_one_loaded_model_until_the_last_is_closed(folders):
    name = f"equipoise/{folders}/model3"
    first = get_model(name, memoize=False, device="cpu")
    second = get_model(name, memoize=False, device="cpu", config=GenerateConfig(temperature=1.0))
    other = get_model(name, memoize=False, device="cpu", batch_size=2)
    assert first.api._loaded is second.api._loaded is not other.api._loaded
    assert get_model(name, device="cpu") is get_model(name, device="cpu")
    get_model(name, device="cpu").api.close()
    first.api.close()
    first.api.close()
    (kept,) = answers([(second, "one", {"max_tokens": 3, "temperature": 0})])
    asyncio.run(second.api.aclose())
    other.api.close()
    assert not provider._loaded
    (anew,) = answers([(second, "one", {"max_tokens": 3, "temperature": 0})])  # Inspect keeps closed models
    assert anew.completion == kept.completion
    second.api.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("equipoise ")]


def generation(text="q", **config):
    return provider._requests([ChatMessageUser(content=text)], GenerateConfig(**config))


def test_what_is_asked_unless_it_is_said():
    (request,) = generation()
    settings = provider.GenerationSettings(0.0, 1.0, 0, (), None)
    turns = (Message("user", "q"),)
    assert request == provider.GenerationRequest(turns, settings, 2048, request.seed, None)
    # Another number here would give every model in this process other answers to the same calls.
    assert request.seed == 430590715 and generation(num_choices=2)[1].seed != request.seed
    (request,) = generation(
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        stop_seqs=["a", "b"],
        max_tokens=1,
        logprobs=True,
        top_logprobs=3,
        num_choices=1,
    )
    assert request.settings == provider.GenerationSettings(0.5, 0.25, 7, ("a", "b"), 3) and request.max_tokens == 1
    for on, most, told in ((None, 3, None), (False, 3, None), (True, None, 0), (True, 0, 0), (True, 2, 2)):
        assert generation(logprobs=on, top_logprobs=most)[0].settings.logprobs == told
    assert [generation(top_k=k)[0].settings.top_k for k in (-1, 0, 1)] == [0, 0, 1]
    assert generation(temperature=0.0, top_p=1.0, frequency_penalty=0.0)[0].settings == settings


def test_every_part_of_a_call_decides_its_random_numbers():
    """And nothing else: whoever asks the same gets the same, in any process."""
    seeds = [
        request.seed
        for config in (
            {}, {"seed": 1}, {"temperature": 1}, {"top_p": 0.5}, {"top_k": 3}, {"stop_seqs": ["x"]}, {"max_tokens": 9},
            {"logprobs": True}, {"num_choices": 3},
            {"response_schema": ResponseSchema(name="a", json_schema=JSONSchema(type="object"))},
        )
        for request in generation(**config)
    ]  # fmt: skip
    seeds += [generation("r")[0].seed]
    assert len(set(seeds)) == len(seeds) - 1  # the first of three choices is the call alone
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert provider._seed(["a", 1]) == int.from_bytes(hashlib.sha256(b'["a", 1]').digest()[:4], "big") // 2


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"temperature": -0.1}, "The temperature is -0.1: use 0 for the likeliest answer, or a number above."),
        ({"temperature": float("inf")}, "The temperature is inf: use 0 for the likeliest answer, or a number above."),
        ({"top_p": 0.0}, "top_p is 0.0: use a share above 0, at most 1."),
        ({"top_p": 1.01}, "top_p is 1.01: use a share above 0, at most 1."),
        ({"max_tokens": 0}, "max_tokens is 0: use at least 1."),
        ({"stop_seqs": ["a", ""]}, "A stop sequence is empty, which would end every answer before it begins: leave it out."),
        *(
            ({name: value}, f"{name} is not known to the models of equipoise: leave it out.")
            for name, value in (
                ("frequency_penalty", 1.0), ("presence_penalty", 1.0), ("logit_bias", {1: 2.0}), ("best_of", 2),
                ("prompt_logprobs", 1), ("extra_body", {"a": 1}),
            )
        ),
    ],
)  # fmt: skip
def test_settings_that_no_engine_has(config, sentence):
    with pytest.raises(BadInput) as caught:
        generation(**config)
    assert str(caught.value) == sentence


def test_messages_that_cannot_be_read():
    for messages, sentence in (
        ([], "There is no message to answer: give at least one."),
        (
            [ChatMessageTool(content="42")],
            "A message holds the result of a tool, and the models of equipoise call none: leave it out.",
        ),
        (
            [ChatMessageUser(content=[ContentText(text="a"), ContentImage(image="data:image/png;base64,AA==")])],
            "A message holds a part of the type 'image'; these models read text alone.",
        ),
    ):
        with pytest.raises(BadInput) as caught:
            provider._requests(messages, GenerateConfig())
        assert str(caught.value) == sentence
    parts = [ContentReasoning(reasoning="hm"), ContentText(text="a")]
    assert provider._turn(ChatMessageAssistant(content=parts)) == Message("assistant", "a")
    schema = ResponseSchema(
        name="a", json_schema=JSONSchema(type="object", properties={"x": JSONSchema(type="integer")})
    )
    begun = [ChatMessageUser(content="q"), ChatMessageAssistant(content="{")]
    with pytest.raises(BadInput, match="both go on from a given beginning and follow a response schema: drop one"):
        provider._requests(begun, GenerateConfig(response_schema=schema))
    (request,) = generation(response_schema=schema)
    assert json.loads(request.schema) == {"type": "object", "properties": {"x": {"type": "integer"}}}


def test_an_output_as_inspect_has_it():
    top = (provider.Token("a", -0.5, b"a"), provider.Token("\ufffd", -1.5, None))
    answers = [
        provider.GenerationAnswer(
            "ab", "max_tokens", 7, 2, (provider.Token("a", -0.5, b"a", top), provider.Token("b", -1.0, b"b"))
        ),
        provider.GenerationAnswer("", "stop", 7, 3),
    ]  # fmt: skip
    output = provider._output("equipoise/m", answers, 1.5, GenerateConfig(logprobs=True))
    assert (output.model, output.time) == ("equipoise/m", 1.5)
    assert (output.usage.input_tokens, output.usage.output_tokens, output.usage.total_tokens) == (7, 5, 12)
    told = [(each.message.text, each.message.model, each.message.source, each.stop_reason) for each in output.choices]
    assert told == [("ab", "equipoise/m", "generate", "max_tokens"), ("", "equipoise/m", "generate", "stop")]
    assert output.choices[0].logprobs.model_dump()["content"] == [
        {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "\ufffd", "logprob": -1.5, "bytes": None}]},
        {"token": "b", "logprob": -1.0, "bytes": [98], "top_logprobs": []},
    ]  # fmt: skip
    assert output.choices[1].logprobs.content == []
    assert provider._output("m", answers, 1.5, GenerateConfig()).choices[0].logprobs is None


def test_arguments_with_the_engine_settled(monkeypatch):
    monkeypatch.setattr(provider, "_default_engine", lambda name, arguments: "llama.cpp")
    assert provider._arguments("m", {}) == {"engine": "llama.cpp"}
    assert provider._arguments("m", {"threads": 1, "parallel": 1, "context": None, "chat_template": "none"}) == {
        "threads": 1, "parallel": 1, "chat_template": "none", "engine": "llama.cpp",
    }  # fmt: skip
    whole = {"engine": "transformers", "trust_remote_code": False, "batch_size": 1, "context": 1, "date": "2024-01-01"}
    assert provider._arguments("m", whole) == whole and provider._arguments("m", whole) is not whole
    other = "leave it out, or choose the other engine"
    for given, sentence in (
        *(({name: value}, f"{name} is {value!r}: use a whole number of at least 1.")
          for name in ("context", "batch_size", "threads", "parallel") for value in (0, True, 1.5, "2")),
        ({"trust_remote_code": "yes"}, "trust_remote_code is 'yes': use true or false."),
        ({"trust_remote_code": 1}, "trust_remote_code is 1: use true or false."),
        ({"engine": "torch"}, "Engine 'torch' is unknown. Known: llama.cpp, transformers."),
        ({"thread": 1}, "equipoise/m takes no argument 'thread'. Did you mean 'threads'?"),
        *(({"engine": "transformers", name: 2}, f"The engine transformers has no {name}: {other}.")
          for name in ("threads", "parallel")),
        *(({"engine": "llama.cpp", name: value}, f"The engine llama.cpp has no {name}: {other}.")
          for name, value in (("device", "cpu"), ("dtype", "x"), ("revision", "x"), ("trust_remote_code", True),
                              ("batch_size", 2), ("date", "x"))),
    ):  # fmt: skip
        with pytest.raises(BadInput) as caught:
            provider._arguments("m", given)
        assert str(caught.value) == sentence


def test_what_the_engines_are_made_with(monkeypatch, tmp_path):
    from equipoise.chat import llama_engine, transformers_engine
    from equipoise.language import model as language

    made = []
    monkeypatch.setattr(llama_engine, "LlamaEngine", lambda *given, **named: made.append((given, named)) or "llama")
    monkeypatch.setattr(
        transformers_engine, "TransformersEngine", lambda *given, **named: made.append((given, named)) or "torch"
    )
    monkeypatch.setattr(language, "load", lambda name, **named: made.append((name, named)) or "loaded")
    monkeypatch.setattr(provider, "_gguf", lambda name: tmp_path / name)
    assert provider._engine("m", {"engine": "llama.cpp"}) == ("llama", 1, 1)
    assert provider._engine(
        "m", {"engine": "llama.cpp", "threads": 3, "parallel": 4, "context": 5, "chat_template": "none"}
    ) == ("llama", 1, 4)  # fmt: skip
    assert provider._engine("m", {"engine": "transformers"}) == ("torch", 32, 1)
    options = {
        "device": "cpu",
        "dtype": "x",
        "revision": "r",
        "trust_remote_code": True,
        "chat_template": "none",
        "date": "d",
    }
    assert provider._engine("m", {"engine": "transformers", "batch_size": 6, "context": 7, **options}) == (
        "torch",
        6,
        1,
    )
    assert made == [
        ((tmp_path / "m",), {"name": "m", "threads": None, "parallel": 1}),
        ((tmp_path / "m",), {"name": "m", "threads": 3, "parallel": 4, "context": 5, "chat_template": "none"}),
        ("m", {}),
        (("loaded",), {"context": None}),
        ("m", options),
        (("loaded",), {"context": 7}),
    ]


def test_files_that_llama_cpp_does_not_take(tmp_path, monkeypatch):
    monkeypatch.setattr(provider.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(provider.catalog, "gguf_file", lambda name: f"the file of {name}")
    assert provider._gguf("smollm2") == "the file of smollm2"
    (tmp_path / "SMALL.GGUF").write_bytes(b"GGUF and more")
    assert provider._gguf(str(tmp_path / "SMALL.GGUF")) == tmp_path / "SMALL.GGUF"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert provider._gguf("~/SMALL.GGUF") == tmp_path / "SMALL.GGUF"
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "model.bin").write_text("x")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "odd.gguf").write_bytes(b"GGU")
    for name, reason in (
        ("text.txt", "is no GGUF file"),
        ("model.bin", "is no GGUF file"),
        ("folder.gguf", "is no GGUF file"),
        ("no.gguf", "does not exist"),
    ):
        with pytest.raises(BadInput) as caught:
            provider._gguf(str(tmp_path / name))
        assert str(caught.value) == (
            f"{tmp_path / name} {reason}: the engine llama.cpp takes a .gguf file or a name of the catalogue (smollm2); for "
            "others use engine=transformers."
        )
    with pytest.raises(BadInput, match="not a GGUF file"):
        provider._gguf(str(tmp_path / "odd.gguf"))


def test_what_inspect_asks_the_provider(monkeypatch):
    engine = SimpleNamespace(name="m", close=lambda: None)
    monkeypatch.setattr(provider, "_engine", lambda name, arguments: (engine, 3, 2))
    api = provider.EquipoiseAPI("owner/name", device="cpu")
    assert (api.max_tokens(), api.max_connections(), api.collapse_user_messages()) == (2048, 12, True)
    assert json.loads(api.connection_key()) == ["owner/name", {"device": "cpu", "engine": "transformers"}]
    other = provider.EquipoiseAPI("owner/name", engine="transformers", device="cpu")
    assert other._loaded is api._loaded and api._loaded.users == 2
    assert other._loaded != provider._Loaded(api._loaded.key, api._loaded.batcher, 6, 2)  # it may have been let go
    api.close()
    assert api.max_connections() == 2 and other._loaded.users == 1
    other.close()
    assert not provider._loaded
    with pytest.raises(BadInput) as caught:
        provider.EquipoiseAPI("m", "http://h")
    assert str(caught.value) == "equipoise/m runs in this process and has no base URL: leave 'http://h' out."


@pytest.mark.slow
def test_entry_point_takes_no_torch():
    code = "import sys, equipoise.plugin; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes

@task
def capitals():
    questions = {"Name the capital of France.": "Paris", "Name the capital of England.": "London"}
    return Task([Sample(question, target=answer) for question, answer in questions.items()], scorer=includes())
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["transformers", "llama.cpp"])
def test_inspect_eval(tmp_path, engine):
    from equipoise.language.catalog import is_cached

    if not is_cached("smollm2"):
        pytest.skip("smollm2 is not in the cache")
    if engine == "llama.cpp":
        pytest.importorskip("xllamacpp", reason="the engine llama.cpp needs xllamacpp")
    (tmp_path / "capitals.py").write_text(TASK)
    command = [
        sys.executable,
        "-m",
        "inspect_ai",
        "eval",
        "capitals.py",
        "--model=equipoise/smollm2",
        "-M",
        f"engine={engine}",
    ]
    command += ["--max-tokens=16", "--log-format=json", "--display=plain", f"--log-dir={tmp_path}/logs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (log,) = (tmp_path / "logs").glob("*.json")
    result = json.loads(log.read_text())
    assert result["status"] == "success"
    assert result["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 1.0
