import csv
import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from equipoise.core.errors import BadInput
from equipoise.data.problems import Problem, _letter, read_problems, ready_problems
from equipoise.data.records import Cells, Message
from equipoise.data.verify import check_gold, verify


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def only(row, **options):
    (problem,) = read_problems([row], **options)
    return problem


@pytest.mark.parametrize(
    ("row", "prompt", "gold"),
    [
        ({"question": "6*7?", "answer": "6*7 = <<6*7=42>>42\n#### 1,042"}, "6*7?", ("1,042",)),  # GSM8K
        ({"problem": "P", "solution": r"So \boxed{1}, no, \boxed{\frac{1}{2}}."}, "P", (r"\frac{1}{2}",)),  # MATH
        ({"problem": "P", "solution": r"\boxed{1}", "answer": "2"}, "P", ("2",)),  # MATH-500
        ({"Problem": "P", "Answer": 204, "ID": "I-1"}, "P", ("204",)),  # AIME as on the hub
        ({"input": "I", "target": -9867630.0, "code": "..."}, "I", ("-9867630",)),  # GSM-Hard as on the hub
        ({"Body": "B, and", "Question": "how?", "Answer": 0.5}, "B, and how?", ("0.5",)),  # SVAMP
        ({"passage": "P.", "question": "Q?", "answers": ["a", "b"]}, "P.\n\nQ?", ("a", "b")),
        (
            {"context": "P.", "question": "Q?", "answers": {"text": ["a", "a", "b"], "answer_start": [1, 1, 5]}},
            "P.\n\nQ?",
            ("a", "b"),
        ),
        ({"context": [{"title": "T"}], "question": "Q?", "answer": "a"}, "Q?", ("a",)),  # HotpotQA
        ({"question": "Q?", "answer": "a", "answer_aliases": ["b", "a"]}, "Q?", ("a", "b")),  # MuSiQue
        (
            {"question": "Q?", "answer": {"number": "", "date": {"day": "3", "month": "May", "year": ""}, "spans": []}},
            "Q?",
            ("3 May",),
        ),
        ({"question": "Q?", "answer": {"number": "", "date": {}, "spans": ["x", "y"]}}, "Q?", ("x, y",)),
        ({"question": "Q?", "answer": {"number": "0", "date": {}, "spans": []}}, "Q?", ("0",)),
        ({"question": "Q?", "answer": True}, "Q?", ("yes",)),  # BoolQ
        ({"question": "Q?", "choices": ["x", "y", "z"], "answer": 2}, "Q?\nA. x\nB. y\nC. z", ("C",)),  # MMLU
        ({"question": "Q?", "choices": ["x", "y"], "answer": "x"}, "Q?\nA. x\nB. y", ("A",)),
        ({"question": "Q?", "choices": ["x", "y"], "answer": "B"}, "Q?\nA. x\nB. y", ("B",)),
        ({"question": "Q?", "choices": ["O", "B"], "answer": "B"}, "Q?\nA. O\nB. B", ("B",)),
        ({"question": "Q?", "choices": ["O", "A", "B", "AB"], "answer": "AB"}, "Q?\nA. O\nB. A\nC. B\nD. AB", ("D",)),
        (
            {"question": "Q?", "options": ["x", "y"], "answer": "B", "answer_index": 1},
            "Q?\nA. x\nB. y",
            ("B",),
        ),  # MMLU-Pro
        ({"question": "Q?", "options": '["x", "y"]', "answer": "y"}, "Q?\nA. x\nB. y", ("B",)),
        (
            {"question": "Q?", "options": {"A": "x", "B": "y"}, "answer_idx": "B", "answer": "y"},
            "Q?\nA. x\nB. y",
            ("B",),
        ),
        ({"question": "Q?", "options": "none", "answer": "B"}, "Q?", ("B",)),
        (
            {"question": "Q?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"},  # ARC
            "Q?\nA. x\nB. y",
            ("A",),
        ),
        (
            {
                "question_stem": "Q?",
                "choices": {"text": ["x", "y"], "label": ["A", "B"]},
                "answerKey": "B",
            },  # OpenBookQA
            "Q?\nA. x\nB. y",
            ("B",),
        ),
        ({"prompt": "P", "ground_truth": "[0, 1]"}, "P", ("[0, 1]",)),  # an interval, no list
        ({"prompt": "P", "question": "Q", "gold": "g", "answer": "a"}, "P", ("g",)),
    ],
)
def test_rows_as_they_are_published(row, prompt, gold):
    problem = only(row)
    assert (problem.prompt, problem.gold) == (prompt, gold)
    assert problem.columns == {name: value for name, value in row.items() if name != "prompt"}


def test_a_solution_that_is_named_as_the_gold_is_read_to_its_box():
    row = {"prompt": "P", "answer": "no", "solution": r"So \boxed{7}."}
    assert only(row, fields={"gold": "solution"}).gold == ("7",)


def test_dapo_is_a_conversation_with_the_truth_inside():
    row = {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "reward_model": {"ground_truth": "34", "style": "rule"},
        "extra_info": {"index": "x"},
    }
    problem = only(row)
    assert problem.messages == (Message("system", "s"), Message("user", "u"))
    assert (problem.prompt, problem.gold) == ("u", ("34",))
    assert set(problem.columns) == {"reward_model", "extra_info"}
    with pytest.raises(BadInput, match="row 1: field 'messages': expected a conversation that waits for an answer"):
        only({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}], "answer": "1"})


def test_code_brings_its_tests():
    mbpp = only(
        {
            "text": "Write f.",
            "test_list": ["assert f(1)", "assert f(2)"],
            "test_setup_code": "r = Node(1)",
            "task_id": 7,
        }
    )
    assert mbpp.prompt == "Write f.\nYour code should pass these tests:\n\nassert f(1)\nassert f(2)"
    assert mbpp.gold == ("r = Node(1)\nassert f(1)", "r = Node(1)\nassert f(2)") and mbpp.id == "7"
    sanitized = only({"prompt": "Write f.", "test_list": ["assert f(1)"], "test_imports": ["import math"]})
    assert sanitized.gold == ("import math", "assert f(1)") and sanitized.prompt.endswith("tests:\n\nassert f(1)")
    row = {
        "prompt": 'def f(x):\n    """d"""\n',
        "test": "def check(c):\n    assert c(1)\n",
        "entry_point": "f",
        "task_id": "H/0",
    }
    assert only(row) == Problem(
        "H/0",
        row["prompt"],
        (row["prompt"], "def check(c):\n    assert c(1)\n\n\ncheck(f)"),
        columns={name: value for name, value in row.items() if name != "prompt"},
    )


def test_every_kind_of_file_gives_the_same(tmp_path):
    rows = [
        {"id": "a", "question": "1+1?", "answer": "2", "level": 3},
        {"id": "b", "question": "2+2?", "answer": "4", "level": 5},
    ]
    lines = write(tmp_path / "p.jsonl", *rows)
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress(lines.read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    expected = read_problems(rows)
    assert [problem.columns["level"] for problem in expected] == [3, 5]
    for name in ("p.jsonl", "z.jsonl.gz", "p.parquet"):
        assert read_problems(tmp_path / name) == expected
        assert read_problems(tmp_path / name, limit=1) == expected[:1]
    assert [(p.id, p.prompt, p.gold) for p in read_problems(tmp_path / "p.csv")] == [
        (p.id, p.prompt, p.gold) for p in expected
    ]


def test_other_names_go_before_what_the_row_has_besides(tmp_path):
    path = write(tmp_path / "p.jsonl", {"prompt": "P", "ask": "Q?", "answer": "a", "reply": "r", "who": "W", "key": 9})
    (problem,) = read_problems(path, fields={"prompt": "ask", "gold": "reply", "group": "who", "id": "key"})
    assert (problem.id, problem.prompt, problem.gold, problem.group) == ("9", "Q?", ("r",), "W")
    chosen = only({"ask": "Q?", "choices": ["x", "y"], "key": 1}, fields={"prompt": "ask", "gold": "key"})
    assert (chosen.prompt, chosen.gold) == ("Q?\nA. x\nB. y", ("B",))
    with pytest.raises(BadInput, match=r"no field 'golds' to rename. Did you mean 'gold'"):
        read_problems(path, fields={"golds": "reply"})


def test_a_name_that_no_row_has_is_refused():
    rows = [{"Question": "Q?", "answer": "1", "Subject": "s"}, {"Question": "R?", "answer": "1"}]
    assert [problem.group for problem in read_problems(rows, fields={"group": "subject"})] == ["s", ""]
    assert len(read_problems(rows, fields={"gold": "answer", "id": "id"})) == 2  # its own name is none
    for name in ("id", "group"):
        with pytest.raises(BadInput, match=f"row 1: no row has the field 'subjct' that was named for {name} .found: Q"):
            read_problems(rows, fields={name: "subjct"})
    with pytest.raises(BadInput, match="the field 'lable' that was named for gold"):
        read_problems(rows, fields={"gold": "lable"}, gold_needed=False)


def test_of_files_with_the_same_names_one_has_to_have_them(tmp_path):
    from equipoise.reinforcement.attempts import read_prompts

    rows = [{"question": "Q?", "answer": "1"}]
    given = {"prompts": [rows[0] | {"subject": "s"}], "test": write(tmp_path / "p.jsonl", *rows)}
    problems, _, _ = read_prompts(given, None, {"group": "subject"}, True)
    assert [found[0].group for found in problems.values()] == ["s", ""]
    with pytest.raises(BadInput, match="no row has the field 'subjct'"):
        read_prompts(given, None, {"group": "subjct"}, True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "Q"}], r"p.jsonl:1: no gold answer \(found: question\). Name its field with --fields gold=NAME"),
        ([{"question": "Q", "answer": ""}], r"p.jsonl:1: no gold answer"),
        (
            [{"question": "Q", "answer": "1"}, {"answer": "1"}],
            r"p.jsonl:2: no prompt \(found: answer\). .*--fields prompt=NAME",
        ),
        (
            [{"question": "Q", "answer": ["1", 2, {}]}],
            r"p.jsonl:1: field 'answer': expected text, found an object with no fields",
        ),
        (
            [{"question": "Q", "answer": {"x": 1}}],
            r"p.jsonl:1: field 'answer': expected an answer, found an object with x",
        ),
        (
            [{"question": "Q", "choices": ["O", "A", "B", "AB"], "answer": "A"}],
            r"p.jsonl:1: field 'answer': expected one meaning, found 'A', the text of a choice and the letter of another",
        ),
        ([{"question": "Q", "answer": float("inf")}], r"p.jsonl:1: field 'answer': expected a finite number"),
        ([{"question": 5, "answer": "1"}], r"p.jsonl:1: field 'question': expected text, found int 5"),
        ([{"question": "Q\ud800", "answer": "1"}], r"p.jsonl:1: field 'question': .* surrogate"),
        (
            [{"id": 1, "question": "Q", "answer": "1"}, {"id": "1", "question": "R", "answer": "2"}],
            r"p.jsonl:2: id '1' was used before at .*p.jsonl:1",
        ),
        ([], "is empty"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_with_its_place(tmp_path, rows, message):
    with pytest.raises(BadInput, match=message):
        read_problems(write(tmp_path / "p.jsonl", *rows))


def test_gold_may_be_missing_where_it_is_not_needed():
    assert only({"question": "Q", "answer": None}, gold_needed=False).gold == ()
    with pytest.raises(BadInput, match="limit is 0"):
        read_problems([{}], limit=0)


PUBLIC = {  # file: problems, the kind its gold answers are for
    "gsm8k/test.jsonl.gz": (1319, "number"),
    "gsm8k/train-1500.jsonl.gz": (1500, "number"),
    "math500/math500.jsonl.gz": (500, "math"),
    "aime/aime2024.jsonl": (30, "number"),
    "aime/aime2025.jsonl": (30, "number"),
    "aime/amc23.jsonl": (40, "number"),
    "dapo-math/dapo-math-2000.jsonl.gz": (2000, "number"),
    "big-math/big-math-2000.jsonl.gz": (2000, "math"),
    "arithmetic/svamp.jsonl.gz": (1000, "number"),
    "arithmetic/gsm-hard.jsonl.gz": (1319, "number"),
    "humaneval/HumanEval.jsonl.gz": (164, "tests"),
    "mbpp/mbpp.jsonl.gz": (974, "tests"),
    "multiple-choice/arc-challenge-test.jsonl.gz": (1172, "choice"),
    "multiple-choice/boolq-validation.jsonl.gz": (1000, "choice"),
    "multiple-choice/copa-train.jsonl.gz": (400, "choice"),
    "multiple-choice/openbookqa-test.jsonl.gz": (500, "choice"),
    "multiple-choice/piqa-validation.jsonl.gz": (1838, "choice"),
    "multiple-choice/winogrande-validation.jsonl.gz": (1267, "choice"),
    "mmlu-pro/mmlu-pro-sample.jsonl.gz": (1120, "choice"),
    "mmlu/dev.jsonl.gz": (285, "choice"),
    "mmlu/test-sample.jsonl.gz": (1995, "choice"),
    "drop/drop-dev-1500.jsonl.gz": (1500, "f1"),
    "drop/drop-fixture.jsonl": (19, "f1"),
    "multihop-qa/hotpotqa-100.jsonl.gz": (100, "f1"),
    "multihop-qa/hotpotqa-dev-100.jsonl.gz": (100, "f1"),
    "multihop-qa/hotpotqa-dev-questions-2000.jsonl.gz": (2000, "f1"),
    "multihop-qa/musique-100.jsonl.gz": (100, "f1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLIC)
def test_public_sets_are_read_whole_and_their_gold_is_right_by_its_own_verifier(name):
    root = os.environ.get("EQUIPOISE_DATA")
    if not root or not (Path(root) / name).exists():
        pytest.skip(f"needs {name} in the folder that EQUIPOISE_DATA names")
    problems = read_problems(Path(root) / name)
    count, kind = PUBLIC[name]
    assert len(problems) == count and len({problem.id for problem in problems}) == count
    for problem in problems:
        assert problem.prompt.strip()
        check_gold(kind, problem.gold)
    for problem in problems[:: max(1, count // 100)]:
        if kind != "tests":
            assert (
                verify(
                    kind, f"\\boxed{{{problem.gold[0]}}}" if kind == "math" else problem.gold[-1], problem.gold
                ).value
                == 1
            )


def test_problems_made_in_memory_are_held_to_what_rows_are():
    """Each refusal in the words that the same row gets."""
    made = [Problem(str(index), "6*7?", ("42",)) for index in range(3)]
    assert ready_problems(made) == made and ready_problems(iter(made), limit=2) == made[:2]
    talk = replace(made[0], messages=(Message("user", "6*7?"),), gold=(), group="g")
    assert ready_problems([talk], gold_needed=False) == [talk]
    for change, words in (
        ({"id": "0"}, "problem 2: id '0' was used before at problem 1; make ids unique"),
        ({"id": 7}, "problem 2: field 'id': expected text, found int 7"),
        ({"id": " "}, "problem 2: field 'id': expected text that is not empty"),
        ({"id": "x\ud800"}, "problem 2: field 'id': .* half of a surrogate pair at character 1"),
        ({"prompt": "\udc00"}, "problem 2: field 'prompt': .* surrogate"),
        ({"group": None}, "problem 2: field 'group': expected text, found nothing"),
        ({"messages": (Message("user", "\ud800"),)}, "problem 2: field 'messages': .* surrogate"),
        ({"gold": (42,)}, "problem 2: field 'gold': expected text, found int 42"),
        ({"gold": ("42", "\ud800")}, "problem 2: field 'gold': .* surrogate"),
        ({"gold": "42"}, "problem 2: field 'gold': expected a tuple of texts, found text '42'"),
        ({"gold": ()}, "problem 2: no gold answer"),
    ):
        with pytest.raises(BadInput, match=words):
            ready_problems([made[0], replace(made[1], **change)])
    assert len(ready_problems([made[0], made[0]], limit=1)) == 1
    with pytest.raises(BadInput, match="limit is 0, expected at least 1"):
        ready_problems(made, limit=0)


@pytest.mark.parametrize("name", ["prompt", "messages"])
def test_a_conversation_in_a_csv_cell_is_one(tmp_path, name):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6*7?"}]
    with (tmp_path / "p.csv").open("w", newline="") as file:
        csv.writer(file).writerows([(name, "answer"), (json.dumps(turns), "42")])
    (problem,) = read_problems(tmp_path / "p.csv")
    assert problem.asked == only({name: turns, "answer": "42"}).asked == tuple(Message(**turn) for turn in turns)


@pytest.mark.parametrize("name", ["answers", "gold", "ground_truth"])
def test_several_golds_in_a_csv_cell_are_a_json_list_of_texts(tmp_path, name):
    cells = {
        '["Paris", "City of Paris"]': ("Paris", "City of Paris"),
        ' ["3", "4"]': ("3", "4"),
        '["½ #### 7"]': ("½ #### 7",),
        "[0, 1]": ("[0, 1]",),
        "[0, 1)": ("[0, 1)",),
        '["a", 1]': ('["a", 1]',),
        "[]": ("[]",),
        "[Paris]": ("[Paris]",),
    }
    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("question", name), *(("Q?", cell) for cell in cells)])
    problems = read_problems(tmp_path / "p.csv")
    assert [problem.gold for problem in problems] == list(cells.values())
    assert problems[0].gold == read_problems([{"question": "Q?", name: ["Paris", "City of Paris"]}])[0].gold
    assert verify("number", "3", problems[1].gold) == verify("number", "4", problems[1].gold)


def test_ids_are_of_the_name_of_the_file_before_its_first_dot(tmp_path):
    path = tmp_path / "mine.of.may.jsonl"
    path.write_text(json.dumps({"prompt": "1+1?", "answer": "2"}) + "\n", encoding="utf-8")
    (problem,) = read_problems(path)
    assert problem.id.startswith("mine") and "may" not in problem.id and "jsonl" not in problem.id
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"mine\.of\.may\.jsonl.* empty"):
        read_problems(path)
    with pytest.raises(BadInput, match=r"^what was given is empty"):
        read_problems([])


@pytest.mark.parametrize(
    ("choices", "letter"), [(["1", "2"], "B"), (["x", "y"], "B"), (["A", "B"], "B"), (["B", "1"], None)]
)
def test_a_letter_that_is_the_text_of_another_choice_is_refused(choices, letter):
    cells = Cells({"choices": choices, "answer": "B"}, "row 1", {})
    if letter is None:
        with pytest.raises(BadInput, match="'B', the text of a choice and the letter of another"):
            _letter(cells, "answer")
    else:
        assert _letter(cells, "answer") == letter
