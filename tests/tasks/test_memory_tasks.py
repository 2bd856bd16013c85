"""The Inspect tasks on memory with a scripted model: what it is shown, how it is scored, and what is refused."""

import asyncio
import gzip
import json
import math
import os
from collections import Counter
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai import eval as run
from inspect_ai.log import read_eval_log
from inspect_ai.model import ModelName, ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import SampleScore, Score, Target
from inspect_ai.solver import TaskState
from inspect_ai.util import registry_info

from equipoise.core.errors import BadInput
from equipoise.data import locomo as conversations
from equipoise.data.histories import History, MemoryQuestion, Session, Turn
from equipoise.data.lifelogs import read_histories
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


def reached(said="", *, question="Q?", choices=None, target=(), name="q", **known):
    """The state of a sample when its score is due."""
    return TaskState(
        ModelName("mockllm/model"), name, 0, question, [], Target(list(target)), choices,
        ModelOutput.from_content("mockllm/model", said),
        metadata={"kind": "no kind", "evidence": [], **known},
    )  # fmt: skip


def scored(scorer, state):
    score = asyncio.run(scorer(state, state.target))
    return score.value, score.metadata["unread"], score.metadata["measures"]


@pytest.fixture
def verdict(monkeypatch):
    """Of a judge: what it was asked with, and the reply that a test gives it."""
    asked = SimpleNamespace(reply="Yes", prompts=[], configs=[], names=[])

    async def generate(prompt, *, config):
        asked.prompts.append(prompt)
        asked.configs.append(config)
        return ModelOutput.from_content("mockllm/judge", asked.reply)

    def model(name):
        asked.names.append(name)
        return SimpleNamespace(generate=generate)

    monkeypatch.setattr(tasks, "get_model", model)
    return asked


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
        ({"kind": "multi_evnt"}, "kind is 'multi_evnt'"),
        ({"protocol": "on"}, "protocol"),
    ],
)
def test_what_is_wrong_is_refused_before_a_question(life, settings, named):
    with pytest.raises(BadInput, match=named):
        lifedialbench(life, **settings)


def test_a_letter_is_right_or_wrong_and_luck_is_taken_out():
    def of(said, right="B", options=4):
        value, unread, measured = scored(
            tasks.answered(), reached(said, choices=list("vwxy")[:options], target=[right])
        )
        return value, unread, pytest.approx(measured["luck taken out"])

    assert of("B") == (1.0, False, 1.0)
    assert of("<think>A or B</think> The answer is (D).", "D") == (1.0, False, 1.0)
    assert of("C") == (0.0, False, -1 / 3)
    assert of("B or C") == (0.0, True, -1 / 3)
    assert of("C", options=2) == (0.0, True, -1.0)  # no such option


def test_what_was_printed_is_measured_beside_each_score():
    state = reached("B", choices=["v", "w"], target=["B"], evidence=["1", "2", "3"], found=["2", "3", "2"])
    state.metadata["printed words"] = 7
    measured = scored(tasks.answered(), state)[2]
    assert measured["printed words"] == 7.0 and measured["evidence"] == pytest.approx(2 / 3)
    for known in ({}, {"found": ["2"]}, {"evidence": ["2"]}):  # nothing found by a solver that is not ours
        measured = tasks._read(reached(**known))
        assert math.isnan(measured["evidence"]) and math.isnan(measured["printed words"])
    assert tasks._read(reached(evidence=["2"], found=[]))["evidence"] == 0.0


def test_open_answers_have_the_gold_words_and_times_are_strict():
    def of(said, golds, kind="time_query"):
        return scored(tasks.answered(), reached(said, target=golds, kind=kind))

    value, unread, measured = of("at 9:00 or 10:00", ["9:00", "noon"])
    assert (value, unread, measured["strict time"]) == (1.0, False, 0.0)  # two times are none
    assert of("12:00", ["9:00", "noon"])[2]["strict time"] == 1.0
    assert of("some day", ["9:00", "noon"])[2]["strict time"] == 0.0
    assert "strict time" not in of("12:00", ["noon"], "single_event")[2]
    assert "strict time" not in of("12:00", ["in the morning"])[2]
    assert of("", ["9:00"])[:2] == (0.0, True) and of("at ten", ["9:00"])[:2] == (0.0, False)


@pytest.mark.parametrize(("reply", "value", "unread"), [
    ("Yes.", 1.0, False), ("No, because yes would be wrong", 0.0, False), ("It depends: yes", 0.0, True),
    ("<think>No?</think>Yes", 1.0, False),
])  # fmt: skip
def test_a_judge_of_open_answers_is_read_strictly(verdict, reply, value, unread):
    verdict.reply = reply
    state = reached("about 09:05", question="When?", target=["09:00", "nine"], kind="time_query")
    score = asyncio.run(tasks.answered("mockllm/judge")(state, state.target))
    assert (score.value, score.metadata["unread"], score.metadata["measures"]["strict time"]) == (value, unread, 0.0)
    assert score.answer == "about 09:05" and score.explanation == reply.removeprefix("<think>No?</think>")
    assert verdict.names == ["mockllm/judge"] and verdict.configs[0].temperature == 0.0
    assert verdict.configs[0].max_tokens == 512
    assert "Question: When?\nGold answer: 09:00, or nine\nAnswer: about 09:05\n" in verdict.prompts[0]


def of_kinds(rows):
    return [
        SampleScore(
            score=Score(value=value, metadata={"measures": measured, "unread": unread}),
            sample_metadata=None if kind is None else {"kind": kind},
        )
        for value, measured, unread, kind in rows
    ]


def test_means_are_over_the_samples_that_have_a_measure():
    rows = [
        (1.0, {"words": 3.0, "evidence": math.nan}, False, "one"),
        (0.5, {"words": 4.0, "strict": 1.0, "evidence": 0.25}, True, "one"),
        (0.25, {"words": 11.0}, False, "two"),
        (0.0, {"strict": 0.0, "evidence": math.nan, "never": math.nan}, False, None),
    ]
    found = tasks.measures()(of_kinds(rows))
    assert math.isnan(found.pop("never"))
    assert found == {
        "words": 6.0, "evidence": 0.25, "strict": 0.5, "in one": 0.75, "in two": 0.25, "in no kind": 0.0, "unread": 0.25,
    }  # fmt: skip
    assert tasks.measures()(of_kinds(rows[:2])).keys() == {"words", "evidence", "strict", "unread"}  # one kind
    assert tasks.measures()(of_kinds(rows[1:3]))["in two"] == 0.25  # two are several
    bare = tasks.measures()([SampleScore(score=Score(value=1.0))])
    assert bare == {"unread": 0.0} and math.isnan(tasks.measures()([])["unread"])


def questioned(life, memory="full", protocol="online", k=20, budget=None, open_ended=False, number=1):
    """The messages a reader gets for a question of Ana's life, and what is noted of them."""
    state = reached(name=f"Ana/{number}", history="Ana")
    solve = tasks.remembered(life, memory, protocol, k, budget, open_ended)
    done = asyncio.run(solve(state, None))
    assert done is state
    return "\n".join(message.text for message in state.messages), state.metadata


def test_protocols_differ_in_what_a_memory_may_print(life):
    for protocol, there in (
        ("online", ["nine", "eleven"]),
        ("asof", ["nine", "eleven"]),
        ("offline", ["nine", "eleven", "Li"]),
    ):
        text, known = questioned(life, protocol=protocol)
        assert [word for word in ("nine", "eleven", "Li") if word in text] == there
        assert "It is now 2024-05-02 23:59." in text and "D) 11:00" in text and len(known["found"]) == 1
        notes = text.split("[Notes]")[1].split("[End of notes]")[0]
        assert known["printed words"] == len(notes.split())
    with pytest.raises(BadInput, match="protocol"):
        tasks.remembered(life, "full", "onlin", 20, None, False)


def test_a_memory_finds_k_items_and_an_empty_one_prints_nothing(life):
    text, known = questioned(life, "bm25", k=1, number=2)
    assert "doctor is Li" in text and "clinic" not in text and len(known["found"]) == 1
    text, known = questioned(life, "empty", number=2)
    assert (known["printed words"], known["found"]) == (0, []) and "doctor is Li" not in text
    assert "A) Li" in text and "A) " not in questioned(life, open_ended=True, number=2)[0]
    budgeted = questioned(life, "recency", budget=9, number=2)
    assert budgeted[1]["printed words"] <= 9 < questioned(life, "recency", number=2)[1]["printed words"]


def test_ones_own_memory_is_fed_in_order_and_once_a_history(life, tmp_path, monkeypatch):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from equipoise.agents.memory import MemoryAnswer\n"
        "class Mine:\n"
        "    name = 'mine'\n"
        "    def __init__(self, k): self.said, self.k = [], k\n"
        "    def ingest(self, session, time):\n"
        "        self.said.append(session.turns[0].text)\n"
        "        return {}\n"
        "    def answer(self, question, now, *, until=None):\n"
        "        return MemoryAnswer('', context=f'heard {len(self.said)} of {self.k}: {self.said[-1]}')\n"
        "    def snapshot(self): return str(self.said)\n"
        "def memory(k): return Mine(k)\n"
    )
    read = []
    monkeypatch.setattr(tasks, "read_histories", lambda path: read.append(path) or read_histories(path))
    prints = tasks._Prints(life, f"{mine}:memory", "online", 4, None)
    told = [prints.of("Ana", f"Ana/{number}")[1] for number in (2, 0, 1)]
    assert [text[:12] for text in told] == ["heard 3 of 4", "heard 1 of 4", "heard 2 of 4"] and "eleven" in told[2]
    assert read == [life] and prints.end("Ana") == datetime(2024, 5, 3, 7, 30)
    assert prints.of("Ana", "Ana/0")[0].right == 1


def test_names_and_ids_are_unique():
    def life_of(name, *ids):
        day = datetime(2024, 5, 1)
        said = (Session("s", day, (Turn("s/1", "Ana", "Hello."),)),)
        return History(name, said, tuple(MemoryQuestion(each, "Q?", gold=("x",)) for each in ids))

    def keep(question):
        return question.id != "out"

    lives = [life_of("Ana", "1", "out"), life_of("Ben", "2", "3"), life_of("Cleo", "out")]
    assert [(life.name, question.id) for life, question in tasks._chosen(lives, keep, "")] == [
        ("Ana", "1"), ("Ben", "2"), ("Ben", "3"),
    ]  # fmt: skip
    with pytest.raises(BadInput, match="Two histories are named 'Ben'"):
        tasks._chosen([*lives, life_of("Ben", "4")], keep, "")
    with pytest.raises(BadInput, match="Two questions have the id '3'"):
        tasks._chosen([*lives, life_of("Dan", "4", "3")], keep, "")
    with pytest.raises(BadInput, match="no question of mine"):
        tasks._chosen(lives, lambda question: question.id == "9", "of mine")


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


def test_a_choice_needs_options(talks):
    with pytest.raises(BadInput, match="'conv-1/0' has no options; set open_ended"):
        lifedialbench(talks)
    found = lifedialbench(talks, open_ended=True).dataset
    assert found[0].target == ["red car, bowl"] and found[0].choices is None


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
    assert len(locomo(talks, categories="1,2,3,4,5").dataset) == 4
    assert [sample.id for sample in locomo(talks, categories=[1, 4]).dataset] == ["conv-1/0", "conv-1/2"]
    for wrong in ("", "6", "one", []):
        with pytest.raises(BadInput, match="give numbers from 1 to 5"):
            locomo(talks, categories=wrong)
    ids.write_text("conv-26/0\n")
    with pytest.raises(BadInput, match="'conv-26/0' is no question of"):
        locomo(talks, without=str(ids))


@pytest.mark.parametrize(("category", "gold", "said", "value", "bleu"), [
    (1, "red car, bowl", "a red car, a blue bowl", (1 + 2 / 3) / 2, 3 / 6),
    (2, "by the lake", "the lake", 2 * 1 / (1 + 2), math.exp(1 - 3 / 2)),
    (3, "yes; he said so", "yes", 1.0, math.exp(1 - 4)),
    (4, "by the lake", "<think>by?</think> by lakes", 2 * 2 / (2 + 2), 1 / 2 * math.exp(1 - 3 / 2)),
])  # fmt: skip
def test_locomo_measures_f1_by_category_and_bleu(verdict, category, gold, said, value, bleu):
    state = reached(said, question="Where?", target=[gold], kind=conversations.CATEGORIES[category])
    found, unread, measured = scored(tasks.conversed(), state)
    assert (found, unread, measured["BLEU-1"]) == (pytest.approx(value), False, pytest.approx(bleu))
    assert "judge" not in measured and not verdict.prompts
    for verdict.reply, right, told in (("CORRECT", 1.0, True), ("INCORRECT", 0.0, True), ("Who knows", 0.0, False)):
        judged = scored(tasks.conversed("mockllm/judge"), state)
        assert judged[:2] == (pytest.approx(value), not told) and judged[2]["judge"] == right
    assert (
        f"Question: Where?\nGold answer: {gold}\nAnswer: {said.removeprefix('<think>by?</think> ')}\n"
        in verdict.prompts[0]
    )


def test_locomo_rewards_declining_where_there_is_no_answer(verdict):
    def of(said, judge=None):
        return scored(tasks.conversed(judge), reached(said, target=["a car"], kind="adversarial"))

    assert of("It is not mentioned.")[:2] == (1.0, False)
    assert of("a car", "mockllm/judge")[:2] == (0.0, False) and of(" ")[:2] == (0.0, True)
    assert "BLEU-1" not in of("a car")[2] and not verdict.prompts


def test_an_empty_answer_is_reported_as_unread():
    state = reached("<think>So much", target=["x"], kind=conversations.CATEGORIES[4])
    assert scored(tasks.conversed(), state)[:2] == (0.0, True)


def test_locomo_is_found_where_it_is_kept(talks, tmp_path, monkeypatch):
    root = tmp_path / "sets" / "locomo"
    root.mkdir(parents=True)
    monkeypatch.setenv("EQUIPOISE_DATA", str(root.parent))
    with pytest.raises(BadInput, match=r"has no locomo10\.json: copy it there"):
        locomo()
    (root / "locomo10.json.gz").write_bytes(gzip.compress(Path(talks).read_bytes()))
    assert tasks._locomo_file().name == "locomo10.json.gz" and len(locomo().dataset) == 3
    (root / "locomo10.json").write_bytes(Path(talks).read_bytes())
    assert tasks._locomo_file().name == "locomo10.json"


def test_a_question_without_a_time_is_asked_when_the_last_session_began(talks, tmp_path):
    rows = json.loads(Path(talks).read_text())
    said = rows[0]["conversation"]
    for number, day in ((2, "9"), (3, "11")):
        said[f"session_{number}_date_time"] = f"1:56 pm on {day} May, 2023"
        said[f"session_{number}"] = [{"speaker": "Ben", "dia_id": f"D{number}:1", "text": "I swim."}]
    path = tmp_path / "three.json"
    path.write_text(json.dumps(rows))
    state = reached(name="conv-1/2", history="conv-1")
    asyncio.run(tasks.remembered(str(path), "full", "online", 20, None, True)(state, None))
    text = state.messages[-1].text
    assert "It is now 2023-05-11 13:56." in text and text.count("I swim.") == 2


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


@pytest.mark.parametrize(("reply", "official", "value", "unread"), [
    ("Yes", False, 1.0, False), ("No: yes was meant", False, 0.0, False), ("No: yes was meant", True, 1.0, False),
    ("Perhaps", False, 0.0, True), ("Perhaps", True, 0.0, False),
])  # fmt: skip
def test_longmemeval_reads_its_judge_by_rule(verdict, reply, official, value, unread):
    verdict.reply = reply
    asked = reached(
        "In 25:50.", question="How fast?", answer="Likes running.", abstention=False, kind="single-session-preference"
    )
    assert scored(tasks.recalled("mockllm/judge", official), asked)[:2] == (value, unread)
    assert "Response: In 25:50.\n" in verdict.prompts[0] and "Question: How fast?\n" in verdict.prompts[0]
    asked.metadata["abstention"] = True
    scored(tasks.recalled("mockllm/judge", official), asked)
    assert "Explanation: Likes running.\n" in verdict.prompts[1] and "Explanation" not in verdict.prompts[0]


@pytest.mark.parametrize(("said", "answer", "value"), [
    ("In 25:50.", "25:50", 1.0), ("25:50", "25:50", 1.0), ("In 26:00", "25:50", 0.0), ("", "25:50", 0.0),
])  # fmt: skip
def test_longmemeval_without_a_judge_looks_for_the_words(said, answer, value):
    assert scored(tasks.recalled(), reached(said, answer=answer))[:2] == (value, False)


def test_longmemeval_keeps_what_is_asked_for(haystack):
    def ids(**settings):
        return [sample.id for sample in longmemeval(haystack, **settings).dataset]

    judge = {"judge": "mockllm/judge"}
    assert ids() == ["q1"] and ids(**judge) == ["q1", "q2", "q3_abs"]
    assert ids(kind="abstention", **judge) == ["q3_abs"] and ids(kind="knowledge-update") == ["q1"]
    with pytest.raises(BadInput, match=r"no question of kind 'multi-session'\.$"):
        ids(kind="multi-session", **judge)  # the only one is an abstention
    sample = longmemeval(haystack, **judge).dataset[2]
    assert sample.metadata["abstention"] and sample.metadata["answer"] == "It was not said." and sample.choices is None


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
    for made in (lifedialbench, locomo, longmemeval):
        told = registry_info(made)
        assert (told.type, told.name) == ("task", f"equipoise/{made.__name__}")
    assert registry_info(tasks.remembered("life.json", "full", "online", 1, None, True)).type == "solver"
    for scoring in (tasks.answered, tasks.conversed, tasks.recalled):
        told = registry_info(scoring())
        assert told.type == "scorer" and len(told.metadata["metrics"]) == 3
    assert registry_info(tasks.measures()).metadata == {"scores": "unreduced"}  # every epoch's score counts


def test_samples_show_options_unless_answers_are_open(life, talks):
    chosen, opened = lifedialbench(life), lifedialbench(life, open_ended=True)
    assert [each.choices for each in opened.dataset] == [None] * 3 and opened.dataset[1].target == ["11:00"]
    assert chosen.dataset[1].choices == ["08:00", "09:00", "10:00", "11:00"] and chosen.dataset[1].target == "D"
    assert [each.metadata["kind"] for each in chosen.dataset] == ["time_query", "time_query", "event_detail"]
    assert chosen.config.temperature == 0.0 and locomo(talks).dataset[0].metadata["group"] == "conv-1"
