import copy as copying
import datetime
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from equipoise.core.errors import BadInput, MissingExtra, WorkFailed
from equipoise.data.records import Record
from equipoise.language import catalog
from equipoise.language import model as loading
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


def bare(**changes):
    """A LanguageModel of made-up parts; its tokenizer knows ten tokens and its model has eight."""
    generation = SimpleNamespace(eos_token_id=None, pad_token_id=None, bos_token_id=None)
    config = SimpleNamespace(pad_token_id=None)
    config.get_text_config = lambda: config
    model = SimpleNamespace(
        config=config,
        generation_config=generation,
        get_input_embeddings=lambda: SimpleNamespace(weight=torch.zeros(8, 1)),
    )

    class Tokenizer:
        pad_token_id = unk_token_id = eos_token_id = bos_token_id = chat_template = None

        def __len__(self):
            return 10

        def convert_ids_to_tokens(self, identity):
            self.pad_token_id = identity
            return f"<{identity}>"

    tokenizer = Tokenizer()
    for name, value in changes.items():
        owner = {"pad": tokenizer, "unk": tokenizer, "eos": tokenizer, "bos": tokenizer, "configured": config}[name]
        setattr(owner, "pad_token_id" if name == "configured" else f"{name}_token_id", value)
    return model, tokenizer


@pytest.mark.parametrize(
    ("changes", "pad"),
    [
        ({"pad": 0, "configured": 3}, 0),
        ({"pad": 7, "eos": 2}, 7),
        ({"pad": 8, "configured": 3, "eos": 2}, 3),  # one that the model has no embedding for
        ({"pad": -1, "unk": 4, "eos": 2}, 4),
        ({"configured": 8, "unk": 9, "eos": 7}, 7),
        ({"configured": 0, "unk": 4}, 0),
        ({"eos": 2}, 2),
    ],
)
def test_what_pads(changes, pad):
    model, tokenizer = bare(**changes)
    found = LanguageModel(model, tokenizer, "m", "s")
    assert found.pad_id == model.generation_config.pad_token_id == model.config.pad_token_id == pad
    assert getattr(tokenizer, "pad_token", None) == (None if pad == changes.get("pad") else f"<{pad}>")


def test_nothing_that_could_pad():
    with pytest.raises(BadInput) as caught:
        LanguageModel(*bare(pad=9, eos=8), "m", "s")
    assert str(caught.value) == (
        "m: its tokenizer has no padding, unknown or end token that the model has an embedding for (8 tokens); set "
        "tokenizer.pad_token and save."
    )


@pytest.mark.parametrize(
    ("stated", "own", "settled", "ends"),
    [
        (None, None, None, set()),
        (None, 2, 2, {2}),
        (2, 2, 2, {2}),
        (5, 2, [5, 2], {5, 2}),
        ([5, 2], 2, [5, 2], {5, 2}),
        ([5], None, 5, {5}),
        ([5, 6], 0, [5, 6, 0], {5, 6, 0}),
        (0, None, 0, {0}),
    ],
)
def test_what_ends(stated, own, settled, ends):
    model, tokenizer = bare(pad=1, eos=own, bos=4)
    model.generation_config.eos_token_id = stated
    found = LanguageModel(model, tokenizer, "m", "s")
    assert model.generation_config.eos_token_id == settled and found.end_ids == ends
    assert model.generation_config.bos_token_id == 4
    model.generation_config.bos_token_id = 6
    LanguageModel(model, tokenizer, "m", "s")
    assert model.generation_config.bos_token_id == 6
    assert (found.chat_template, found.date, found.origin) == ("auto", datetime.date(2024, 7, 26), None)
    assert not found.uses_chat_template
    assert Origin("a") == Origin("a", None, False)


def test_the_context_is_what_the_configuration_says():
    model, tokenizer = bare(pad=1)
    found = LanguageModel(model, tokenizer, "m", "s")
    assert found.context == 2_147_483_648
    for stated, context in ((1, 1), (77, 77), (0, 2**31), (-1, 2**31), (None, 2**31)):
        model.config.max_position_embeddings = stated
        assert found.context == context
    assert found.vocabulary == 8 and found.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "asked", "found"),
    [
        (False, False, "auto", "cpu"),
        (False, True, "auto", "mps"),
        (True, True, "auto", "cuda"),
        (True, False, "cuda:1", "cuda:1"),
        (True, False, "cpu", "cpu"),
        (False, False, "meta", "meta"),
        (True, False, "cuda:2", "Device 'cuda:2' was asked for, but there are 2, counted from 0."),
        (False, True, "cuda", "Device 'cuda' was asked for, but this machine's torch has none: use --device cpu."),
        (True, False, "mps", "Device 'mps' was asked for, but this machine's torch has none: use --device cpu."),
        (True, True, "gpu", "Device 'gpu' is unknown. Did you mean 'cpu'?"),
    ],
)
def test_devices(monkeypatch, cuda, mps, asked, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    if len(found) < 8:
        assert loading._device(asked) == torch.device(found)
        return
    with pytest.raises(BadInput) as caught:
        loading._device(asked)
    assert str(caught.value) == found


def test_number_types():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [loading._dtype("auto", place) for place in (cpu, cuda, torch.device("mps"))] == [
        torch.float32,
        "auto",
        torch.float32,
    ]
    for name in ("float32", "bfloat16", "float16", "float64"):
        assert loading._dtype(name, cuda) == loading._dtype(getattr(torch, name), cpu) == getattr(torch, name)
    with pytest.raises(BadInput, match=r"Number type 'float8' is unknown\. Did you mean 'float\d\d'"):
        loading._dtype("float8", cpu)
    for name in ("float64", torch.float64):
        with pytest.raises(BadInput, match="mps has no float64: use dtype float32, or device cpu"):
            loading._dtype(name, torch.device("mps"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        *(
            (
                name,
                f"No model is called {name!r}, and there is no such folder. Known: smollm2, tiny. A model of the hub "
                "is written owner/name.",
            )
            for name in ("gpt2", "owner/")
        ),
        ("a/b/c", "a/b/c does not exist. . exists. Known names: smollm2, tiny."),
        ("./x/y", "x/y does not exist. . exists. Known names: smollm2, tiny."),
        ("~x", "~x does not exist. Known: file, good. Known names: smollm2, tiny."),
        ("a\\b", "a\\b does not exist. Known: file, good. Known names: smollm2, tiny."),
        ("x.gguf", "x.gguf does not exist. Known: file, good. Known names: smollm2, tiny."),
        ("good/models", ""),
        ("file/x/y", "file/x/y does not exist. file exists. Known names: smollm2, tiny."),
        ("good/tiny.gguf", "good/tiny.gguf does not exist. good exists. Known names: smollm2, tiny."),
    ],
)
def test_names_that_are_neither_here_nor_on_a_hub(tmp_path, monkeypatch, name, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good").mkdir()
    (tmp_path / "file").write_text("x")
    if sentence == "":
        loading._check_hub_name(name, Path(name), ("tiny", "smollm2"))
        return
    with pytest.raises(BadInput) as caught:
        loading._check_hub_name(name, Path(name), ("tiny", "smollm2"))
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("one\n two\t three\n\nrest", "one two three"),
        ("", "ValueError"),
        ("\n\nrest", "ValueError"),
        ("x" * 300, "x" * 300),
        ("x" * 301, "x" * 297 + "..."),
    ],
)
def test_the_first_sentence_of_an_error(text, told):
    assert loading._first_sentence(ValueError(text)) == told


def test_what_may_help(monkeypatch):
    own = "It brings its own code: pass trust_remote_code=True only if you have read it."
    assert loading._remedy("a/b", ValueError("needs trust_remote_code")) == f" {own}"
    assert (
        loading._remedy(Path("a"), ValueError("x"))
        == " The folder may be incomplete: write it again with save_pretrained."
    )
    for offline, told in (
        ("", ""),
        ("1", " HF_HUB_OFFLINE is set, so only models already in the hub's cache are found."),
    ):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        assert loading._remedy("a/b", ValueError("x")) == (
            f" Check the id, and that the hub can be reached.{told} 'smollm2' and a folder need no hub."
        )


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (1, "use a smaller model or shorter texts"),
        (2, "try a batch size of 1"),
        (3, "try a batch size of 1"),
        (32, "try a batch size of 16"),
    ],
)
def test_the_next_batch_size_is_half(size, told):
    with pytest.raises(WorkFailed) as caught, loading.memory_advice(size):
        raise MemoryError
    assert str(caught.value) == f"Out of memory at batch size {size}: {told}."


def test_folders_that_hold_no_model(tmp_path):
    def told():
        with pytest.raises(BadInput) as caught:
            loading._check_folder(tmp_path)
        return str(caught.value)

    no_config = (
        f"{tmp_path} holds no config.json, so it is no model folder. Give the folder that save_pretrained wrote, or a "
        ".gguf file."
    )
    assert told() == no_config
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).write_text("x")
    assert told() == f"{no_config} Did you mean {tmp_path / 'a.gguf'}?"
    for name in ("z", "y", "x"):
        (tmp_path / name).mkdir()
        if name != "x":
            (tmp_path / name / "config.json").write_text("{}")
    assert told() == f"{no_config} Did you mean {tmp_path / 'y'}?"
    (tmp_path / "config.json").write_text("{}")
    end = "Convert it where you trust it: load it with transformers and call save_pretrained."
    assert told() == f"{tmp_path} holds no *.safetensors: there is no weight file. {end}"
    for name in ("b.pth", "a.pt", "c.bin", "d.ckpt"):
        (tmp_path / name).write_text("x")
        first = min(path.name for path in tmp_path.iterdir() if path.suffix in (".pth", ".pt", ".bin", ".ckpt"))
        assert (
            told()
            == f"{tmp_path} holds no *.safetensors: {first} is a pickle, which can run code when it is read. {end}"
        )
    (tmp_path / "model.safetensors").write_text("x")
    assert told() == (
        f"{tmp_path} holds a model but no tokenizer (tokenizer.json, tokenizer.model, vocab.json ...). Save the "
        "model's own there: AutoTokenizer.from_pretrained(ITS_NAME).save_pretrained(FOLDER)."
    )
    (tmp_path / "tekken.json").write_text("{}")
    loading._check_folder(tmp_path)


def test_what_is_loaded_from_where(tmp_path, monkeypatch):
    """Catalogue, folder and hub, each with its number type, origin and sentence; the hub is asked for the last alone."""
    asked = []

    class Network:
        config = SimpleNamespace(_commit_hash=None)
        dtype = torch.float32

        def num_parameters(self):
            return 1_260_000

        def to(self, target):
            asked.append(str(target))
            return self

        def eval(self):
            asked.append("eval")
            return self

    tokenizer = SimpleNamespace(chat_template="its own")
    monkeypatch.setattr(loading, "settle_special_tokens", lambda *_: None)
    monkeypatch.setattr(
        loading, "_from_folder", lambda *given, **named: asked.append((given, named)) or (Network(), tokenizer)
    )
    monkeypatch.setattr(loading, "_check_folder", lambda path: asked.append(path))
    monkeypatch.setattr(catalog, "folder", lambda name: tmp_path / name)
    loaded = load("smollm2", device="cpu")
    assert asked == [((tmp_path / "smollm2", torch.float32), {}), "cpu", "eval"]
    assert (loaded.name, loaded.source, loaded.origin) == (
        "smollm2",
        catalog.CATALOG["smollm2"].source,
        Origin("smollm2"),
    )
    assert loaded.chat_template == "auto" and tokenizer.chat_template == "its own"
    asked.clear()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    loaded = load(
        "mine", device="meta", dtype="float64", trust_remote_code=True, chat_template="none", date="2025-01-02"
    )
    assert asked == [Path("mine"), ((Path("mine"), torch.float64), {"trust_remote_code": True}), "meta", "eval"]
    assert (loaded.name, loaded.source) == ("mine", "The folder mine (Network, 1.3 million parameters, float32).")
    assert loaded.origin == Origin(str(tmp_path / "mine"), None, True) and loaded.chat_template == "none"
    assert loaded.date == datetime.date(2025, 1, 2)
    asked.clear()
    for revision, commit, told in (("r", "abc", "abc"), ("r", None, "r"), (None, None, "an unstated revision")):
        Network.config._commit_hash = commit
        loaded = load("owner/name", device="cpu", revision=revision)
        assert loaded.source == f"owner/name of the model hub at {told} (Network, 1.3 million parameters, float32)."
        assert loaded.origin == Origin("owner/name", revision, False)
        assert asked[-3] == (("owner/name", torch.float32), {"trust_remote_code": False, "revision": revision})
    for name in ("smollm2", "mine"):
        with pytest.raises(BadInput) as caught:
            load(name, device="cpu", revision="x")
        assert str(caught.value) == f"{name} has no revisions, only models of the hub have: leave revision 'x' out."


def test_what_transformers_is_asked(monkeypatch):
    asked = []
    found = {"is_local": True, "local_files_only": False, "pad_token": "x"}
    made = {"AutoTokenizer": SimpleNamespace(init_kwargs=found), "AutoModelForCausalLM": SimpleNamespace()}
    for kind in made:
        monkeypatch.setattr(
            f"transformers.{kind}.from_pretrained",
            lambda where, kind=kind, **named: asked.append((kind, where, named)) or made[kind],
        )
    assert loading._from_folder("a/b", torch.float32) == tuple(made[kind] for kind in reversed(made))
    assert made["AutoTokenizer"].init_kwargs == {"pad_token": "x"}  # what is written on, wherever it was found
    assert loading._from_folder("a/b", "auto", trust_remote_code=True, revision="r")
    options = {"trust_remote_code": False, "revision": "main"}, {"trust_remote_code": True, "revision": "r"}
    assert asked == [
        (kind, "a/b", {**named, **more})
        for named, dtype in zip(options, (torch.float32, "auto"), strict=True)
        for kind, more in (("AutoTokenizer", {}), ("AutoModelForCausalLM", {"dtype": dtype, "use_safetensors": True}))
    ]

    def missing(where, **_):
        raise ImportError("needs x\n\nmore")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", missing)
    with pytest.raises(MissingExtra) as caught:
        loading._from_folder("a/b", torch.float32)
    assert str(caught.value) == "a/b needs a package that is not installed: needs x"


def test_it_is_loaded_again_as_it_was(monkeypatch, small, tmp_path):
    asked = []
    monkeypatch.setattr(loading, "load", lambda folder, **named: asked.append((folder, named)))
    plain = {
        "device": "cpu", "dtype": torch.float32, "trust_remote_code": False, "chat_template": "auto",
        "date": datetime.date(2024, 7, 26),
    }  # fmt: skip
    small.reload(tmp_path)
    replace(small, origin=Origin("a", None, True), chat_template="none", date=datetime.date(2025, 1, 2)).reload("x")
    assert asked == [
        (tmp_path, plain),
        ("x", plain | {"trust_remote_code": True, "chat_template": "none", "date": datetime.date(2025, 1, 2)}),
    ]


@pytest.mark.parametrize(
    "stated", [{}, {"base_model_name_or_path": 5}, {"base_model_name_or_path": ""}, {"base_model_name_or_path": "tiny"}]
)
def test_adapters_without_a_base(tmp_path, stated):
    (tmp_path / "adapter_config.json").write_text(json.dumps(stated))
    with pytest.raises(BadInput) as caught:
        load(tmp_path, device="cpu")
    assert str(caught.value) == (
        f"{tmp_path} is an adapter that names no base model to load: attach it with PeftModel to its own."
    )
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(BadInput, match=r"adapter_config.json cannot be read \(.*\): export the adapter again"):
        load(tmp_path, device="cpu")


def test_attention_that_is_unknown(fresh):
    fresh.use_attention("eager")
    assert fresh.model.config._attn_implementation == "eager"
    with pytest.raises(BadInput, match=r"^tiny cannot use the attention 'no such': [^\n]+$"):
        fresh.use_attention("no such")


@pytest.mark.parametrize("template", ["auto", "none"])
def test_words_that_are_no_file(template, tmp_path):
    assert loading.chat_template_text(template) is None
    (tmp_path / "t.jinja").write_text("{{ é }}", encoding="utf-8")
    assert loading.chat_template_text(str(tmp_path / "t.jinja")) == "{{ é }}"
    for wrong in ("Auto", str(tmp_path), str(tmp_path / "no.jinja")):
        with pytest.raises(BadInput) as caught:
            loading.chat_template_text(wrong)
        assert (
            str(caught.value)
            == f"Chat template {wrong!r} is neither 'auto' nor 'none' nor a file with a Jinja template."
        )


@pytest.mark.parametrize("name", ["m", "m.bin", "m.ggml", "m.safetensors", "m.zip"])
def test_a_file_that_is_no_gguf_is_refused_by_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(BadInput, match=f"{name} is a file: a model is a folder"):
        load(tmp_path / name)


def test_what_is_no_model_with_its_tokenizer(small, tmp_path):
    class Half:
        get_input_embeddings = "not callable"
        config = None

    for model, tokenizer, sentence in (
        (Half(), small.tokenizer, "Found a Half where a causal language model of transformers was expected."),
        (
            small.model,
            None,
            "Found no tokenizer beside a model that is given as an object: give tokenizer=, the model's own.",
        ),
        (
            small.model,
            5,
            "Found a int as tokenizer beside a model that is given as an object: give tokenizer=, the model's own.",
        ),
    ):
        with pytest.raises(BadInput) as caught:
            wrap(model, tokenizer)
        assert str(caught.value) == sentence
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    tokenizer = copying.deepcopy(small.tokenizer)
    found = wrap(small.model, tokenizer, chat_template=str(tmp_path / "t.jinja"), date="2025-01-02")
    assert (found.chat_template, tokenizer.chat_template, found.date) == (
        "auto",
        "{{ messages }}",
        datetime.date(2025, 1, 2),
    )
    assert found.name == "LlamaForCausalLM" and found.source == (
        f"LlamaForCausalLM, given in memory (LlamaForCausalLM, {small.model.num_parameters() / 1e6:.1f} million "
        "parameters, float32)."
    )


def test_each_module_is_in_its_own_mode_again():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(1, 1)))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError), loading.evaluating(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        raise KeyError
    assert [module.training for module in model.modules()] == modes == [True, True, False, False, False]
    assert torch.is_grad_enabled()


def test_a_file_is_read_in_the_precision_that_is_asked_for(tmp_path, monkeypatch):
    from equipoise.language import model as module

    asked = []
    monkeypatch.setattr(module, "read_gguf", lambda path, dtype: asked.append(dtype) or (None, None, "Q4"))
    monkeypatch.setattr(module, "_size", lambda model: "small")
    for dtype in (torch.bfloat16, "auto"):
        found = module._from_file(tmp_path / "m.GGUF", dtype)
        assert found == (None, None, "m.GGUF, de-quantised from Q4 (small).")
    assert asked == [torch.bfloat16, torch.float32]
    with pytest.raises(BadInput, match="is a file"):
        module._from_file(tmp_path / "m.bin", "auto")


def test_errors_are_told_by_their_first_sentence():
    from equipoise.language import model as module

    assert module._first_sentence(ValueError("one\n two\n\nthree")) == "one two"
    assert module._first_sentence(ValueError("")) == "ValueError"
    assert module._first_sentence(ValueError("a" * 300)) == "a" * 300
    assert module._first_sentence(ValueError("a" * 301)) == "a" * 297 + "..."
