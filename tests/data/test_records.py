import csv
import gzip
import json
import string
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise.core.errors import BadInput
from equipoise.data.records import EXTENSIONS, Message, Record, read_records, read_rows, record_from

HELLO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one(tmp_path: Path, row: object, **options) -> Record:
    (record,) = read_records(write(tmp_path / "f.jsonl", row), **options)
    return record


def test_each_shape_of_a_row(tmp_path):
    assert one(tmp_path, {"text": " Plain. "}) == Record(id="f-1", completion=" Plain. ")
    assert one(tmp_path, {"question": "Q?", "answer": "A", "id": 7, "group": "g"}) == Record(
        id="7", completion="A", prompt="Q?", group="g"
    )
    assert one(tmp_path, {"prompt": "P", "completion": "C"}) == Record(id="f-1", completion="C", prompt="P")
    messages = tuple(Message(**message) for message in HELLO)
    assert one(tmp_path, {"messages": HELLO}) == Record("f-1", "Hello", "Hi", messages)
    assert one(tmp_path, {"prompt": HELLO[:1], "completion": HELLO[1:]}) == Record("f-1", "Hello", "Hi", messages)
    wmdp = {"question": "Q?", "choices": ["w", "x", "y", "z"], "answer": 2}
    expected = Record("f-1", "y", "Q?", choices=("w", "x", "y", "z"), answer=2, wrong=("w", "x", "z"))
    assert one(tmp_path, wmdp) == expected
    assert one(tmp_path, wmdp | {"answer": "y"}) == expected
    tofu = {"question": "Q?", "answer": "A", "paraphrased_answer": "Aa", "perturbed_answer": ["B", "C"]}
    assert one(tmp_path, tofu) == Record("f-1", "A", "Q?", paraphrases=("Aa",), wrong=("B", "C"))


def test_other_names_and_what_they_decide(tmp_path):
    row = {"text": "T", "ask": "Q", "reply": "R", "key": "k", "about": "x"}
    names = {"question": "ask", "answer": "reply", "id": "key", "group": "about"}
    assert one(tmp_path, row, fields=names) == Record("k", "R", "Q", group="x")
    assert one(tmp_path, row).completion == "T"
    with pytest.raises(BadInput, match=r"no field 'anser' to rename. Did you mean 'answer'"):
        one(tmp_path, row, fields={"anser": "reply"})


def test_a_name_that_no_row_has_is_refused_and_no_other_field_taken(tmp_path):
    row = {"question": "Q", "reply": "R", "text": "T", "subject": "s"}
    path = write(tmp_path / "f.jsonl", row, row)
    assert read_records(path, fields={"answer": "reply", "group": "subject"})[1] == Record("f-2", "R", "Q", group="s")
    for fields, said in (
        ({"answer": "repply"}, r"f.jsonl:1: no field 'repply' \(found: question, reply, text, subject\)"),
        ({"question": "ask", "answer": "reply"}, "f.jsonl:1: no field 'ask'"),
        ({"answer": "reply", "group": "subjct"}, "f.jsonl:1: no row has the field 'subjct' that was named for group"),
        ({"text": "body", "answer": "reply"}, "no row has the field 'body' that was named for text"),
        (
            {"prompt": "ask"},
            r"no row has the field 'ask' that was named for prompt \(found: question, reply, text, sub",
        ),
        ({"completion": "reply"}, "no field 'prompt'"),
    ):
        with pytest.raises(BadInput, match=said):
            read_records(path, fields=fields)
    # One row may lack what others have, where that is optional, but no part of what is learnt.
    bare = {name: value for name, value in row.items() if name != "subject"}
    assert [r.group for r in read_records(write(path, bare, row), fields={"answer": "reply", "group": "subject"})] == [
        "",
        "s",
    ]
    with pytest.raises(BadInput, match=r"f.jsonl:2: no field 'reply'"):
        read_records(write(path, row, {"question": "Q", "text": "T"}), fields={"answer": "reply"})
    # Choices named otherwise, beside questions without choices; and null in all rows is a name that is there.
    choices = {"question": "Q", "options": ["a", "b"], "answer": 1}
    mixed = read_records(write(path, choices, {"question": "Q", "answer": "A"}), fields={"choices": "options"})
    assert [record.completion for record in mixed] == ["b", "A"]
    pq.write_table(
        pa.table({"question": ["Q"], "answer": ["A"], "about": pa.array([None], pa.string())}), tmp_path / "f.parquet"
    )
    assert read_records(tmp_path / "f.parquet", fields={"group": "about"})[0].group == ""


def test_of_files_with_the_same_names_one_has_to_have_them(tmp_path):
    from equipoise.unlearning.sides import read_sides

    asked = write(tmp_path / "forget.jsonl", {"ask": "Q", "reply": "R", "who": "w"})
    texts = write(tmp_path / "retain.jsonl", {"text": "T"})
    names = {"question": "ask", "answer": "reply", "group": "who"}
    for retain in (texts, [{"text": "T"}]):
        sides = read_sides({"forget": asked, "retain": retain}, names)
        assert [records[0].completion for records in sides.records.values()] == ["R", "T"]
        with pytest.raises(
            BadInput, match=r"forget.jsonl:1: no row has the field 'whom'.* \(found: ask, reply, who, text\)"
        ):
            read_sides({"forget": asked, "retain": retain}, names | {"group": "whom"})


def test_the_same_records_from_every_format(tmp_path):
    rows = [
        {"id": f"r{i}", "question": f'Wö "{i}",\nsays?', "choices": ["one", "2, 3"], "answer": i % 2} for i in range(5)
    ]
    expected = read_records(write(tmp_path / "f.jsonl", *rows))
    (tmp_path / "f.json").write_text(json.dumps(rows, indent=1))
    for name in ("f.jsonl.gz", "f.json.gz"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "f.jsonl").read_bytes()))
    with (tmp_path / "f.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"choices": json.dumps(row["choices"])} for row in rows)
    (tmp_path / "f.csv.gz").write_bytes(gzip.compress((tmp_path / "f.csv").read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet")
    for extension in EXTENSIONS:
        assert read_records(tmp_path / f"f{extension}") == expected, extension
        assert read_records(tmp_path / f"f{extension}", limit=2) == expected[:2]


def csv_of(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_conversation_in_a_csv_cell_is_one(tmp_path):
    parts = {"prompt": HELLO[:1], "completion": HELLO[1:]}
    for row in ({"messages": HELLO}, parts):
        expected = one(tmp_path, row | {"id": "a"})
        assert expected.messages == tuple(Message(**message) for message in HELLO)
        cells = {name: " " + json.dumps(value, indent=1) for name, value in row.items()}
        assert read_records(csv_of(tmp_path / "f.csv", cells | {"id": "a"})) == [expected]
    # What only looks like one is text; what Python wrote, or half a conversation, is refused.
    for text in ("[1, 2] is a list", '[{"a": 1}]', "[laughs] Hi"):
        (record,) = read_records(csv_of(tmp_path / "f.csv", {"prompt": text, "completion": text}))
        assert (record.prompt, record.completion, record.messages) == (text, text, ())
    for row in (
        {"messages": str(HELLO)},
        {name: str(value) for name, value in parts.items()},
        {"prompt": "Hi", "completion": json.dumps(HELLO[1:])},
        {"messages": json.dumps(HELLO)[:-1]},
    ):
        with pytest.raises(BadInput, match=r"f.csv:2: field '.*': expected a .*list of \{\"role\", \"content\"\}"):
            read_records(csv_of(tmp_path / "f.csv", row))


def test_ids_are_lines_and_blank_lines_count(tmp_path):
    path = tmp_path / "forget.set.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"}\n')
    assert [record.id for record in read_records(path)] == ["forget-1", "forget-3"]


def test_what_comes_after_the_limit_is_not_read(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\nbroken')
    assert len(read_records(path, limit=2)) == 2
    with pytest.raises(BadInput, match="limit is 0"):
        read_records(path, limit=0)


GOOD = '{"text": "a"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"f.jsonl is empty: expected at least one record with text"),
        ("\n \n", r"f.jsonl is empty"),
        (GOOD + "{'text': 1}\n", r"f.jsonl:2: not JSON \(.* at column 2\); expected one JSON object a line"),
        (GOOD + "[1]\n", r"f.jsonl:2: expected a JSON object with .*, found a list of 1"),
        (
            '{"question": "q", "reply": "r"}',
            r"f.jsonl:1: no field 'answer' \(found: question, reply\).*--fields answer=NAME",
        ),
        ('{"title": "q"}', r"f.jsonl:1: nothing to read, .*\(found: title\).*--fields text=NAME"),
        ('{"question": "q", "answer": null}', r"f.jsonl:1: field 'answer': expected a value, found nothing"),
        ('{"text": 3}', r"f.jsonl:1: field 'text': expected text, found int 3"),
        ('{"text": " "}', r"f.jsonl:1: field 'text': expected text that is not empty"),
        ('{"text": "\\ud800"}', r"f.jsonl:1: .*half of a surrogate pair"),
        (
            '{"question": "q", "choices": ["a", "b"], "answer": 2}',
            r"f.jsonl:1: field 'answer': .*index, 0 to 1, found int 2",
        ),
        ('{"question": "q", "choices": ["a", "b"], "answer": true}', r"found bool True"),
        (
            '{"question": "q", "choices": ["1", "2"], "answer": "1"}',
            r"expected one meaning, found '1', the text of a choice",
        ),
        ('{"question": "q", "choices": ["a"], "answer": 0}', r"'choices': expected a list of at least 2 texts"),
        (
            '{"messages": [{"role": "user", "content": "x"}]}',
            r"ends with the assistant, found one that ends with 'user'",
        ),
        (
            '{"messages": [{"role": "user"}]}',
            r"'messages': expected a list of .*found an item that is an object with role",
        ),
        ('{"messages": []}', r"'messages': expected a list"),
        ('{"id": "x", "text": "a"}\n{"id": "x", "text": "b"}', r"f.jsonl:2: id 'x' was used before at .*f.jsonl:1"),
        ("[" * 100_000, r"f.jsonl:1: not usable JSON"),
    ],
)
def test_bad_content_is_one_sentence_with_place_and_remedy(tmp_path, content, message):
    path = tmp_path / "f.jsonl"
    path.write_text(content)
    with pytest.raises(BadInput, match=message) as caught:
        read_records(path)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(GOOD.encode() + b'{"text": "caf\xe9"}\n')
    with pytest.raises(BadInput, match=r"f.jsonl:2: not UTF-8 \(byte 0xe9 at offset 27\)"):
        read_records(path)
    assert path.read_bytes()[27] == 0xE9


def test_files_that_are_cut(tmp_path):
    rows = [{"text": string.ascii_letters * 50 + str(i)} for i in range(200)]
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (tmp_path / "f.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(BadInput, match=r"f.jsonl.gz: not a whole gzip file .*download it again"):
        read_records(tmp_path / "f.jsonl.gz")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet")
    (tmp_path / "f.parquet").write_bytes((tmp_path / "f.parquet").read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"f.parquet: not a whole Parquet file"):
        read_records(tmp_path / "f.parquet")
    (tmp_path / "f.csv").write_text('text\n"not closed\n')
    with pytest.raises(BadInput, match=r"f.csv:\d: not CSV"):
        read_records(tmp_path / "f.csv")
    (tmp_path / "f.csv").write_text("text\na,b\n")
    with pytest.raises(BadInput, match=r"f.csv:2: 2 cells under 1 columns"):
        read_records(tmp_path / "f.csv")


def test_files_that_are_not_there(tmp_path):
    write(tmp_path / "forget.jsonl", {"text": "a"})
    with pytest.raises(BadInput, match=r"forgot.jsonl: no such file. Did you mean 'forget.jsonl'"):
        read_records(tmp_path / "forgot.jsonl")
    with pytest.raises(BadInput, match=r"unknown kind of file; expected .jsonl"):
        read_records(tmp_path / "forget.xlsx")
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        read_records(tmp_path / "d.jsonl")
    assert read_records(write(tmp_path / "none.jsonl"), nothing="empty") == []
    with pytest.raises(BadInput, match=r"nothing is 'emtpy'\. Did you mean 'empty'"):
        read_records(tmp_path / "none.jsonl", nothing="emtpy")


def test_parquet_columns_of_another_name(tmp_path):
    pq.write_table(pa.Table.from_pylist([{"question": "q", "reply": "r"}]), tmp_path / "f.parquet")
    with pytest.raises(BadInput, match=r"row 1: no field 'answer' \(found: question, reply\)"):
        read_records(tmp_path / "f.parquet")
    assert read_records(tmp_path / "f.parquet", fields={"answer": "reply"})[0].completion == "r"


def test_a_record_has_what_its_row_says_and_nothing_else():
    assert Record("i", "c") == Record("i", "c", "", (), (), None, (), (), "")
    row = {"text": "T", "id": "", "group": "", "paraphrased_answer": None}
    assert record_from(row, place="p", default_id="d") == Record("d", "T")
    assert record_from({"text": "T", "id": 0, "group": "g"}, place="p", default_id="d") == Record("0", "T", group="g")
    row = {"question": "Q", "answer": "A", "paraphrased_answer": "", "perturbed_answer": '["B", "C"]'}
    assert record_from(row, place="p", default_id="d") == Record("d", "A", "Q", wrong=("B", "C"))
    turns = [{"role": role, "content": f"{role} says"} for role in ("system", "user", "assistant")]
    messages = tuple(Message(**turn) for turn in turns)
    record = record_from({"messages": [{**turn, "name": "x"} for turn in turns]}, place="p", default_id="d")
    assert record == Record("d", "assistant says", "user says", messages)
    assert record_from({"messages": turns[2:]}, place="p", default_id="d") == Record(
        "d", "assistant says", "", messages[2:]
    )
    row = {"prompt": turns[:2], "completion": turns[2:]}
    assert record_from(row, place="p", default_id="d") == Record("d", "assistant says", "user says", messages)


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        *(("a", 0), ("b", 1), (0, 0), (1, 1), ("0", 0), ("1", 1), ("2", 2), ("7", 2), ("0001", 1)),
        *((each, None) for each in ("00001", "3", 3, -1, "-1", "²", 1.0, False, "c")),
    ],
)
def test_the_right_choice_by_text_index_or_digits(answer, index):
    row = {"question": "Q", "choices": ["a", "b", "7"], "answer": answer}
    if index is None:
        with pytest.raises(
            BadInput, match=r"^p: field 'answer': expected one of the choices or its index, 0 to 2, found"
        ):
            record_from(row, place="p", default_id="d")
    else:
        record = record_from(row, place="p", default_id="d")
        wrong = tuple(choice for choice in ("a", "b", "7") if choice != record.completion)
        assert (record.answer, record.completion, record.wrong) == (index, record.choices[index], wrong)


EXPECTED = "text, or messages, or prompt + completion, or question + answer, or question + choices + answer"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, f"nothing to read, expected {EXPECTED} (found: no fields). "
         "Name yours with --fields text=NAME, or --fields question=NAME,answer=NAME."),
        ({"a\n": 1, "b": 2}, f"nothing to read, expected {EXPECTED} (found: a , b). "
         "Name yours with --fields text=NAME, or --fields question=NAME,answer=NAME."),
        ({"prompt": "P", "q": 1}, "no field 'completion' (found: prompt, q). Name yours with --fields completion=NAME."),
        ({"completion": "C"}, "no field 'prompt' (found: completion). Name yours with --fields prompt=NAME."),
        ({"choices": ["a", "b"], "answer": 0},
         "no field 'question' (found: choices, answer). Name yours with --fields question=NAME."),
        ({"question": "Q", "choices": ["a", "b"], "answer": None},
         "field 'answer': expected a value, found nothing (null)."),
        ({"text": None}, f"nothing to read, expected {EXPECTED} (found: text). "
         "Name yours with --fields text=NAME, or --fields question=NAME,answer=NAME."),
        ({"text": "\t"}, "field 'text': expected text that is not empty, found '\\t'."),
        ({"text": "ab\udc00"}, "field 'text': expected text, found half of a surrogate pair at character 2."),
        ({"text": True}, "field 'text': expected text, found bool True."),
        ({"text": 10**25}, "field 'text': expected text, found int 10000000000000000000."),
        ({"text": 0.5}, "field 'text': expected text, found float 0.5."),
        ({"text": [1, 2]}, "field 'text': expected text, found a list of 2."),
        ({"text": {}}, "field 'text': expected text, found an object with no fields."),
        ({"text": {"x\x1b[31m": 1, "y": 2}}, "field 'text': expected text, found an object with x, y."),
        ({"text": {"f" * 90: 1}}, f"field 'text': expected text, found an object with {'f' * 80}."),
        ({"text": {1}}, "field 'text': expected text, found set."),
        ({"text": "T", "id": 1.5}, "field 'id': expected text, found float 1.5."),
        ({"text": "T", "id": True}, "field 'id': expected text, found bool True."),
        ({"text": "T", "group": 3}, "field 'group': expected text, found int 3."),
        ({"question": "Q", "answer": "A", "perturbed_answer": []},
         "field 'perturbed_answer': expected a list of at least 1 texts, found a list of 0."),
        ({"question": "Q", "answer": "A", "perturbed_answer": ["B", None]},
         "field 'perturbed_answer': expected text, found nothing."),
        ({"question": "Q", "answer": "A", "perturbed_answer": " [" + "x" * 50},
         f"field 'perturbed_answer': expected a JSON list of texts, found {' [' + 'x' * 38!r}."),
        ({"question": "Q", "choices": ["a"], "answer": 0},
         "field 'choices': expected a list of at least 2 texts, found a list of 1."),
        ({"question": "Q", "choices": "a", "answer": 0},
         "field 'choices': expected a list of at least 2 texts, found a list of 1."),
        ({"question": "Q", "choices": ["a", "a"], "answer": "a"},
         "field 'answer': expected one meaning, found 'a', the text of a choice and an index."),
        ({"question": "Q", "choices": ["a", "b"], "answer": "x" * 41},
         f"field 'answer': expected one of the choices or its index, 0 to 1, found text {'x' * 40!r}."),
        ({"messages": "hi"}, "field 'messages': expected a list of {\"role\", \"content\"}, found text 'hi'."),
        ({"messages": ["hi"]},
         "field 'messages': expected a list of {\"role\", \"content\"}, found an item that is text 'hi'."),
        ({"messages": [{"role": "user", "content": 1}]}, "field 'messages': expected text, found int 1."),
        ({"messages": [{"role": 1, "content": "x"}]}, "field 'messages': expected text, found int 1."),
        ({"prompt": [{"role": "user", "content": "x"}], "completion": [{"role": "tool", "content": "y"}]},
         "field 'completion': expected a conversation that ends with the assistant, found one that ends with 'tool'."),
        ({"prompt": [{"role": "user", "content": "x"}], "completion": "y"},
         "field 'completion': expected a list of {\"role\", \"content\"}, found text 'y'."),
    ],
)  # fmt: skip
def test_what_no_record_can_be_made_of_is_said_in_full(row, said):
    with pytest.raises(BadInput) as caught:
        record_from(row, place="p", default_id="d")
    assert str(caught.value) == f"p: {said}"


def test_a_renamed_field_is_named_as_the_file_has_it():
    with pytest.raises(BadInput) as caught:
        record_from({"ask": "Q", "reply": 3}, place="p", default_id="d", fields={"question": "ask", "answer": "reply"})
    assert str(caught.value) == "p: field 'reply': expected text, found int 3."
    row = {"question": "Q", "answer": "A", "body": "B"}
    assert record_from(row, place="p", default_id="d", fields={"text": "body"}) == Record("d", "B")
    assert record_from(row, place="p", default_id="d") == Record("d", "A", "Q")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("f.jsonl", '{"text": "a"}\n[1, 2]\n', f"{{}}:2: expected a JSON object with {EXPECTED}, found a list of 2."),
        ("f.json", ' [{"text": "a"},\n 7]', f"{{}}: item 2: expected a JSON object with {EXPECTED}, found int 7."),
        ("f.json", '\n[{"text": "a"}]', f"{{}}:2: expected a JSON object with {EXPECTED}, found a list of 1."),
        ("f.json", '[{"text": "a"}',
         "{}:1: not JSON (Expecting ',' delimiter at column 15); expected one JSON object a line."),
        ("f.jsonl", '{"text": ' + "9" * 5000 + "}",
         "{}:1: not usable JSON (Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits; "
         "use sys.set_int_max_str_digits() to increase the limit); expected one JSON object a line."),
        ("f.csv", "text,text\n", "{}:1: a column name stands twice (found: text, text)."),
        ("f.CSV", "\ntext,id\n\na\n", "{}:4: 1 cells under 2 columns; put cells with commas in double quotes."),
        ("f.csv", 'text\na\n"b"c\n', "{}:3: not CSV (',' expected after '\"'); JSON lines has no such limits."),
        ("f.csv", "text\n", f"{{}} is empty: expected at least one record with {EXPECTED}."),
        ("f.txt", "", "{}: unknown kind of file; expected .jsonl, .jsonl.gz, .json, .json.gz, .csv, .csv.gz, .parquet."),
        ("f.jsonl.gz", "x", "{}: not a whole gzip file (Not a gzipped file (b'x')); copy or download it again."),
        ("f.parquet", "", "{}: not a whole Parquet file (Parquet file size is 0 bytes); copy or download it again."),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_in_full(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(BadInput) as caught:
        read_records(path)
    assert str(caught.value) == said.format(path)


def test_where_nothing_is(tmp_path):
    for name, said in (
        ("no/f.jsonl", f"{tmp_path}/no/f.jsonl: no such file. {tmp_path}/no is no folder."),
        ("f.jsonl", f"{tmp_path}/f.jsonl: no such file. None are known."),
    ):
        with pytest.raises(BadInput) as caught:
            read_records(tmp_path / name)
        assert str(caught.value) == said
    (tmp_path / "f.json").mkdir()
    (tmp_path / "g.txt").touch()
    with pytest.raises(BadInput) as caught:
        read_records(tmp_path / "f.json")
    assert str(caught.value) == f"{tmp_path}/f.json is a folder; name a file in it."
    with pytest.raises(BadInput, match=r"no such file\. Did you mean 'f\.json'\?"):
        read_records(tmp_path / "g.json")
    with pytest.raises(BadInput, match=r"^limit is 0, expected at least 1\.$"):
        read_records(tmp_path / "f.json", limit=0)


def test_rows_come_with_their_place_and_number(tmp_path):
    rows = tmp_path / "f.jsonl"
    rows.write_text('\ufeff{"a": 1}\n\n{"a": "\ufeff"}\n', encoding="utf-8")
    assert list(read_rows(rows)) == [(f"{rows}:1", 1, {"a": 1}), (f"{rows}:3", 3, {"a": "\ufeff"})]
    rows.write_text('{"a": 1}\n\ufeff{"a": 2}\n', encoding="utf-8")  # the mark of a file within it is none
    with pytest.raises(BadInput, match=r"f\.jsonl:2: not JSON"):
        list(read_rows(rows))
    array = tmp_path / "F.JSON"
    array.write_text('[{"a": 1},\n{"a": 2}]\n')
    assert list(read_rows(array)) == [(f"{array}: item 1", 1, {"a": 1}), (f"{array}: item 2", 2, {"a": 2})]
    misleading = tmp_path / "f.csv.jsonl"
    misleading.write_text('{"a": 1}\n')
    assert list(read_rows(misleading)) == [(f"{misleading}:1", 1, {"a": 1})]
    for name in ("f.csv", "F.CSV", "f.Csv"):
        cells = tmp_path / name
        cells.write_text('a,b\n1,"x\ny"\n\n2,z\n')
        assert list(read_rows(cells)) == [
            (f"{cells}:3", 3, {"a": "1", "b": "x\ny"}),
            (f"{cells}:5", 5, {"a": "2", "b": "z"}),
        ]
        (tmp_path / f"{name}.GZ").write_bytes(gzip.compress(cells.read_bytes()))
        assert [row for *_, row in read_rows(tmp_path / f"{name}.GZ")] == [row for *_, row in read_rows(cells)]
    table = tmp_path / "f.parquet"
    pq.write_table(pa.table({"a": list(range(1025)), "b": ["x"] * 1025}), table)
    found = list(read_rows(table, {"a", "c"}))
    assert found[0] == (f"{table}: row 1", 1, {"a": 0, "b": None})
    assert found[1024] == (f"{table}: row 1025", 1025, {"a": 1024, "b": None}) and len(found) == 1025
    assert next(read_rows(table)) == next(read_rows(table, {"c"})) == (f"{table}: row 1", 1, {"a": 0, "b": "x"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), children),
    max_leaves=5,
)
names = st.sampled_from(["id", "text", "question", "answer", "choices", "prompt", "completion", "messages", "group"])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(names, json_values, max_size=5), max_size=3))
def test_any_json_gives_records_or_a_sentence(tmp_path, rows):
    path = write(tmp_path / "f.jsonl", *rows)
    try:
        records = read_records(path)
    except BadInput as error:
        assert "f.jsonl" in str(error)
        return
    for record in records:
        record.completion.encode()
        assert record.completion.strip() and (
            record.answer is None or record.choices[record.answer] == record.completion
        )


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200),
    extension=st.sampled_from(EXTENSIONS),
    head=st.sampled_from([b"", b"text\n", b"PAR1"]),
)
def test_any_bytes_give_records_or_a_sentence(tmp_path, content, extension, head):
    path = tmp_path / f"f{extension}"
    whole = head + content + (b"PAR1" if head == b"PAR1" else b"")
    path.write_bytes(gzip.compress(whole) if extension.endswith(".gz") and head else whole)
    try:
        read_records(path)
    except BadInput as error:
        assert "f." in str(error)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_broken_byte_in_parquet_never_crashes(tmp_path, place, byte):
    path = tmp_path / "f.parquet"
    pq.write_table(pa.Table.from_pylist([{"question": "q" * i, "answer": "a"} for i in range(1, 9)]), path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(content)
    try:
        read_records(path)
    except BadInput as error:
        assert "f.parquet" in str(error)


def test_a_list_in_a_cell_is_a_conversation_where_every_part_is_one(tmp_path):
    for text in ('[{"role": "user"}]', '[{"role": "user", "content": "a"}, {"role": "user"}]', '[["role", "content"]]'):
        (record,) = read_records(csv_of(tmp_path / "f.csv", {"prompt": text, "completion": "b"}))
        assert (record.prompt, record.messages) == (text, ())


def test_the_shape_of_which_most_fields_were_renamed_is_meant(tmp_path):
    row = {"question": "Q", "a": "A", "p": "P", "c": "C"}
    record = one(tmp_path, row, fields={"answer": "a", "prompt": "p", "completion": "c"})
    assert (record.prompt, record.completion) == ("P", "C")  # two of two, before one of a question's two
    record = one(tmp_path, row, fields={"answer": "a"})
    assert (record.prompt, record.completion) == ("Q", "A")
