import json
from typing import get_args

import pytest

from equipoise.agents.memory import MemoryItem, Unread
from equipoise.agents.memory_chat import ChatDecider, ChatExtractor, written_by
from equipoise.agents.memory_facts import Fact, FactDecision
from equipoise.agents.memory_notes import Note
from equipoise.agents.memory_systems import MemoryName, build
from equipoise.chat.account import Account
from equipoise.chat.calls import Reply
from equipoise.chat.client import Chat
from equipoise.chat.record import Record
from equipoise.core.errors import WorkFailed
from memory_worlds import CLINIC, DAY, counts

HELD = [
    MemoryItem("fact 1", "[2024-05-01 09:00] The clinic opens at 9.", DAY),
    MemoryItem("fact 2", "Bo\nhas a cat.", DAY),
]
NEW = Fact("The clinic moved to 11.", ("c",))


class Replies:
    """A chat that answers with these objects, as a schema reads them."""

    name = "replies"

    def __init__(self, *replies):
        self.replies, self.calls = list(replies), []

    def ask(self, calls, *, title=""):
        self.calls += calls
        reply = self.replies.pop(0)
        if isinstance(reply, Reply):
            return [reply]
        return [Reply(json.dumps(reply), "answered", calls[0].schema.model_validate(reply))]


def asked(chat):
    return "\n".join(message.content for message in chat.calls[-1].messages)


def test_facts_are_drawn_out_with_their_turns():
    chat = Replies(
        {"facts": [
            {"fact": "Li's clinic\nopens at 9.", "turns": [1, 1, 7]}, {"fact": "It is cold.", "turns": []},
            {"fact": " ", "turns": [2]},
        ]}
    )  # fmt: skip
    found = ChatExtractor(chat, count=len).facts(CLINIC[0])
    assert found.facts == (Fact("Li's clinic opens at 9.", ("a",)), Fact("It is cold.", ()))
    assert "1. [2024-05-01 09:00] Li: the clinic opens at 9\n2. [2024-05-01 09:00] Bo: what a cold" in asked(chat)
    assert found.amounts["prompt_tokens"] == sum(len(message.content) for message in chat.calls[0].messages)
    assert (found.amounts["calls"], found.amounts["unparsable"], found.amounts["not_given"]) == (1, 0, 0)


@pytest.mark.parametrize(
    ("answer", "decision", "unparsable"),
    [
        ({"action": "add", "number": None, "text": ""}, FactDecision("add"), 0),
        ({"action": "none", "number": 1, "text": "x"}, FactDecision("none"), 0),
        ({"action": "update", "number": 1, "text": "It opens at 11."}, FactDecision("update", 0, "It opens at 11."), 0),
        ({"action": "delete", "number": 2, "text": ""}, FactDecision("delete", 1), 0),
        ({"action": "delete", "number": 3, "text": ""}, FactDecision("none"), 1),
        ({"action": "delete", "number": None, "text": ""}, FactDecision("none"), 1),
        ({"action": "update", "number": 0, "text": "x"}, FactDecision("none"), 1),
        ({"action": "update", "number": 1, "text": " "}, FactDecision("none"), 1),
        (Reply("no object", "invalid", reason="none"), FactDecision("none"), 1),
        (Reply('{"action"', "cut"), FactDecision("none"), 1),
        (Reply("", "refused", reason="filter"), FactDecision("none"), 0),
    ],
)
def test_a_decision_is_read_by_the_numbers_that_were_shown(answer, decision, unparsable):
    chat = Replies(answer)
    found = ChatDecider(chat).decide(NEW, HELD)
    assert (found.action, found.place, found.text) == (decision.action, decision.place, decision.text)
    assert found.amounts["unparsable"] == unparsable
    assert found.amounts["not_given"] == (isinstance(answer, Reply) and answer.status == "refused")
    assert "1. [2024-05-01 09:00] The clinic opens at 9.\n2. Bo has a cat.\n[End of facts" in asked(chat)


def test_notes_are_written_linked_and_written_anew():
    chat = Replies(
        {"keywords": ["clinic", "clinic", " "], "tags": ["health"], "context": "Where\nit is."},
        {"linked": [2, 5, 2], "tags": ["care"], "rewritten": [
            {"number": 1, "context": "It moved.", "tags": ["old"]}, {"number": 9, "context": "x", "tags": []},
        ]},
        Reply("", "invalid"),
        Reply("", "rejected"),
    )  # fmt: skip
    note = ChatExtractor(chat).note("<|im_end|> the clinic")
    assert (note.text, note.keywords, note.tags, note.context) == (
        "<|im_end|> the clinic", ("clinic",), ("health",), "Where it is."
    )  # fmt: skip
    assert "< |im_end|> the clinic\n[End of note]" in asked(chat)
    links = ChatDecider(chat).link(note, [Note("one"), Note("two", tags=("x",))])
    assert (links.linked, links.tags, links.rewritten) == ((1,), ("care",), {0: ("It moved.", ("old",))})
    assert "1. one\n2. two Tags: x\n" in asked(chat)
    assert ChatExtractor(chat).note("text") == Note("text")
    empty = ChatDecider(chat).link(note, [Note("one")])
    assert (empty.linked, empty.tags, empty.rewritten, empty.amounts["not_given"]) == ((), (), {}, 1)


def test_a_session_is_summed_up():
    chat = Replies(
        {"title": "Clinic", "summary": "It opens at 9.\nIt is cold.", "tags": ["health"]}, Reply("x", "invalid")
    )
    note = ChatExtractor(chat).session_note(CLINIC[0])
    assert (note.title, note.summary, note.tags) == ("Clinic", "It opens at 9.\nIt is cold.", ("health",))
    lost = ChatExtractor(chat).session_note(CLINIC[0])
    assert (lost.summary, lost.amounts["unparsable"]) == ("", 1)


def test_every_memory_is_built_with_whoever_writes_it():
    for name in get_args(MemoryName):
        reranker = {"reranker": len} if name == "rag-rerank" else {}
        system = build(name, reader=Unread(), embedder=counts, **reranker, **written_by(name, Replies()))
        assert ("replies" in system.name) == (name in ("facts", "notes", "session-notes"))


def test_a_lost_call_ends_the_ingestion():
    system = build(
        "facts", reader=Unread(), embedder=counts, extractor=ChatExtractor(Replies(Reply("", "failed", reason="gone"))),
        decider=ChatDecider(Replies()),
    )  # fmt: skip
    with pytest.raises(WorkFailed, match="replies got no answer"):
        system.ingest(CLINIC[0], DAY)


def test_a_record_writes_the_same_memory_again_without_a_call(tmp_path):
    """Through the real client: the provider answers in prose around an object, and once not at all."""
    from inspect_ai.model import ModelOutput, ModelUsage

    said = iter((
        'So: {"facts": [{"fact": "The clinic opens at 9.", "turns": [1]}]}',
        '{"facts": [{"fact": "The clinic moved to 11.", "turns": [1]}, {"fact": "The cat sleeps.", "turns": [2]}]}',
        '{"action": "update", "number": 1, "text": "The clinic opens at 11."}',
        "I would rather not.", "I would rather not.",
    ))  # fmt: skip

    def output(*_):
        made = ModelOutput.from_content("mockllm/model", next(said))
        made.usage = ModelUsage()  # else the mock counts tokens with a vocabulary from the network
        return made

    def write(offline):
        with Record(tmp_path / "calls.jsonl") as record:
            chat = Chat(
                "mockllm/model",
                record=record,
                account=Account(),
                model_args={"custom_outputs": output},
                offline=offline,
            )
            system = build(
                "facts", reader=Unread(), embedder=counts, extractor=ChatExtractor(chat), decider=ChatDecider(chat)
            )  # fmt: skip
            amounts = [dict(system.ingest(session, session.time)) for session in CLINIC[:2]]
            chat.close()
        return system, amounts

    system, amounts = write(offline=False)
    assert [item.text for item in system.items] == ["[2024-05-02 09:00] The clinic opens at 11."]
    assert system.items[0].sources == ("c",)
    assert (amounts[1]["calls"], amounts[1]["unparsable"], amounts[1]["update"], amounts[1]["none"]) == (3, 1, 1, 1)
    again, same = write(offline=True)
    assert (again.snapshot(), same) == (system.snapshot(), amounts)
