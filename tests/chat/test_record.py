"""The record as a file: what a kill, a bad disk and another process do to it."""

import gzip
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from pydantic import BaseModel

from equipoise.chat.calls import Call, ToldToken
from equipoise.chat.record import HEADER, Entry, Record, Usage
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import Files, seal, unseal
from equipoise.data.records import Message


class Named(BaseModel):
    better: int


CALL = Call((Message("user", "a question of some length"),), phase="judge")


def entry(key: str, text: str = "yes", **values: object) -> Entry:
    plain = Entry(key, "mockllm/model", "judge", "answered", text, Usage(10, 4, 3, 1), "stop", "", 0.5, 2, 1)
    return replace(plain, **values)


def filled(path, count=3):
    with Record(path) as record:
        for number in range(count):
            record.add(entry(f"k{number}", attempt=record.attempt), CALL)
    return path


def test_what_is_added_is_found_again_and_readable_as_json_lines(tmp_path):
    path = tmp_path / "calls.jsonl"
    odd = entry("odd", 'line\nend \u2028 "quote" ü \ud800', usage=None)
    with Record(path) as record:
        assert not path.exists()  # nothing is made before there is something to keep
        record.add(odd, CALL)
        record.add(entry("lost", "", status="failed", reason="HTTP 500"), CALL)
    with Record(path) as record:
        assert record.found("odd") == odd and record.found("lost") is None and record.found("else") is None
        assert len(record) == 1 and len(record.entries) == 2 and record.attempt == 2
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert {name: rows[0][name] for name in rows[0] if name != "seal"} == {
        "format": "equipoise chat record",
        "version": 1,
    }
    assert rows[1]["messages"] == [{"role": "user", "content": "a question of some length"}]
    assert rows[1]["settings"] == {"max_tokens": 1024, "temperature": 0.0, "sample": 0, "schema": None}


def test_every_place_at_which_a_write_can_tear(tmp_path):
    whole = filled(tmp_path / "whole.jsonl").read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    torn = tmp_path / "torn.jsonl"
    near = {size for end in ends for size in range(end - 2, end + 3)} | set(range(0, len(whole), 97))
    for size in sorted(near):
        torn.write_bytes(whole[:size])
        with Record(torn) as record:
            kept = sum(end - 1 <= size for end in ends)  # a line that lacks its newline alone is whole
            assert len(record) == max(kept - 1, 0) and record.notes == []
            record.add(entry("new"), CALL)
        with Record(torn) as record:
            assert record.found("new") == entry("new") and len(record) == max(kept - 1, 0) + 1


@pytest.mark.parametrize("damage", [b"\x00\x01\n", b"[1]\n", b'{"key": "k"}\n', b"[" * 100_000 + b"\n"])
def test_a_damaged_line_is_named_and_set_aside_and_all_others_stay(tmp_path, capsys, damage):
    path = filled(tmp_path / "r.jsonl")
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))
    with Record(path, read_only=True) as record:
        assert record.notes == [f"{path}:3: 1 altered line left out; the other 3 answers stay."]
    (tmp_path / "r.jsonl.damaged-1").write_text("of somebody")
    with Record(path) as record:
        assert [kept.key for kept in record.entries] == ["k0", "k1", "k2"]
        (said,) = record.notes
        assert (
            f"{path}:3: 1 altered line set aside as r.jsonl.damaged-2; what was answered there is asked again" in said
        )
    assert said in capsys.readouterr().err
    assert path.read_bytes() == whole
    assert (tmp_path / "r.jsonl.damaged-2").read_bytes() == damage
    with Record(path) as record:
        assert record.notes == []


def test_no_flipped_bit_gives_another_answer_and_no_whole_one_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: None)
    with Record(tmp_path / "whole.jsonl") as record:
        for number in range(4):
            record.add(entry(f"k{number}", f"yes, number {number} ü", attempt=record.attempt), CALL)
        record.add(entry("lost", "", status="failed", reason="HTTP 500"), CALL)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    with Record(tmp_path / "whole.jsonl") as record:
        expected = {kept.key: kept for kept in record.entries}
    chance = random.Random(5)
    asked_again = 0
    for number in range(200):
        data = bytearray(whole)
        place = chance.randrange(len(data))
        data[place] ^= 1 << chance.randrange(8)
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(data)
        with Record(path) as record:
            assert all(expected[kept.key] == kept for kept in record.entries)
            # A newline within joins two lines, and both are gone; all other lines are there.
            assert len(record.entries) >= len(expected) - (2 if whole[place] == ord("\n") else 1)
            assert record.notes or record.entries == list(expected.values())
            asked_again += len(expected) - len(record.entries)
        with Record(path) as record:  # mended for good
            assert not record.notes
    assert 140 < asked_again < 210


def test_a_last_line_that_only_lost_its_newline_is_whole(tmp_path):
    path = filled(tmp_path / "r.jsonl")
    whole = path.read_bytes()
    for end in (b"", b"*", b"\x0b"):
        path.write_bytes(whole[:-1] + end)
        with Record(path) as record:
            assert [kept.key for kept in record.entries] == ["k0", "k1", "k2"]
            assert record.notes == []
        assert path.read_bytes() == whole


def test_a_record_of_an_earlier_version_is_read_and_it_is_said(tmp_path, capsys):
    path = filled(tmp_path / "r.jsonl")
    rows = [{name: value for name, value in json.loads(line).items() if name != "seal"} for line in path.open()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):
        with Record(path) as record:
            assert [kept.key for kept in record.entries][:3] == ["k0", "k1", "k2"]
            assert "holds 3 calls of an earlier version, without digests" in record.notes[0]
            record.add(entry("new"), CALL)
        assert "without digests" in capsys.readouterr().err
    lines = path.read_bytes().splitlines(keepends=True)
    assert [b'"seal"' in line for line in lines] == [False] * 4 + [True] * 2
    path.write_bytes(b"".join([*lines[:5], lines[1], *lines[5:]]))  # after a sealed line, none without a seal
    with Record(path) as record:
        assert "r.jsonl:6: 1 altered line set aside" in record.notes[0]
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    "notes",
    [b"my notes", b"my notes\nmore", b"", b"{", b'{"format": "x"', b'{"prompt": "a"}\n', b"\xff\x00\n" * 9],
    ids=["text", "lines", "empty", "brace", "other", "rows", "binary"],
)
def test_a_file_that_is_no_record_is_refused_and_stays_as_it_is(tmp_path, notes):
    path = tmp_path / "notes.txt"
    path.write_bytes(notes)
    if notes and not seal(HEADER).startswith(notes):
        with pytest.raises(BadInput, match=r"notes\.txt is no record of calls"):
            Record(path)
    else:
        Record(path).close()  # nothing yet, or the first bytes of a record
    if notes != b"{":
        assert path.read_bytes() == notes
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_pipe_is_refused_instead_of_read(tmp_path):
    os.mkfifo(tmp_path / "calls.jsonl")
    for read_only in (True, False):
        with pytest.raises(BadInput, match="is a pipe"):
            Record(tmp_path / "calls.jsonl", read_only=read_only)


def test_somebody_s_file_with_the_name_of_the_lock_stays(tmp_path):
    (tmp_path / ".r.jsonl.lock").write_text("mine")
    filled(tmp_path / "r.jsonl")
    assert (tmp_path / ".r.jsonl.lock").read_text() == "mine"


def test_no_secret_is_stored_with_a_question(tmp_path):
    asked = Call((Message("user", "my key is s3cret-s3cret"),), phase="judge")
    with Record(tmp_path / "r.jsonl") as record:
        record.add(entry("a"), asked, secrets=["s3cret-s3cret"])
    assert b"my key is [key]" in (tmp_path / "r.jsonl").read_bytes()
    assert b"s3cret" not in (tmp_path / "r.jsonl").read_bytes()


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(BadInput, match="no record of calls"):
        Record(path)
    path.write_text('{"format": "equipoise chat record", "version": 2}\n')
    with pytest.raises(BadInput, match="version 2, this program reads version 1"):
        Record(path)
    with pytest.raises(BadInput, match="is a folder"):
        Record(tmp_path)
    with pytest.raises(BadInput, match="no such record"):
        Record(tmp_path / "absent.jsonl.gz")


def test_a_shipped_record_is_read_only(tmp_path):
    path = tmp_path / "r.jsonl.gz"
    whole = filled(tmp_path / "r.jsonl").read_bytes()
    path.write_bytes(gzip.compress(whole))
    with Record(path) as record, Record(path) as beside:
        assert record.found("k1") == beside.found("k1") == entry("k1")
        with pytest.raises(BadInput, match="only read"):
            record.add(entry("new"), CALL)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["r.jsonl", "r.jsonl.gz"]
    path.write_bytes(gzip.compress(whole)[:-20])
    with pytest.raises(BadInput, match="not a whole gzip file"):
        Record(path)


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "r.jsonl"
    script = f"from equipoise.chat.record import Record; Record({str(path)!r})"
    with Record(path):
        with pytest.raises(WorkFailed, match="another process that writes"):
            Record(path)
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert "another process that writes" in other.stderr
    Record(path).close()


def test_a_full_disk_leaves_whole_lines(tmp_path):
    class Full(Files):
        full = False

        def append(self, path, data):
            if self.full:
                super().append(path, data[: len(data) // 2])
                raise OSError(28, "No space left on device")
            super().append(path, data)

    path, files = tmp_path / "r.jsonl", Full()
    with Record(path, files=files) as record:
        record.add(entry("a"), CALL)
        files.full = True
        with pytest.raises(WorkFailed, match="No space left"):
            record.add(entry("b"), CALL)
        assert record.found("b") is None
        files.full = False
        record.add(entry("c"), CALL)
    with Record(path) as record:
        assert [kept.key for kept in record.entries] == ["a", "c"]


def test_every_line_is_synced_before_add_returns(tmp_path, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_size), sync(descriptor)))
    with Record(tmp_path / "r.jsonl") as record:
        record.add(entry("a"), CALL)
        record.add(entry("b"), CALL)
    assert synced[-1] == (tmp_path / "r.jsonl").stat().st_size


def test_usage_is_added_field_by_field():
    assert Usage() == Usage(0, 0, 0, 0)
    assert Usage(1, 20, 300, 4000) + Usage(5, 60, 700, 8000) == Usage(6, 80, 1000, 12000)
    assert Entry("k", "m", "judge", "cut", "t", None) == Entry("k", "m", "judge", "cut", "t", None, "", "", 0.0, 0, 1)
    with pytest.raises(BadInput, match="status is 'ct'"):
        Entry("k", "m", "judge", "ct", "t", None)


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"usage": None}, True),
        ({"seconds": 0}, True),
        ({"retries": 0}, True),
        ({"attempt": 0}, True),
        ({"status": "rejected"}, True),
        *(({name: 5}, False) for name in ("key", "model", "phase", "text", "stop", "reason", "status")),
        *(({name: None}, False) for name in ("key", "text", "reason", "seconds", "retries")),
        ({"status": "asked"}, False),
        ({"retries": -1}, False),
        ({"retries": 1.0}, False),
        ({"attempt": -1}, False),
        ({"attempt": "1"}, False),
        ({"seconds": -0.1}, False),
        ({"seconds": 1e999}, False),
        ({"seconds": "1"}, False),
        ({"usage": {"prompt": -1}}, False),
        ({"usage": {"prompt": 1.5}}, False),
        ({"usage": {"promt": 1}}, False),
        ({"usage": 5}, False),
    ],
)
def test_a_sealed_line_of_another_kind_is_set_aside(tmp_path, monkeypatch, change, good):
    """A digest says that nobody altered a line, not that it is a call."""
    monkeypatch.setattr("equipoise.core.files._sync", lambda path: None)
    path = filled(tmp_path / "r.jsonl", 2)
    header, first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(header + seal(unseal(first)[0] | change) + second)
    with Record(path, read_only=True) as record:
        assert len(record.entries) == (2 if good else 1) and bool(record.notes) != good
        assert record.found("k1") is not None


def test_what_is_said_of_several_damaged_lines(tmp_path):
    path = filled(tmp_path / "r.jsonl", 8)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *(b"x" + line for line in lines[1:7]), *lines[7:]]))
    with Record(path, read_only=True) as record:
        assert record.notes == [f"{path}:2, 3, 4, 5, 6: 6 altered lines left out; the other 2 answers stay."]
    with Record(path) as record:
        assert record.notes == [
            f"{path}:2, 3, 4, 5, 6: 6 altered lines set aside as r.jsonl.damaged-1; what was answered there is asked again, "
            "the other 2 answers stay."
        ]
        assert record.attempt == 2
    assert path.read_bytes() == b"".join([lines[0], *lines[7:]])
    assert (tmp_path / "r.jsonl.damaged-1").read_bytes() == b"".join(b"x" + line for line in lines[1:7])


def test_a_header_that_was_altered_is_written_anew(tmp_path):
    path = filled(tmp_path / "r.jsonl", 2)
    whole = path.read_bytes()
    path.write_bytes(b"x" + whole)
    with Record(path) as record:
        assert record.notes == [
            f"{path}:1: 1 altered line set aside as r.jsonl.damaged-1; what was answered there is asked again, the other 2 "
            "answers stay."
        ]
    assert path.read_bytes() == whole


def test_the_sentences_of_what_is_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(seal({"format": "equipoise chat record", "version": 2}))
    (tmp_path / "other.jsonl").write_bytes(seal({"format": "another", "version": 1}))
    (tmp_path / "zebra.jsonl").write_bytes(seal({"format": "zebra", "version": 1}))
    (tmp_path / "old.jsonl").write_bytes(seal({"format": "equipoise chat record", "version": 0}))
    for given, read_only, sentence in (
        (
            path,
            False,
            f"{path} is a record of version 2, this program reads version 1; update equipoise, or name another file.",
        ),
        (tmp_path / "other.jsonl", False, f"{tmp_path / 'other.jsonl'} is no record of calls; name another file."),
        (tmp_path / "zebra.jsonl", False, f"{tmp_path / 'zebra.jsonl'} is no record of calls; name another file."),
        (
            tmp_path / "old.jsonl",
            True,
            f"{tmp_path / 'old.jsonl'} is a record of version 0, this program reads version 1; update equipoise, or name "
            "another file.",
        ),
        (tmp_path, False, f"{tmp_path} is a folder; name a file for the record of the calls, such as calls.jsonl."),
        (tmp_path / "no", True, f"{tmp_path / 'no'}: no such record; name a .jsonl file to record the calls."),
    ):
        with pytest.raises(BadInput) as caught:
            Record(given, read_only=read_only)
        assert str(caught.value) == sentence
    filled(tmp_path / "good.jsonl")
    with Record(tmp_path / "good.jsonl", read_only=True) as record, pytest.raises(BadInput) as caught:
        record.add(entry("new"), CALL)
    assert str(caught.value) == f"{tmp_path / 'good.jsonl'} is only read; name a .jsonl file to record the calls."


def test_the_first_answer_stands_and_attempts_are_counted(tmp_path):
    path = tmp_path / "r.jsonl"
    asked = Call(
        (Message("system", "a"), Message("user", "b")), "judge", schema=Named, max_tokens=9, temperature=0.5, sample=3
    )
    with Record(path) as record:
        assert record.attempt == 1
        for text, status in (("", "failed"), ("one", "answered"), ("two", "answered")):
            record.add(entry("k", text, status=status, attempt=7), asked)
        assert record.found("k").text == "one" and len(record) == 1 and len(record.entries) == 3
    with Record(path) as record:
        assert record.found("k").text == "one" and record.attempt == 8
    row = unseal(path.read_bytes().splitlines()[1])[0]
    assert row == {
        "key": "k",
        "model": "mockllm/model",
        "phase": "judge",
        "status": "failed",
        "text": "",
        "usage": {"prompt": 10, "cached": 4, "generated": 3, "reasoning": 1},
        "stop": "stop",
        "reason": "",
        "seconds": 0.5,
        "retries": 2,
        "attempt": 7,
        "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
        "settings": {"max_tokens": 9, "temperature": 0.5, "sample": 3, "schema": "Named"},
    }
    assert json.loads(path.read_bytes().splitlines()[0])["format"] == HEADER["format"]


@pytest.mark.parametrize(("error", "reason"), [(OSError(28, "Full"), "Full"), (OSError("odd"), "odd")])
def test_what_is_said_where_nothing_can_be_written(tmp_path, error, reason):
    class Full(Files):
        def append(self, path, data):
            raise error

    with Record(tmp_path / "r.jsonl", files=Full()) as record, pytest.raises(WorkFailed) as caught:
        record.add(entry("a"), CALL)
    assert str(caught.value) == f"{tmp_path / 'r.jsonl'}: the record cannot be written ({reason})."
    assert record.entries == [] and len(record) == 0


@pytest.mark.slow
def test_ten_thousand_calls_load_fast(tmp_path):
    path = filled(tmp_path / "r.jsonl", 1)
    header, line = path.read_bytes().splitlines(keepends=True)
    row = unseal(line)[0] | {"messages": [{"role": "user", "content": "word " * 400}]}
    path.write_bytes(b"".join([header, *(seal(row | {"key": f"{i}"}) for i in range(10_000))]))
    started = time.perf_counter()
    with Record(path) as record:
        assert len(record) == 10_000
    print(f"{time.perf_counter() - started:.3f} s")


class Watched(Files):
    """Counts what is done to a file."""

    def __init__(self):
        self.done = []

    def truncate(self, path, size):
        self.done.append("truncate")
        super().truncate(path, size)

    def replace(self, *paths):
        self.done.append("replace")
        super().replace(*paths)


def test_opening_a_record_writes_only_what_has_to_be_mended(tmp_path):
    path = filled(tmp_path / "r.jsonl")
    whole = path.read_bytes()
    for content, read_only, done, left in (
        (whole, False, [], whole),
        (whole, True, [], whole),
        (whole + whole[:9], False, ["truncate"], whole),
        (whole + whole[:9], True, [], whole + whole[:9]),
        (whole[:-1], False, ["replace"], whole),
        (whole[:-1], True, [], whole[:-1]),
    ):
        path.write_bytes(content)
        files = Watched()
        with Record(path, read_only=read_only, files=files) as record:
            assert len(record) == 3 and record.notes == []
        assert files.done == done and path.read_bytes() == left


def test_an_altered_line_of_an_earlier_version_is_set_aside_too(tmp_path):
    path = filled(tmp_path / "r.jsonl")
    rows = [unseal(line)[0] for line in path.read_bytes().splitlines()]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    path.write_bytes(b"".join([*lines[:2], b"x" + lines[2], lines[3]]))
    with Record(path) as record:
        assert [kept.key for kept in record.entries] == ["k0", "k2"]
        assert [note.partition(" ")[0] for note in record.notes] == [f"{path}:3:", f"{path}"]
    assert path.read_bytes() == b"".join([*lines[:2], lines[3]])


def test_tokens_are_stored_where_they_were_asked_for(tmp_path):
    path, tokens = tmp_path / "r.jsonl", (ToldToken("y", -0.5, (("y", -0.5), ("n", -1.5))), ToldToken("es", -0.25, ()))
    with Record(path) as record:
        record.add(entry("told", tokens=tokens), replace(CALL, likeliest=2))
        record.add(entry("plain", tokens=tokens), CALL)
    with Record(path) as record:
        assert record.found("told").tokens == tokens and record.found("plain").tokens == ()
    told, plain = (unseal(line)[0] for line in path.read_bytes().splitlines()[1:])
    assert told["settings"]["likeliest"] == 2 and "likeliest" not in plain["settings"] and "tokens" not in plain
