import datetime
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from equipoise.core.errors import BadInput
from equipoise.data.records import Record
from equipoise.language.adapters import attach, export
from equipoise.language.encode import encode
from equipoise.language.model import LanguageModel, Origin, load, wrap
from equipoise.language.rehearsal import rehearse
from equipoise.language.tiny import tiny


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "good"
    small.save(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def test_folder_gives_the_same_model(small, folder):
    loaded = load(str(folder), device="cpu")
    ids = torch.tensor([[1, 50, 60]])
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, small.model(ids).logits)
    assert loaded.model.dtype == torch.float32 and not loaded.model.training
    assert loaded.source.startswith("The folder good (LlamaForCausalLM, ")
    assert loaded.uses_chat_template and loaded.name == str(folder)


def test_number_type_and_device(folder):
    assert load(folder, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    assert load(folder, device="cpu", dtype=torch.float64).model.dtype == torch.float64
    with pytest.raises(BadInput, match="Did you mean 'float32'"):
        load(folder, dtype="float_32")
    with pytest.raises(BadInput, match=r"Device 'gpu' is unknown"):
        load(folder, device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="use --device cpu"):
            load(folder, device="cuda")


def test_half_precision_checkpoint_is_float32_on_the_cpu(small, tmp_path):
    load_dtype = torch.bfloat16
    saved = tiny(["one two"], seed=0, width=16, layers=1, heads=1)
    saved.model.to(load_dtype)
    saved.save(tmp_path)
    assert load(tmp_path, device="cpu").model.dtype == torch.float32


def test_chat_template_choices(folder, tmp_path):
    assert not load(folder, device="cpu", chat_template="none").uses_chat_template
    template = tmp_path / "mine.jinja"
    template.write_text("{% for message in messages %}[{{ message['content'] }}]{% endfor %}")
    own = load(folder, device="cpu", chat_template=str(template))
    assert own.uses_chat_template and own.tokenizer.chat_template == template.read_text()
    with pytest.raises(BadInput, match="neither 'auto' nor 'none' nor a file"):
        load(folder, chat_template="atuo")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny", "taught on the spot"),
        ("smollm", "Did you mean 'smollm2'"),
        ("gpt2", "A model of the hub is written owner/name"),
        ("./no/such/folder", "does not exist"),
        ("/no/such/model.gguf", "does not exist"),
    ],
)
def test_names_that_nothing_has(name, message, monkeypatch):
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: pytest.fail("looked it up"))
    with pytest.raises(BadInput, match=message):
        load(name)


def test_mistyped_path_names_its_neighbour(folder):
    with pytest.raises(BadInput, match="Did you mean 'good'"):
        load(folder.parent / "god")


def test_hub_id_offline_is_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=r"(?s)nobody/nothing cannot be loaded: .*HF_HUB_OFFLINE is set") as caught:
        load("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_folder_without_config_points_inside(folder):
    with pytest.raises(BadInput, match=r"holds no config.json.*Did you mean .*good\?"):
        load(folder.parent)


def test_folder_without_tokenizer(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="a model but no tokenizer"):
        load(copy)


def test_pickles_are_refused_unread(copy):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(BadInput, match=r"pytorch_model.bin is a pickle, which can run code"):
        load(copy)


@pytest.mark.parametrize("damage", ["truncated weights", "broken config", "unknown architecture"])
def test_damaged_folder_is_one_sentence(copy, damage):
    config = copy / "config.json"
    if damage == "truncated weights":
        weights = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif damage == "broken config":
        config.write_text("{")
    else:
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"model_type": "nosuch", "architectures": ["No"]})
        )
    with pytest.raises(BadInput) as caught:
        load(copy, device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_file_that_is_no_gguf(tmp_path):
    for name, message in (("model.safetensors", "a model is a folder"), ("model.gguf", "not a GGUF file")):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(BadInput, match=message):
            load(tmp_path / name)


def test_padding_policy(small):
    def settled(pad, unknown, end, configured=None):
        model = tiny(["one two"], seed=0, width=16, layers=1, heads=1)
        tokenizer = model.tokenizer
        tokenizer.pad_token, tokenizer.unk_token, tokenizer.eos_token = pad, unknown, end
        model.model.config.pad_token_id, model.model.generation_config.eos_token_id = configured, None
        return LanguageModel(model.model, tokenizer, "name", "source")

    assert settled("<|pad|>", None, "<|end|>").tokenizer.pad_token == "<|pad|>"
    assert settled(None, "<|tool|>", "<|end|>", configured=4).pad_id == 4
    assert settled(None, "<|tool|>", "<|end|>").tokenizer.pad_token == "<|tool|>"
    only_end = settled(None, None, "<|end|>")
    assert only_end.pad_id == only_end.tokenizer.eos_token_id == 2
    assert only_end.end_ids == {2} and only_end.model.generation_config.pad_token_id == 2
    assert only_end.model.config.pad_token_id == 2
    with pytest.raises(BadInput, match="no padding, unknown or end token"):
        settled(None, None, None)


def test_every_end_of_the_checkpoint_counts(small):
    model = tiny(["one two"], seed=0, width=16, layers=1, heads=1)
    model.model.generation_config.eos_token_id = [5, 6]
    assert LanguageModel(model.model, model.tokenizer, "name", "source").end_ids == {5, 6, 2}


def test_a_tokenizer_that_knows_more_tokens_than_the_model(copy):
    """Loaded all the same; padding falls to a token that the model has, and a text that needs another is refused."""
    tokenizer = tiny(["one two three four"] * 3, seed=0, width=16, layers=1, heads=1).tokenizer
    tokenizer.add_special_tokens({"extra_special_tokens": ["<picture>"], "pad_token": "<last>"})
    tokenizer.save_pretrained(copy)
    config = json.loads((copy / "config.json").read_text()) | {"vocab_size": 270, "num_hidden_layers": 0}
    (copy / "config.json").write_text(json.dumps(config))
    state = {"model.embed_tokens.weight": torch.zeros(270, 32), "model.norm.weight": torch.ones(32)}
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    loaded = load(copy, device="cpu", chat_template="none")
    assert len(loaded.tokenizer) > loaded.vocabulary == 270 > loaded.pad_id
    assert encode(loaded, [Record(id="a", prompt="on", completion="e")])
    with pytest.raises(
        BadInput, match=r"Record 'b' holds the token '.+', number \d+ from 0, but .* has embeddings for 270"
    ):
        encode(loaded, [Record(id="b", prompt="one", completion="four <picture>")])


def test_loaded_again_as_it_was_loaded(small, copy, tmp_path):
    """A folder with code of its own: what was allowed when it was loaded is allowed when its result is."""
    (copy / "modeling_mine.py").write_text(
        "from transformers import LlamaForCausalLM, LlamaConfig\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MineForCausalLM(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    names = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    stated = {"model_type": "mine", "architectures": ["MineForCausalLM"], "auto_map": names}
    (copy / "config.json").write_text(json.dumps(json.loads((copy / "config.json").read_text()) | stated))
    with pytest.raises(BadInput, match="brings its own code"):
        load(copy, device="cpu")
    date = datetime.date(2026, 1, 2)
    loaded = load(
        copy, device="cpu", dtype="bfloat16", chat_template="none", trust_remote_code=True, date=date.isoformat()
    )
    assert loaded.origin == Origin(str(copy.resolve()), None, True)
    rehearse(loaded)
    loaded.save(tmp_path / "written")
    again = loaded.reload(tmp_path / "written")
    assert type(again.model).__name__ == "MineForCausalLM" and again.model.dtype == torch.bfloat16
    assert (again.chat_template, again.date) == ("none", date)
    rehearse(attach(loaded, rank=2, seed=0), writes="adapter")
    adapted = attach(again, rank=2, seed=0)
    export(adapted, tmp_path / "adapter")
    merged = adapted.reload(tmp_path / "adapter")
    assert type(merged.model).__name__ == "MineForCausalLM" and merged.origin.trust_remote_code
    with pytest.raises(BadInput, match="brings its own code"):
        load(tmp_path / "adapter", device="cpu")


def test_what_only_a_hub_has_is_refused_for_a_folder(folder):
    with pytest.raises(BadInput, match=r"has no revisions, only models of the hub have: leave revision 'main' out"):
        load(folder, revision="main")
    with pytest.raises(BadInput, match="Did you mean 'none'"):
        load(folder, device="cpu").__class__(None, None, "a", "b", chat_template="nome")


def test_a_context_that_is_not_stated(small):
    model = tiny(["one two"], seed=0, width=16, layers=1, heads=1)
    for stated in (-1, 0):
        model.model.config.max_position_embeddings = stated
        assert model.context == 2**31


def test_a_template_that_is_no_text(folder, tmp_path):
    (tmp_path / "template.jinja").write_bytes(b"\xff\xfe{{ messages }}")
    with pytest.raises(BadInput, match=r"template.jinja: the chat template cannot be read .*UTF-8"):
        load(folder, chat_template=str(tmp_path / "template.jinja"))


def test_a_model_in_memory_with_its_tokenizer(small, folder):
    wrapped = wrap(small.model, small.tokenizer, chat_template="none", name="mine")
    assert wrapped.model is small.model and wrapped.tokenizer is small.tokenizer
    assert (wrapped.name, wrapped.chat_template, wrapped.origin) == ("mine", "none", None)
    assert wrapped.source.startswith("mine, given in memory (")
    found = load(folder)
    assert wrap(found.model, found.tokenizer).name == folder.name  # what transformers loaded it from
    with pytest.raises(BadInput, match=r"no tokenizer beside a model.*tokenizer="):
        wrap(small.model, None)
    with pytest.raises(BadInput, match="Found a Linear where a causal language model"):
        wrap(torch.nn.Linear(1, 1), small.tokenizer)


@pytest.mark.parametrize("asked", ["cuda:2", "cuda"])
def test_a_gpu_that_is_not_there_is_counted_from_0(asked, folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if ":" in asked else 0)
    with pytest.raises(BadInput, match=f"Device '{asked}' was asked for, but there are [02], counted from 0"):
        load(folder, device=asked)
