"""The table beside a report: how its columns are read, and which rates no answers give."""

import dataclasses
import math

import pyarrow as pa
import pytest

from equipoise.core.errors import WorkFailed
from equipoise.study.declare import Outcome
from equipoise.study.table import check_rates, codes_of, mapping, place_of, tidy, values_of
from judging_results import Book, declare


def test_texts_get_codes_and_null_is_the_empty_text():
    for column in (
        pa.array(["x", None, "y", "x"]),
        pa.chunked_array([pa.array(["x", None]), pa.array(["y", "x"])]),
        pa.chunked_array([pa.array(each).dictionary_encode() for each in (["x", None], ["y", "x"])]),
        pa.array(["x", None, "y", "x"]).dictionary_encode(),
    ):
        codes, values = codes_of(pa.table({"t": column}), "t")
        assert [values[code] for code in codes] == ["x", "", "y", "x"]
    assert values_of(pa.table({"n": pa.chunked_array([[1.5], [2.5, None]])}), "n").tolist()[:2] == [1.5, 2.5]


def test_a_place_is_read_however_it_is_kept():
    assert mapping('{"step": 3}') == mapping({"step": 3}) == {"step": 3}
    assert mapping(None) == mapping("") == mapping("[1]") == mapping("3") == {}
    assert place_of({"step": 3, "radius": 0.5}, "step") == 3.0 and place_of({"radius": 0.5}, "radius") == 0.5
    assert all(math.isnan(place_of({"step": value}, "step")) for value in (True, "3", None, [3]))
    assert math.isnan(place_of({}, "step"))


def book():
    return Book(declare(outcomes=[Outcome("right", better="higher")], arms=("a", "b"), seeds=2))


def changed(results, **values):
    columns = results.measurements.to_pydict()
    for name, value in values.items():
        columns[name][0] = value
    return dataclasses.replace(results, measurements=pa.table(columns, schema=results.measurements.schema))


def test_how_far_a_rate_may_be_from_its_count():
    made = book()
    made.measure("a", 0, "right", 1, of=4)
    fine = made.results()
    for values in (
        {"value": 0.25 + 5e-10},
        {"value": math.nan, "numerator": 0.0, "of": 0.0},
        {"value": math.nan, "numerator": math.nan},
        {"numerator": 0.0, "value": 0.0},
        {"numerator": 4.0, "value": 1.0},
        {"of": math.nan, "value": 7.5},
        {"missing": 0},
    ):
        check_rates(changed(fine, **values))
    for values, said in (
        ({"value": 0.25 + 2e-9}, "right = 0.25 is not attainable as 1 of 4 (0 missing)."),
        ({"value": math.nan}, "right = nan is not attainable as 1 of 4 (0 missing)."),
        ({"value": 0.0, "numerator": 0.0, "of": 0.0}, "right = 0 is not attainable as 0 of 0 (0 missing)."),
        ({"value": 0.25, "numerator": 0.5, "of": 2.0}, "right = 0.25 is not attainable as 0.5 of 2 (0 missing)."),
        ({"value": 0.4, "of": 2.5}, "right = 0.4 is not attainable as 1 of 2.5 (0 missing)."),
        ({"value": -0.25, "numerator": -1.0}, "right = -0.25 is not attainable as -1 of 4 (0 missing)."),
        ({"value": 1.25, "numerator": 5.0}, "right = 1.25 is not attainable as 5 of 4 (0 missing)."),
        ({"of": math.nan, "missing": -1}, "right = 0.25 is not attainable as 1 of nan (-1 missing)."),
    ):
        with pytest.raises(WorkFailed) as caught:
            check_rates(changed(fine, **values))
        assert str(caught.value).startswith(f"Run a-0-0: {said}")


def test_a_value_is_that_of_its_own_answers_at_its_own_place():
    def refused(value, scores, **at):
        made = book()
        made.score("b", 1, "right", [0.0, 0.0, 1.0], at={"step": 1})
        made.score("a", 0, "right", scores, at={"step": 1})
        made.measure("b", 1, "right", 1 / 3, at={"step": 1})
        made.measure("a", 0, "right", value, at=at or {"step": 1})
        try:
            check_rates(made.results())
        except WorkFailed as error:
            return str(error).partition(" The report")[0]
        return ""

    answers = [1.0, 1.0, 0.0, 0.0]
    assert refused(0.5, answers) == refused(0.5 + 2e-7, answers) == refused(0.9, answers, step=2) == ""
    assert refused(0.5, [*answers, math.nan]) == "" and refused(0.9, [math.nan]) == ""
    assert refused(0.9, [0.5, *answers]) == "" and refused(math.nan, answers) == refused(math.inf, answers) == ""
    said = "Run a-0-0: right = {}, but 2 of its 4 answers are right at step 1."
    assert refused(0.5 + 1e-6, answers) == said.format("0.500001")
    assert refused(0.4, [*answers, math.nan]) == said.format("0.4")
    assert refused(0.0, [1.0]) == "Run a-0-0: right = 0, but 1 of its 1 answers are right at step 1."


def test_a_row_of_the_table_says_all_of_its_run():
    made = book()
    made.measure("a", 0, "right", 3, of=4, missing=1, at={"step": 2, "calls": 7}, where={"split": "test"})
    made.measure("a", 0, "right", 0.5, role="tuning", point=1)
    made.measure("b", 1, "right", 0.25, at={"step": True}, point=1)
    results = made.results()
    found = tidy(made.study, results)
    rows = [{key: None if value != value else value for key, value in row.items()} for row in found.to_pylist()]
    same = {"kind": "method", "settings": "{}", "outcome": "right", "numerator": None, "of": None, "missing": 0}
    same |= {"at": "", "where": "", "chosen": False, "step": None}
    place = {"at": '{"calls": 7, "step": 2}', "where": '{"split": "test"}', "step": 2.0}
    assert rows == [
        same
        | {"run": "a-0-0", "arm": "a", "point": 0, "seed": 0, "role": "test", "chosen": True, "order": 0, "value": 0.75}
        | {"numerator": 3.0, "of": 4.0, "missing": 1, **place},
        same | {"run": "a-1-tuning-0", "arm": "a", "point": 1, "seed": 0, "role": "tuning", "order": 1, "value": 0.5},
        same
        | {"run": "b-1-1", "arm": "b", "point": 1, "seed": 1, "role": "test", "order": 2, "value": 0.25}
        | {"at": '{"step": true}'},
    ]
    assert "at_seed" in tidy(dataclasses.replace(made.study, dial="seed"), results).column_names
