"""Reading pairs of every shape, and dividing them without leaks."""

import csv
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from equipoise.core.errors import BadInput
from equipoise.judging.pairs import Pair, divide, pair_from, read_pairs, shortened, word_count


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(row):
    return pair_from(row, place="file:1", default_id="file-1")


LABELLED = {"question": "Q?", "response_A": "one", "response_B": "two"}


@pytest.mark.parametrize(
    ("label", "first"), [("A>B", True), ("B>A", False), (1, True), (2, False), ("1", True), ("2", False)]
)
def test_labels(label, first):
    pair = read({**LABELLED, "label": label, "pair_id": 7, "domain": "math", "bias": "length"})
    assert (pair.chosen, pair.rejected) == (("one", "two") if first else ("two", "one"))
    assert pair.chosen_first is first and (pair.id, pair.domain, pair.bias) == ("7", "math", "length")


@pytest.mark.parametrize("label", [True, 0, 3, "A", "A=B", None, "a>b"])
def test_unknown_labels(label):
    with pytest.raises(BadInput, match=r"^file:1: label is .*, expected 'A>B' or 'B>A'"):
        read({**LABELLED, "label": label})


def test_preference_rows_plain_and_conversational():
    plain = read({"prompt": "Q?", "chosen": "good", "rejected": "bad", "subset": "easy"})
    assert (plain.question, plain.chosen, plain.rejected, plain.domain) == ("Q?", "good", "bad", "easy")
    assert plain.chosen_first and plain.id == "file-1"
    asked = [{"role": "user", "content": "Q?"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("good", "bad")]
    turns = read({"prompt": asked, "chosen": answers[0], "rejected": answers[1]})
    whole = read({"chosen": asked + answers[0], "rejected": asked + answers[1]})
    as_text = read({"chosen": json.dumps(asked + answers[0]), "rejected": json.dumps(asked + answers[1])})
    for pair in (turns, whole, as_text):
        assert (pair.question, pair.chosen, pair.rejected) == ("Q?", "good", "bad")
    longer = [{"role": "system", "content": "Be kind."}, *asked]
    assert read({"chosen": longer + answers[0], "rejected": longer + answers[1]}).question == (
        "system: Be kind.\n\nuser: Q?"
    )


def test_a_text_that_only_looks_like_turns_is_a_text():
    deep = '[{"a":' + "[" * 200_000
    assert read({"prompt": deep, "chosen": "good", "rejected": "bad"}).question == deep


def test_one_question_is_one_group():
    same = [read({"prompt": text, "chosen": "a", "rejected": "b"}).group for text in ("Q?", " Q?\n", "R?")]
    assert same[0] == same[1] != same[2]
    assert read({"prompt": "Q?", "chosen": "a", "rejected": "b", "group": 5}).group == "5"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q?", "chosen": "a"}, "expected question, response_A.*found chosen, prompt"),
        ({"chosen": "a", "rejected": "b"}, "expected question, response_A"),
        ({"prompt": "Q?", "chosen": "a", "rejected": " "}, "the worse answer is ' ', expected a text"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "the question is None"),
        ({**LABELLED, "label": 1, "response_A": 3}, "the better answer is 3"),
        (
            {"chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]},
            "share",
        ),
        (
            {
                "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a"}],
                "rejected": [{"role": "user", "content": "R"}, {"role": "assistant", "content": "b"}],
            },
            "must share all turns but the last",
        ),
    ],
)
def test_rows_that_mean_nothing(row, message):
    with pytest.raises(BadInput, match=f"^file:1: .*{message}"):
        read(row)


def test_files(tmp_path):
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": "Q", "chosen": "a", "rejected": "b"},
        {"prompt": "Q", "chosen": "same", "rejected": "same"},
        {"prompt": "R", "chosen": "a", "rejected": "b", "id": "mine"},
    )
    left_out: list[str] = []
    first = hashlib.sha256(b"Q\x1fa\x1fb").hexdigest()[:16]
    assert [pair.id for pair in read_pairs(path, left_out=left_out)] == [first, "mine"]
    assert left_out == [f"{path}:2: both answers are the same text"]
    assert [pair.id for pair in read_pairs(path, limit=1)] == [first]
    twice = write(tmp_path / "twice.jsonl", *[{"prompt": "Q", "chosen": "a", "rejected": "b", "id": 1}] * 2)
    with pytest.raises(BadInput, match=r"twice.jsonl:2: id '1' was used before at .*twice.jsonl:1"):
        read_pairs(twice)
    with pytest.raises(BadInput, match="is empty"):
        read_pairs(write(tmp_path / "none.jsonl"))
    with pytest.raises(BadInput, match="no such file"):
        read_pairs(tmp_path / "nowhere.jsonl")


def test_judgebench_as_published():
    """Counts of the card; one of its 620 pairs holds the same text twice."""
    root = os.environ.get("EQUIPOISE_DATA")
    if not root:
        pytest.skip("EQUIPOISE_DATA does not name the folder that holds judgebench/.")
    left_out: list[str] = []
    pairs = read_pairs(Path(root) / "judgebench" / "judgebench.jsonl.gz", left_out=left_out)
    assert len(pairs) == 619 and len(left_out) == 1
    assert Counter(pair.domain for pair in pairs) == {"knowledge": 286, "reason": 149, "math": 112, "code": 72}
    assert sum(pair.chosen_first for pair in pairs) in (335, 336)


# --- dividing -------------------------------------------------------------------------------------------------------


def many(domains, groups=30, each=2):
    return [
        Pair(f"{domain}{g}-{i}", f"{domain} question {g}", "a", "b", domain=domain, group=f"{domain}-{g}")
        for domain in domains
        for i in range(each)
        for g in range(groups)
    ]


def test_parts_share_no_question_and_keep_the_order():
    pairs = many(("code", "math"))
    parts = divide(pairs, (0.5, 0.3, 0.2))
    assert sorted(pair.id for part in parts for pair in part) == sorted(pair.id for pair in pairs)
    groups = [{pair.group for pair in part} for part in parts]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    place = {pair.id: index for index, pair in enumerate(pairs)}
    for part in parts:
        assert [place[pair.id] for pair in part] == sorted(place[pair.id] for pair in part)


def test_parts_have_their_share_in_every_domain():
    for domains in (("math",), ("code", "math", "reason")):
        parts = divide(many(domains), (0.5, 0.3, 0.2))
        for share, part in zip((0.5, 0.3, 0.2), parts, strict=True):
            for domain in domains:
                groups = {pair.group for pair in part if pair.domain == domain}
                assert abs(len(groups) - share * 30) <= 1
            assert abs(len({pair.group for pair in part}) - share * 30 * len(domains)) <= 1


def test_dividing_is_seeded_and_depends_on_nothing_but_the_groups():
    pairs = many(("math",))
    assert divide(pairs, (0.5, 0.5)) == divide(pairs, (0.5, 0.5)) != divide(pairs, (0.5, 0.5), seed=1)
    back = divide(pairs[::-1], (0.5, 0.5))
    assert {pair.id for pair in back[0]} == {pair.id for pair in divide(pairs, (0.5, 0.5))[0]}


def test_parts_that_would_be_empty():
    with pytest.raises(BadInput, match="pairs: 1, too few to divide into 2 parts"):
        divide(many(("math",), groups=1), (0.5, 0.5))
    for shares in ((0.5, 0.4), (1.2, -0.2), (1.0, 0.0)):
        with pytest.raises(BadInput, match="expected positive numbers that sum to 1"):
            divide(many(("math",)), shares)


def test_whole_conversations_beside_their_prompt_give_the_last_turns():
    user = {"role": "user", "content": "Q?"}
    sides = {name: [user, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    pair = pair_from({"prompt": "Q?", **sides}, place="f:1", default_id="d")
    assert (pair.question, pair.chosen, pair.rejected) == ("Q?", "chosen", "rejected")
    longer = {name: [user, {"role": "assistant", "content": "?"}, user, turns[-1]] for name, turns in sides.items()}
    pair = pair_from({"prompt": "Q?", **longer}, place="f:1", default_id="d")
    assert (pair.chosen, pair.rejected) == ("chosen", "rejected")


def test_texts_that_differ_in_their_last_character_are_no_conversations():
    for chosen, rejected in (("It is 1", "It is 2"), ("1", "2")):
        pair = read({"prompt": "Q?", "chosen": chosen, "rejected": rejected})
        assert (pair.chosen, pair.rejected) == (chosen, rejected)
    turn = [{"role": "assistant", "content": "one"}]
    with pytest.raises(BadInput, match="the worse answer is 7, expected a text"):
        read({"prompt": "Q?", "chosen": turn, "rejected": 7})


def test_odd_cells_are_named_or_nothing():
    row = {"question": "Q?", "response_A": "a", "response_B": "b", "label": 1}
    with pytest.raises(BadInput, match=r"f:1: label is \['A>B'\]"):
        pair_from(row | {"label": ["A>B"]}, place="f:1", default_id="d")
    assert pair_from(row | {"domain": float("nan"), "subset": "s"}, place="f:1", default_id="d").domain == "s"


@pytest.mark.parametrize("field", ["question", "response_A", "response_B", "id", "domain", "bias", "group"])
def test_half_a_surrogate_pair_is_refused_with_its_place(field):
    row = {"question": "Q?", "response_A": "a", "response_B": "b", "label": 1} | {field: "x\ud83d"}
    with pytest.raises(
        BadInput, match=r"^f:1: pair .* holds half of a surrogate pair at character 1; put U\+FFFD"
    ) as error:
        pair_from(row, place="f:1", default_id="d")
    str(error.value).encode()
    assert pair_from(row | {field: json.loads('"\\ud83d\\ude00"')}, place="f:1", default_id="d")
    with pytest.raises(BadInput, match="pair 'p': chosen holds half"):
        Pair("p", "q", "\ude00", "b")


def test_half_a_surrogate_pair_within_turns_and_names_of_fields(tmp_path):
    turns = json.dumps([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "\ud83d"}])
    whole = json.dumps([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "b"}])
    path = tmp_path / "p.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("chosen", "rejected"), (whole.replace("b", "c"), whole), (turns, whole)])
    with pytest.raises(BadInput, match=r"p\.csv:3: pair 'p-3': chosen holds half"):
        read_pairs(path)
    with pytest.raises(BadInput, match="found chosen, \ufffd") as error:
        read({"chosen": "a", "\ud83d\x1b": "b"})
    str(error.value).encode()


def test_shortened_keeps_blanks_and_words():
    assert shortened("one  two\nthree", 2) == "one  two" and shortened("one  two\nthree", 3) == "one  two\nthree"
    assert shortened("one", 5) == "one"


def test_scripts_without_blanks_are_counted_and_cut_by_characters():
    for text, counted, first, two in (
        ("长" * 300, 300, "长", "长长"),
        ("你好，世界。", 4, "你", "你好，"),
        ("カタカナとかな", 7, "カ", "カタ"),
        ("ภาษาไทย", 7, "ภ", "ภา"),
        ("กี่ปี", 2, "กี่", "กี่ปี"),  # marks above a letter stay on it
        ("GPT-4 的答案 is 42", 6, "GPT-4", "GPT-4 的"),
        ("한국어는 낱말 사이를 띈다", 4, "한국어는", "한국어는 낱말"),
    ):
        assert (word_count(text), shortened(text, 1), shortened(text, 2)) == (counted, first, two), text
        assert shortened(text, counted) == text


@pytest.mark.parametrize(
    "text", ["It's 3.14 — ‘fine’; naïve, x_1+y^2=\\frac{1}{2}\n\n# `code()`  é\u0301\tдом\u2028ok", " a ", ""]
)
def test_elsewhere_words_are_what_stands_between_blanks(text):
    assert word_count(text) == len(text.split())
    for words in (1, 2, 3, 50):
        assert shortened(text, words).split() == text.split()[:words]


def test_what_a_pair_is_unless_told_otherwise():
    assert Pair("i", "q", "c", "r") == Pair("i", "q", "c", "r", "", "", True, "")


def test_the_first_field_that_holds_something_names_a_row():
    row = {**LABELLED, "label": 2}
    group = hashlib.sha256(b"Q?").hexdigest()[:16]
    assert read(row) == Pair("file-1", "Q?", "two", "one", "", group, False, "")
    full = {"id": 0, "pair_id": "p", "domain": "", "subset": "s", "group": None, "bias": float("nan")}
    assert read(row | full) == Pair("0", "Q?", "two", "one", "s", group, False, "")
    assert read(row | {"id": "", "pair_id": "p", "domain": "d", "subset": "s"}).id == "p"


def test_texts_that_only_look_like_turns_stay_texts():
    for text in ("[{not JSON", "  [{", "[1, 2]", '{"role": "user"}'):
        pair = read({"prompt": text, "chosen": "a", "rejected": "b"})
        assert pair.question == text
    spaced = "  " + json.dumps([{"role": "user", "content": "Q?"}])
    assert read({"prompt": spaced, "chosen": "a", "rejected": "b"}).question == "Q?"
    assert read({"prompt": [{"content": "Q?"}, {"content": 5}], "chosen": "a", "rejected": "b"}).question == (
        "user: Q?\n\nuser: 5"
    )
    for nothing in ([], [{"role": "user"}], ["Q?"], 7):
        with pytest.raises(BadInput, match=r"the question is .*, expected a text that is not empty"):
            read({"prompt": nothing, "chosen": "a", "rejected": "b"})


def test_only_conversations_that_share_their_beginning_are_cut_to_their_ends():
    user, other = ({"role": "user", "content": text} for text in ("Q?", "R?"))
    good, bad = ({"role": "assistant", "content": text} for text in ("good", "bad"))
    pair = read({"prompt": "P", "chosen": [user, good], "rejected": [other, bad]})
    assert (pair.question, pair.chosen, pair.rejected) == (
        "P",
        "user: Q?\n\nassistant: good",
        "user: R?\n\nassistant: bad",
    )
    pair = read({"prompt": "P", "chosen": [good], "rejected": [bad]})
    assert (pair.chosen, pair.rejected) == ("good", "bad")
    assert read({"chosen": [user, good], "rejected": [user, bad]}).chosen_first
    with pytest.raises(BadInput, match="must share all turns but the last"):
        read({"chosen": [user, other, good], "rejected": [user, bad]})


def test_a_file_of_equal_answers_says_so_and_a_folder_is_none(tmp_path):
    path = write(tmp_path / "same.jsonl", {"prompt": "Q", "chosen": "same", "rejected": "same"})
    expected = (
        "question, response_A, response_B and label; or prompt, chosen and rejected; or chosen and rejected as turns"
    )
    for left_out, why in (([], "holds only pairs of two equal answers"), (None, "is empty")):
        with pytest.raises(BadInput) as error:
            read_pairs(path, left_out=left_out)
        assert str(error.value) == f"{path} {why}: expected at least one pair with {expected}."
    with pytest.raises(BadInput) as error:
        read_pairs(tmp_path)
    assert str(error.value) == f"{tmp_path} is a folder: name the file of pairs in it (JSON lines, CSV or Parquet)."


def test_pairs_without_ids_are_known_by_their_texts_whatever_the_file_and_its_order(tmp_path):
    rows = [{"prompt": f"Q{n % 3}", "chosen": "a", "rejected": f"b{n % 4}"} for n in range(13)]
    one = read_pairs(write(tmp_path / "one.jsonl", *rows))
    other = read_pairs(write(tmp_path / "other.jsonl", *rows[::-1]))
    assert sorted(one, key=lambda pair: pair.id) == sorted(other, key=lambda pair: pair.id)
    assert len({pair.id for pair in one}) == 13 and one[12].id == f"{one[0].id}-2"  # the same texts once more
    turned = {"question": "Q0", "response_A": "b0", "response_B": "a", "label": "B>A"}
    assert read_pairs(write(tmp_path / "turned.jsonl", turned))[0].id == one[0].id


def test_a_file_is_read_no_further_than_its_limit(tmp_path):
    rows = [{"prompt": f"Q{n}", "chosen": "a", "rejected": "b"} for n in range(4)]
    path = tmp_path / "a.b.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n")
    assert [pair.question for pair in read_pairs(path, limit=3)] == ["Q0", "Q1", "Q2"]
    with pytest.raises(BadInput):
        read_pairs(path)


def test_parts_are_those_of_seed_42_unless_told_otherwise():
    pairs = many(("code", "math"))
    assert divide(pairs, (0.5, 0.5)) == divide(pairs, (0.5, 0.5), seed=42) != divide(pairs, (0.5, 0.5), seed=43)
    # A group in several domains belongs to the first.
    both = [Pair("1", "q", "a", "b", "x", "g"), Pair("2", "q", "a", "b", "y", "g"), Pair("3", "q", "a", "b", "x", "h")]
    assert sorted(sorted(pair.id for pair in part) for part in divide(both, (0.5, 0.5))) == [["1", "2"], ["3"]]


def test_shortened_at_its_limits():
    assert [shortened(" a  b c ", words) for words in (1, 2, 3, 4)] == [" a", " a  b", " a  b c ", " a  b c "]
    assert shortened("", 1) == "" and shortened("  ", 1) == "  "
