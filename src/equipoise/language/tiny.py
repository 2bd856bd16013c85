"""`tiny`: a small Llama with its own tokenizer, made from a study's texts and taught on the spot. The two are apart:

    model = tiny(texts, seed=0)                 # random weights
    teach(model, records, seed=0)               # all weights, through the training loop

Why these sizes. Taught the world of `data.world` with its default size (225 facts of 45 people, 1,550 records, 16,800
tokens a pass), the share of right answers to questions in wordings never taught, after so many passes, and the time of
one CPU core (forget / neighbour people; chance is 0.25; one seed, three for the default):

    layers 2, width 64     10 passes   9 s   0.94 / 0.81      with transformers' initial scale of 0.02
    layers 4, width 64     10 passes  15 s   0.90 / 0.82      and a feed-forward part of 4 widths
    layers 4, width 128    10 passes  30 s   1.00 / 1.00
    layers 4, width 96      6 passes  10 s   0.88 / 0.93      with an initial scale of 0.05, feed-forward of 2.7 widths
    layers 4, width 128     6 passes  12 to 16 s   0.94 to 1.00 / 0.97 to 1.00      the default: feed-forward of 2
    layers 2, width 128     5 passes   8 s   1.00 / 1.00      untied; but methods that pick out middle blocks need some

Input and output embeddings are tied, as in SmolLM2 and most models of that size: whoever tries a method on `tiny` tries
it on a tied model. At the default size an untied one learns no faster (one seed; at width 96, or with an initial scale
of 0.02, it did).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.language.encode import check_text, collate, encode
from equipoise.language.model import TINY, LanguageModel
from equipoise.language.score import labelled_logits

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from equipoise.data.records import Record
    from equipoise.training.loop import TrainerState

Tokens = Literal["words", "characters"]

PAD, BEGIN, END, UNKNOWN = "<|pad|>", "<|begin|>", "<|end|>", "<|unknown|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
# No line ends and no words of its own: a turn is one role token and its text, an answer ends with the end token.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@closed
def tiny(
    texts: Sequence[str],
    *,
    seed: int,
    tokens: Tokens = "words",
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    vocabulary: int = 2048,
    context: int = 128,
) -> LanguageModel:
    """An untaught Llama in float32 on the CPU, and a tokenizer made from the texts.

    tokens: "words" learns as many pieces as `vocabulary` allows, and knows every text; "characters" has one token for each
    character of the texts (so that a digit is a token), nothing before or between them, and `<|unknown|>` for any other.
    Raises BadInput without texts, or for sizes that do not fit each other.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    if not any(text.strip() for text in texts):
        raise BadInput("'tiny' makes its vocabulary from texts, and there are none: give what it is to be taught.")
    for index, text in enumerate(texts):
        check_text(f"Text {index}", text)
    if min(width, layers, heads) < 1 or width % (2 * heads):
        raise BadInput(
            f"Width {width} with {heads} heads and {layers} layers: the width must be a multiple of 2 x heads."
        )
    characters = sorted(set().union(*texts)) if tokens == "characters" else []
    least = 4 + len(_ROLES) + len(characters) if tokens == "characters" else 256 + 3 + len(_ROLES)
    if vocabulary < least or context < 2:
        raise BadInput(f"Vocabulary {vocabulary}, context {context}: at least {least} tokens and 2 places.")
    made = _character_tokenizer(characters) if tokens == "characters" else _word_tokenizer(texts, vocabulary)
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=context,
    )
    if tokens == "characters":
        tokenizer.unk_token = UNKNOWN
    tokenizer.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        initializer_range=0.05,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    source = f"A Llama of {model.num_parameters() / 1e6:.1f} million parameters, taught on the spot (seed {seed})."
    return LanguageModel(model.eval(), tokenizer, TINY, source)


def teach(
    language_model: LanguageModel,
    records: Sequence[Record],
    *,
    seed: int,
    epochs: float = 6,
    learning_rate: float = 3e-3,
    batch_size: int = 32,
    max_length: int = 512,
    callbacks: Sequence[Callable[[TrainerState], bool | None]] = (),
    save: Callable[[dict[str, Any]], None] | None = None,
    save_every: int | None = None,
    state: Mapping[str, Any] | None = None,
) -> list[float]:
    """Fine-tune on the labelled tokens of the records, in place; the loss (nats per token) of each step made here.

    Trains what requires gradients: all weights, unless the model has an adapter or frozen parts. Each of the `epochs`
    sees every record once; seed decides the order. callbacks, save, save_every and state are those of `training.fit`.
    The defaults suit `tiny`; a pretrained model wants a rate of about 1e-5. Raises BadInput without records.
    """
    from equipoise.training.loop import OneLoss, TrainerSettings, fit
    from equipoise.training.order import without_replacement

    if not records:
        raise BadInput("There is nothing to teach: no records were given.")
    if not epochs > 0:
        raise BadInput(f"The number of epochs is {epochs}: use more than 0.")
    examples = encode(language_model, records, max_length=max_length)
    order = without_replacement(len(examples), batch_size, seed)
    steps = math.ceil(epochs * len(examples) / batch_size)
    losses: list[float] = []
    fit(
        language_model.model,
        OneLoss(_cross_entropy),
        lambda step: [examples[index] for index in order(step)],
        TrainerSettings(steps=steps, learning_rate=learning_rate, batch_size=batch_size, betas=(0.9, 0.95), seed=seed),
        collate=lambda chosen: collate(chosen, language_model.pad_id, language_model.device),
        callbacks=[lambda moment: losses.append(moment.metrics["loss"]), *callbacks],
        save=save,
        save_every=save_every,
        state=state,
        title="Teaching",
    )
    return losses


def _cross_entropy(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    logits, labels, _ = labelled_logits(model, batch)
    return nn.functional.cross_entropy(logits.float(), labels, reduction="sum"), len(labels)


def _word_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE: with few texts nearly every word becomes one token, and nothing is unknown.

    A blank is put before each piece of text, so that a word is the same token after a blank and after a role token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BEGIN, END, *_ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _begun(tokenizer)


def _character_tokenizer(characters: Sequence[str]) -> Tokenizer:
    """BPE without merges: a token a character, and what is decoded is what was encoded."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    special = [PAD, BEGIN, END, UNKNOWN, *_ROLES]
    ids = {token: index for index, token in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token=UNKNOWN))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.decoder = decoders.Fuse()
    return _begun(tokenizer)


def _begun(tokenizer: Tokenizer) -> Tokenizer:
    """With the token that begins every text put before it."""
    from tokenizers import processors

    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    return tokenizer
