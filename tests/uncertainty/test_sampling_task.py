"""What a sampler is asked for, word by word."""

import pytest

from equipoise.core.errors import BadInput
from equipoise.uncertainty.sampling_task import SINGLE, TEMPLATES, SamplingTask, bared


def test_requests_word_by_word():
    task = SamplingTask(("a", "b"), (0.25, 0.75))
    shares = "a with probability 0.25, b with probability 0.75"
    assert task.requests(7)[0] == (
        f"Draw 7 independent values at random. {shares}. Write only the values, separated by commas."
    )
    assert len(task.requests(7)) == len(TEMPLATES) == len(task.single_requests()) == len(SINGLE) == 3
    counted = SamplingTask(("a", "b"), (0.25, 0.75), single_templates=("{count} of {symbols}",))
    assert counted.single_requests() == ["1 of a, b"]


@pytest.mark.parametrize("separator", [", ", ",", " ; ", ""])
def test_separators_that_are_one_sign(separator):
    assert SamplingTask(("a", "b"), (0.5, 0.5), separator=separator).separator == separator


@pytest.mark.parametrize("separator", [" ", "a", "7", ",,", "and"])
def test_separators_that_are_none(separator):
    with pytest.raises(BadInput, match="use one sign"):
        SamplingTask(("a", "b"), (0.5, 0.5), separator=separator)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"target": (1.0, 0.0, 0.0), "symbols": ("a", "b", "c")}, "asks for one symbol alone"),
        ({"symbols": ("a", "")}, "cannot be told in a list"),
        ({"symbols": ("a", "b ")}, "cannot be told in a list"),
        ({"symbols": ("a", "b\x00c")}, "cannot be told in a list"),
        ({"symbols": ("x y", "xy")}, "'x y' and 'xy' cannot be told apart"),
        ({"single_templates": ()}, "need a request each"),
        ({"templates": ()}, "need a request each"),
        ({"renamings": (("c", "d"), ("e",))}, "There are 1 symbols and 2 shares"),
    ],
)
def test_tasks_that_are_none(given, words):
    with pytest.raises(BadInput, match=words):
        SamplingTask(**{"symbols": ("a", "b"), "target": (0.5, 0.5)} | given)


def test_a_symbol_may_hold_a_comma_where_nothing_separates():
    assert SamplingTask((",", "b"), (0.5, 0.5), separator="").symbols == (",", "b")
    two = SamplingTask(("a", "b", "c"), (0.5, 0.5, 0.0))
    assert two.target == (0.5, 0.5, 0.0) and bared(" a\tb\n") == "ab"


def test_tasks_are_read_from_objects():
    task = SamplingTask(("a", "b"), (0.5, 0.5))
    assert SamplingTask.read(task) is task
    given = {
        "symbols": ["a", "b"],
        "target": [1, 3e-7],
        "separator": "|",
        "renamings": (["c", "d"],),
        "templates": ["t"],
    }
    found = SamplingTask.read(given)
    assert found.target == pytest.approx((1, 3e-7)) and found.separator == "|" and found.renamings == (("c", "d"),)
    assert found.templates == ("t",) and found.single_templates == SINGLE
    for wrong in ("0.5", [True, False], ["a", "b"], 0.5):
        with pytest.raises(BadInput, match="target must be a list of numbers"):
            SamplingTask.read({"symbols": ["a", "b"], "target": wrong})
    for wrong in ("ab", [1, 2], 3):
        with pytest.raises(BadInput, match="symbols must be a list of texts"):
            SamplingTask.read({"symbols": wrong, "target": [0.5, 0.5]})
