"""Records as tokens with labels: what is given is masked, what is to be said is labelled.

Three forms, by what a record holds and what the model has:

chat   A record with messages; or with a prompt, when the model has a chat template (and `chat_template` is not "none").
       The conversation is rendered and tokenised as one text. Labelled: the last assistant turn and its end-of-turn
       token, nothing of the header before it but blanks at its end, nothing (a line end) after it.
plain  A record with a prompt, without template. Prompt and completion are joined by one blank unless there is white
       space already; blanks that end the prompt count as that blank. The blank belongs to the completion (" Paris" is
       one token where "Paris" alone is another), so the prompt's tokens are what generation starts from. Labelled: the
       completion and the end token.
text   A record without prompt. Labelled: every token but the first, which nothing predicts. No end token is added: a
       passage may stop anywhere.

What the tokenizer itself puts before a text (a token that begins it, a mask and a start token, a language) stands before
every plain prompt, passage and window, never labelled and never cut off; what it puts after a text ends passages, and ends
completions in place of the end token. In a chat the template has the last word on both. Training, scoring and generation
read the same tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from equipoise.core.errors import BadInput
from equipoise.language.templates import render

if TYPE_CHECKING:
    import torch

    from equipoise.data.records import Message, Record
    from equipoise.language.model import LanguageModel

IGNORE = -100
_MARK = "\u27e6equipoise\u27e7"  # stands for an answer in a rendered template; no white space, so nothing strips it


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens and labels of one record, of one length; labels are IGNORE where nothing is scored or learnt.

    cut: how many tokens did not fit into max_length. hidden: the chat template leaves a part of the completion out
    (mostly reasoning), which is then neither learnt nor scored. open: an end was asked for, and none is labelled at which
    generation stops.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    cut: int = 0
    hidden: bool = False
    open: bool = False


@dataclass(slots=True)
class _Piece:
    """Tokens of a record: what begins every text, what is given besides, what is said, what ends it."""

    begin: list[int]
    given: list[int]
    said: list[int]
    end: list[int] = field(default_factory=list)
    hidden: bool = False
    open: bool = False


def encode(
    language_model: LanguageModel, records: Sequence[Record], *, max_length: int = 512, end: bool = True
) -> list[Example]:
    """One example per record, in order. end=False leaves the end (of turn) token out, as for scoring choices.

    Too long: a passage loses its right end; a prompt loses its left end (behind what begins every text), but never more
    than down to half of max_length, and only then the completion its right end. So some of each always remains.
    max_length is at most the model's context. What is lost, in this way or by the chat template, is counted in a warning
    (see `notes`) and told by each Example.
    Raises BadInput for a completion without tokens, a conversation without template or one that the template refuses, a
    text that cannot be encoded, and a token that the model has no embedding for.
    """
    max_length = min(max_length, language_model.context)
    begin, _ = frame(language_model)
    least = max(len(begin) + 1, 2)
    if max_length < least:
        raise BadInput(
            f"max_length is {max_length}, but a label needs a token before it, and {language_model.name} puts {len(begin)} "
            f"before every text: use at least {least}."
        )
    for record in records:
        if not record.completion.strip():
            raise BadInput(f"Record {record.id!r} has an empty completion: there is nothing to learn or to score.")

    pieces = [_Piece([], [], [])] * len(records)
    forms = [_form(language_model, record) for record in records]
    for form, read in (("chat", _chat_pieces), ("plain", _plain_pieces), ("text", _text_pieces)):
        chosen = [index for index, its_form in enumerate(forms) if its_form == form]
        if chosen:
            found = read(language_model, [records[index] for index in chosen], end)
            for index, piece in zip(chosen, found, strict=True):
                pieces[index] = piece

    for record, piece in zip(records, pieces, strict=True):
        if len(piece.begin + piece.given + piece.said) < 2 or not piece.said:
            raise BadInput(f"Record {record.id!r} has no token to learn or to score: its text is a single token.")
    examples = [_example(piece, max_length) for piece in pieces]
    for note in notes(examples):
        warnings.warn(note, stacklevel=2)
    return examples


def notes(examples: Sequence[Example]) -> list[str]:
    """What a reader of results must know about how these records were encoded: a sentence each, none if all is well."""
    several = len(examples)
    cut = sum(example.cut > 0 for example in examples)
    hidden, open_ended = sum(example.hidden for example in examples), sum(example.open for example in examples)
    longest = max((len(example.input_ids) for example in examples if example.cut), default=0)
    said = [
        (cut, f"were longer than {longest} tokens and were cut; see max_length."),
        (
            hidden,
            "have a completion of which the chat template leaves a part out, mostly reasoning: that part is neither learnt "
            "nor scored. Use a template that shows it, or chat_template none.",
        ),
        (
            open_ended,
            "end without a token at which generation stops, since the chat template or the tokenizer puts none: where an "
            "answer ends is not learnt from them.",
        ),
    ]
    return [f"{count} of {several} records {what}" for count, what in said if count]


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

    A prompt is a text, or the turns of a conversation up to the one to be written; where the last turn is the assistant's,
    that one is continued. Raises BadInput as `encode` does.
    """
    begin, after = frame(language_model)
    texts: dict[int, str] = {}
    asked: dict[int, list[dict[str, str]]] = {}
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str) and not language_model.uses_chat_template:
            texts[index] = prompt
            continue
        _require_template(language_model, f"Prompt {index}")
        if not prompt:
            raise BadInput(f"Prompt {index} is empty: give it one word, or one turn.")
        asked[index] = (
            [_turn("user", prompt)] if isinstance(prompt, str) else [_turn(m.role, m.content) for m in prompt]
        )
    before = dict.fromkeys(texts, begin)
    ends = language_model.end_ids | set(after[:1] if texts else ())
    if asked:
        texts |= _up_to_the_answer(language_model, asked)
        index, turns = next(iter(asked.items()))
        ends |= _end_of_turn_ids(language_model, turns, f"Prompt {index}")
    # Blanks at the end are those that begin what follows, as in `encode`.
    found = _tokens(language_model, [text.rstrip(" ") for text in texts.values()], [f"Prompt {i}" for i in texts])
    encoded = {index: [*before.get(index, ()), *ids] for index, ids in zip(texts, found, strict=True)}
    for index, ids in encoded.items():
        if not ids:
            raise BadInput(f"Prompt {index} is empty, and the model has no token that begins a text: give it one word.")
    return [encoded[index] for index in range(len(prompts))], frozenset(ends)


def encode_replies(language_model: LanguageModel, replies: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """What follows a turn that a model has written, up to where it writes again: the tokens of each reply.

    With them comes what ends the model's turn where it did not do so itself. In a chat a reply is a turn of the user's, in
    the template's own words; the tokens of earlier turns stay as they were written, also where a template would leave some
    of them out when it renders the conversation anew. Raises BadInput as `encode` does.
    """
    tokenizer: Any = language_model.tokenizer
    places = [f"Reply {index}" for index in range(len(replies))]
    if not language_model.uses_chat_template:
        _, after = frame(language_model)
        last = tokenizer.eos_token_id
        end = after[:1] or ([] if last is None else [last])
        return end, _tokens(language_model, [reply.rstrip(" ") for reply in replies], places)
    said = [[_turn("user", "a"), _turn("assistant", _MARK), _turn("user", reply)] for reply in replies]
    tails = []
    for place, text in zip(
        places, render(language_model, said, places, add_generation_prompt=True) if said else [], strict=True
    ):
        _, mark, tail = text.partition(_MARK)
        if not mark:
            raise BadInput(f"{place}: the chat template does not show the turn before it, so it cannot be continued.")
        tails.append(tail.rstrip(" "))
    found = _tokens(language_model, tails, places)
    closes = _end_of_turn_ids(language_model, [_turn("user", "a")], "A reply")
    end = [found[0][0]] if found and found[0][0] in closes else []
    return end, [ids[len(end) :] for ids in found]


def frame(language_model: LanguageModel) -> tuple[list[int], list[int]]:
    """The tokens that this tokenizer puts before every text, and those that it puts after."""
    tokenizer: Any = language_model.tokenizer
    encoded = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    ids = encoded.input_ids
    own = [position for position, special in enumerate(encoded.special_tokens_mask) if not special]
    begin, after = (ids[: own[0]], ids[own[-1] + 1 :]) if own else (ids, [])
    _check_known(language_model, [begin, after], ["Every text", "Every text"])
    return begin, after


def passages(language_model: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text as a passage, what the tokenizer puts after it included, what it puts before left out."""
    _, after = frame(language_model)
    encoded = _tokens(language_model, list(texts), [f"Text {index}" for index in range(len(texts))])
    return [ids and ids + after for ids in encoded]


def other_beginning(language_model: LanguageModel) -> str | None:
    """A sentence where the chat template lets a generated answer begin elsewhere than a learnt one; None where not."""
    if not language_model.uses_chat_template:
        return None
    turns = [_turn("user", "a")]
    learnt = _marked(language_model, [turns], ["A question"])[0].partition(_MARK)[0].rstrip()
    (generated,) = render(language_model, [turns], ["A question"], add_generation_prompt=True)
    if learnt == generated.rstrip():
        return None
    shared = next((i for i, pair in enumerate(zip(learnt, generated, strict=False)) if pair[0] != pair[1]), None)
    shared = min(len(learnt), len(generated)) if shared is None else shared
    return (
        f"The chat template begins a generated answer with {generated[shared:]!r} and a learnt or scored one with "
        f"{learnt[shared:]!r}: what is generated after it (reasoning, mostly) was not trained and is not scored."
    )


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


def _example(piece: _Piece, max_length: int) -> Example:
    begin, given, said = piece.begin, piece.given, piece.said + piece.end
    cut = max(0, len(begin + given + said) - max_length)
    if cut and given:
        room = max(max_length - len(said), max_length // 2) - len(begin)
        given = given[max(0, len(given) - room) :]
    given = begin + given
    said = said[: max_length - len(given)]
    labels = [IGNORE] * len(given) + said
    labels[0] = IGNORE
    return Example(tuple(given + said), tuple(labels), cut, piece.hidden, piece.open)


def check_text(place: str, text: str) -> None:
    """Raises BadInput, naming the place, for a text that has no UTF-8 form and so no tokens."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{place} holds half of a surrogate pair, behind {text[max(0, error.start - 20) : error.start]!r}: it was cut "
            "in the middle of a character. Mend the text, or leave it out."
        ) from error


def _read(language_model: LanguageModel, texts: list[str], places: Sequence[str], **options: Any) -> Any:
    """The texts as the tokenizer encodes them, without what it puts around; places name them in errors."""
    for place, text in zip(places, texts, strict=True):
        check_text(place, text)
    encoded = language_model.tokenizer(texts, add_special_tokens=False, verbose=False, **options)
    _check_known(language_model, encoded.input_ids, places)
    return encoded


def _check_known(language_model: LanguageModel, rows: Sequence[list[int]], places: Sequence[str]) -> None:
    known = language_model.vocabulary
    for place, ids in zip(places, rows, strict=True):
        if max(ids, default=0) >= known:
            tokenizer: Any = language_model.tokenizer
            beyond = next(token for token in ids if token >= known)
            raise BadInput(
                f"{place} holds the token {tokenizer.convert_ids_to_tokens(beyond)!r}, number {beyond} from 0, but "
                f"{language_model.name} has embeddings for {known} tokens: leave the text out, or give the model the "
                "tokenizer that it was trained with."
            )


def _tokens(language_model: LanguageModel, texts: list[str], places: Sequence[str]) -> list[list[int]]:
    return _read(language_model, texts, places).input_ids if texts else []


def _names(records: Sequence[Record]) -> list[str]:
    return [f"Record {record.id!r}" for record in records]


def _text_pieces(language_model: LanguageModel, records: list[Record], end: bool) -> list[_Piece]:
    begin, after = frame(language_model)
    found = _tokens(language_model, [record.completion for record in records], _names(records))
    return [_Piece(begin, [], ids, after if end else []) for ids in found]


def _plain_pieces(language_model: LanguageModel, records: list[Record], end: bool) -> list[_Piece]:
    begin, after = frame(language_model)
    last: Any = language_model.tokenizer.eos_token_id
    after = (after or ([] if last is None else [last])) if end else []
    _check_known(language_model, [after], ["The end of an answer"])
    prompts = [record.prompt.rstrip(" ") for record in records]
    completions = [
        record.completion if prompt[-1:].isspace() or record.completion[0].isspace() else f" {record.completion}"
        for prompt, record in zip(prompts, records, strict=True)
    ]
    whole = [prompt + said for prompt, said in zip(prompts, completions, strict=True)]
    # Cutting the joined text keeps a SentencePiece completion from beginning with a second blank. Where a token spans
    # the seam, the completion is tokenised alone: the prompt must be the one that generation sees, for every choice.
    given, joined, alone = (_tokens(language_model, texts, _names(records)) for texts in (prompts, whole, completions))
    return [
        _Piece(
            begin,
            prompt,
            (both[len(prompt) :] if both[: len(prompt)] == prompt else said),
            after,
            open=end and not after,
        )
        for prompt, both, said in zip(given, joined, alone, strict=True)
    ]


def _chat_pieces(language_model: LanguageModel, records: list[Record], end: bool) -> list[_Piece]:
    tokenizer: Any = language_model.tokenizer
    if not tokenizer.is_fast:
        raise BadInput(
            f"{language_model.name} has a tokenizer without offsets, which chat templates need: use a fast one."
        )
    begin, _ = frame(language_model)
    ends = language_model.end_ids | tokenizer.added_tokens_decoder.keys()
    turns = _last_turns(language_model, records)
    encoded = _read(language_model, [turn.text for turn in turns], _names(records), return_offsets_mapping=True)
    pieces = []
    for record, turn, ids, offsets in zip(records, turns, encoded.input_ids, encoded.offset_mapping, strict=True):
        own = [
            position
            for position, (first, last) in enumerate(offsets)
            if first < turn.stop and last > max(turn.start, first)
        ]
        if not own:
            raise BadInput(
                f"Record {record.id!r} has no token to learn or to score: its completion is none for this tokenizer."
            )
        behind = (
            [position for position, (first, last) in enumerate(offsets) if turn.stop <= first < last <= turn.end]
            if end
            else []
        )
        before = begin if ids[: len(begin)] == begin and len(begin) <= own[0] else []
        pieces.append(
            _Piece(
                before,
                ids[len(before) : own[0]],
                ids[own[0] : own[-1] + 1],
                ids[own[-1] + 1 : behind[-1] + 1] if behind else [],
                hidden=turn.hidden,
                open=end and not (behind and ids[behind[-1]] in ends),
            )
        )
    return pieces


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _turns(record: Record) -> list[dict[str, str]]:
    """The turns before the one to be learnt or scored, which is always record.completion."""
    if not record.messages:
        return [_turn("user", record.prompt)]
    return _without_answer([_turn(message.role, message.content) for message in record.messages])


def _without_answer(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    return turns[:-1] if turns[-1]["role"] == "assistant" else turns


def _marked(language_model: LanguageModel, turns: list[list[dict[str, str]]], places: Sequence[str]) -> list[str]:
    """The conversations with a mark in place of the answer."""
    return render(language_model, [[*each, _turn("assistant", _MARK)] for each in turns], places)


@dataclass(frozen=True, slots=True)
class _LastTurn:
    """A rendered conversation; the characters [start, stop) are its answer and [stop, end) what ends the turn."""

    text: str
    start: int
    stop: int
    end: int
    hidden: bool


def _last_turns(language_model: LanguageModel, records: Sequence[Record]) -> list[_LastTurn]:
    """Where the answer of each record stands.

    What surrounds it is found by rendering a mark in its place, so it does not matter whether the template strips the
    answer, adds white space, or has a generation prompt that differs from the header of a finished turn.
    """
    places = _names(records)
    turns = [_turns(record) for record in records]
    answers = [[*before, _turn("assistant", record.completion)] for before, record in zip(turns, records, strict=True)]
    texts = render(language_model, answers, places)
    found = []
    for place, record, before, text, marked in zip(
        places, records, turns, texts, _marked(language_model, turns, places), strict=True
    ):
        head, mark, tail = marked.partition(_MARK)
        if not text.startswith(head):
            # Templates that split the answer (reasoning and reply) render another header for another answer.
            (head,) = render(language_model, [before], [place], add_generation_prompt=True)
        if not mark or _MARK in tail or not text.startswith(head) or not text.endswith(tail):
            raise BadInput(
                f"{place}: the chat template does not show the answer as it is, so its tokens cannot be told apart."
            )
        stop = len(text) - len(tail)
        if stop <= len(head):
            raise BadInput(f"{place}: the chat template leaves nothing of the completion {record.completion[:40]!r}.")
        end = stop + len(_end_of_turn(language_model.tokenizer, tail))
        # Blanks that end the header belong to the answer, as in a plain prompt: its first word is one token with them.
        begin = len(head.rstrip(" "))
        found.append(_LastTurn(text, begin, stop, end, not _shows(text[begin:stop], record.completion)))
    return found


def _shows(span: str, completion: str) -> bool:
    """Whether all of the completion but its white space stands in the span, in order; the template may add to it."""
    rest = iter("".join(span.split()))
    return all(character in rest for character in "".join(completion.split()))


def _up_to_the_answer(language_model: LanguageModel, asked: dict[int, list[dict[str, str]]]) -> dict[int, str]:
    """Each conversation as text, up to where the answer is to be written or, where it has begun, continued."""
    begun = {index: turns for index, turns in asked.items() if turns[-1]["role"] == "assistant"}
    fresh = {index: turns for index, turns in asked.items() if index not in begun}
    rendered = render(language_model, list(fresh.values()), [f"Prompt {i}" for i in fresh], add_generation_prompt=True)
    texts = dict(zip(fresh, rendered, strict=True))
    marked = [[*turns[:-1], _turn("assistant", turns[-1]["content"] + _MARK)] for turns in begun.values()]
    for index, text in zip(begun, render(language_model, marked, [f"Prompt {i}" for i in begun]), strict=True):
        head, mark, tail = text.partition(_MARK)
        if not mark or _MARK in tail or not _shows(head, begun[index][-1]["content"]):
            raise BadInput(
                f"Prompt {index}: the chat template does not show the answer that has begun, so it cannot be continued."
            )
        texts[index] = head
    return texts


def _end_of_turn(tokenizer: Any, tail: str) -> str:
    """What ends a turn: everything up to the first special token, or, without one, all but the white space behind."""
    special = {*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())}
    marks = [(tail.index(token), len(token)) for token in special if token and token in tail]
    if not marks:
        return tail.rstrip()
    position, length = min(marks, key=lambda pair: (pair[0], -pair[1]))
    return tail[: position + length]


def _end_of_turn_ids(language_model: LanguageModel, turns: list[dict[str, str]], place: str) -> set[int]:
    """The token that ends an assistant's turn in this template, where it is a special one (else the end token must do)."""
    tokenizer: Any = language_model.tokenizer
    (marked,) = _marked(language_model, [_without_answer(turns)], [place])
    end = _end_of_turn(tokenizer, marked.partition(_MARK)[2])
    return set(_tokens(language_model, [end], [place])[0][-1:]) & tokenizer.added_tokens_decoder.keys()
