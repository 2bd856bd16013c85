"""What people see of a study at work: what is under way and how long it will take, from the first minute."""

import pytest

from equipoise.study import display as display_module
from equipoise.study.display import Display
from equipoise.study.engine import Event
from equipoise.study.store import Task


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(display_module.time, "monotonic", lambda: now[0])
    return now


def task(name):
    return Task(key=name, role="test", reference="", root="", options={}, seed=0, fingerprint="", arm=name)


def beat(display, name, share):
    display.event(task(name), Event(name, "beat", data={"share": share}))


def start(display, *names):
    for name in names:
        display.event(task(name), Event(name, "started"))


def test_how_far_the_first_runs_are_says_what_is_left_before_any_of_them_ends(clock, capsys):
    display = Display("mine")
    display.plan(6, 0, None)
    start(display, "a", "b")
    beat(display, "a", 0.0)
    clock[0] = 9.0
    beat(display, "a", 0.1)
    assert capsys.readouterr().err.splitlines() == ["mine: 6 to do, 0 stored"]
    clock[0] = 20.0
    beat(display, "a", 0.2)  # 100 s each: 80 s of both are left, and 400 of the four that wait, two at a time
    clock[0] = 49.0
    beat(display, "a", 0.49)  # said less than 30 s ago
    clock[0] = 50.0
    beat(display, "b", None)
    assert capsys.readouterr().err.splitlines() == [
        "mine: 0 of 6 done, 2 running, about 4:40 left",
        "mine: 0 of 6 done, 2 running, about 4:16 left",
    ]


def test_a_resumed_run_does_not_count_what_it_had_done_as_speed(clock):
    display = Display("mine")
    display.plan(1, 0, None)
    start(display, "a")
    beat(display, "a", 0.5)
    clock[0] = 20.0
    beat(display, "a", 0.75)
    assert display._left() == ", about 20 s left"


def test_a_run_that_begins_a_second_part_does_not_say_how_far_it_is(clock):
    display = Display("mine")
    display.plan(2, 0, None)
    start(display, "a")
    clock[0] = 20.0
    for share in (0.0, 1.0, 0.1, 0.5):
        beat(display, "a", share)
    assert display._left() == ""


def test_stored_runs_say_what_is_left_from_the_start(clock, capsys):
    display = Display("mine")
    display.plan(4, 10, 80.0)
    start(display, "a", "b")
    assert display._left() == ", about 40 s left"
    clock[0] = 5.0
    display.event(task("a"), Event("a", "ended", "complete"))
    assert capsys.readouterr().err.splitlines()[-1].startswith("[1/4] a seed 0: done in 5.0 s, about ")
