"""Appended rows: what is whole stays, what was altered is named and kept aside, what is torn was never counted."""

import pytest

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.files import seal
from equipoise.core.rows import Rows


def test_what_is_damaged_is_named_by_its_line_and_the_file_as_it_was_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    one, two, three = (seal({"n": number}) for number in (1, 2, 3))
    for number, broken in enumerate((two.replace(b"2", b"5", 1), b'{"n": 2}\n'), start=1):
        path.write_bytes(one + broken + three + b'{"n"')
        rows = Rows(path)
        assert [row["n"] for row in rows] == [1, 3] and len(rows) == 2
        reason = "it was altered since it was written" if number == 1 else "it carries no digest"
        assert rows.damaged == [f"{path}:2: {reason}"]
        assert path.read_bytes() == one + three
        assert (tmp_path / f"rows.jsonl.damaged-{number}").read_bytes() == one + broken + three + b'{"n"'
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "rows.jsonl",
        "rows.jsonl.damaged-1",
        "rows.jsonl.damaged-2",
    ]


def test_a_torn_line_is_cut_off_and_rows_go_on_behind_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(seal({"n": 1}) + b'{"n": 2')
    rows = Rows(path)
    assert rows.damaged == [] and path.read_bytes() == seal({"n": 1})
    row = {"n": 3}
    rows.add(row)
    row["n"] = 4
    assert list(rows) == [{"n": 1}, {"n": 3}] == list(Rows(path)) and [each.name for each in tmp_path.iterdir()] == [
        path.name
    ]


@pytest.mark.parametrize("own", [b"1 2 3", b'{"text": "a"}', b'[{"n": 1}', b'{"n": 1}\n{"n": 2}', b"{\n  1: 2"])
def test_what_somebody_wrote_without_a_last_line_end_is_kept_aside(tmp_path, own):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(own)
    rows = Rows(path)
    assert not len(rows) and rows.damaged[-1] == f"{path}:{own.count(10) + 1}: it carries no digest"
    assert (tmp_path / "rows.jsonl.damaged-1").read_bytes() == own and path.read_bytes() == b""


@pytest.mark.parametrize("cut", [1, 2, 9, len(seal({"n": 1})) - 1])
def test_a_first_row_that_a_kill_cut_is_cut_off_without_a_word(tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(seal({"n": 1})[:cut])
    rows = Rows(path)
    assert not len(rows) and rows.damaged == [] and path.read_bytes() == b"" and list(tmp_path.iterdir()) == [path]


def test_rows_of_no_file_and_of_what_is_none(tmp_path):
    assert len(Rows(tmp_path / "new.jsonl")) == 0 and not list(tmp_path.iterdir())
    with pytest.raises(BadInput, match="is a folder"):
        Rows(tmp_path)
    memory = Rows(None)
    with pytest.raises(WorkFailed) as caught:
        memory.add({"seal": 1})
    assert str(caught.value) == "A row for None cannot be stored: a row to seal has no field 'seal'."
    assert list(memory) == [] and memory.path is None and memory.damaged == []
