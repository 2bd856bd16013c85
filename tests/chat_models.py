"""Small models for the engines: an untaught Llama as a folder, and the same weights as a GGUF file in float32."""

import json
from pathlib import Path

import numpy as np
import torch

from equipoise.language.tiny import tiny

TEXTS = [
    "The capital of France is Paris.",
    "What is the capital of Norway? Oslo",
    "Where was Mulum Kunwick born? In the town of Veskole, where the river bends twice.",
    "yes no maybe one two three four five six seven",
]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{% if not loop.last or message['role'] != 'assistant' %}{{ '<|im_end|>' + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def untaught(seed: int, context: int = 128):
    """Two layers, with matrices so large that each token before the last changes what comes next."""
    torch.set_num_threads(1)
    language_model = tiny(TEXTS, seed=seed, width=32, layers=2, heads=2, vocabulary=300, context=context)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in language_model.model.named_parameters():
            if parameter.dim() == 2:
                scale = 0.1 if "embed" in name else 0.4
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return language_model


def write_gguf(path: Path, *, template: str | None = TEMPLATE, context: int = 128) -> Path:
    """A Llama of one layer with a tokenizer of bytes and a few merges, unquantised."""
    import gguf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    vocabulary = tokenizer.get_vocab_size()
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=context, tie_word_embeddings=True, rms_norm_eps=1e-6,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                scale = 0.1 if "embed" in name else 0.3
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        for token, identity in tokenizer.get_vocab().items():
            if not token.isascii():  # parts of characters, which llama.cpp shows only when they are whole
                model.model.embed_tokens.weight[identity] = 0
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("small")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(context)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(32)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([tokenizer.id_to_token(i) for i in range(vocabulary)])
    writer.add_token_types([3 if i < len(special) else 1 for i in range(vocabulary)])
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)
    layer = model.model.layers[0]
    parts = {
        "attn_q": layer.self_attn.q_proj, "attn_k": layer.self_attn.k_proj, "attn_v": layer.self_attn.v_proj,
        "attn_output": layer.self_attn.o_proj, "ffn_gate": layer.mlp.gate_proj, "ffn_up": layer.mlp.up_proj,
        "ffn_down": layer.mlp.down_proj, "attn_norm": layer.input_layernorm, "ffn_norm": layer.post_attention_layernorm,
    }  # fmt: skip
    tensors = {f"blk.0.{name}.weight": part.weight for name, part in parts.items()}
    tensors |= {"token_embd.weight": model.model.embed_tokens.weight, "output_norm.weight": model.model.norm.weight}
    for name, tensor in tensors.items():
        array = tensor.detach().numpy()
        if name.endswith(("attn_q.weight", "attn_k.weight")):  # llama.cpp rotates neighbours, transformers halves
            heads, width = 2, array.shape[1]
            array = array.reshape(heads, 2, -1, width).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
