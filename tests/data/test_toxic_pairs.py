"""Pairs of unwanted and wanted texts as they are published, and the words that tell them apart."""

import json

import pytest

from equipoise.core.errors import BadInput
from equipoise.data import toxic_pairs
from equipoise.data.toxic_pairs import ToxicPair, read_toxic_pairs, read_words, telling_words


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_published_form_is_one_pair():
    rows = [
        {"toxic": "you fool", "neutral": ["you are wrong", "you err"], "id": 7},
        {"prompt": "And?", "rejected": "you fool", "chosen": "you are wrong"},
        {"prompt_text": "And", "pert_gen_text": "you fool", "unpert_gen_text": "you are wrong"},
    ]
    expected = [("7", ""), ("pair-1", "And?"), ("pair-2", "And")]
    assert read_toxic_pairs(rows) == [ToxicPair(name, "you fool", "you are wrong", prompt) for name, prompt in expected]
    renamed = read_toxic_pairs([{"rude": "a b", "polite": "c d"}], {"toxic": "rude", "neutral": "polite"})
    assert (renamed[0].toxic, renamed[0].neutral) == ("a b", "c d")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"toxic": "x"}, r"pairs.jsonl:2: the pair has no 'neutral' side: complete the pair, or leave it out"),
        ({"toxic": None, "neutral": "x"}, "the pair has no 'toxic' side"),
        ({"toxic": "x", "neutral": []}, "the pair has no 'neutral' side"),
        ({"chosen": "x"}, "the pair has no 'rejected' side"),
        ({"toxic": 3, "neutral": "x"}, "field 'toxic': expected text, found int"),
        ({"toxic": "\ud800", "neutral": "x"}, "cut in the middle of a character"),
        ({"toxic": "x", "neutral": "y", "prompt": "\ud800"}, "field 'prompt' is cut in the middle of a character"),
        ({"toxic": "x", "neutral": "y", "id": "\ud800"}, "field 'id' is cut in the middle of a character"),
        ({"text": "x"}, r"nothing to read, expected toxic and neutral, or rejected and chosen \(found: text\)"),
        ({"toxic": "x", "neutral": "y", "id": "one"}, "id 'one' was used before at .*pairs.jsonl:1; make ids unique"),
    ],
)
def test_a_pair_that_is_none_is_refused_by_its_place(tmp_path, row, why):
    path = written(tmp_path / "pairs.jsonl", [{"toxic": "a", "neutral": "b", "id": "one"}, row])
    with pytest.raises(BadInput, match=why):
        read_toxic_pairs(path)


def test_pairs_that_are_made_already_are_looked_at_too():
    whole = ToxicPair("a", "x", "y", "z")
    assert read_toxic_pairs([whole]) == [whole]
    with pytest.raises(BadInput, match=r"pairs\[1\]: the pair has no 'neutral' side"):
        read_toxic_pairs([whole, ToxicPair("b", "x", "")])


def test_a_field_that_was_named_is_there_in_some_row():
    rows = [{"toxic": "a", "neutral": "b"}, {"toxic": "c", "neutral": "d", "question": "e"}]
    assert [pair.prompt for pair in read_toxic_pairs(rows, {"prompt": "question"})] == ["", "e"]
    for name in ("prompt", "id"):
        with pytest.raises(
            BadInput, match=rf"no row has the field 'qestion' that was named for {name} \(found: toxic, neutral, q"
        ):
            read_toxic_pairs(rows, {name: "qestion"})


def test_a_blank_prompt_is_none():
    assert read_toxic_pairs([{"toxic": "a", "neutral": "b", "prompt": "  "}])[0].prompt == ""


def test_words_that_stand_on_one_side_more_often_than_chance():
    rows = [{"toxic": f"the fool {i} ran", "neutral": f"the one {i} ran"} for i in range(7)]
    words = telling_words(read_toxic_pairs(rows))
    assert words == ["fool"]  # 7 / sqrt(7) = 2.6; `the` and `ran` stand on both sides, `one` on the other
    assert telling_words(read_toxic_pairs(rows[:6])) == []  # 2.45
    assert telling_words(read_toxic_pairs([*rows, {"toxic": "what?", "neutral": "fool"}])) == []  # 6 / sqrt(8)


def test_a_list_of_words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("Fool\n\n two words \nfool\n", encoding="utf-8")
    assert read_words(path) == ["fool", "two words"]
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(BadInput, match="holds no word"):
        read_words(path)
    with pytest.raises(BadInput, match="no such file"):
        read_words(tmp_path / "none.txt")


def test_paradetox_is_read_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "paradetox").mkdir()
    unchanged = {"id": 3, "toxic": "x  y", "neutral": [" x y"]}  # as some published rows are
    rows = [unchanged, {"id": 4, "toxic": "a", "neutral": ["b", "c"]}]
    written(tmp_path / "paradetox" / "paradetox-2.jsonl", rows)
    (tmp_path / "paradetox" / "bad-words-en.txt").write_text("fool\n")
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    assert toxic_pairs.paradetox() == [ToxicPair("4", "a", "b")] and toxic_pairs.listed_words() == ["fool"]
    (tmp_path / "paradetox" / "paradetox-2.jsonl").unlink()
    with pytest.raises(BadInput, match="holds no paradetox"):
        toxic_pairs.paradetox()


def test_no_pairs_are_refused_with_their_place(tmp_path):
    with pytest.raises(BadInput, match=r"^pairs: there is no pair"):
        read_toxic_pairs([])
    empty = written(tmp_path / "none.jsonl", [])
    with pytest.raises(BadInput, match=r"none\.jsonl.*(no pair|no rows|empty)"):
        read_toxic_pairs(empty)
