"""Histories of conversations from files: four forms, read strictly, and named where they are wrong."""

import gzip
import json
from dataclasses import replace
from datetime import datetime, time

import pytest

from equipoise.core.errors import BadInput
from equipoise.data.lifelogs import lifedial_record, read_histories

CHUNKS = [
    [{"speaker": "Ana", "content": "The clinic opens at 9."}],
    [{"speaker": "Ben", "content": "It moved to 11."}, {"speaker": "Ana", "content": "Thanks."}],
    [{"speaker": "Ana", "content": "The doctor is Li."}],
]


def a_question(**changes):
    asked = {
        "question": "When does the clinic open?",
        "options": ["A. at 8", "B. at 9", "C. at 10", "D. at 11"],
        "golden_option": "D",
        "answer": "at 11",
        "question_time": "2024-05-02",
        "question_type": "time_query",
        "evidence_date": "2024-05-02",
        "timescale": "day",
    }
    return {name: value for name, value in {**asked, **changes}.items() if value is not None}


def a_history(*questions, times=("2024-05-01 09:00:00", "2024-05-02T10:00", "2024-05-02 18:30")):
    return {"history_name": "Ana", "chat_time": list(times), "chat_history": CHUNKS, "qa": list(questions)}


def read(tmp_path, *records, name="data.json"):
    path = tmp_path / name
    text = json.dumps(list(records)) if name.endswith(".json") else "".join(json.dumps(each) + "\n" for each in records)
    path.write_text(text, encoding="utf-8")
    return read_histories(path)


def test_lifedialbench_is_read_as_its_schema_says(tmp_path):
    (history,) = read(
        tmp_path, a_history(a_question(), a_question(question_time="2024-05-02 12:00", evidence_date=None))
    )
    assert [session.time.hour for session in history.sessions] == [9, 10, 18]
    assert [turn.id for turn in history.sessions[1].turns] == ["s2:1", "s2:2"]
    first, second = history.questions
    assert (first.id, first.options, first.right) == ("Ana/0", ("at 8", "at 9", "at 10", "at 11"), 3)
    assert (first.gold, first.kind, first.group) == (("at 11",), "time_query", "2024-05-02")
    # a date alone comes after the last chunk of that date, and its evidence is every chunk of the day
    assert first.time == datetime.combine(datetime(2024, 5, 2), time.max) > history.sessions[2].time
    assert first.evidence == ("s2", "s3")
    assert (second.time, second.evidence) == (datetime(2024, 5, 2, 12), ())


def test_a_question_of_a_day_without_chunks_comes_after_the_last_earlier_one(tmp_path):
    (history,) = read(tmp_path, a_history(a_question(question_time="2024-05-09")))
    assert [session.id for session in history.sessions if session.time <= history.questions[0].time] == [
        "s1",
        "s2",
        "s3",
    ]
    with pytest.raises(BadInput, match="before anything was said"):
        read(tmp_path, a_history(a_question(question_time="2024-04-30")))


@pytest.mark.parametrize(
    ("dates", "evidence"),
    [
        ("2024-05-01", ("s1",)),
        ("2024-05-02 10:00:00", ("s2",)),
        (["2024-05-01", "2024-05-02 18:30"], ("s1", "s3")),
        ("2024-05-01/2024-05-02", ("s1", "s2", "s3")),
        ("2024-05-01 to 2024-05-02 10:00", ("s1", "s2")),
        ({"start": "2024-05-02", "end": "2024-05-07"}, ("s2", "s3")),
    ],
)
def test_evidence_is_one_value_a_list_or_a_range(tmp_path, dates, evidence):
    (history,) = read(tmp_path, a_history(a_question(evidence_date=dates)))
    assert history.questions[0].evidence == evidence


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"question_time": "5 May 2024"}, "'question_time': expected an ISO date"),
        ({"question_time": "2024-05-02 09:30+02:00"}, "without a time zone"),
        ({"question_time": "2024-02-30"}, "a date of the calendar"),
        ({"evidence_date": "2024-05-09"}, "'evidence_date': expected a day, or a time, of a chunk"),
        ({"evidence_date": "spring"}, "'evidence_date': expected an ISO date"),
        ({"evidence_date": "2024-05-02/2024-05-01"}, "ends after it begins"),
        ({"evidence_date": 20240502}, "'evidence_date': expected ISO dates"),
        ({"question_type": "time_qery"}, "'time_qery'. Did you mean 'time_query'"),
        ({"golden_option": "E"}, "'golden_option': expected a letter from A to D"),
        ({"golden_option": "B or C"}, "'golden_option': expected a letter"),
        ({"golden_option": "A"}, "'answer': expected the text of option A"),
        ({"options": ["A. x", "B. y", "C. z"]}, "'options': expected four texts, found 3"),
        ({"options": ["A. x", "y", "C. z", "D. w"]}, "A, B, C, D before the four, or no letters"),
        ({"options": ["A. x", "B. ", "C. z", "D. w"]}, "a text behind each letter"),
        ({"questoin": "?"}, "no field 'questoin' here. Did you mean 'question'"),
        ({"question": None}, "no field 'question' \\(found: "),
    ],
)
def test_what_is_wrong_in_a_question_is_named_with_its_place(tmp_path, changes, named):
    with pytest.raises(BadInput, match=named) as refused:
        read(tmp_path, a_history(), a_history(a_question(), a_question(**changes)))
    assert "record 2 (Ana), question 2" in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("D", ("at 11",)), ("D. at 11", ("at 11",)), ("At 11!", ("at 11",)), ("eleven", ("at 11", "eleven"))],
)
def test_the_answer_is_the_right_option_or_another_wording(tmp_path, answer, gold):
    (history,) = read(tmp_path, a_history(a_question(answer=answer)))
    assert history.questions[0].gold == gold


@pytest.mark.parametrize(
    ("history", "named"),
    [
        (a_history(times=["2024-05-01"] * 2), "a time for each of the 3 chunks, found 2"),
        (a_history(times=["2024-05-01", "2024-05-03", "2024-05-02"]), "sort sessions by time"),
        (a_history(times=["2024-05-01", "noon", "2024-05-02"]), "chunk 2: field 'chat_time'"),
        (
            {"history_name": "x", "chat_time": ["2024-05-01"], "chat_history": [[{"speaker": "A"}]]},
            "no field 'content'",
        ),
        ({"history_name": "x", "chat_time": ["2024-05-01"], "chat_history": ["Hello"]}, "chunk 1, which is text"),
        ({"messages": []}, "no history that is known .found: messages."),
    ],
)
def test_what_is_wrong_in_a_history_is_named(tmp_path, history, named):
    with pytest.raises(BadInput, match=named) as refused:
        read(tmp_path, history)
    assert "data.json: record 1" in str(refused.value) or "sort" in named


def test_what_is_written_in_the_schema_is_read_back(tmp_path):
    (history,) = read(tmp_path, a_history(a_question(), a_question(evidence_date=["2024-05-01", "2024-05-02 18:30"])))
    (again,) = read(tmp_path, lifedial_record(history), name="again.json")
    assert again == history


@pytest.mark.parametrize(
    "options", [("Li", "A. Smith", "B. Jones", "C. Wu"), ("D. Wu", "C. Bo", "B. Li", "A. Jo"), ("B", "D", "A", "C")]
)
@pytest.mark.parametrize("right", range(4))
def test_options_that_begin_as_letters_do_are_read_back(tmp_path, options, right):
    (history,) = read(tmp_path, a_history(a_question()))
    asked = replace(history.questions[0], options=options, right=right, gold=(options[right],))
    (again,) = read(tmp_path, lifedial_record(replace(history, questions=(asked,))))
    assert again.questions == (asked,)
    wrong = lifedial_record(replace(history, questions=(asked,)))
    wrong["qa"][0]["answer"] = options[right - 1]
    if options[right - 1] != "ABCD"[right]:  # what may be the letter of the right one is no contradiction
        with pytest.raises(BadInput, match="'answer': expected the text of option"):
            read(tmp_path, wrong)


def test_our_own_form_says_what_people_would_write(tmp_path):
    session = {"time": "2024-05-06 18:30", "turns": [["Ana", "Soup."], {"id": "t", "speaker": "Ben", "text": "Good."}]}
    asked = [
        {"text": "What was there?", "gold": "Soup", "evidence": ["s1:1"], "time": "2024-05-06"},
        {"id": "q", "text": "Which?", "options": ["tea", "soup"], "right": 1},
    ]
    kitchen = {"name": "kitchen", "sessions": [session], "questions": asked}
    (history,) = read(tmp_path, kitchen)
    assert [turn.id for turn in history.sessions[0].turns] == ["s1:1", "t"]
    assert (history.questions[0].id, history.questions[0].gold) == ("kitchen/0", ("Soup",))
    assert (history.questions[1].gold, history.questions[1].time) == (("soup",), None)
    path = tmp_path / "one.json"
    path.write_text(json.dumps(kitchen, indent=2), encoding="utf-8")  # one object, over many lines
    assert read_histories(path) == [history]
    with pytest.raises(BadInput, match="no field 'day' here"):
        read(tmp_path, {**kitchen, "sessions": [{**session, "day": 1}]})
    with pytest.raises(BadInput, match="turn 1: expected a JSON object"):
        read(tmp_path, {**kitchen, "sessions": [{**session, "turns": ["Soup."]}]})


def test_the_right_option_is_the_one_that_is_a_gold_answer(tmp_path):
    history = {"name": "a", "sessions": [{"time": "2024-01-01", "turns": [["Ana", "I have the key."]]}]}

    def right(**asked):
        (found,) = read(tmp_path, history | {"questions": [{"text": "Who?", **asked}]})
        return found.questions[0].right

    assert right(options=["Ben", "Ana", "Li"], gold=["ana."]) == 1
    assert right(options=["Ben", "Ana", "Li"], gold=["Ana Lee", "Li"]) == 2
    assert right(options=["Ben", "Ana"], gold=["Ana"], right=0) == 0
    for gold, count in ((["Bo"], 0), (["Ana", "Ben"], 2), ([], 0)):
        with pytest.raises(BadInput, match=f"'right': expected the place .* none, and {count} options that are a gold"):
            right(options=["Ben", "Ana"], gold=gold)


def test_a_file_has_one_form_and_every_form_is_found_by_its_fields(tmp_path):
    own = {"name": "n", "sessions": []}
    with pytest.raises(BadInput, match="record 2 has the form of our own and the first that of LifeDialBench"):
        read(tmp_path, a_history(), own)
    assert [history.name for history in read(tmp_path, a_history(), own | a_history(), name="d.jsonl")] == [
        "Ana",
        "Ana",
    ]


def test_damaged_files_are_named(tmp_path):
    def written(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    for name, data, named in (
        ("a.json", b"", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b'[{"a": NaN}]', "NaN is no JSON"),
        ("a.json", b"[1]", "record 1: expected a JSON object"),
        ("a.json", b"\xff", "not UTF-8"),
        ("a.txt", b"", "unknown kind of file"),
        ("a.json.gz", gzip.compress(b"[]")[:-4], "not a whole gzip file"),
        ("a.jsonl", b'{"sessions": []}\n{\n', "a.jsonl:2: not JSON"),
    ):
        with pytest.raises(BadInput, match=named):
            read_histories(written(name, data))
    with pytest.raises(BadInput, match=r"no such file. Did you mean 'a.jsonl'"):
        read_histories(tmp_path / "a.jsnl")


def test_a_line_of_a_file_ends_where_json_ends_one(tmp_path):
    odd = "one\u2028two\x85three\x0bfour"
    records = [{"name": name, "sessions": [{"time": "2024-05-01", "turns": [["Ana", odd]]}]} for name in "ab"]
    path = tmp_path / "data.jsonl"
    path.write_bytes("\r\n".join(json.dumps(each, ensure_ascii=False) for each in records).encode())
    assert [history.sessions[0].turns[0].text for history in read_histories(path)] == [odd, odd]


def test_a_number_of_too_many_digits_is_named(tmp_path):
    path = tmp_path / "data.json"
    path.write_text('{"name": "a", "sessions": ' + "1" * 5000 + "}", encoding="utf-8")
    with pytest.raises(BadInput, match="too many digits"):
        read_histories(path)


def test_a_turn_is_a_pair_or_an_object_and_nothing_between(tmp_path):
    def turns(*given):
        session = {"time": "2024-05-06 18:30", "turns": list(given)}
        (history,) = read(tmp_path, {"name": "kitchen", "sessions": [session]})
        return [(turn.speaker, turn.text) for turn in history.sessions[0].turns]

    assert turns({"speaker": "Ana", "text": "Soup."}, ["Ben", "Good."]) == [("Ana", "Soup."), ("Ben", "Good.")]
    for wrong in (["Ana"], ["Ana", "Soup.", "Good."]):
        with pytest.raises(BadInput, match="turn 1: expected a JSON object"):
            turns(wrong)


def test_a_range_has_a_start_and_an_end(tmp_path):
    for dates in ({"start": "2024-05-01"}, {"start": "2024-05-01", "to": "2024-05-02"}, {}):
        with pytest.raises(BadInput, match="'evidence_date': expected ISO dates"):
            read(tmp_path, a_history(a_question(evidence_date=dates)))


def test_an_answer_may_be_the_text_of_the_right_option_behind_the_letter_of_another(tmp_path):
    (history,) = read(tmp_path, a_history(a_question(answer="B. at 11")))
    assert history.questions[0].gold == ("at 11",)
    with pytest.raises(BadInput, match="'answer': expected the text of option D"):
        read(tmp_path, a_history(a_question(answer="B. at 10")))


def test_a_letter_alone_is_no_text_of_an_option(tmp_path):
    options = ["?!", "at 10", "noon", "at 9"]
    with pytest.raises(BadInput, match="'answer': expected the text of option A"):
        read(tmp_path, a_history(a_question(options=options, golden_option="A", answer="D.")))
