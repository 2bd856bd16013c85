"""What is drawn of a path: which places and splits, where a track ends, and the interval over its seeds."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from equipoise.study.declare import Outcome
from equipoise.study.tracks import Track, _drawn, _splits, aside_of, mean_interval, thin, tracks_of
from judging_results import Book, declare


@pytest.mark.parametrize("size", [0, 1, 2, 39, 40, 41, 79, 5000])
def test_at_most_forty_places_evenly_with_both_ends(size):
    places = [float(place) for place in range(size)]
    drawn = thin(places)
    if size <= 40:
        assert drawn == places
    else:
        assert drawn == [round(n * (size - 1) / 39) for n in range(40)]
        assert (drawn[0], drawn[-1], len(set(drawn))) == (0, size - 1, 40)


def of(*arms: str) -> Any:
    return [SimpleNamespace(arm=arm) for arm in arms]


def test_of_a_long_path_the_last_place_of_every_arm_is_kept_and_what_has_no_place():
    places = np.array([*range(200), 0.0, 100.0, math.nan, math.nan])
    codes = np.array([0] * 200 + [1, 1, 1, 2])  # the third arm was measured once, at no place
    kept = np.flatnonzero(_drawn(places, codes, of("a", "b", "c"))).tolist()
    drawn = {round(n * 199 / 39) for n in range(40)}
    assert 100 not in drawn
    assert kept == [*sorted(drawn), 200, 201, 202, 203]
    few = _drawn(np.array([1.0, 2.0, math.nan]), np.zeros(3, int), of("a"))
    assert few.tolist() == [True] * 3


@pytest.mark.parametrize(
    ("splits", "drawn", "named"),
    [
        ([None], [0], False),
        (["test", "validation", "test"], [0, 2], False),
        (["train", "test"], [1], False),
        (["near", "validation", "far"], [0, 2], True),
        (["near", "near", "validation"], [0, 1], False),
        ([None, "near"], [0, 1], True),
        (["validation", "validation"], [0, 1], True),
        ([], [], False),
    ],
)
def test_which_splits_are_drawn_and_whether_they_are_named(splits, drawn, named):
    assert _splits(dict(enumerate(splits))) == (drawn, named)


def test_the_interval_over_seeds_is_students():
    assert mean_interval({4: 0.2, 5: 0.6, 9: 0.4}) == pytest.approx(
        (0.4, 0.4 - 4.30265273 * 0.2 / 3**0.5, 0.4 + 4.30265273 * 0.2 / 3**0.5)
    )
    assert mean_interval({0: 1.0, 1: 3.0}) == pytest.approx((2.0, 2 - 12.7062047, 2 + 12.7062047))
    assert mean_interval({0: 1.0, 1: 3.0}, level=0.5) == pytest.approx((2.0, 1.0, 3.0))  # Cauchy's quartile is 1
    one, none = mean_interval({3: 7.0}), mean_interval({})
    assert one[0] == 7.0 and all(map(math.isnan, (*one[1:], *none)))


def test_where_a_track_ends_and_what_its_axis_says():
    values = {"a": {math.nan: {0: 0.1}, 3.0: {0: 0.3}, 20.0: {1: 0.5}}, "b": {math.nan: {2: 0.7}}, "c": {1.0: {0: 0.2}}}
    track = Track(Outcome("right", better="lower", chance=0.25), "subset hard", values, {}, {})
    assert track.places == [1.0, 3.0, 20.0]
    assert [track.ends(arm) for arm in "abcd"] == [{1: 0.5}, {2: 0.7}, {0: 0.2}, {}]
    axis = track.axis
    assert (track.title, axis.better, axis.chance, axis.unit, axis.log, axis.share) == (
        ("right (subset hard)", "lower", 0.25, "", False, True)
    )
    tokens = Track(Outcome("tokens", better="lower", unit="tokens", log=True), "", {}, {}, {}).axis
    assert (tokens.unit, tokens.log, tokens.share) == ("tokens", True, False)
    assert aside_of({"step": 3, "seconds": 7, "radius": 0.5, "calls": 2}, "step") == {"radius": 0.5}


def test_every_value_is_drawn_once_at_its_place_the_later_where_there_are_two():
    outcomes = [Outcome("right", better="higher"), Outcome("kept", better="higher")]
    book = Book(declare(outcomes=outcomes, arms=("a", "b"), seeds=2))
    other = book.run("b", 1)
    for arm, seed, base in (("a", 0, 0.1), ("a", 1, 0.2), ("b", 0, 0.3)):
        book.measure(arm, seed, "kept", base, at={"step": 1})
        book.measure(arm, seed, "kept", base + 0.5, at={"step": 2, "radius": 0.5})
        book.measure(arm, seed, "right", base, at={"step": 1})
        book.measure(arm, seed, "right", base + 0.25)
    book.measure("a", 0, "right", 0.9, at={"step": 1})
    book.measure("a", 0, "unknown", 0.9)
    book.measure("b", 1, "right", 0.77)
    results = book.results()
    judged = [run for index, run in enumerate(results.runs) if index != other]
    right, *kept = tracks_of(book.study, results, judged)
    assert {track.outcome.name for track in kept} == {"kept"}
    by_place = {arm: {str(place): seeds for place, seeds in places.items()} for arm, places in right.values.items()}
    assert by_place == {
        "a": {"1.0": {0: 0.9, 1: 0.2}, "nan": {0: 0.35, 1: 0.45}},
        "b": {"1.0": {0: 0.3}, "nan": {0: 0.55}},
    }
    assert [(track.title, dict(track.aside)) for track in kept] == [
        ("kept", {}),
        ("kept (radius 0.5)", {"radius": 0.5}),
    ]
    assert [track.values["a"] for track in kept] == [{1.0: {0: 0.1, 1: 0.2}}, {2.0: {0: 0.6, 1: 0.7}}]
