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
from equipoise.data.records import EXTENSIONS, Message, Record, read_records

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
        ('{"question": "q", "reply": "r"}', r"f.jsonl:1: no field 'answer' \(found: question, reply\).*--answer-field"),
        ('{"title": "q"}', r"f.jsonl:1: nothing to read, .*\(found: title\).*--text-field"),
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
