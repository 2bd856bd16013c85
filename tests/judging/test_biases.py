"""The library of biases as data, and dealing them out."""

import json
import os
from collections import Counter

import pytest

from equipoise.core.errors import BadInput
from equipoise.judging.biases import Bias, assign, key, read_biases, seed_biases


def test_the_seven_seeds():
    seeds = seed_biases()
    assert {bias.name for bias in seeds} == {
        "length",
        "position",
        "authority",
        "compassion fade",
        "fallacy oversight",
        "sentiment",
        "refinement-aware",
    }
    assert all(len(bias.definition) > 40 and len(bias.manifestations) >= 2 for bias in seeds)


@pytest.mark.parametrize(("records", "each"), [(7, 1), (23, 1), (23, 3), (10, 7), (3, 2), (0, 1)])
def test_dealing_is_even_distinct_and_seeded(records, each):
    names = [bias.name for bias in seed_biases()]
    hands = assign(names, records, each=each)
    assert len(hands) == records and all(len(set(hand)) == each == len(hand) for hand in hands)
    counts = Counter(name for hand in hands for name in hand)
    assert max((counts[n] for n in names), default=0) - min((counts[n] for n in names), default=0) <= 1
    assert hands == assign(names, records, each=each)
    if records > 5:
        assert hands != assign(names, records, each=each, seed=1)


def test_dealing_does_not_follow_the_order_of_the_records():
    """Every name can fall on every record: over seeds, the first record gets all of them."""
    names = list("abcdefg")
    assert {assign(names, 20, seed=seed)[0][0] for seed in range(60)} == set(names)


def test_more_names_than_there_are():
    for each in (0, 3):
        with pytest.raises(BadInput, match=f"{each} biases a record were asked for, and the library has 2"):
            assign(["a", "b"], 5, each=each)


def test_names_are_one_line_of_what_can_be_seen(tmp_path):
    assert Bias("\x1b]0;pwned\x07le\u200bngth\n", "d\ud83d") == Bias("]0;pwned length", "d\ufffd")
    assert Bias("a", "d", ("x\ud83d",)).manifestations == ("x\ufffd",)
    assert key("le\u200bngth") == key("ｌｅｎｇｔｈ") == "length"
    path = tmp_path / "library.json"
    for field in ("name", "definition", "manifestations"):
        path.write_text(json.dumps([{"name": "a", "definition": "d"} | {field: "x\ude00"}]))
        with pytest.raises(BadInput, match=r"library.json: 'x\\ude00' holds half of a surrogate pair"):
            read_biases(path)
    path.write_text(json.dumps([{"name": "\u200b", "definition": "d"}]))
    with pytest.raises(BadInput, match="is no bias"):
        read_biases(path)


def test_names_that_are_one():
    assert key("Authority Bias") == key("authority") == key("AUTHORITY-bias") == key(" authority_bias ")
    assert key("Refinement-aware") == key("refinement aware bias")
    assert key("bias") == "bias" and key("position") != key("positional")


def test_libraries(tmp_path):
    path = tmp_path / "library.json"
    path.write_text(
        json.dumps([{"name": " a ", "definition": "d"}, {"name": "b", "definition": "e", "manifestations": ["m"]}])
    )
    assert read_biases(path) == (Bias("a", "d"), Bias("b", "e", ("m",)))
    for content, message in (
        ("{", "is no library of biases"),
        ("[]", "holds no biases"),
        ('{"name": "a"}', "is no bias: expected an object"),
        ('[{"name": "a"}]', "is no bias: expected an object with texts name and definition"),
        ('[{"name": "a", "definition": " "}]', "is no bias"),
        ('[{"name": "a", "definition": "d"}, {"name": "A bias", "definition": "e"}]', "names a bias twice"),
        ("[" * 200_000, "is no library of biases"),
        (
            '[{"name": "a", "definition": "d", "manifestations": 3}]',
            "manifestations of 'a' are 3, expected a list of texts",
        ),
        (
            '[{"name": "a", "definition": "d", "manifestations": 0}]',
            "manifestations of 'a' are 0, expected a list of texts",
        ),
        ('[{"name": "a", "definition": "d", "manifestations": {"m": 1}}]', "expected a list of texts"),
        ('[{"name": "Placebo_bias", "definition": "d"}]', "names a bias placebo, as rewriting without one is named"),
    ):
        path.write_text(content)
        with pytest.raises(BadInput, match=message):
            read_biases(path)
    with pytest.raises(BadInput, match="is no library of biases"):
        read_biases(tmp_path / "none.json")


def test_a_library_as_json_lines_and_a_single_manifestation(tmp_path):
    path = tmp_path / "library.jsonl"
    path.write_text('{"name": "a", "definition": "x", "manifestations": "one way"}\n{"name": "b", "definition": "y"}\n')
    assert read_biases(path) == (Bias("a", "x", ("one way",)), Bias("b", "y"))
    # What Unicode calls the end of a line may stand within a text of JSON.
    path.write_bytes(
        '{"name": "a", "definition": "x\u2028y"}\r\n\r\n{"name": "b", "definition": "y\x85z"}\r\n'.encode()
    )
    assert [bias.definition for bias in read_biases(path)] == ["x\u2028y", "y\x85z"]


def test_a_library_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "biases.json")
    with pytest.raises(BadInput, match="is a pipe"):
        read_biases(tmp_path / "biases.json")


def test_one_name_a_record_of_seed_42_unless_told_otherwise():
    names = list("abcdefg")
    assert assign(names, 20) == assign(names, 20, each=1, seed=42) != assign(names, 20, each=1, seed=43)
    assert [len(hand) for hand in assign(names, 3, each=7)] == [7, 7, 7]
    with pytest.raises(BadInput) as error:
        assign(names, 3, each=8)
    assert str(error.value) == "8 biases a record were asked for, and the library has 7: expected 1 to that many."


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("A Bias", "a"),
        ("a  b-bias_BIAS", "a b bias"),
        ("bias bias", "bias"),
        ("Bias", "bias"),
        ("biases", "biases"),
        ("bias of place", "bias of place"),
        ("", ""),
    ],
)
def test_the_key_of_a_name(name, same):
    assert key(name) == same


def test_a_library_whose_rows_hold_other_things(tmp_path):
    path = tmp_path / "library.json"
    row = {"name": "a", "definition": "d"}
    for text, found in (
        (json.dumps([row | {"manifestations": [1, "m"]}]), (Bias("a", "d", ("1", "m")),)),
        (json.dumps([row | {"manifestations": None, "more": 1}]), (Bias("a", "d"),)),
        (f"\n  {json.dumps([row])}", (Bias("a", "d"),)),
        (f"{json.dumps(row)}\n\n{json.dumps(row | {'name': 'b'})}\n", (Bias("a", "d"), Bias("b", "d"))),
    ):
        path.write_text(text)
        assert read_biases(str(path)) == found
    for row in ([], "text", 7, {"name": 1, "definition": "d"}, {"name": "a", "definition": None}, {"definition": "d"}):
        path.write_text(json.dumps([row]))
        with pytest.raises(BadInput) as error:
            read_biases(path)
        said = f"{path}: {row!r} is no bias: expected an object with texts name and definition."
        assert str(error.value) == said
    path.write_text("")
    with pytest.raises(BadInput, match=r"holds no biases: expected a JSON list of objects with name and definition\.$"):
        read_biases(path)
