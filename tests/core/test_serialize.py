"""Results as JSON and back: every kind of value, exactly."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from equipoise.core.errors import WorkFailed
from equipoise.core.serialize import LIVE, deserialize, serialize


class Model(BaseModel):
    at: Path = Path("x")
    share: float = math.nan


@dataclass(frozen=True)
class Inner:
    value: float
    label: str = ""


@dataclass(frozen=True)
class Outer:
    value: float
    maybe: float | None = None
    count: int | None = None
    inner: Inner | None = None
    either: int | str = 0
    many: tuple[Inner, ...] = ()
    pair: tuple[float, str] = (0.0, "")
    listed: list[float] = field(default_factory=list)
    some: Sequence[float] = ()
    named: Mapping[str, float] = field(default_factory=dict)
    deep: dict[str, list[float]] = field(default_factory=dict)
    turned: tuple[str | None, float] = (None, 0.0)
    folder: Path | None = None
    live: Any = field(default=None, metadata=LIVE)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None), (True, True), (3, 3), ("ü", "ü"), (0.5, 0.5), (math.nan, None), (math.inf, "inf"), (-math.inf, "-inf"),
        (Path("a/b"), "a/b"), ((1, [2.0, math.nan]), [1, [2.0, None]]), ({1: {2: math.inf}}, {"1": {"2": "inf"}}),
        (Model(), {"at": "x", "share": None}), (Inner(math.nan, "a"), {"value": None, "label": "a"}), ([], []), ({}, {}),
    ],
)  # fmt: skip
def test_every_kind_of_value(value, plain):
    assert serialize(value) == plain


def test_a_field_that_lives_is_not_stored():
    plain = serialize(Outer(1.0, inner=Inner(2.0), many=(Inner(3.0, "c"),), folder=Path("f"), live=object()))
    assert plain == {
        "value": 1.0,
        "maybe": None,
        "count": None,
        "inner": {"value": 2.0, "label": ""},
        "either": 0,
        "many": [{"value": 3.0, "label": "c"}],
        "pair": [0.0, ""],
        "turned": [None, 0.0],
        "listed": [],
        "some": [],
        "named": {},
        "deep": {},
        "folder": "f",
    }


def test_what_is_no_result_is_refused():
    with pytest.raises(WorkFailed) as caught:
        serialize({"a": [b"x" * 100]})
    assert str(caught.value) == f"A result cannot be stored as JSON: bytes {b'x' * 100!r:.80}."


def test_null_is_nan_where_a_number_must_be_and_nothing_where_it_may():
    nan = math.nan
    value = Outer(
        nan, None, None, Inner(nan), 0, (Inner(1.0), Inner(nan, "b")), (nan, "p"), [nan, 2.0], (3.0, nan), {"x": nan}
    )
    further = {"deep": {"y": [None, 1.0]}, "either": "word", "turned": [None, None]}
    again = deserialize(Outer, serialize(value) | further)
    assert serialize(again) == serialize(value) | further and again.turned[0] is None and math.isnan(again.turned[1])
    found = [
        again.value,
        again.inner and again.inner.value,
        again.many[1].value,
        again.pair[0],
        again.listed[0],
        again.some[1],
    ]
    found += [again.named["x"], again.deep["y"][0]]
    assert all(isinstance(each, float) and math.isnan(each) for each in found)
    assert again.maybe is None and again.count is None and again.many[0] == Inner(1.0) and again.pair[1] == "p"
    assert deserialize(Outer, {"value": "inf"}).value == math.inf and deserialize(Outer, {"value": 1}).inner is None


@pytest.mark.parametrize("plain", [{}, {"value": "x"}, {"value": 1, "pair": [None]}, {"value": 1, "many": 3}, [], None])
def test_what_is_not_of_the_form_is_a_value_error(plain):
    with pytest.raises(ValueError):
        deserialize(Outer, plain)


def test_null_within_what_may_be_of_two_kinds_is_left_as_it_is():
    @dataclass(frozen=True)
    class Two:
        value: list[float] | dict[str, float]

    with pytest.raises(ValueError):
        deserialize(Two, {"value": [None]})
    assert deserialize(Two, {"value": {"x": 1}}).value == {"x": 1.0}
