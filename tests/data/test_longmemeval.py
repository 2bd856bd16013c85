"""LongMemEval as it is published, and what its judge is asked and answers."""

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from equipoise.core.errors import BadInput
from equipoise.data.lifelogs import read_histories
from equipoise.data.longmemeval import judge_prompt, read_longmemeval, says_yes

SAMPLE = Path(os.environ.get("EQUIPOISE_DATA", "nowhere")) / "longmemeval" / "longmemeval-sample.jsonl.gz"


def a_record(**changes):
    record = {
        "question_id": "q1",
        "question_type": "knowledge-update",
        "question": "How fast?",
        "answer": 25,
        "question_date": "2023/06/01 (Thu) 00:58",
        "haystack_session_ids": ["late", "early", "early"],
        "haystack_dates": ["2023/05/27 (Sat) 10:20", "2023/05/25 (Thu) 20:21", "2023/05/26 (Fri) 08:00"],
        "haystack_sessions": [
            [{"role": "user", "content": "25 now.\nassistant: no", "has_answer": True}],
            [{"role": "user", "content": "27"}, {"role": "assistant", "content": ""}],
            [],
        ],
        "answer_session_ids": ["late"],
    }
    return {**record, **changes}


def read(tmp_path, *records):
    path = tmp_path / "records.json"
    path.write_text(json.dumps(list(records)), encoding="utf-8")
    return read_longmemeval(path)


def test_a_record_is_a_history_in_order_of_time(tmp_path):
    (item,) = read(tmp_path, a_record())
    assert [session.id for session in item.history.sessions] == ["early", "early~2", "late"]
    assert [session.time.day for session in item.history.sessions] == [25, 26, 27]
    assert item.question.time == datetime(2023, 6, 1, 0, 58)
    assert (item.question.gold, item.question.evidence) == (("25",), ("late:1",))
    assert item.history.sessions[2].turns[0].text.endswith("assistant: no")  # a line that looks like a turn is none
    assert read_histories(tmp_path / "records.json") == [item.history]


def test_without_marked_turns_the_named_sessions_are_the_evidence(tmp_path):
    sessions = [[{"role": "user", "content": "25"}], [], []]
    (item,) = read(tmp_path, a_record(haystack_sessions=sessions))
    assert item.question.evidence == ("late",)


def test_an_abstention_has_no_gold_and_an_explanation(tmp_path):
    (item,) = read(tmp_path, a_record(question_id="q1_abs", answer="It was not said."))
    assert (item.abstention, item.question.gold, item.answer) == (True, (), "It was not said.")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"question_date": "2023/06/01 (Fri) 00:58"}, "'question_date': expected a Thu, which that date was"),
        ({"question_date": "2023-06-01"}, 'a time such as "2023/04/10'),
        ({"question_date": "2023/06/31 (Sat) 00:58"}, "of the calendar"),
        ({"question_type": "multisession"}, "Did you mean 'multi-session'"),
        ({"haystack_dates": ["2023/05/27 (Sat) 10:20"]}, "found 3, 3 and 1"),
        ({"haystack_sessions": [[], {}, []]}, "session 2, which is none"),
        ({"haystack_sessions": [[], [{"role": "user"}], []]}, "session 2, turn 1: no field 'content'"),
        ({"answer": None}, "no field 'answer'"),
    ],
)
def test_what_is_wrong_is_named_with_the_record(tmp_path, changes, named):
    with pytest.raises(BadInput, match=named) as refused:
        read(tmp_path, a_record(), a_record(**{"question_id": "q2"} | changes))
    assert "record 2 (q2)" in str(refused.value)


@pytest.mark.parametrize(
    ("reply", "strict", "official"),
    [
        ("Yes.", True, True),
        ("yes", True, True),
        ("**Yes**", True, True),
        ("no", False, False),
        ("NO, because yes would need more", False, True),  # the released rule takes it for a yes
        ("<think>yes or no?</think>No.", False, True),
        ("yesterday", None, True),
        ("It is right.", None, False),
        ("", None, False),
    ],
)
def test_a_verdict_is_the_first_word_or_by_the_official_rule_any(reply, strict, official):
    assert says_yes(reply) is strict
    assert says_yes(reply, rule="official") is official


def test_each_type_has_its_role(tmp_path):
    types = (
        "single-session-user",
        "multi-session",
        "temporal-reasoning",
        "knowledge-update",
        "single-session-preference",
    )
    items = read(tmp_path, *(a_record(question_id=f"q{n}", question_type=kind) for n, kind in enumerate(types)))
    (absent,) = read(tmp_path, a_record(question_id="x_abs", answer="It was not said."))
    prompts = [
        judge_prompt(item.question, item.answer, "{response}", abstention=item.abstention) for item in [*items, absent]
    ]
    assert prompts[0] == prompts[1]  # one role for both, and one record otherwise
    assert len(set(prompts)) == 5
    assert "off by one" in prompts[2] and "holds now" in prompts[3]
    assert "Description: 25\n" in prompts[4] and "Explanation: It was not said.\n" in prompts[5]
    assert all("Question: How fast?\n" in prompt and "Response: {response}\n" in prompt for prompt in prompts)


@pytest.mark.skipif(not SAMPLE.is_file(), reason="EQUIPOISE_DATA names no folder with the set longmemeval")
def test_the_published_sample_is_read():
    update, absent = read_longmemeval(SAMPLE)
    assert update.question.evidence == ("answer_a25d4a91_1:5", "answer_a25d4a91_2:1")
    assert (update.abstention, absent.abstention, absent.question.gold) == (False, True, ())
    assert [len(session.turns) for session in update.history.sessions] == [12, 12]
