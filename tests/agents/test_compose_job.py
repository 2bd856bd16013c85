"""The job `memory compose`: by templates, and by a model whose words are known; killed anywhere, checked, looked through."""

import importlib.util
import json
import os
import re
import signal
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from equipoise.agents.compose_job import compose
from equipoise.chat import roles
from equipoise.chat.client import Chat
from equipoise.chat.record import Entry, Usage
from equipoise.cli import main
from equipoise.core.errors import BadInput
from equipoise.core.files import Files
from equipoise.core.serialize import serialize
from equipoise.data.lifelogs import read_histories

STABLE = ("lifelog.json", "plan.jsonl", "leaks.jsonl")
PERSONA = {
    "name": "Mara",
    "people": ["Tom", "Ida"],
    "lines": ["garden", "choir"],
    "fixed": [{"date": "2024-01-03", "text": "Ida's wedding"}],
}


@pytest.fixture(autouse=True)
def persona(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("p.json").write_text(json.dumps(PERSONA), encoding="utf-8")


def test_templates_write_a_life_that_memory_compare_can_read():
    done = compose(persona=Path("p.json"), days=10, out="life")
    (history,) = read_histories("life/lifelog.json")
    assert done.history == history
    assert (done.source, done.sessions, done.calls) == ("templates", len(history.sessions), 0)
    assert done.made is not None and done.made.questions == len(history.questions) == sum(done.kinds.values()) > 15
    assert done.made.leaks == () and "untested" in done.notes[0]
    rows = [json.loads(line) for line in Path("life/plan.jsonl").read_text().splitlines()]
    assert Counter(row["level"] for row in rows) == {
        "year": 1, "month": 1, "week": 2, "day": 10, "event": len(history.sessions),
    }  # fmt: skip
    assert serialize(compose.stored(Path("life"))) == json.loads(Path("life/result.json").read_text()) | {
        "folder": "life"
    }
    assert "What the gates let through" in Path("life/report.html").read_text()
    assert "made questions" not in done.headline() and "by templates" in done.headline()
    again = compose(persona=Path("p.json"), days=10, seed=1)
    assert again.history is not None and again.history != history


def test_given_questions_are_looked_through(capsys):
    compose(persona=Path("p.json"), days=10, out="life")
    life = json.loads(Path("life/lifelog.json").read_text())
    life[0]["qa"][0]["question"] = "What happened on 5 May 2024?"
    Path("theirs.json").write_text(json.dumps(life), encoding="utf-8")
    assert main(["memory", "compose", "--lint", "theirs.json", "--out", "looked"]) == 0
    said = capsys.readouterr()
    assert said.out.endswith("/looked\n") and "1 dated question; see leaks.jsonl" in said.err
    assert not Path("looked/lifelog.json").exists()
    (row,) = (json.loads(line) for line in Path("looked/leaks.jsonl").read_text().splitlines())
    assert row == {
        "questions": "given", "id": "Mara/0", "leak": "dated question", "what": "its wording names '5 May 2024'",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"persona": None}, "nothing to do: give a persona"),
        ({"days": 2}, "fixed to 2024-01-03, outside 2024-01-01 to 2024-01-02"),
        ({"start": date(9999, 12, 31)}, "beyond the calendar"),
        ({"critic": "mockllm/model"}, "give a model, or no critic"),
        ({"persona": None, "lint": Path("p.json"), "model": "mockllm/model"}, "there is no persona"),
        ({"persona": Path("none.json")}, "no such file"),
        ({"lint": Path("p.json")}, "no history that is known"),
        ({"budget": "calls=3"}, "budget is for chat models, and none is asked"),
        ({"questions_per_day": 5}, "should be at most 4"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_the_plan_too(settings, named):
    for doing in (compose, compose.plan):
        with pytest.raises(BadInput, match=named):
            doing(**{"persona": Path("p.json"), "days": 10} | settings)


def test_a_folder_whose_files_were_altered_is_not_shown_as_it_was(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    asked = [{"text": "What about 2024-05-05?", "gold": ["x"]}]
    history = {"name": "a", "sessions": [{"time": "2024-01-01", "turns": [["A", "hi"]]}], "questions": asked}
    (given / "a.json").write_text(json.dumps(history))
    first = compose(lint=given, out=tmp_path / "out")
    assert first.looked.questions == 1 and compose(lint=given, out=tmp_path / "out").looked == first.looked
    (given / "notes.txt").write_text("not read, and no reason to begin anew")
    assert compose(lint=given, out=tmp_path / "out").looked == first.looked
    (given / "a.json").write_text(json.dumps(history | {"questions": asked * 7}))
    with pytest.raises(BadInput, match="lint"):
        compose(lint=given, out=tmp_path / "out")
    assert compose(lint=given, out=tmp_path / "anew").looked.questions == 7


def test_the_plan_counts_the_periods():
    plan = compose.plan(persona=Path("p.json"), days=366)
    assert plan.periods == {"month": 12, "week": 62, "day": 366} and plan.calls == 0
    assert "month 12, week 62, day 366" in " ".join(plan.summary())


# --- a model ---------------------------------------------------------------------------------------------------------

if importlib.util.find_spec("inspect_ai") is None:
    pytest.skip("the rest needs Inspect AI: the extra `chat`", allow_module_level=True)

WORDS = ("green", "white", "ochre", "grey", "blue", "black")


class Scripted(Chat):
    """Writes a small life as the prompts ask; asks no provider. faults: what it does wrong, and how often."""

    asked: ClassVar[Counter[str]] = Counter()
    faults: ClassVar[dict[str, int]] = {}

    def open(self) -> None:
        pass

    def ask(self, calls, *, title=""):
        for call in calls:
            if not self.offline and self.record.found(key := self.key(call)) is None:
                self.asked[key] += 1
                entry = Entry(key, self.name, call.phase, "answered", json.dumps(said(call)), Usage(40, 0, 6))
                self.record.add(entry, call)
                self.account.book(entry)
        return super().ask(calls, title=title)


def numbered(text):
    return [line.split(". ", 1)[1] for line in text.splitlines() if re.match(r"\d+\. ", line)]


def between(text, before, after):
    return text.split(before, 1)[1].split(after, 1)[0].strip()


def said(call):
    text = call.messages[-1].content
    again = "An earlier answer could not be used" in text
    if call.phase == "allocate":
        records = []
        for part in numbered(text):
            start, end = part.split(" to ")
            fixed = re.findall(r"^(\d{4}-\d{2}-\d{2}): (.+)$", between(text, "no other.", "Reply as"), re.MULTILINE)
            own = [what for day, what in fixed if start <= day <= end]
            records.append({"start": start, "end": end, "text": "; ".join(["things of the house", *own])})
        if "allocate" in Scripted.faults and not again and len(records) > 1:
            texts = [record["text"] for record in records]
            records = [record | {"text": text} for record, text in zip(records, [*texts[1:], texts[0]], strict=True)]
        return {"records": records}
    if call.phase == "enrich":
        name = between(text, "Expand this record, the ", ", with")
        plan = between(text, "neighbours:", "Stay within")
        return {"text": f"{plan}, in more words for {name.split()[1]}"}
    if call.phase == "events":
        day = date.fromisoformat(between(text, "The plan of ", ":"))
        number = (day - date(2024, 1, 1)).days
        events = [
            {
                "start": f"{9 + hour}:00".zfill(5),
                "end": f"{9 + hour}:30".zfill(5),
                "place": f"room {number}",
                "people": ["Mara", "Tom"],
                "what": f"{('mended', 'sold')[hour]} the {WORDS[number % 6]} chair" if number != 2 else
                ("went to Ida's wedding", "danced")[hour],
                "details": [{"slot": "colour", "value": f"{WORDS[(number + hour) % 6]} paint"}],
            }
            for hour in range(2)
        ]  # fmt: skip
        return {"events": events}
    if call.phase == "dialogue":
        details = re.findall(r"^colour: (.+)$", between(text, "just these words:", "Reply as"), re.MULTILINE)
        what = between(text, "beyond the day.", "(colour").split(": ")[-1]
        return {"turns": [{"speaker": "Mara", "text": f"Take {value}."} for value in details]
                + [{"speaker": "Tom", "text": f"So you {what}."}]}  # fmt: skip
    if call.phase == "doubt":
        doubtful = "doubt" in Scripted.faults and "in more words for 2024-01-04" in text
        return {"contradicts": doubtful, "what": "It contradicts."}
    if call.phase == "questions":
        day = date.fromisoformat(between(text, " on ", ":"))
        events, earlier = (
            numbered(between(text, "on " + str(day), "These happened")),
            numbered(between(text, "happened before:", "Write at most")),
        )
        old = [line.split(": ", 1)[1].split(" (")[0] for line in earlier if ": " in line][-3:]
        new = [line.split(": ", 1)[1].split(" (")[0] for line in events]
        later = "played the harp in the morning"  # never said
        return {
            "questions": [
                {"kind": "single_event", "question": f"What did Mara do on {day} in the house?", "answer": new[0],
                 "wrong": old, "events": [1]},
                {"kind": "multi_event", "question": "What did Mara do with Tom after that?", "answer": new[1],
                 "wrong": [*old[:2], later], "events": [2]},
                {"kind": "single_event", "question": "What again?", "answer": new[0], "wrong": old, "events": [1]},
            ]
        }  # fmt: skip
    if call.phase == "undated":
        return {"question": "What did Mara do at 3 pm in the house?"}
    assert call.phase == "answer", call.phase
    options = numbered(between(text, "Question:", "First copy"))
    heard = between(text, "[What was said]", "[End")
    right = next(number for number, option in enumerate(options, start=1) if option in heard)
    if "answer" in Scripted.faults and "2024-01-09" in heard:
        return {"evidence": options[right - 1], "option": right % 4 + 1}
    evidence = "a thing nobody said" if "evidence" in Scripted.faults and "2024-01-09" in heard else options[right - 1]
    return {"evidence": evidence, "option": right}


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(roles, "Chat", Scripted)
    monkeypatch.setattr(Scripted, "asked", Counter())
    monkeypatch.setattr(Scripted, "faults", {})
    return Scripted


def written(out=None, **more):
    return compose(
        persona=Path("p.json"), days=10, model="openai/scripted", events_per_day=2, questions_per_day=2, out=out, **more
    )


def test_a_model_writes_and_what_it_makes_up_is_dropped(scripted):
    done = written("life")
    (history,) = read_histories("life/lifelog.json")
    assert len(history.sessions) == 20 and done.source == "openai/scripted"
    assert all(gate.left == 0 for gate in done.gates)
    assert {turn.text for turn in history.sessions[4].turns} == {"Take ochre paint.", "So you went to Ida's wedding."}
    assert history.sessions[4].time.date() == date(2024, 1, 3)
    # On the first two days fewer than three things have happened; of the others one question is left, without its date.
    assert [question.time.date() for question in history.questions] == [
        date(2024, 1, 1) + timedelta(days=n) for n in range(2, 10)
    ]
    assert {question.text for question in history.questions} == {"What did Mara do in the house?"}
    assert done.made is not None and done.made.leaks == ()
    assert done.dropped == {
        "not three wrong answers that differ": 5,
        "a wrong answer that was not said before": 9,
        "of no kind, or of one that the day has": 8,
    }
    assert done.calls == len(scripted.asked) and done.tokens == 46 * done.calls
    assert done.notes == (done.notes[0],)  # nothing of templates


def test_what_a_gate_flags_is_asked_again_with_its_reason(scripted):
    scripted.faults |= {"allocate": 1, "doubt": 1}
    done = written("life")
    gates = {gate.step: gate for gate in done.gates}
    # The week from 1 to 7 January has the wedding in the wrong day at first; that from 8 to 10 holds nothing fixed.
    assert (gates["allocate days"].flagged, gates["allocate days"].left) == (1, 0)
    # The critic doubts one day also when it is written anew: the same words come, and what was allocated stays.
    assert (gates["enrich days"].inconsistent, gates["enrich days"].left) == (1, 1)
    assert done.dropped["texts of days left as they were allocated"] == 1
    days = [json.loads(line) for line in Path("life/plan.jsonl").read_text().splitlines()]
    (fourth,) = (row for row in days if row["level"] == "day" and row["start"] == "2024-01-04")
    assert "in more words" not in fourth["text"].split("for")[-1] and fourth["text"] == "things of the house"


@pytest.mark.parametrize("fault", ["answer", "evidence"])
def test_a_question_that_is_not_answered_from_what_was_said_is_dropped(scripted, fault):
    scripted.faults |= {fault: 1}
    done = written()
    assert done.history is not None
    assert date(2024, 1, 9) not in {question.time.date() for question in done.history.questions}
    assert done.dropped["not answered from what was said"] == 1


def killed(at: int, monkeypatch) -> bool:
    """The job in a process of its own, which is killed in the middle of an operation on the disk."""
    child = os.fork()
    if not child:
        done = []

        def counted(name):
            real = getattr(Files, name)

            def operation(self, path, what):
                done.append(name)
                if len(done) == at:
                    if name == "append":
                        real(self, path, what[: len(what) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                real(self, path, what)

            return operation

        for name in ("append", "produce", "replace"):
            monkeypatch.setattr(Files, name, counted(name))
        try:
            written("cut")
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(scripted, monkeypatch):
    whole = written("whole")
    expected = {name: Path("whole", name).read_bytes() for name in STABLE}
    cut = 0
    for at in (5, 20, 21, 10):
        cut += killed(at, monkeypatch)
        assert not Path("cut").exists()
    assert cut == 4
    *lines, _ = Path("cut.partial/calls.jsonl").read_bytes().split(b"\n")  # the last is torn, or empty
    stored = sum(b'"phase"' in line for line in lines)
    scripted.asked.clear()
    done = written("cut")
    assert {name: Path("cut", name).read_bytes() for name in STABLE} == expected
    assert (stored > 40, len(scripted.asked)) == (True, whole.calls - stored) and max(scripted.asked.values()) == 1
    assert done.history == whole.history
    again = compose.plan(
        persona=Path("p.json"), days=10, model="openai/scripted", events_per_day=2, questions_per_day=2
    )
    assert again.calls >= whole.calls - 30 and again.periods["day"] == 10


@pytest.mark.parametrize(
    ("setting", "least", "most"),
    [
        ("days", 1, 366),
        ("events_per_day", 1, 12),
        ("questions_per_day", 0, 4),
        ("repairs", 0, 5),
        ("temperature", 0, 2),
        ("max_tokens", 1, None),
        ("seed", 0, None),
    ],
)
def test_settings_may_be_at_their_ends_and_not_beyond(setting, least, most, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"name": "Mara", "about": "a nurse", "people": ["Ida"], "lines": ["garden"]}))
    for value in (least, most):
        if value is not None:
            compose.plan(persona=path, **{setting: value})
    for value in (least - 1, None if most is None else most + 1):
        if value is not None:
            with pytest.raises(BadInput, match=setting.replace("_", "[-_]")):
                compose.plan(persona=path, **{setting: value})
