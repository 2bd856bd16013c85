"""The record as a file: what a kill, a bad disk and another process do to it."""

import gzip
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from equipoise.chat.calls import Call
from equipoise.chat.record import Entry, Record, Usage
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import Files
from equipoise.data.records import Message

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
    assert rows[0] == {"format": "equipoise chat record", "version": 1}
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
            kept = sum(end <= size for end in ends)
            assert len(record) == max(kept - 1, 0)
            record.add(entry("new"), CALL)
        with Record(torn) as record:
            assert record.found("new") == entry("new") and len(record) == max(kept - 1, 0) + 1


@pytest.mark.parametrize("damage", [b"\x00\x01\n", b"[1]\n", b'{"key": "k"}\n', b"[" * 100_000 + b"\n"])
def test_a_damaged_line_is_named(tmp_path, damage):
    path = filled(tmp_path / "r.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))
    with pytest.raises(BadInput, match=r"r\.jsonl:3: the line is damaged"):
        Record(path)
    path.write_bytes(b"".join(lines))
    Record(path).close()  # the refusal let go of the lock


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


@pytest.mark.slow
def test_ten_thousand_calls_load_fast(tmp_path):
    path = filled(tmp_path / "r.jsonl", 1)
    lines = path.read_text().splitlines()
    row = json.loads(lines[1]) | {"messages": [{"role": "user", "content": "word " * 400}]}
    path.write_text("\n".join([lines[0], *(json.dumps(row | {"key": f"{i}"}) for i in range(10_000)), ""]))
    started = time.perf_counter()
    with Record(path) as record:
        assert len(record) == 10_000
    print(f"{time.perf_counter() - started:.3f} s")
