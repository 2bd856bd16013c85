"""The provider as Inspect's users meet it: `get_model("equipoise/...")`, its answers, refusals and life."""

import asyncio
import json
import subprocess
import sys
import threading

import jsonschema
import pytest

from chat_models import untaught, write_gguf

pytest.importorskip("inspect_ai", reason="the provider needs inspect-ai")
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    ResponseSchema,
    get_model,
)
from inspect_ai.tool import ToolInfo
from inspect_ai.util import JSONSchema

from equipoise.chat import provider
from equipoise.core.errors import BadInput, MissingExtra

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
    assert [provider._default_engine(name, {}) for name in ("owner/name", str(folders))] == ["transformers"] * 2
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
