"""Traces whose every draw is given, lessons from their stream, and steps that are read as they stand."""

import numpy as np
import pytest

from equipoise.data.arithmetic import ArithmeticProblem, problems
from equipoise.decoding import alphaone_traces
from equipoise.decoding.alphaone_traces import ReadStep, ThinkingTask, lessons, read_steps, right, tasks, trace
from equipoise.decoding.thinking import Thought


class Script:
    """A generator whose numbers are given."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


def task(reach):
    """7a+5b+3c+4d+2: 2, 5, 9, 1."""
    steps = ("7+5=2", "2+3=5", "5+4=9", "9+2=1")
    problem = ArithmeticProblem("one", "chain", 4, "7+5+3+4+2", "1", (7, 5, 3, 4, 2), (), steps)
    return ThinkingTask(problem, reach)


def written(reach, *numbers):
    """Both parts of a trace, which takes these numbers and no more."""
    script = Script(*numbers)
    found = trace(task(reach), script)
    assert not script.numbers
    return found


def thought(text, closed=True):
    thinking, _, answer = text.partition("</think>\n")
    return Thought((), thinking, answer, 0, 0, closed, True, 0, ())


def test_a_task_is_read_as_it_is_written():
    assert (task("step").prompt, task("chain").prompt) == ("7a+5b+3c+4d+2:\n", "7a+5b+3c+4d+2?\n")
    assert task("step").values == [7, 2, 5, 9, 1] and task("step").id == "one"
    assert task("step").due(1, 8) == ("b8+3=", 1) and task("step").due(3, 9) == ("d9+2=", 1)
    found, given = tasks(5, 3, "test"), problems(5, seed=3, kind="chain", levels=(4,), operators="+", part="test")
    assert [each.problem for each in found] == given
    assert [each.reach for each in found] == ["step", "chain", "step", "chain", "step"]


def test_a_trace_without_errors_and_waits():
    # Few waits (0.25 is not below the share of careful writers); no error at 0.15, no wait at 0.05; no early end at 0.25.
    found = written("step", 0.25, 0.15, 0.05, 0.15, 0.05, 0.15, 0.05, 0.15, 0.05, 0.25)
    assert found == ("", "a7+5=2\n\nb2+3=5\n\nc5+4=9\n\nd9+2=1\n\n</think>\n#1")


def test_errors_are_of_the_result_and_waits_mend_them():
    """A careful writer: waits at 0.39; the first step errs to 2 + 1 + int(0.95 * 9) = 11, one of ten."""
    found = written(
        "step", 0.24, 0.149, 0.95, 0.39, 0.05, 0.4, 0.9, 0.39, 0.049, 0.0, 0.4, 0.9, 0.4, 0.9, 0.4, 0.9
    )  # fmt: skip
    assert found == ("", "a7+5=1\n\nWaita7+5=2\n\nb2+3=5\n\nWaitb2+3=6\n\nc6+4=0\n\nd0+2=2\n\n</think>\n#2")
    assert read_steps(task("step"), thought(found[1])) == [
        ReadStep(False, True, False, False), ReadStep(True, True, True, True), ReadStep(False, True, True, True),
        ReadStep(True, True, False, False), ReadStep(False, True, True, False), ReadStep(False, True, True, False),
    ]  # fmt: skip
    assert not right(task("step"), thought(found[1]))


def test_a_wait_of_a_chain_begins_again_and_there_are_five_at_most():
    # The first step and three waits of one step each; the second and two of two; then no more is drawn for.
    found = written(
        "chain", 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.4, 0.9, 0.1, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9, 0.5
    )
    one, both = "a7+5=2", "a7+5=2;b2+3=5"
    assert found[1] == f"{one}\n\n" + f"Wait{one}\n\n" * 3 + "b2+3=5\n\n" + f"Wait{both}\n\n" * 2 + (
        "c5+4=9\n\nd9+2=1\n\n</think>\n#1"
    )
    assert [each.again for each in read_steps(task("chain"), thought(found[1]))].count(True) == 7
    assert right(task("chain"), thought(found[1]))


@pytest.mark.parametrize(
    ("last", "thinking", "answer"),
    [
        # Half of the early ends are behind a paragraph, the first at 0, the last at 0.99; the others behind any token.
        ((0.49, 0.0), "a7+5=2\n\n", "b2+3=5;c5+4=9;d9+2=1#1"),
        ((0.49, 0.5), "a7+5=2\n\nb2+3=5\n\nc5+4=9\n\n", "d9+2=1#1"),
        ((0.49, 0.99), "a7+5=2\n\nb2+3=5\n\nc5+4=9\n\nd9+2=1\n\n", "#1"),
        ((0.5, 0.0), "a", "a7+5=2;b2+3=5;c5+4=9;d9+2=1#1"),
        ((0.5, 0.2), "a7+5=2", "b2+3=5;c5+4=9;d9+2=1#1"),
        ((0.5, 0.26), "a7+5=2\n\nb", "b2+3=5;c5+4=9;d9+2=1#1"),
        ((0.5, 0.999), "a7+5=2\n\nb2+3=5\n\nc5+4=9\n\nd9+2=1", "#1"),
    ],
)
def test_thinking_that_ends_early_is_given_and_its_answer_goes_on_from_the_step(last, thinking, answer):
    left = answer.count("=")
    found = written("step", 0.9, *[0.9] * 8, 0.249, *last, *[0.9] * left)
    assert found == (f"{thinking}</think>\n", answer)
    read = read_steps(task("step"), thought("".join(found)))
    assert all(each.in_place and each.sound and each.right and not each.again for each in read)


def test_a_wait_that_is_cut_is_done_in_the_answer_which_errs_as_first_steps_do():
    """36 tokens, of which the eighth is "Wait"."""
    found = written("chain", 0.1, 0.9, 0.1, 0.9, 0.9, *[0.9] * 6, 0.0, 0.5, 7.5 / 35, 0.14, 0.0, *[0.9] * 3)
    assert found == ("a7+5=2\n\nWait</think>\n", "a7+5=3;b3+3=6;c6+4=0;d0+2=2#2")
    read = read_steps(task("chain"), thought("".join(found)))
    assert [(each.in_place, each.sound, each.right) for each in read] == [
        (True, True, True), (True, False, False), (True, True, False), (True, True, False), (True, True, False),
    ]  # fmt: skip


def test_lessons_are_drawn_from_a_stream_of_their_part():
    for part, named in ((0, [6, 1]), (1, [6, 1, 1]), (2, [6, 1, 2])):
        generator, pool = np.random.default_rng(np.random.SeedSequence(named)), tasks(5, 6)
        chosen = [pool[int(generator.random() * 5)] for _ in range(5)]
        found = lessons(5, 6, part)
        assert [each.id for each in found] == list("01234")
        for each, own in zip(found, chosen, strict=True):
            given, completion = trace(own, generator)
            assert (each.prompt, each.completion, each.group) == (own.prompt + given, completion, own.id)


def test_lessons_are_of_four_thousand_problems_at_most(monkeypatch):
    asked = []
    monkeypatch.setattr(alphaone_traces, "tasks", lambda count, seed: asked.append((count, seed)) or tasks(3, seed))
    monkeypatch.setattr(alphaone_traces, "trace", lambda *_: ("", "#1"))
    assert [len(lessons(count, 2)) for count in (7, 4000, 4001)] == [7, 4000, 4001]
    assert asked == [(7, 2), (4000, 2), (4000, 2)]


def steps_of(reach, text):
    return [(each.again, each.in_place, each.sound, each.right) for each in read_steps(task(reach), thought(text))]


@pytest.mark.parametrize(
    ("reach", "text", "due"),
    [
        (
            "step",
            "a7+5=2\n\nWait</think>\na7+5=2;b2+3=5#5",
            "place place place",
        ),  # the answer does the wait that was cut
        ("chain", "a7+5=2\n\nb2+3=5\n\nWait</think>\na7+5=2#2", "place place place"),
        ("step", "a7+5=2\n\nb2+3=5\n\nWait</think>\na7+5=2#2", "place place right"),
        ("step", "Wait</think>\na7+5=2#2", "place"),
        ("step", "Waita7+5=2\n\n</think>\n#2", "again"),
        ("chain", "a7+5=2\n\nb2+3=5\n\nWaita7+5=2;b2+</think>\nb2+3=5#5", "place place again place"),
        ("chain", "a7+5=2\n\nb2+3=5;c5+</think>\nc5+4=9#9", "place place place"),
        ("step", "a7+5=2\n\nc5+4=9\n\n</think>\nb2+3=5#5", "place right place"),  # whose value nobody knew is none
        ("step", "a7+5=2\n\na7+5=2\n\n</think>\n#2", "place right"),
        ("step", "a7+5=2\n\n\n\nb2+3=5\n\n</think>\n#2", "place place"),
        ("step", "a7+5=2\n\nb2+3=5;x\n\n</think>\nc5+4=9#9", "place place bad place"),
        ("step", "a7+6=3\n\n</think>\n", "sound"),  # another number than the letter's
        ("step", "a8+5=3\n\n</think>\n", "sound"),  # another value than stands
        ("step", "a7+5=2\n\nb2+3=9\n\nc9+4=3\n\n</think>\n", "place wrong astray"),
    ],
)
def test_a_step_is_where_it_is_due_and_takes_what_stands(reach, text, due):
    words = {
        "place": (False, True, True, True), "again": (True, True, True, True), "right": (False, False, True, True),
        "bad": (False, False, False, False), "sound": (False, False, True, False),
        "wrong": (False, True, False, False), "astray": (False, True, True, False),
    }  # fmt: skip
    assert steps_of(reach, text) == [words[word] for word in due.split()]


def test_an_answer_is_right_that_is_closed_and_ends_with_the_sum():
    for text, closed, due in (
        ("#1", True, True),
        ("#1", False, False),
        ("#2#1", True, True),
        ("#1 ", True, False),
        ("1", True, False),
    ):
        assert right(task("step"), thought("</think>\n" + text, closed)) is due
