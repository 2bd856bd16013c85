"""A small Llama is written as GGUF with the `gguf` package and read back."""

import contextlib
import json
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from equipoise.core.errors import BadInput
from equipoise.language import gguf as reading
from equipoise.language.model import load

TEXT = "1. One apple\n2. Two pears\n\n12. Twelve  7 plums  \n\n3rd line, it's 40 %"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def reference_tokenizer() -> Tokenizer:
    """As SmolLM2's own tokenizer.json: digits apart, then GPT-2's pattern."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT, "\n\n\n\n one  two"] * 5, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = reference_tokenizer()
    vocabulary = tokenizer.get_vocab_size()
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=77, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("small")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(77)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([tokenizer.id_to_token(i) for i in range(vocabulary)])
    writer.add_token_types([3 if i < len(SPECIAL) else 1 for i in range(vocabulary)])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    parts = {
        "attn_q": model.model.layers[0].self_attn.q_proj,
        "attn_k": model.model.layers[0].self_attn.k_proj,
        "attn_v": model.model.layers[0].self_attn.v_proj,
        "attn_output": model.model.layers[0].self_attn.o_proj,
        "ffn_gate": model.model.layers[0].mlp.gate_proj,
        "ffn_up": model.model.layers[0].mlp.up_proj,
        "ffn_down": model.model.layers[0].mlp.down_proj,
        "attn_norm": model.model.layers[0].input_layernorm,
        "ffn_norm": model.model.layers[0].post_attention_layernorm,
    }
    tensors = {f"blk.0.{name}.weight": part.weight for name, part in parts.items()}
    tensors |= {"token_embd.weight": model.model.embed_tokens.weight, "output_norm.weight": model.model.norm.weight}
    for name, tensor in tensors.items():
        array = tensor.detach().numpy()
        if name.split(".")[2:3] in (["attn_q"], ["attn_k"]):  # llama.cpp's order of the rotated pairs
            heads = 2 if "attn_q" in name else 1
            array = array.reshape(heads, 2, array.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)
        if tensor.dim() == 2 and name != "token_embd.weight":
            writer.add_tensor(name, gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0),
                              raw_dtype=gguf.GGMLQuantizationType.Q8_0)  # fmt: skip
        else:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, model, tokenizer


def test_weights_and_source(written, capfd):
    path, model, _ = written
    loaded = load(path, device="cpu")
    ids = torch.tensor([[5, 9, 200, 17]])
    with torch.no_grad():
        found, expected = loaded.model(ids).logits, model(ids).logits
    assert 0 < (found - expected).abs().max() < 0.02 * expected.abs().max()  # 8 bits: near, not equal
    assert loaded.source.startswith("small.gguf, de-quantised from Q8_0 (LlamaForCausalLM")
    assert loaded.model.dtype == torch.float32
    assert loaded.model.hf_quantizer is None and not hasattr(loaded.model.config, "quantization_config")
    assert "%|" not in capfd.readouterr().err


def test_tokenizer_follows_the_file(written):
    path, _, reference = written
    tokenizer = load(path, device="cpu").tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.unk_token, tokenizer.pad_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer.model_max_length == 77
    for text in (TEXT, "a\n\n1", "x  5", "é 漢 7", "<|im_start|>user\n\n\n3<|im_end|>"):
        ids = tokenizer(text).input_ids
        assert ids == reference.encode(text).ids
        assert tokenizer.decode(ids) == text


def test_saved_as_safetensors_it_is_the_same(written, tmp_path):
    loaded = load(written[0], device="cpu")
    loaded.save(tmp_path)
    again = load(tmp_path, device="cpu")
    ids = torch.tensor([[5, 9, 200, 17]])
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, loaded.model(ids).logits)
    assert again.tokenizer(TEXT).input_ids == loaded.tokenizer(TEXT).input_ids
    assert again.tokenizer.eos_token == "<|im_end|>" and again.end_ids == {2}


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated_file_is_one_sentence(written, tmp_path, share):
    content = written[0].read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadInput, match=r"cut\.gguf cannot be read as GGUF") as caught:
        load(tmp_path / "cut.gguf", device="cpu")
    assert "\n" not in str(caught.value)


def test_what_the_metadata_says_of_a_tokenizer():
    """Each special token where it is stated, number 0 too; digits apart for smollm alone; the context where there is one."""
    words = {0: "<a>", 1: "<b>", 2: "<c>", 3: "<d>"}

    def followed(metadata):
        tokenizer = SimpleNamespace(
            convert_ids_to_tokens=words.__getitem__, backend_tokenizer=SimpleNamespace(pre_tokenizer="as it was")
        )
        reading._follow_metadata(tokenizer, metadata)
        backend = vars(tokenizer).pop("backend_tokenizer")
        del tokenizer.convert_ids_to_tokens
        return vars(tokenizer), backend

    prefix = "tokenizer.ggml."
    stated = {"bos_token_id": 0, "eos_token_id": 1, "unknown_token_id": 2, "padding_token_id": 3}
    told, backend = followed({
        "general.architecture": "llama", "llama.context_length": 77, "gpt2.context_length": 5, f"{prefix}pre": "gpt2",
        **{prefix + name: value for name, value in stated.items()},
    })  # fmt: skip
    assert told == {
        "bos_token": "<a>", "eos_token": "<b>", "unk_token": "<c>", "pad_token": "<d>",
        "clean_up_tokenization_spaces": False, "model_max_length": 77,
    }  # fmt: skip
    assert backend.pre_tokenizer == "as it was"
    told, backend = followed({"general.architecture": "llama", f"{prefix}pre": "smollm", f"{prefix}eos_token_id": 1})
    assert told == {"eos_token": "<b>", "clean_up_tokenization_spaces": False}
    split = backend.pre_tokenizer.pre_tokenize_str("a 12")
    assert [piece for piece, _ in split] == ["a", "\u0120", "1", "2"]
    assert backend.decoder.decode(["a", "\u0120", "1"]) == "a 1"


def test_the_name_of_a_quantisation():
    for number, name in ((2, "Q4_0"), (3, "Q4_1"), (0, "ALL_F32"), (7, "Q8_0")):
        assert reading._quantisation({"general.file_type": number}) == name
    for nothing in ({}, {"general.file_type": 99_999}):
        assert reading._quantisation(nothing) == "an unstated quantisation"


def test_bars_are_on_again_where_they_were():
    from transformers.utils import logging

    for on in (True, False):
        (logging.enable_progress_bar if on else logging.disable_progress_bar)()
        try:
            with reading.without_bars():
                assert not logging.is_progress_bar_enabled()
            assert logging.is_progress_bar_enabled() is on
            with pytest.raises(KeyError), reading.without_bars():
                raise KeyError
            assert logging.is_progress_bar_enabled() is on
        finally:
            logging.enable_progress_bar()


def test_each_tensor_is_a_unit_of_our_bar(monkeypatch):
    from transformers import modeling_gguf_pytorch_utils as reader

    theirs, told, progress = reader.tqdm, [], reading.progress

    @contextlib.contextmanager
    def noted(title, unit):
        with progress(title, unit=unit) as bar:
            yield bar
        told.append((title, unit, bar.done))

    monkeypatch.setattr(reading, "progress", noted)
    with reading._our_bar("Reading x"):
        assert list(reader.tqdm([1, 2, 3], desc="theirs")) == [1, 2, 3]
    assert told == [("Reading x", "tensors", 3)] and reader.tqdm is theirs


def test_a_file_begins_with_its_letters(tmp_path):
    for content in (b"", b"GGU", b"gguf", b" GGUF"):
        (tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(BadInput) as caught:
            reading.check_gguf(tmp_path / "m.gguf")
        assert str(caught.value) == (
            f"{tmp_path / 'm.gguf'} is not a GGUF file (its first bytes are not 'GGUF'): the download may be broken."
        )
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    reading.check_gguf(tmp_path / "m.gguf")


def test_scalars_and_texts_of_a_file(written):
    fields = reading._metadata(written[0])
    assert fields["general.architecture"] == "llama" and fields["tokenizer.ggml.pre"] == "smollm"
    assert fields["tokenizer.ggml.bos_token_id"] == 1 and "tokenizer.ggml.tokens" not in fields
