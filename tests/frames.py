"""Tokenizers that put one, several or no tokens before and after a text."""

import copy
from dataclasses import replace

from tokenizers import processors

FRAMES = [
    ((), ()),
    (("<|begin|>",), ()),
    (("<|system|>", "<|user|>"), ()),  # a mask and a start token, as GLM has them
    (("<|user|>",), ("<|tool|>",)),  # [CLS] and [SEP]
    (("<|begin|>", "<|assistant|>", "<|user|>"), ("<|end|>", "<|tool|>")),  # an end and a language behind it
]


def framed(language_model, before, after):
    """The same model, without chat template, whose tokenizer puts these tokens around a text."""
    tokenizer = copy.deepcopy(language_model.tokenizer)
    names = dict.fromkeys((*before, *after))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], special_tokens=[(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    )
    if not before:
        tokenizer.bos_token = None
    return replace(language_model, tokenizer=tokenizer, chat_template="none")
