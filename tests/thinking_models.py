"""Tokenizers whose tokens are known, an untaught Llama that writes with them, and loops that follow a table."""

import copy

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from equipoise.language.model import wrap

CHARACTERS = "abceghiknotWMr.,]? \n0123456789"
PIECES = ("</think>", "<think>", "Wait", "Waiter", "\n\n", ".\n\n", "],", "it", "\nWait,")


def tokenizer_of(pieces=PIECES, characters=CHARACTERS):
    """One token for each piece and character; "<e>" ends an answer."""
    ids = {token: index for index, token in enumerate(["<p>", "<e>", *characters])}
    made = Tokenizer(models.BPE(vocab=ids, merges=[]))
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<p>", "<e>")])
    made.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<p>",
        eos_token="<e>",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def untaught(tokenizer, seed=0):
    """Two layers, with matrices so large that each token matters; paragraphs end often, the thinking seldom."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        max_position_embeddings=256,
        **sizes,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
        for factor, tokens in {2.0: ("\n\n", ".\n\n", "Wait"), 0.5: ("</think>", "<e>")}.items():
            known = [token for token in tokens if token in tokenizer.get_vocab()]
            model.lm_head.weight[torch.tensor(tokenizer.convert_tokens_to_ids(known))] *= factor
    return wrap(model, tokenizer, name="untaught", chat_template="none")


def lengthened(language_model, less=()):
    """The same model, which never writes these ids."""
    model = copy.deepcopy(language_model.model)
    model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor(list(less)), -1e9))
    return wrap(model, language_model.tokenizer, name="untaught", chat_template="none")


def follow(control, prompt, table, most, *, otherwise="a", key=0):
    """What comes of a table (last token -> next) under a control, as text, and the state; greedily, by a plain loop."""
    tokenizer = control.vocabulary.tokenizer
    state = control.begin(key, tokenizer.encode(prompt, add_special_tokens=False))
    last = tokenizer.encode(prompt, add_special_tokens=False)[-1]
    ids = {
        tokenizer.convert_tokens_to_ids(left): tokenizer.convert_tokens_to_ids(right) for left, right in table.items()
    }
    while len(state.written) < most and not state.finished:
        logits = torch.zeros(len(tokenizer))
        logits[ids.get(last, tokenizer.convert_tokens_to_ids(otherwise))] = 20.0
        forced, left = control.steer(state, logits)
        last = int(left.argmax()) if forced is None else forced
        control.wrote(state, last)
    return tokenizer.decode(state.written, skip_special_tokens=False), state
