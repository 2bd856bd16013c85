"""The Inspect tasks on memory with a scripted model: what it is shown, how it is scored, and what is refused."""

import json
import math
import os
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai import eval as run
from inspect_ai.log import read_eval_log
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from equipoise.core.errors import BadInput
from equipoise.data import locomo as conversations
from equipoise.tasks import memory as tasks
from equipoise.tasks.memory import lifedialbench, locomo, longmemeval

PUBLISHED = Path(os.environ.get("EQUIPOISE_DATA", "nowhere")) / "locomo" / "locomo10.json.gz"


def evaluated(task, tmp_path, says, judge=None, monkeypatch=None):
    """The measures, the samples by id, and the prompts that were seen."""
    seen = []

    def reply(messages, tools, tool_choice, config):
        seen.append("\n".join(message.text for message in messages))
        output = ModelOutput.from_content("mockllm/model", says(seen[-1]))
        output.usage = ModelUsage()
        return output

    def judging(name):
        def verdict(messages, tools, tool_choice, config):
            output = ModelOutput.from_content("mockllm/judge", judge(messages[-1].text))
            output.usage = ModelUsage()
            return output

        return get_model("mockllm/judge", custom_outputs=verdict, memoize=False)

    if judge is not None:
        monkeypatch.setattr(tasks, "get_model", judging)
    model = get_model("mockllm/model", custom_outputs=reply, memoize=False)
    log = run(task, model=model, log_dir=str(tmp_path / "logs"), display="none")[0]
    assert log.status == "success", log.error
    log = read_eval_log(log.location)
    found = {name: each.value for score in log.results.scores for name, each in score.metrics.items()}
    return found, {str(sample.id): sample for sample in log.samples}, seen


# --- LifeDialBench ---------------------------------------------------------------------------------------------------


@pytest.fixture
def life(tmp_path):
    days = ["2024-05-01 07:30:00", "2024-05-02 07:30:00", "2024-05-03 07:30:00"]
    said = ["The clinic opens at nine, 09:00.", "The clinic moved to eleven, 11:00.", "The doctor is Li."]

    def asked(question, options, gold, day, kind):
        return {
            "question": question, "options": [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)],
            "golden_option": gold, "question_time": f"2024-05-0{day}", "question_type": kind,
            "evidence_date": f"2024-05-0{day}", "timescale": "day",
        }  # fmt: skip

    times = ["08:00", "09:00", "10:00", "11:00"]
    history = {
        "history_name": "Ana",
        "chat_time": days,
        "chat_history": [[{"speaker": "Ben", "content": text}] for text in said],
        "qa": [
            asked("When does the clinic open?", times, "B", 1, "time_query"),
            asked("When does the clinic open now?", times, "D", 2, "time_query"),
            asked("Who is the doctor?", ["Li", "Mo", "Noor", "Oka"], "A", 3, "event_detail"),
        ],
    }
    path = tmp_path / "life.json"
    path.write_text(json.dumps([history]), encoding="utf-8")
    return str(path)


def newest(prompt):
    """The option that the last note names; "B or C" where none does."""
    notes = prompt.split("[Notes]")[1].split("[End of notes]")[0]
    last = [line for line in notes.splitlines() if "clinic" in line or "doctor" in line][-1:]
    options = dict(line.split(") ", 1) for line in prompt.splitlines() if line[1:3] == ") ")
    return next((letter for letter, option in options.items() if last and option in last[0]), "B or C")


def test_online_nothing_is_printed_that_was_said_after_the_question(life, tmp_path):
    found, samples, seen = evaluated(lifedialbench(life), tmp_path, newest)
    assert found["accuracy"] == 1.0 and found["luck taken out"] == 1.0
    first = next(prompt for prompt in seen if "Question: When does the clinic open?\n" in prompt)
    assert "eleven" not in first and "It is now 2024-05-01 23:59." in first
    assert [samples[f"Ana/{n}"].scores["answered"].metadata["measures"]["evidence"] for n in range(3)] == [1.0] * 3
    assert found["in time_query"] == found["in event_detail"] == 1.0


def test_five_options_and_more_have_letters_too(tmp_path):
    path = tmp_path / "own.json"
    names = ["Ann", "Bo", "Cy", "Di", "Ed", "Flo"]
    session = {"time": "2024-05-01 07:30:00", "turns": [{"speaker": "Ben", "text": "The doctor is Flo."}]}
    asked = {"text": "Who is the doctor?", "options": names, "right": 5, "gold": ["Flo"]}
    path.write_text(json.dumps([{"name": "Ana", "sessions": [session], "questions": [asked]}]), encoding="utf-8")
    (sample,) = lifedialbench(str(path)).dataset
    assert (sample.target, sample.choices) == ("F", names)
    found, _, _ = evaluated(lifedialbench(str(path)), tmp_path, newest)
    assert found["accuracy"] == 1.0
    found, _, _ = evaluated(lifedialbench(str(path)), tmp_path, lambda prompt: "E")
    assert found["accuracy"] == 0.0 and found["luck taken out"] == pytest.approx(-0.2)


@pytest.mark.slow
def test_offline_the_newest_note_is_of_the_future_and_as_of_it_is_not(life, tmp_path):
    # The doctor is the newest of all: what the clinic's questions find last names none of their options.
    found, _, _ = evaluated(lifedialbench(life, protocol="offline"), tmp_path, newest)
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["luck taken out"] == pytest.approx((1 - 1 / 3 - 1 / 3) / 3) and found["unread"] == pytest.approx(2 / 3)
    assert found["in time_query"] == 0.0
    asof, _, _ = evaluated(lifedialbench(life, protocol="asof"), tmp_path, newest)
    assert asof["accuracy"] == 1.0


@pytest.mark.slow
def test_a_memory_prints_what_it_finds_and_an_empty_one_nothing(life, tmp_path):
    found, samples, seen = evaluated(lifedialbench(life, memory="bm25", k=1, kind="event_detail"), tmp_path, newest)
    assert list(samples) == ["Ana/2"] and found["accuracy"] == 1.0
    assert "doctor is Li" in seen[0] and "clinic" not in seen[0].split("Question:")[0]
    empty, _, _ = evaluated(lifedialbench(life, memory="empty"), tmp_path, newest)
    assert (empty["accuracy"], empty["evidence"], empty["printed words"]) == (0.0, 0.0, 0.0)
    assert empty["unread"] == 1.0


@pytest.mark.slow
def test_open_answers_are_judged_and_times_strictly(life, tmp_path, monkeypatch):
    def says(prompt):
        return "about 09:05" if "the clinic open?\n" in prompt else "at 11:00" if "open now" in prompt else "Doctor Li"

    found, _, seen = evaluated(lifedialbench(life, open_ended=True), tmp_path, says)
    assert found["strict time"] == 0.5 and found["accuracy"] == pytest.approx(2 / 3)
    assert "A) " not in seen[0]

    def judge(prompt):
        return "Yes." if "09:05" in prompt else "No, because yes would be wrong" if "Li" in prompt else "It depends"

    judged, samples, _ = evaluated(
        lifedialbench(life, open_ended=True, judge="mockllm/judge"), tmp_path, says, judge, monkeypatch
    )
    assert [samples[f"Ana/{n}"].scores["answered"].value for n in range(3)] == [1.0, 0.0, 0.0]
    assert judged["unread"] == pytest.approx(1 / 3) and judged["strict time"] == 0.5


@pytest.mark.slow
def test_ones_own_memory_is_a_function_of_a_file(life, tmp_path, monkeypatch):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from equipoise.agents.memory import MemoryAnswer\n"
        "class Mine:\n"
        "    name = 'mine'\n"
        "    def __init__(self): self.said = []\n"
        "    def ingest(self, session, time):\n"
        "        self.said.append(session.turns[0].text)\n"
        "        return {}\n"
        "    def answer(self, question, now, *, until=None):\n"
        "        return MemoryAnswer('', context=f'heard {len(self.said)}: doctor {self.said[-1]}')\n"
        "    def snapshot(self): return str(self.said)\n"
        "def memory(): return Mine()\n"
    )
    found, _, seen = evaluated(lifedialbench(life, memory=f"{mine}:memory"), tmp_path, newest)
    assert found["accuracy"] == 1.0 and sum("heard 2: doctor The clinic moved" in prompt for prompt in seen) == 1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"memory": "bm52"}, "No memory 'bm52' is known .* Did you mean 'bm25'"),
        ({"memory": "facts"}, "It needs a model, which `equipoise memory compare` gives it"),
        ({"kind": "multi_event"}, "no question of kind 'multi_event'"),
        ({"kind": "multi_evnt"}, "multi_evnt"),
        ({"protocol": "on"}, "protocol"),
    ],
)
def test_what_is_wrong_is_refused_before_a_question(life, settings, named):
    with pytest.raises(BadInput, match=named):
        lifedialbench(life, **settings)


# --- LoCoMo ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def talks(tmp_path):
    turns = [
        {"speaker": "Ana", "dia_id": "D1:1", "text": "I bought a red car and a blue bowl."},
        {"speaker": "Ben", "dia_id": "D1:2", "text": "I run by the lake."},
    ]
    qa = [
        {"question": "What did Ana buy?", "answer": "red car, bowl", "category": 1, "evidence": ["D1:1"]},
        {"question": "Does Ben run?", "answer": "yes; he said so", "category": 3, "evidence": ["D1:2"]},
        {"question": "Where does Ben run?", "answer": "by the lake", "category": 4, "evidence": ["D1:2"]},
        {"question": "What did Ben buy?", "adversarial_answer": "a car", "category": 5, "evidence": ["D1:1"]},
    ]
    said = {"session_1_date_time": "1:56 pm on 8 May, 2023", "session_1": turns}
    path = tmp_path / "locomo.json"
    path.write_text(json.dumps([{"sample_id": "conv-1", "conversation": said, "qa": qa}]), encoding="utf-8")
    return str(path)


SAID = {"Ana buy": "a red car, a blue bowl", "Does Ben": "yes", "Where": "the lakes", "Ben buy": "It is not mentioned."}


def says_so(prompt):
    question = prompt.split("Question: ")[1]
    return next(answer for part, answer in SAID.items() if part in question)


@pytest.mark.slow
def test_locomo_is_scored_by_category(talks, tmp_path, monkeypatch):
    found, samples, _ = evaluated(locomo(talks, categories="1,3,4,5"), tmp_path, says_so)
    values = {name: sample.scores["conversed"].value for name, sample in samples.items()}
    assert values == {
        "conv-1/0": pytest.approx((1 + 2 / 3) / 2),
        "conv-1/1": 1.0,
        "conv-1/2": pytest.approx(2 / 3),
        "conv-1/3": 1.0,
    }
    assert found["in multi-hop"] == pytest.approx(5 / 6) and found["in adversarial"] == 1.0
    assert found["evidence"] == 1.0
    assert samples["conv-1/1"].scores["conversed"].metadata["measures"]["BLEU-1"] == pytest.approx(math.exp(1 - 4))
    judged, _, _ = evaluated(
        locomo(talks, judge="mockllm/judge"), tmp_path, says_so,
        lambda prompt: "INCORRECT" if "lake" in prompt else "CORRECT", monkeypatch,
    )  # fmt: skip
    assert judged["judge"] == pytest.approx(2 / 3) and judged["unread"] == 0.0


def test_locomo_leaves_out_what_is_named_and_takes_categories_as_inspect_reads_them(talks, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("conv-1/0\n")
    assert [sample.id for sample in locomo(talks, without=str(ids)).dataset] == ["conv-1/1", "conv-1/2"]
    assert [sample.id for sample in locomo(talks, categories=5).dataset] == ["conv-1/3"]
    assert [sample.id for sample in locomo(talks, categories=[1, 4]).dataset] == ["conv-1/0", "conv-1/2"]
    for wrong in ("", "6", "one", []):
        with pytest.raises(BadInput, match="give numbers from 1 to 5"):
            locomo(talks, categories=wrong)
    ids.write_text("conv-26/0\n")
    with pytest.raises(BadInput, match="'conv-26/0' is no question of"):
        locomo(talks, without=str(ids))


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="EQUIPOISE_DATA names no folder with the set locomo (CC BY-NC 4.0)")
@pytest.mark.slow
def test_locomo_as_published_has_1540_scored_samples():
    dataset = locomo().dataset
    kinds = Counter(sample.metadata["kind"] for sample in dataset)
    assert len(dataset) == 1540 and kinds[conversations.CATEGORIES[1]] == 282


# --- LongMemEval -----------------------------------------------------------------------------------------------------


@pytest.fixture
def haystack(tmp_path):
    def a_record(name, kind, answer):
        return {
            "question_id": name, "question_type": kind, "question": f"How fast, {name}?", "answer": answer,
            "question_date": "2023/06/01 (Thu) 00:58", "haystack_session_ids": ["a", "late"],
            "haystack_dates": ["2023/05/27 (Sat) 10:20", "2023/06/01 (Thu) 09:00"],
            "haystack_sessions": [
                [{"role": "user", "content": "I ran 25:50.", "has_answer": True}], [{"role": "user", "content": "26:00"}],
            ],
            "answer_session_ids": ["a"],
        }  # fmt: skip

    records = [
        a_record("q1", "knowledge-update", "25:50"),
        a_record("q2", "single-session-preference", "Likes running."),
        a_record("q3_abs", "multi-session", "It was not said."),
    ]
    path = tmp_path / "haystack.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_longmemeval_asks_the_judge_by_type(haystack, tmp_path, monkeypatch):
    asked = []

    def judge(prompt):
        asked.append(prompt)
        return "No: yes was meant" if "Explanation: It was not said." in prompt else "Yes"

    settings = tmp_path, lambda prompt: "In 25:50.", judge, monkeypatch
    found, _, seen = evaluated(longmemeval(haystack, judge="mockllm/judge"), *settings)
    assert found["accuracy"] == pytest.approx(2 / 3) and found["unread"] == 0.0 and found["evidence"] == 1.0
    assert any("Description: Likes running." in prompt for prompt in asked)
    assert all("26:00" not in prompt for prompt in seen)  # said after the question
    official, _, _ = evaluated(longmemeval(haystack, judge="mockllm/judge", official=True), *settings)
    assert official["accuracy"] == 1.0  # its rule takes "No: yes was meant" for a yes


def test_longmemeval_without_a_judge_scores_what_words_can_show(haystack, tmp_path):
    found, samples, _ = evaluated(longmemeval(haystack), tmp_path, lambda prompt: "In 25:50.")
    assert list(samples) == ["q1"] and found["accuracy"] == 1.0
    with pytest.raises(BadInput, match="of kind 'abstention', that are scored without a judge"):
        longmemeval(haystack, kind="abstention")
    with pytest.raises(BadInput, match="Did you mean 'abstention'"):
        longmemeval(haystack, kind="abstain")


def test_inspect_finds_the_tasks():
    from equipoise import plugin

    assert plugin.memory is tasks  # without torch: tests/chat/test_provider.py
