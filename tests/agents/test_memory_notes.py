from datetime import timedelta

import pytest

from equipoise.agents.memory import Unread
from equipoise.agents.memory_notes import Note, NoteLinks, SessionNote
from equipoise.agents.memory_systems import build
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.histories import MemoryQuestion, Session, Turn
from memory_worlds import CLINIC, DAY, LATER, WHEN, counts, stream, told


class Words:
    """Keywords are the longest words; notes with a common one are linked; the nearest gets the new one's first keyword."""

    name = "the words' parser"

    def __init__(self, rewrites=False):
        self.rewrites, self.shown = rewrites, []

    def note(self, text):
        said = sorted(set(text.split("] ", 1)[1].split()), key=lambda word: (-len(word), word))
        return Note(text, tuple(said[:2]), ("tag",), f"about {said[0]}", {"calls": 1})

    def link(self, note, held):
        self.shown.append(len(held))
        linked = tuple(place for place, other in enumerate(held) if set(note.keywords) & set(other.keywords))
        rewritten = {0: (f"now about {note.keywords[0]}", ("newer",))} if self.rewrites else {}
        return NoteLinks(linked, ("own",) if self.rewrites else (), rewritten, {"calls": 1})

    def session_note(self, session):
        words = " ".join(turn.text for turn in session.turns).split()
        return SessionNote("talk", " ".join(words[:4]), ("tag",), {"calls": 1})


def notes(world=None, **options):
    world = world or Words()
    return build("notes", **{"reader": Unread(), "embedder": counts, "extractor": world, "decider": world, **options})


def said(*texts):
    return [
        Session(f"s{number}", DAY + timedelta(number), (Turn(f"t{number}", "Bo", text),))
        for number, text in enumerate(texts)
    ]


LINKED = said("elephant here", "zebra there", "elephant again", "mouse")


def test_a_note_is_its_text_with_keywords_tags_and_context():
    system = notes()
    amounts = system.ingest(LINKED[0], DAY)
    assert system.items[0].text == (
        "[2024-05-01 09:00] Bo: elephant here\nContext: about elephant\nKeywords: elephant, here\nTags: tag"
    )
    assert (system.items[0].sources, system.items[0].session) == (("t0",), "s0")
    assert amounts == {
        "notes": 1,
        "links": 0,
        "rewritten": 0,
        "written_tokens": 13,
        "embedded_tokens": 13,
        "embedding_calls": 1,
        "calls": 1,
    }
    system.ingest(LINKED[1], LINKED[1].time)
    assert system.ingest(LINKED[2], LINKED[2].time)["links"] == 1


def test_what_is_found_brings_what_it_is_linked_to():
    asked = MemoryQuestion("q", "again again again")
    answer = told(notes(k=1, order="rank"), LINKED).answer(asked, LATER)
    assert [item.id for item in answer.items] == ["s2", "s0"]
    assert answer.trace[-1] == {"linked": "s0", "from": "s2"}
    assert [item.id for item in told(notes(k=1), LINKED).answer(asked, LATER).items] == ["s0", "s2"]
    back = told(notes(k=1), LINKED).answer(MemoryQuestion("q", "here here here"), LATER)
    assert [item.id for item in back.items] == ["s0"]  # a link goes from the newer to the older
    every = told(notes(k=4, order="rank"), LINKED).answer(asked, LATER)
    assert sorted(item.id for item in every.items) == ["s0", "s1", "s2", "s3"]  # each once
    assert not [row for row in every.trace if "linked" in row]
    tight = told(notes(k=1, order="rank", budget=13), LINKED).answer(asked, LATER)
    assert ([item.id for item in tight.items], tight.amounts["left_out"]) == (["s2"], 1)


def test_a_note_that_is_written_anew_is_of_that_moment():
    world = Words(rewrites=True)
    system = told(notes(world), LINKED[:1])
    amounts = system.ingest(LINKED[1], LINKED[1].time)
    old, new = system.items
    assert old.text.endswith("Context: now about there\nKeywords: elephant, here\nTags: newer")
    assert (old.time, old.sources, old.session) == (LINKED[1].time, ("t0",), "s0")
    assert new.text.endswith("Tags: own")
    assert (amounts["rewritten"], amounts["calls"], amounts["embedding_calls"]) == (1, 2, 3)
    assert amounts["written_tokens"] == len(old.text.split()) + len(new.text.split())
    assert system.answer(WHEN, LATER, until=DAY).items == ()
    found = system.answer(MemoryQuestion("q", "newer newer newer newer"), LATER).trace
    assert found[0]["item"] == "s0"  # by its new words


def test_a_link_leads_to_nothing_that_changed_later():
    class Late(Words):
        def link(self, note, held):
            place = next(place for place, other in enumerate(held) if "elephant here" in other.text)
            return NoteLinks(
                () if "mouse" in note.text else (place,), (), {place: ("x", ())} if "mouse" in note.text else {}
            )

    system = told(notes(Late(), k=1, order="rank"), LINKED)
    asked = MemoryQuestion("q", "again again again")
    assert [item.id for item in system.answer(asked, LATER).items] == ["s2", "s0"]
    assert [item.id for item in system.answer(asked, LATER, until=LINKED[2].time).items] == ["s2"]


def test_five_are_shown_and_turns_may_be_notes():
    world = Words()
    told(notes(world), said(*(f"word{number} x" for number in range(8))))
    assert world.shown == [1, 2, 3, 4, 5, 5, 5]
    system = told(notes(unit="turn"))
    assert [item.id for item in system.items] == list("abcde")
    assert system.items[1].sources == ("b",)


def test_links_and_parts_of_notes_are_in_the_digest():
    system = told(notes(), LINKED)
    before, first = system.snapshot(), system.answer(WHEN, LATER)
    assert (system.answer(WHEN, LATER), system.snapshot()) == (first, before)
    assert told(notes(), LINKED).snapshot() == before
    kept, system._links[2] = system._links[2], ()
    assert system.snapshot() != before
    system._links[2] = kept
    assert system.snapshot() == before
    for part in ({"context": "x"}, {"tags": ("x",)}, {"keywords": ("x",)}, {"text": "x"}):
        note = system._notes[0]
        system._notes[0] = Note(
            **{"text": note.text, "keywords": note.keywords, "tags": note.tags, "context": note.context} | part
        )
        assert system.snapshot() != before
        system._notes[0] = note


def test_a_session_becomes_one_note():
    system = build("session-notes", reader=Unread(), embedder=counts, extractor=Words(), k=1)
    amounts = system.ingest(CLINIC[0], DAY)
    assert system.items[0].text == "[2024-05-01 09:00] talk\nthe clinic opens at\nTags: tag"
    assert system.items[0].sources == ("a", "b")
    assert amounts == {"notes": 1, "written_tokens": 9, "embedded_tokens": 9, "embedding_calls": 1, "calls": 1}
    told(system, CLINIC[1:])
    asked = MemoryQuestion("q", "the clinic moved to")
    assert [item.id for item in system.answer(asked, LATER).items] == ["s2"]
    assert [item.id for item in system.answer(asked, LATER, until=DAY).items] == ["s1"]
    assert system.name == "session notes by the words' parser"


def test_session_notes_only_append():
    def made():
        return build("session-notes", reader=Unread(), embedder=counts, extractor=Words(), k=2)

    sessions = [s for s in stream(3) if s.turns]
    online, offline = made(), told(made(), sessions)
    for session, after in zip(sessions, [*sessions[1:], None], strict=True):
        online.ingest(session, session.time)
        if after is None or after.time > session.time:
            asked = MemoryQuestion("q", "w1 w2", session.time)
            assert online.answer(asked, session.time) == offline.answer(asked, session.time, until=session.time)


def test_what_cannot_be_kept_is_left_out_and_counted():
    class Silent(Words):
        def session_note(self, session):
            return SessionNote("", " ", amounts={"calls": 1, "unparsable": 1})

    system = build("session-notes", reader=Unread(), embedder=counts, extractor=Silent())
    assert system.ingest(CLINIC[0], DAY) == {"notes": 0, "written_tokens": 0, "calls": 1, "unparsable": 1}
    assert system.items == []
    assert notes().ingest(Session("s", DAY, ()), DAY)["notes"] == 0


def test_a_linker_or_an_extractor_that_is_none_is_named():
    class Wrong(Words):
        def link(self, note, held):
            return NoteLinks((1,))

    with pytest.raises(WorkFailed, match="chose the note at 1, and 1 were shown"):
        told(notes(Wrong()), LINKED[:2])
    with pytest.raises(BadInput, match=r"name and link\(\)"):
        notes(decider=Unread())
    with pytest.raises(BadInput, match="0 notes are shown"):
        notes(neighbours=0)
    with pytest.raises(BadInput, match="'word'"):
        notes(unit="word")


def test_tags_of_the_linker_stand_in_place_of_the_notes_own():
    class Tags(Words):
        def __init__(self, tags):
            super().__init__()
            self.tags = tags

        def link(self, note, held):
            return NoteLinks((), self.tags, {}, {})

    for given, shown in ((("zz",), "zz"), (("a", "b"), "a, b"), ((), "tag"), (("tag",), "tag")):
        system = notes(Tags(given))
        spent = [system.ingest(session, session.time)["embedded_tokens"] for session in LINKED[:2]]
        first, second = (item.text for item in system.items)
        assert first.endswith("Tags: tag") and second.endswith(f"Tags: {shown}")
        tokens = len(second.split())  # a note that gets other tags is embedded twice
        before = len(second.split()) - len(shown.split()) + 1
        assert spent[1] == (tokens if shown == "tag" else tokens + before)


def test_one_neighbour_is_enough():
    world = Words()
    system = notes(world, neighbours=1)
    for session in LINKED:
        system.ingest(session, session.time)
    assert world.shown == [1, 1, 1]
    with pytest.raises(BadInput, match="at least 1"):
        notes(neighbours=0)
