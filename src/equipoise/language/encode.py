"""Records as tokens with labels: what is given is masked, what is to be said is labelled.

Three forms, by what a record holds and what the model has:

chat   A record with messages; or with a prompt, when the model has a chat template (and `chat_template` is not "none").
       The conversation is rendered and tokenised as one text. Labelled: the last assistant turn and its end-of-turn
       token, nothing of the header before it, nothing (a line end) after it.
plain  A record with a prompt, without template. Prompt and completion are joined by one blank unless there is white
       space already; blanks that end the prompt count as that blank. The blank belongs to the completion (" Paris" is
       one token where "Paris" alone is another), so the prompt's tokens are what generation starts from. Labelled: the
       completion and the end token.
text   A record without prompt. Labelled: every token but the first, which nothing predicts. No end token is added: a
       passage may stop anywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from equipoise.core.errors import BadInput

if TYPE_CHECKING:
    import torch

    from equipoise.data.records import Message, Record
    from equipoise.language.model import LanguageModel

IGNORE = -100
_MARK = "\u27e6equipoise\u27e7"  # stands for an answer in a rendered template; no white space, so nothing strips it


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens and labels of one record, of one length; labels are IGNORE where nothing is scored or learnt.

    cut: how many tokens did not fit into max_length.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    cut: int = 0


def encode(
    language_model: LanguageModel, records: Sequence[Record], *, max_length: int = 512, end: bool = True
) -> list[Example]:
    """One example per record, in order. end=False leaves the end (of turn) token out, as for scoring choices.

    Too long: a passage loses its right end; a prompt loses its left end, but never more than down to half of
    max_length, and only then the completion its right end. So some of each always remains; a warning counts the
    records, and each Example its tokens. max_length is at most the model's context.
    Raises BadInput for a completion without tokens, a conversation without template, or one that the template refuses.
    """
    max_length = min(max_length, language_model.context)
    if max_length < 2:
        raise BadInput(f"max_length is {max_length}, but a label needs a token before it: use at least 2.")
    for record in records:
        if not record.completion.strip():
            raise BadInput(f"Record {record.id!r} has an empty completion: there is nothing to learn or to score.")

    pairs: list[tuple[list[int], list[int]]] = [([], [])] * len(records)
    forms = [_form(language_model, record) for record in records]
    for form, pieces in (("chat", _chat_pieces), ("plain", _plain_pieces), ("text", _text_pieces)):
        chosen = [index for index, its_form in enumerate(forms) if its_form == form]
        if chosen:
            found = pieces(language_model, [records[index] for index in chosen], end)
            for index, pair in zip(chosen, found, strict=True):
                pairs[index] = pair

    examples = [_example(given, said, max_length) for given, said in pairs]
    for record, example in zip(records, examples, strict=True):
        if all(label == IGNORE for label in example.labels):
            raise BadInput(f"Record {record.id!r} has no token to learn or to score: its text is a single token.")
    cut = sum(example.cut > 0 for example in examples)
    if cut:
        warnings.warn(
            f"{cut} of {len(examples)} records were longer than {max_length} tokens and were cut; see max_length.",
            stacklevel=2,
        )
    return examples


def collate(
    examples: Sequence[Example], pad_id: int, device: torch.device | str | None = None
) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels as int64 tensors [B, T], padded on the right."""
    import torch

    length = max((len(example.input_ids) for example in examples), default=0)
    rows = [(example, length - len(example.input_ids)) for example in examples]
    return {
        "input_ids": torch.tensor([[*e.input_ids, *[pad_id] * gap] for e, gap in rows], device=device),
        "attention_mask": torch.tensor([[1] * len(e.input_ids) + [0] * gap for e, gap in rows], device=device),
        "labels": torch.tensor([[*e.labels, *[IGNORE] * gap] for e, gap in rows], device=device),
    }


def encode_prompts(
    language_model: LanguageModel, prompts: Sequence[str | Sequence[Message]]
) -> tuple[list[list[int]], frozenset[int]]:
    """Tokens from which an answer is generated, as `encode` has them before its labels, and the tokens that end it.

    A prompt is a text, or the turns of a conversation up to the one to be written.
    """
    tokenizer: Any = language_model.tokenizer
    ends, conversations, texts = set(language_model.end_ids), [], []
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str) and not language_model.uses_chat_template:
            texts.append((index, prompt.rstrip(" ")))
        else:
            turns = [_turn("user", prompt)] if isinstance(prompt, str) else [_turn(m.role, m.content) for m in prompt]
            _require_template(language_model, f"Prompt {index}")
            rendered = _render(tokenizer, turns, f"Prompt {index}", add_generation_prompt=True)
            conversations.append((index, rendered))
            if len(conversations) == 1:
                ends |= _end_of_turn_ids(tokenizer, turns)
    encoded: list[list[int]] = [[]] * len(prompts)
    begin = _begin(tokenizer)
    for (index, _), ids in zip(texts, _tokens(tokenizer, [text for _, text in texts]), strict=True):
        encoded[index] = begin + ids
    for (index, _), ids in zip(conversations, _tokens(tokenizer, [text for _, text in conversations]), strict=True):
        encoded[index] = ids
    for index, ids in enumerate(encoded):
        if not ids:
            raise BadInput(f"Prompt {index} is empty, and the model has no token that begins a text: give it one word.")
    return encoded, frozenset(ends)


def _form(language_model: LanguageModel, record: Record) -> str:
    if record.messages:
        _require_template(language_model, f"Record {record.id!r}")
        return "chat"
    if not record.prompt:
        return "text"
    return "chat" if language_model.uses_chat_template else "plain"


def _require_template(language_model: LanguageModel, what: str) -> None:
    if not language_model.uses_chat_template:
        reason = "chat_template is 'none'" if language_model.chat_template == "none" else "its tokenizer has none"
        raise BadInput(
            f"{what} is a conversation, but {language_model.name} has no chat template ({reason}): "
            "give a Jinja file as chat_template, or records with prompt and completion."
        )


def _example(given: list[int], said: list[int], max_length: int) -> Example:
    cut = max(0, len(given) + len(said) - max_length)
    if cut and given:
        room = max(max_length - len(said), max_length // 2)
        given = given[max(0, len(given) - room) :]
    said = said[: max_length - len(given)]
    labels = [IGNORE] * len(given) + said
    labels[0] = IGNORE
    return Example(tuple(given + said), tuple(labels), cut)


def _tokens(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []


def _begin(tokenizer: Any) -> list[int]:
    """The token that this tokenizer puts before a text, if it does."""
    return [tokenizer.bos_token_id] if tokenizer("a").input_ids[0] == tokenizer.bos_token_id is not None else []


def _text_pieces(language_model: LanguageModel, records: list[Record], end: bool) -> list[tuple[list[int], list[int]]]:
    begin = _begin(language_model.tokenizer)
    return [(begin, ids) for ids in _tokens(language_model.tokenizer, [record.completion for record in records])]


def _plain_pieces(language_model: LanguageModel, records: list[Record], end: bool) -> list[tuple[list[int], list[int]]]:
    tokenizer: Any = language_model.tokenizer
    begin = _begin(tokenizer)
    after = [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
    prompts = [record.prompt.rstrip(" ") for record in records]
    completions = [
        record.completion if prompt[-1:].isspace() or record.completion[0].isspace() else f" {record.completion}"
        for prompt, record in zip(prompts, records, strict=True)
    ]
    given = _tokens(tokenizer, prompts)
    joined = _tokens(tokenizer, [prompt + said for prompt, said in zip(prompts, completions, strict=True)])
    # Cutting the joined text keeps a SentencePiece completion from beginning with a second blank. Where a token spans
    # the seam, the completion is tokenised alone: the prompt must be the one that generation sees, for every choice.
    alone = _tokens(tokenizer, completions)
    return [
        (begin + prompt, (whole[len(prompt) :] if whole[: len(prompt)] == prompt else said) + after)
        for prompt, whole, said in zip(given, joined, alone, strict=True)
    ]


def _chat_pieces(language_model: LanguageModel, records: list[Record], end: bool) -> list[tuple[list[int], list[int]]]:
    tokenizer: Any = language_model.tokenizer
    if not tokenizer.is_fast:
        raise BadInput(
            f"{language_model.name} has a tokenizer without offsets, which chat templates need: use a fast one."
        )
    spans = [_last_turn(tokenizer, record, end) for record in records]
    encoded = tokenizer(
        [text for text, _, _ in spans], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    pieces = []
    for ids, offsets, (_, start, stop) in zip(encoded.input_ids, encoded.offset_mapping, spans, strict=True):
        labelled = [i for i, (first, last) in enumerate(offsets) if first < stop and last > start and last > first]
        pieces.append((ids[: labelled[0]], ids[labelled[0] : labelled[-1] + 1]))
    return pieces


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _turns(record: Record) -> list[dict[str, str]]:
    """The turns before the one to be learnt or scored, which is always record.completion."""
    if not record.messages:
        return [_turn("user", record.prompt)]
    turns = [_turn(message.role, message.content) for message in record.messages]
    return turns[:-1] if turns[-1]["role"] == "assistant" else turns


def _render(tokenizer: Any, turns: list[dict[str, str]], what: str, **options: Any) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except (TemplateError, TypeError) as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise BadInput(f"{what}: the chat template refuses turns of the roles {roles} ({error}).") from error


def _last_turn(tokenizer: Any, record: Record, end: bool) -> tuple[str, int, int]:
    """The rendered conversation and the characters [start, stop) of its last turn, with its end-of-turn token if `end`.

    What surrounds the answer is found by rendering a mark in its place, so it does not matter whether the template
    strips the answer, adds white space, or has a generation prompt that differs from the header of a finished turn.
    """
    what = f"Record {record.id!r}"
    turns = _turns(record)
    text = _render(tokenizer, [*turns, _turn("assistant", record.completion)], what)
    head, found, tail = _render(tokenizer, [*turns, _turn("assistant", _MARK)], what).partition(_MARK)
    if not text.startswith(head):
        # Templates that split the answer (reasoning and reply) render another header for another answer.
        head = _render(tokenizer, turns, what, add_generation_prompt=True)
    if not found or _MARK in tail or not text.startswith(head) or not text.endswith(tail):
        raise BadInput(
            f"{what}: the chat template does not show the answer as it is, so its tokens cannot be told apart."
        )
    stop = len(text) - len(tail)
    if stop <= len(head):
        raise BadInput(f"{what}: the chat template leaves nothing of the completion {record.completion[:40]!r}.")
    return text, len(head), stop + len(_end_of_turn(tokenizer, tail)) * end


def _end_of_turn(tokenizer: Any, tail: str) -> str:
    """What ends a turn: everything up to the first special token, or, without one, all but the white space behind."""
    special = {*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())}
    found = [(tail.index(token), len(token)) for token in special if token and token in tail]
    if not found:
        return tail.rstrip()
    place, length = min(found, key=lambda pair: (pair[0], -pair[1]))
    return tail[: place + length]


def _end_of_turn_ids(tokenizer: Any, turns: list[dict[str, str]]) -> set[int]:
    """The token that ends an assistant's turn in this template, where it is one token (else the end token must do)."""
    tail = _render(tokenizer, [*turns, _turn("assistant", _MARK)], "The chat template").partition(_MARK)[2]
    ids = _tokens(tokenizer, [_end_of_turn(tokenizer, tail).lstrip()])[0]
    return set(ids) if len(ids) == 1 and ids[0] in tokenizer.added_tokens_decoder else set()
