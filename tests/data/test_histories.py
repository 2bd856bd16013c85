import gzip
from datetime import UTC, datetime

import pytest

from equipoise.core.errors import BadInput
from equipoise.data import history_rows
from equipoise.data.histories import History, MemoryQuestion, Session, Turn

EARLY, LATE = datetime(2024, 1, 1, 9), datetime(2024, 1, 2, 9)


def a_session(name="s1", time=EARLY, turns=("t1",)):
    return Session(name, time, tuple(Turn(turn, "Li", "words") for turn in turns))


@pytest.mark.parametrize(
    ("sessions", "questions", "named"),
    [
        ((a_session(), a_session(time=LATE, turns=["t2"])), (), "two sessions have the id 's1'"),
        ((a_session(), a_session("s2", LATE)), (), "two turns have the id 't1'"),
        ((a_session(time=LATE), a_session("s2", EARLY, ["t2"])), (), "'s2' .* stands behind 's1' .* sort sessions"),
        ((a_session(),), (MemoryQuestion("q", "?"), MemoryQuestion("q", "!")), "two questions have the id 'q'"),
        ((a_session(),), (MemoryQuestion("q", "?", evidence=("t1", "t9")),), "'t9' as evidence"),
        ((a_session(),), (MemoryQuestion("q", "?", options=("A", "B"), right=2),), "option 2 as the right one, of 2"),
        ((a_session(),), (MemoryQuestion("q", "?", gold=("A",), options=("A", "B")),), "has options and no right one"),
        ((a_session(time=LATE),), (MemoryQuestion("q", "?", time=EARLY),), "before anything was said"),
        ((), (MemoryQuestion("q", "?", time=EARLY),), "before anything was said"),
        ((), (MemoryQuestion("q", "?"),), "about a history without sessions"),
        ((a_session(),), (MemoryQuestion("q", "?", options=("A",), right=0),), "has 1 options: give 2 to 26"),
        ((a_session(),), (MemoryQuestion("q", "?", options=("A",) * 27, right=0),), "has 27 options: give 2 to 26"),
        (
            (a_session(turns=["s1"]),),
            (MemoryQuestion("q", "?", evidence=("s1",)),),
            "'s1' .* a turn and also a session",
        ),
        ((a_session(time=EARLY.replace(tzinfo=UTC)), a_session("s2", LATE, ["t2"])), (), "'s1' has a time with a zone"),
        (
            (Session("s1", EARLY, (Turn("t1", "Li", "x", EARLY.replace(tzinfo=UTC)),)),),
            (),
            "with a zone. .*on the wall",
        ),
        ((a_session(),), (MemoryQuestion("q", "?", LATE.replace(tzinfo=UTC)),), "question 'q' has a time with a zone"),
    ],
)
def test_a_history_that_contradicts_itself_is_named(sessions, questions, named):
    with pytest.raises(BadInput, match=named):
        History("a day", sessions, questions)


def test_evidence_may_be_turns_and_sessions():
    question = MemoryQuestion("q", "?", LATE, evidence=("t1", "s1"))
    assert History("a day", (a_session(),), (question,)).questions == (question,)


def test_files_that_cannot_be_read_are_named(tmp_path):
    whole = gzip.compress("\ufeffé\n".encode())
    (tmp_path / "a.GZ").write_bytes(whole)
    assert history_rows._text(tmp_path / "a.GZ") == "é\n"
    (tmp_path / "cut.gz").write_bytes(whole[:-9])
    (tmp_path / "plain.gz").write_bytes(b"{}")
    (tmp_path / "latin.json").write_bytes(b"ab\xe9")
    for name, said in (
        ("none.json", "cannot be read .*No such file"),
        ("cut.gz", "not a whole gzip file"),
        ("plain.gz", "not a whole gzip file"),
        ("latin.json", "not UTF-8 at byte 2"),
    ):
        with pytest.raises(BadInput, match=f"{name}: {said}"):
            history_rows._text(tmp_path / name)
