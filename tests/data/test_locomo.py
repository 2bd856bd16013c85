"""LoCoMo as it is published, and its metrics as the released evaluation computes them."""

import json
import math
import os
import string
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from equipoise.core.errors import BadInput
from equipoise.data import locomo
from equipoise.data.history_rows import Row
from equipoise.data.lifelogs import read_histories
from equipoise.data.locomo import Cleaned, read_locomo, read_without

PUBLISHED = Path(os.environ.get("EQUIPOISE_DATA", "nowhere")) / "locomo" / "locomo10.json.gz"


def a_conversation(sample_id="conv-1", qa=(), sessions=(2, 10, 1), **changes):
    said = {"speaker_a": "Ana", "speaker_b": "Ben"}
    for number in sessions:
        said[f"session_{number}_date_time"] = f"1:{number:02} pm on {number} May, 2023"
        said[f"session_{number}"] = [{"speaker": "Ana", "dia_id": f"D{number}:1", "text": f"words {number}"}]
    said["session_99_date_time"] = "1:00 pm on 30 May, 2023"  # published: times of sessions that never took place
    return {"sample_id": sample_id, "conversation": {**said, **changes}, "qa": list(qa)}


def asked(category=4, evidence=("D1:1",), **changes):
    return {"question": "Who?", "answer": "Ana", "category": category, "evidence": list(evidence), **changes}


def read(tmp_path, *conversations, name="locomo.json"):
    path = tmp_path / name
    path.write_text(json.dumps(list(conversations)), encoding="utf-8")
    return read_locomo(path)


def test_sessions_stand_in_the_order_of_their_numbers(tmp_path):
    (history,) = read(tmp_path, a_conversation()).histories
    assert [session.id for session in history.sessions] == ["session_1", "session_2", "session_10"]
    assert history.sessions[2].time == datetime(2023, 5, 10, 13, 10)


@pytest.mark.parametrize(
    ("text", "hour"),
    [("12:05 am on 3 June, 2023", 0), ("12:05 pm on 3 June, 2023", 12), ("1:05 pm on 3 June, 2023", 13)],
)
def test_midnight_and_noon(text, hour, tmp_path):
    (history,) = read(tmp_path, a_conversation(sessions=[1], session_1_date_time=text)).histories
    assert history.sessions[0].time == datetime(2023, 6, 3, hour, 5)


@pytest.mark.parametrize(
    "text",
    [
        "13:05 pm on 3 June, 2023",
        "1:05 pm on 31 June, 2023",
        "1:05 pm on 3 Juno, 2023",
        "2023-06-03",
        "0:05 am on 3 June, 2023",
    ],
)
def test_other_times_are_refused(text, tmp_path):
    with pytest.raises(BadInput, match=r"record 1 \(conv-1\): field 'session_1_date_time'"):
        read(tmp_path, a_conversation(sessions=[1], session_1_date_time=text))


def test_captions_are_said_and_links_are_not(tmp_path):
    turns = [
        {
            "speaker": "A",
            "dia_id": "D1:1",
            "text": "Look!",
            "blip_caption": "a red car",
            "img_url": ["x"],
            "query": "q",
        },
        {"speaker": "A", "dia_id": "D1:2", "text": "", "blip_caption": "a dog"},
    ]
    (history,) = read(tmp_path, a_conversation(sessions=[1], session_1=turns)).histories
    assert [turn.text for turn in history.sessions[0].turns] == [
        "Look! (image description: a red car)",
        "(image description: a dog)",
    ]


def test_evidence_is_cleaned_by_stated_rules_and_counted(tmp_path):
    evidence = ["D1:1; D2:1 D10:1", "D:2:1", "D10:01", "D", "D1:7", "D1:1"]
    data = read(tmp_path, a_conversation(qa=[asked(evidence=evidence), asked(evidence=[])]))
    first, second = data.histories[0].questions
    assert first.evidence == ("D1:1", "D2:1", "D10:1")
    assert second.evidence == ()
    assert data.cleaned == Cleaned(split=1, respelled=2, unknown=2, repeated=3)


def test_questions_are_keyed_by_place_and_named_by_the_ids_of_their_categories(tmp_path):
    qa = [asked(category) for category in (1, 2, 3, 4)] + [{**asked(5), "adversarial_answer": "Ben"}]
    (history,) = read(tmp_path, a_conversation(qa=qa)).histories
    assert [question.id for question in history.questions] == [f"conv-1/{place}" for place in range(5)]
    names = ["multi-hop", "temporal", "open-domain", "single-hop", "adversarial"]
    assert [question.kind for question in history.questions] == names
    assert [locomo.category_of(question) for question in history.questions] == [1, 2, 3, 4, 5]
    assert [question.gold for question in history.questions] == [("Ana",)] * 4 + [()]
    for category in (6, "1", True, None):
        with pytest.raises(BadInput, match=r"question 1: .*field 'category'"):
            read(tmp_path, a_conversation(qa=[asked(category)]))


def test_one_file_a_conversation_is_read_too(tmp_path):
    for number in (10, 2):
        flat = a_conversation(qa=[asked()])["conversation"] | {"qa": [asked(answer=2023)]}
        (tmp_path / f"{number}.json").write_text(json.dumps(flat), encoding="utf-8")
    histories = read_histories(tmp_path)
    assert [history.questions[0].gold for history in histories] == [("2023",), ("2023",)]
    single = read_histories(tmp_path / "10.json")
    assert single[0].name == "10"
    with pytest.raises(BadInput, match="two conversations are named 'conv-1'"):
        read(tmp_path, a_conversation(), a_conversation())


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="EQUIPOISE_DATA names no folder with the set locomo (CC BY-NC 4.0)")
def test_the_published_file_has_the_published_counts():
    data = read_locomo(PUBLISHED)
    questions = [question for history in data.histories for question in history.questions]
    by_category = Counter(locomo.category_of(question) for question in questions)
    assert by_category == {1: 282, 2: 321, 3: 96, 4: 841, 5: 446}
    scored = [question for question in questions if locomo.category_of(question) in locomo.SCORED]
    assert (len(questions), len(scored)) == (1986, 1540)
    assert len({question.id for question in questions}) == 1986
    texts = Counter(question.text for question in questions)
    assert (sum(n > 1 for n in texts.values()), sum(n for n in texts.values() if n > 1)) == (12, 24)
    assert sum(not question.evidence for question in scored) == 4
    assert data.cleaned == Cleaned(split=4, respelled=2, unknown=3, repeated=1)
    sessions = [session for history in data.histories for session in history.sessions]
    assert (len(sessions), sum(len(session.turns) for session in sessions)) == (272, 5882)
    assert [history.name for history in data.histories] == list(locomo.SAMPLES)


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_f1_stems_and_drops_articles_and_the_word_and():
    # running, runs -> run; "the" and "and" count for nothing: 2 shared of 3 and 2 words
    assert locomo.token_f1("The running and a dog, slowly", "runs, dog") == pytest.approx(2 * 2 / (3 + 2))
    assert locomo.token_f1("", "dog") == locomo.token_f1("the", "dog") == 0.0
    assert locomo.token_f1("Dogs!", "dog") == 1.0


def test_category_1_takes_the_best_part_for_each_part_of_the_gold():
    # "red car" against "red car": 1; "bowl" against "a blue bowl": 2/3; "cup" against nothing alike: 0
    assert locomo.f1("a red car, a blue bowl", "red car, bowl, cup", 1) == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert locomo.f1("a red car, a blue bowl", "red car, bowl, cup", 4) == pytest.approx(2 * 3 / (4 + 4))
    assert locomo.f1("no", "No; she has fur", 3) == 1.0
    assert locomo.f1("no", "No; she has fur", 4) < 0.5
    assert math.isnan(locomo.f1("no", "x", 5))
    with pytest.raises(BadInput, match="no category 6"):
        locomo.f1("no", "x", 6)


def test_bleu_1_is_nltks_of_one_word():
    from nltk.translate.bleu_score import sentence_bleu

    def words(text):
        return "".join(c for c in text.lower() if c not in string.punctuation).split()

    for said, gold in (
        ("the the the cat", "The cat sat there."),
        ("cat", "a cat sat"),
        ("one two three four", "two three"),
    ):
        expected = sentence_bleu([words(gold)], words(said), weights=(1,))
        assert locomo.bleu_1(said, gold) == pytest.approx(expected)
    assert locomo.bleu_1("the the the cat", "The cat sat there.") == pytest.approx(0.5)
    assert locomo.bleu_1("", "x") == locomo.bleu_1("x", "") == 0.0


def test_who_declines_says_so():
    assert locomo.abstains("That is NOT  mentioned anywhere.")
    assert locomo.abstains("No information available")
    assert not locomo.abstains("I do not know")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("CORRECT", True),
        ("Correct.", True),
        ("INCORRECT", False),
        ("It isn't correct.", False),
        ("incorrect, it was Ben", False),
        ("WRONG", False),
        ("not correct", False),
        ("CORRECT or INCORRECT?", None),
        ("correctly", None),
        ("", None),
    ],
)
def test_incorrect_is_not_correct(reply, verdict):
    assert locomo.correct(reply) is verdict


def test_the_judge_sees_question_gold_and_answer(tmp_path):
    (history,) = read(tmp_path, a_conversation(qa=[asked(answer="{Ana}")])).histories
    prompt = locomo.judge_prompt(history.questions[0], "Ben {0}")
    assert "Question: Who?\nGold answer: {Ana}\nAnswer: Ben {0}\n" in prompt


def test_questions_to_leave_out_are_ids_or_the_public_audits_own_files(tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("# known\nconv-26/23\n\nconv-50/1  # a car\n", encoding="utf-8")
    assert read_without(ids) == {"conv-26/23", "conv-50/1"}
    ids.write_text("conv-26\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"ids.txt:1: 'conv-26' is no id; write CONVERSATION/PLACE"):
        read_without(ids)
    rows = [
        {"question_id": "locomo_0_qa23", "error_type": "HALLUCINATION"},
        {"question_id": "locomo_9_qa1", "error_type": "TEMPORAL_ERROR"},
        {"question_id": "locomo_0_qa37", "error_type": "WRONG_CITATION"},
    ]
    ids.write_text(json.dumps(rows), encoding="utf-8")
    assert read_without(ids) == {"conv-26/23", "conv-50/1"}
    ids.write_text(json.dumps([{"question_id": "locomo_10_qa1", "error_type": "HALLUCINATION"}]), encoding="utf-8")
    with pytest.raises(BadInput, match="record 1: field 'question_id': expected locomo_N_qaM"):
        read_without(ids)
    for broken in ('[{"question_id": ', "[" * 100_000):
        ids.write_text(broken, encoding="utf-8")
        with pytest.raises(BadInput, match=r"ids.txt: not JSON"):
            read_without(ids)


@pytest.mark.parametrize(("text", "hour"), [("5:05 pm", 17), ("11:59 pm", 23), ("11:00 am", 11), ("12:59 pm", 12)])
def test_hours_of_the_afternoon(text, hour):
    assert locomo.parse_time(Row({"at": f"{text} on 3 June, 2023"}, "row 1"), "at").hour == hour


def test_a_list_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "bytes.txt").write_bytes(b"conv-26/23\xff")
    for name in ("none.txt", "bytes.txt"):
        with pytest.raises(BadInput, match=rf"{name} cannot be read as a list of ids"):
            read_without(tmp_path / name)
