"""A model and a tokenizer of transformers as one: special tokens that agree, and the folder that both are written to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from equipoise.core.errors import BadInput


def settle_special_tokens(model: Any, tokenizer: Any, name: str) -> None:
    """One padding token and one set of ends, the same in tokenizer, configuration and generation_config.

    Padding: the tokenizer's own; else the configuration's; else the unknown token; else the end token, the first of them
    that has an embedding. It never decides what is padding here (attention masks and labels do), so sharing it with the end
    token hides no end. That a tokenizer knows tokens without an embedding is common and harmless (Gemma 3's stands for
    pictures); `encode` refuses texts that hold one.
    """
    known = model.get_input_embeddings().weight.shape[0]
    config, generation = model.config, model.generation_config

    def usable(identity: Any) -> bool:
        return identity is not None and 0 <= identity < min(known, len(tokenizer))

    if not usable(tokenizer.pad_token_id):
        configured = getattr(config.get_text_config(), "pad_token_id", None)
        instead = (configured, tokenizer.unk_token_id, tokenizer.eos_token_id)
        identity = next(filter(usable, instead), None)
        if identity is None:
            raise BadInput(
                f"{name}: its tokenizer has no padding, unknown or end token that the model has an embedding for "
                f"({known} tokens); set tokenizer.pad_token and save."
            )
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(identity)
    ends = generation.eos_token_id
    ends = list(ends) if isinstance(ends, list) else [] if ends is None else [ends]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ends:
        ends.append(tokenizer.eos_token_id)
    generation.eos_token_id = None if not ends else ends[0] if len(ends) == 1 else ends
    generation.pad_token_id = config.pad_token_id = tokenizer.pad_token_id
    if generation.bos_token_id is None:
        generation.bos_token_id = tokenizer.bos_token_id


def save(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Writes a folder that transformers and `load` take as it is: safetensors, configuration, tokenizer."""
    with without_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """transformers' own progress bars off: on stderr they would mix with ours, and know nothing of `quiet`."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
