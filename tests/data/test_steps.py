"""Solutions in steps: each published format, what a label may be, and what is refused with its place."""

import csv
import gzip
import json
import os
import re
from dataclasses import fields
from pathlib import Path

import pytest

from equipoise.core.errors import BadInput
from equipoise.data.steps import StepwiseSolution, read_steps, ready_steps

OURS = {
    "id": "q7/0",
    "problem": "What is 3 + 4?",
    "steps": ["3 + 4 = 7", "so 8", "8"],
    "correct": False,
    "soft": [0.75, 0.5, 0],
    "hard": [1, 1, 0],
    "corrected_soft": [0.75, 0.25, 0],
    "corrected_hard": [1, 0, 0],
}
STEPWISE = {"prompt": "a?", "completions": ["b", "c"], "labels": [True, False]}
PROCESS = {
    "id": "gsm8k-0",
    "split": "gsm8k",
    "problem": "a?",
    "steps": ["b", "c", "d"],
    "final_answer_correct": False,
    "label": 1,
}
BENCH = {
    "idx": "p1",
    "classification": "circular",
    "original_question": "a?",
    "modified_question": "a!",
    "original_process": ["b", "c"],
    "modified_process": ["b", "c", "d", "e"],
    "error_steps": [2, 4, 9],
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def only(row, **how):
    (found,) = read_steps([row], **how)
    return found


@pytest.mark.parametrize(
    ("which", "labels", "field"),
    [
        (None, (1, 0, 0), "corrected_hard"),
        ("corrected-hard", (1, 0, 0), "corrected_hard"),
        ("corrected-soft", (0.75, 0.25, 0), "corrected_soft"),
        ("hard", (1, 1, 0), "hard"),
        ("soft", (0.75, 0.5, 0), "soft"),
    ],
)
def test_the_labels_that_are_asked_for(which, labels, field):
    found = only(OURS, which=which)
    assert found.labels == labels and found.labelled_by == field and found.format == "labels"
    assert found.first_error == next(i for i, y in enumerate(labels) if y < 0.5)
    assert (found.id, found.problem, found.steps, found.correct) == ("q7/0", OURS["problem"], (*OURS["steps"],), False)


def test_processbench_knows_the_steps_up_to_the_first_wrong_one():
    found = only(PROCESS)
    assert found.labels == (1, 0, None) and found.first_error == 1 and found.correct is False
    assert (found.id, found.split, found.format) == ("gsm8k-0", "gsm8k", "processbench")
    right = only({**PROCESS, "label": -1, "final_answer_correct": True})
    assert right.labels == (1, 1, 1) and right.first_error == -1 and right.correct is True
    assert only({**PROCESS, "label": 2}).labels == (1, 1, 0) and only({**PROCESS, "label": 0}).labels == (0, None, None)


def test_prmbench_counts_from_one_and_names_steps_that_are_not_there():
    found = only(BENCH)
    assert found.labels == (1, 0, 1, 0) and found.first_error == 1 and found.beyond == 1
    assert (found.id, found.problem, found.group, found.split) == ("circular_p1", "a!", "a?", "circular")
    beyond = only({**BENCH, "error_steps": [7]})
    assert beyond.labels == (1, 1, 1, 1) and beyond.first_error is None and beyond.beyond == 1
    clean = only({**BENCH, "error_steps": []})
    assert clean.first_error == -1 and clean.beyond == 0
    assert only({**BENCH, "modified_question": None, "question": "q?"}).problem == "q?"


def test_stepwise_rows_as_trl_has_them():
    found = only(STEPWISE)
    assert found.labels == (1, 0) and found.first_error == 1 and found.id == "solution-1" and found.format == "stepwise"
    assert (
        only({**STEPWISE, "labels": [0.25, 1]}).labels == (0.25, 1)
        and only({**STEPWISE, "labels": [None, 0]}).labels[0] is None
    )
    assert only({**STEPWISE, "labels": [None, 0]}).first_error is None
    unlabelled = only({key: STEPWISE[key] for key in ("prompt", "completions")}, use="optional")
    assert unlabelled.labels is None and unlabelled.format == "stepwise"
    assert only({**STEPWISE, "labels": [-100, "x"]}, use="ignored").labels is None


@pytest.mark.parametrize("value", [-100, 2, -0.1, 1.5, float("nan"), "[POS]", "true", [1], {}])
def test_what_is_no_label(value, tmp_path):
    """A -100 that another library means by "ignored" is neither False nor True."""
    file = write(tmp_path / "a.jsonl", [STEPWISE, {**STEPWISE, "labels": [True, value]}])
    with pytest.raises(
        BadInput, match=r"a\.jsonl:2: field 'labels': the label of step 1 \(from 0\) is .*; give true, false"
    ):
        read_steps(file)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**STEPWISE, "labels": [True]}, "field 'labels': expected 2 labels, one for each step .*, found 1"),
        ({**STEPWISE, "labels": None}, r"no labels \(found: prompt, completions, labels\)"),
        ({**STEPWISE, "labels": True}, "field 'labels': expected a list with a label for each step, found bool True"),
        ({**STEPWISE, "completions": []}, "field 'completions': expected one step or more, found none; leave the sol"),
        ({**OURS, "steps": "first\n\nthen"}, "field 'steps': expected a list of steps, found one text"),
        ({**OURS, "steps": ["a", " \n", "c"]}, r"found step 1 \(from 0\) empty; leave it out, with its label"),
        ({**OURS, "steps": ["a", 3, "c"]}, "field 'steps': expected text, found int 3"),
        ({**OURS, "steps": ["a", "b\ud83d", "c"]}, "half of a surrogate pair"),
        ({**OURS, "problem": " "}, "field 'problem': expected text that is not empty"),
        ({**PROCESS, "label": 3}, "field 'label': expected the index of the first wrong step, 0 to 2, or -1, found int 3"),
        ({**PROCESS, "label": True}, "field 'label'"),
        ({**PROCESS, "label": -100}, "field 'label'"),
        ({**PROCESS, "final_answer_correct": 1}, "field 'final_answer_correct': expected true or false, found int 1"),
        ({**BENCH, "error_steps": [0]}, "field 'error_steps': expected numbers of steps from 1, found int 0"),
        ({**BENCH, "error_steps": ["first"]}, "found text 'first'"),
        ({"problem": "a?", "answer": "b"}, r"no solution in steps \(found: problem, answer\), expected problem \+ steps"),
        ({"prompt": "a?", "completions": None, "steps": None}, "no solution in steps"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_place(row, words, tmp_path):
    with pytest.raises(BadInput, match=rf"a\.jsonl:2: .*{words}"):
        read_steps(write(tmp_path / "a.jsonl", [PROCESS, row]))


def test_which_is_for_the_labels_of_prm_label_alone():
    for row in (STEPWISE, PROCESS, BENCH):
        with pytest.raises(BadInput, match="row 1: --which soft chooses among the labels that `prm label` writes"):
            only(row, which="soft")
    with pytest.raises(BadInput, match=r"no labels 'hard' \(found: soft\): choose another --which"):
        only({"problem": "a?", "steps": ["b"], "soft": [1]}, which="hard")
    with pytest.raises(BadInput, match="which is 'sofd'"):
        only(OURS, which="sofd")


def test_files_folders_splits_and_limits(tmp_path):
    rows = [{**PROCESS, "id": f"{split}-{i}", "split": split} for split in ("gsm8k", "math") for i in range(3)]
    assert [each.id for each in read_steps(rows, limit=2)] == ["gsm8k-0", "gsm8k-1", "math-0", "math-1"]
    for split in ("gsm8k", "math"):
        own = [{key: value for key, value in row.items() if key != "split"} for row in rows if row["split"] == split]
        (tmp_path / f"{split}.json").write_text(json.dumps(own))
    (tmp_path / "README.md").write_text("# none")
    found = read_steps(tmp_path)
    assert [(each.id, each.split) for each in found] == [(row["id"], row["split"]) for row in rows]
    assert found[1].place == f"{tmp_path / 'gsm8k.json'}: item 2"
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert [each.labels for each in read_steps(packed)] == [each.labels for each in found]
    with (tmp_path / "cells.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(PROCESS)
        writer.writerow([json.dumps(value) if isinstance(value, list | bool) else value for value in PROCESS.values()])
    cells, row = read_steps(tmp_path / "cells.csv")[0], only(PROCESS)
    assert all(getattr(cells, f.name) == getattr(row, f.name) for f in fields(StepwiseSolution) if f.name != "place")


def test_nothing_is_read_twice_and_nothing_is_no_file(tmp_path):
    with pytest.raises(BadInput, match="row 2: id 'gsm8k-0' was used before at row 1; make ids unique"):
        read_steps([PROCESS, PROCESS])
    with pytest.raises(BadInput, match=r"holds no file with solutions, expected \.jsonl"):
        read_steps(tmp_path)
    with pytest.raises(BadInput, match=r"a\.jsonl is empty: expected at least one solution"):
        read_steps(write(tmp_path / "a.jsonl", []))
    with pytest.raises(BadInput, match="limit is 0"):
        read_steps([PROCESS], limit=0)


@pytest.mark.skipif("EQUIPOISE_DATA" not in os.environ, reason="EQUIPOISE_DATA names no folder of public data")
@pytest.mark.parametrize(("name", "count", "wrong"), [("processbench", 1600, 1014), ("prmbench", 990, 880)])
def test_the_public_samples_are_read_whole(name, count, wrong):
    folder = Path(os.environ["EQUIPOISE_DATA"]) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    found = read_steps(folder)
    assert len(found) == count and {each.format for each in found} == {name}
    assert sum(any(y == 0 for y in each.labels) or each.first_error is None for each in found) == wrong
    assert sum(each.beyond > 0 for each in found) == (18 if name == "prmbench" else 0)


def test_solutions_in_memory_are_held_to_what_rows_are():
    rows = [
        {"id": f"{i}", "problem": "p", "steps": ["a"], "hard": [0], "soft": [0.5], "split": "xy"[i % 2]}
        for i in range(6)
    ]
    solutions = read_steps(rows, which="soft")
    for limit in (None, 1, 2):
        assert ready_steps(solutions, which="soft", limit=limit) == read_steps(rows, which="soft", limit=limit)
    assert ready_steps(solutions) == solutions and [each.id for each in ready_steps(solutions, limit=1)] == ["0", "1"]
    with pytest.raises(BadInput, match="row 1: id '0' was used before at row 1; make ids unique"):
        ready_steps([*solutions, solutions[0]])
    with pytest.raises(BadInput, match="row 1: its labels are 'soft', and which is hard: read it with the labels"):
        ready_steps(solutions, which="hard")
    assert ready_steps(solutions, which="hard", use="ignored") == solutions
    with pytest.raises(BadInput, match="row 1: no labels"):
        ready_steps(read_steps(rows, use="ignored"))
    with pytest.raises(BadInput, match="limit is 0"):
        ready_steps(solutions, limit=0)


@pytest.mark.parametrize("cell, found", [("[1, ", "1, "), ("[" * 100_000, r"\[\["), ("a, b", "text")])
def test_a_cell_that_holds_no_list_is_refused(cell, found):
    with pytest.raises(BadInput, match=f"steps.*{found}"):
        list(read_steps([OURS | {"steps": cell}]))
    (solution,) = read_steps([OURS | {"steps": '  ["3 + 4 = 7", "so 8", "8"]'}])
    assert solution.steps == tuple(OURS["steps"])


def test_what_a_row_may_leave_out_or_write_in_another_way():
    row = {"prompt": "a?", "steps": ["b", "c"], "labels": [1, 0.5]}
    found = only(row)
    assert (found.problem, found.group, found.labels, found.first_error) == ("a?", "a?", (1, 0.5), -1)
    assert (found.id, found.split, found.beyond, found.correct, found.place) == ("solution-1", "", 0, None, "row 1")
    assert only({**row, "group": " one \n two "}).group == "one two"
    plain = only({"question": "a?", "steps": ["b"]}, use="optional")
    assert (plain.format, plain.labels, plain.labelled_by, plain.first_error) == ("plain", None, "", None)
    # numbers of ids, and PRMBench's are one of their class
    assert [only({**row, "id": each}).id for each in (0, 7, "x", "", None)] == [
        "0",
        "7",
        "x",
        "solution-1",
        "solution-1",
    ]
    assert only({**BENCH, "idx": 3}).id == "circular_3" and only({**BENCH, "classification": ""}).id == "p1"
    with pytest.raises(BadInput, match="field 'id': expected text, found bool True"):
        only({**row, "id": True})
    # what a cell of a CSV holds
    for cell, labels in (("1", (1, 0, None)), (" -1 ", (1, 1, 1)), ("2", (1, 1, 0))):
        assert only({**PROCESS, "label": cell}).labels == labels
    for wrong in (-2, "-2", "3", "--1", "\u0661", "1.0", 1.0):
        with pytest.raises(BadInput, match="field 'label': expected the index of the first wrong step, 0 to 2, or -1"):
            only({**PROCESS, "label": wrong})
    assert only({**BENCH, "error_steps": None}).first_error == -1
    assert only({**BENCH, "error_steps": ["1", 4]}).labels == (0, 1, 1, 0)
    for cell, correct in (("TRUE", True), ("false", False), ("", None), (None, None), (True, True)):
        assert only({**OURS, "correct": cell}).correct is correct
    with pytest.raises(BadInput, match="field 'correct': expected true or false, found text 'yes'"):
        only({**OURS, "correct": "yes"})
    with pytest.raises(BadInput, match=re.escape("found '[" + "1" * 39 + "'.")):
        only({**row, "labels": "[" + "1" * 60})


def test_a_file_that_is_alone_in_its_folder_is_no_split(tmp_path):
    write(tmp_path / "gsm8k.one.jsonl", [{"problem": "a?", "steps": ["b"], "labels": [None]}])
    (found,) = read_steps(tmp_path)
    assert (found.id, found.split, found.first_error) == ("gsm8k-1", "", None)
    (tmp_path / "folder.json").mkdir()
    assert read_steps(tmp_path) == [found]
