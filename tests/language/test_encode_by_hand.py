"""Cuts, notes, padding and the ends of turns, as tables."""

import importlib
from types import SimpleNamespace

import pytest

from equipoise.core.errors import BadInput
from equipoise.language.encode import (
    IGNORE,
    Example,
    _end_of_turn,
    _example,
    _Piece,
    _shows,
    check_text,
    collate,
    notes,
)

encoding = importlib.import_module("equipoise.language.encode")  # the package shows the function of that name


def cut(max_length, given=(3, 4, 5, 6, 7), begin=(1, 2), said=(11, 12, 13), end=(14,)):
    found = _example(_Piece([*begin], [*given], [*said], [*end]), max_length)
    assert len(found.input_ids) == len(found.labels) <= max(max_length, len(begin))
    assert all(label in (IGNORE, token) for token, label in zip(found.input_ids, found.labels, strict=True))
    return list(found.input_ids), sum(label != IGNORE for label in found.labels), found.cut


@pytest.mark.parametrize(
    ("max_length", "ids", "labelled", "lost"),
    [
        (20, [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14], 4, 0),
        (11, [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14], 4, 0),
        (10, [1, 2, 4, 5, 6, 7, 11, 12, 13, 14], 4, 1),
        (8, [1, 2, 6, 7, 11, 12, 13, 14], 4, 3),
        (7, [1, 2, 7, 11, 12, 13, 14], 4, 4),
        (6, [1, 2, 7, 11, 12, 13], 3, 5),  # half of six for what is given
        (5, [1, 2, 11, 12, 13], 3, 6),
        (4, [1, 2, 11, 12], 2, 7),
        (3, [1, 2, 11], 1, 8),
    ],
)
def test_what_is_cut_first(max_length, ids, labelled, lost):
    assert cut(max_length) == (ids, labelled, lost)


def test_what_is_cut_of_a_long_prompt_and_of_a_passage():
    assert cut(6, given=range(30, 50), said=[11], end=[]) == ([1, 2, 47, 48, 49, 11], 1, 17)
    assert cut(6, given=range(30, 50), begin=[], said=range(60, 70), end=[]) == ([47, 48, 49, 60, 61, 62], 3, 24)
    assert cut(7, given=range(30, 50), begin=[], said=range(60, 70), end=[]) == ([47, 48, 49, 60, 61, 62, 63], 4, 23)
    assert cut(3, given=[], begin=[], said=[5, 6, 7, 8], end=[9]) == ([5, 6, 7], 2, 2)  # nothing predicts the first
    kept = _example(_Piece([], [1], [2], [], hidden=True, open=True), 5)
    assert kept.hidden and kept.open and kept.labels == (IGNORE, 2)


def test_notes_count_what_was_lost():
    whole, short = Example((1, 2, 3), (IGNORE, 2, 3)), Example((1, 2), (IGNORE, 2), cut=1)
    examples = [whole, short, Example((1, 2), (IGNORE, 2), 4, True), Example((1,) * 9, (1,) * 9, 0, True, True)]
    cut_note, hidden, open_ended = notes(examples)
    assert cut_note == "2 of 4 records were longer than 2 tokens and were cut; see max_length."
    assert hidden.startswith("2 of 4 records have a completion") and open_ended.startswith("1 of 4 records end without")
    assert notes([whole]) == [] == notes([])


def test_rows_are_padded_on_the_right():
    batch = collate([Example((1, 2, 3), (IGNORE, 2, 3)), Example((4,), (IGNORE,))], 9)
    assert {name: each.tolist() for name, each in batch.items()} == {
        "input_ids": [[1, 2, 3], [4, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[IGNORE, 2, 3], [IGNORE, IGNORE, IGNORE]],
    }


def tokenizer(special=(), added=()):
    return SimpleNamespace(all_special_tokens=list(special), added_tokens_decoder=dict(enumerate(added)))


@pytest.mark.parametrize(
    ("tail", "special", "added", "end"),
    [
        ("\n### End\n\n", (), (), "\n### End"),
        ("<end>\n", ("<end>",), (), "<end>"),
        ("\n<end>\n<next>", ("<next>", "<end>"), (), "\n<end>"),
        ("<end>>\n", ("<end>",), ("<end>>",), "<end>>"),  # the longest of those that begin first
        (" x <e>", (), ("", "<e>"), " x <e>"),
        ("", ("<e>",), (), ""),
    ],
)
def test_what_ends_a_turn(tail, special, added, end):
    assert _end_of_turn(tokenizer(special, added), tail) == end


@pytest.mark.parametrize(
    ("span", "completion", "shown"),
    [("a b", "ab", True), ("<x>ab</x>", "a b", True), ("b a", "ab", False), ("aab", "aaab", False), ("", "a", False)],
)
def test_whether_all_of_an_answer_is_shown(span, completion, shown):
    assert _shows(span, completion) is shown


def test_half_of_a_pair_is_named_with_what_stands_before_it():
    check_text("Text", "all well 🙂")
    with pytest.raises(BadInput, match="behind '23456789012345678901': it was cut"):
        check_text("Text", "123456789012345678901\ud83d rest")
    with pytest.raises(BadInput, match="behind 'ab'"):
        check_text("Text", "ab\ud83d")


@pytest.mark.parametrize(
    ("learnt", "generated", "told"),
    [
        ("ab[A]x", "ab[A]yz", "answer with 'yz' and a learnt or scored one with 'x':"),
        ("ab", "ab<think>", "answer with '<think>' and a learnt or scored one with '':"),
        ("ab<x>", "ab\n", "answer with '\\n' and a learnt or scored one with '<x>':"),
        ("ab", "ab \n", None),
    ],
)
def test_where_a_generated_answer_begins_elsewhere(monkeypatch, learnt, generated, told):
    monkeypatch.setattr(encoding, "_marked", lambda *_: [f"{learnt}{encoding._MARK}rest"])
    monkeypatch.setattr(
        encoding, "render", lambda *_, **how: [generated] if how == {"add_generation_prompt": True} else 0
    )
    found = encoding.other_beginning(SimpleNamespace(uses_chat_template=True))
    assert found is None if told is None else told in found
    assert encoding.other_beginning(SimpleNamespace(uses_chat_template=False)) is None
