"""Closed words: what is not one of them is refused wherever it comes from."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel, Field

from equipoise.core.errors import BadInput
from equipoise.core.options import Options, Setting, allowed, check, check_fields, choice, closed, type_text, words

Rule = Literal["paired", "published"]


@closed
def judge(rule: Rule = "paired", *, level: Literal["weakest"] | float = 0.5, order: Rule | None = None) -> tuple:
    return rule, level, order


@dataclass(frozen=True)
class Settings:
    rule: Rule = "paired"
    rounds: int = 4

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize("call", [lambda: judge("piared"), lambda: judge(rule="piared"), lambda: Settings("piared")])
def test_a_misspelt_word_is_refused_with_the_nearest_one(call):
    with pytest.raises(BadInput, match=r"rule is 'piared'\. Did you mean 'paired'"):
        call()


def test_known_words_and_their_defaults_pass():
    assert judge() == ("paired", 0.5, None)
    assert judge("published", level=0.3, order="paired") == ("published", 0.3, "paired")
    assert Settings("published").rule == "published"


Units = tuple[Literal["seed", "item"], ...]


@closed
def widths(
    units: Units = ("seed", "item"),
    *,
    level: Literal["weakest"] | float = 0.5,
    at: Literal["last"] | Mapping[str, int] | None = None,
    ends: tuple[Literal["open", "closed"], int] = ("open", 0),
    states: "Mapping[Literal['done', 'lost'], Units] | None" = None,
    rule: "Annotated[Rule, 'described']" = "paired",
    text: Literal["auto"] | str = "auto",
    study: "Study | None" = None,  # noqa: F821 (a class that only the type checker knows)
) -> None: ...


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"units": ("seeds",)}, "units is 'seeds'. Did you mean 'seed'"),
        ({"units": ["seed", "items"]}, "units is 'items'"),
        ({"units": "seed"}, r"one word where several may come: write \('seed',\)"),
        ({"level": "weakst"}, "level is 'weakst'. Did you mean 'weakest'. It may also be a float"),
        ({"at": "first"}, "at is 'first'.*It may also be a Mapping"),
        ({"ends": ("ajar", 1)}, "ends is 'ajar'"),
        ({"states": {"don": ("seed",)}}, "states is 'don'. Did you mean 'done'"),
        ({"states": {"done": ("sed",)}}, r"states\['done'\] is 'sed'"),
        ({"rule": "piared"}, "rule is 'piared'"),
    ],
)
def test_words_among_several_beside_numbers_and_inside_mappings(given, message):
    with pytest.raises(BadInput, match=message):
        widths(**given)


def test_what_is_no_word_passes():
    widths(("seed",), level=0.1, at={"step": 3}, ends=("closed", 7), states={"lost": ("item",)}, text="anything")
    widths(level=1, at=None, states=None, study=object())
    assert allowed(Literal["weakest"] | float) == ()
    assert allowed(Rule | None) == ("paired", "published", None)


def test_fields_of_a_base_are_checked_too():
    @dataclass(frozen=True)
    class More(Settings):
        more: Literal["a", "b"] = "a"

    assert More("published", 3, "b").more == "b"
    for wrong in (("piared", 3, "a"), ("paired", 3, "c")):
        with pytest.raises(BadInput):
            More(*wrong)


@pytest.mark.parametrize("value", [True, 1.0, [1], "1", None])
def test_a_value_of_another_type_is_no_choice(value):
    with pytest.raises(BadInput):
        choice("order", value, Literal[1, 2])


def test_an_iterable_of_names_is_as_good_as_a_literal():
    assert choice("arm", "sago", ["sago", "pcgrad"]) == "sago"
    with pytest.raises(BadInput, match="arm is 'sag'"):
        choice("arm", "sag", ["sago", "pcgrad"])


def test_names_and_values_from_text():
    def function(
        arguments: dict[str, Any], prices: dict[str, tuple[float, float]], shares: dict[str, float]
    ) -> None: ...

    texts = {"arguments": "engine=x,size=8,on=true,at=a=b", "prices": "openai/m=2.5:10,a=b=1:2", "shares": "a=b=0.5"}
    assert Options(function).read(texts, text=True) == {
        "arguments": {"engine": "x", "size": 8, "on": True, "at": "a=b"},
        "prices": {"openai/m": (2.5, 10.0), "a=b": (1.0, 2.0)},
        "shares": {"a=b": 0.5},
    }


def test_a_setting_has_these_defaults():
    plain = Setting()
    assert (plain.alias, plain.objects, plain.python, plain.stored, plain.typed(True)) == (
        (),
        False,
        False,
        True,
        False,
    )


class Rest(BaseModel, extra="forbid"):
    rate: float = Field(default=0.5, gt=0, lt=1, description="How fast.")
    listed: tuple[int, ...] = (1,)
    needed: int


def asked(
    words: list[str],
    pair: tuple[float, float] = (0.0, 1.0),
    several: tuple[int, ...] | None = None,
    *,
    steps: Annotated[int, Field(ge=1, le=9, description="how long")] = 3,
    how: Rule = "paired",
    source: Annotated[Path | None, Setting(objects=True, alias=("-s",))] = None,
    on: bool = False,
    **rest: Any,
) -> None: ...


OPTIONS = Options(asked, owner="Toy: ", rest=Rest, renamed={"word": "words", "gone": "gone: use --words."})


def test_options_are_the_parameters_and_those_of_the_rest():
    own = ["words", "pair", "several", "steps", "how", "source", "on"]
    assert list(OPTIONS.hints) == [*own, "rate", "listed", "needed"] and list(OPTIONS.parameters) == own
    defaults = {name: OPTIONS.default(name) for name in OPTIONS.hints}
    assert defaults == {
        "words": ..., "pair": (0.0, 1.0), "several": None, "steps": 3, "how": "paired", "source": None, "on": False,
        "rate": 0.5, "listed": (1,), "needed": ...,
    }  # fmt: skip
    assert OPTIONS.setting("source").alias == ("-s",) and OPTIONS.setting("steps") == Setting(
        typed=OPTIONS.setting("steps").typed
    )


def test_of_the_rest_only_what_is_given_is_read():
    usual = {"pair": (0.0, 1.0), "several": None, "steps": 3, "how": "paired", "source": None, "on": False}
    assert OPTIONS.read({"words": ["a"], "needed": 1}) == {"words": ["a"], **usual, "needed": 1}
    given = {
        "words": "a, b,",
        "pair": "1,2",
        "several": "3",
        "steps": "9",
        "source": "x",
        "on": "true",
        "listed": "[2]",
    }
    assert OPTIONS.read({**given, "needed": "1"}, text=True) == {
        "words": ["a", "b"], "pair": (1.0, 2.0), "several": (3,), "steps": 9, "how": "paired", "source": Path("x"),
        "on": True, "listed": (2,), "needed": 1,
    }  # fmt: skip
    thing = object()
    assert OPTIONS.read({"words": [], "needed": 1, "source": thing})["source"] is thing
    assert OPTIONS.current({"word": 1, "gone": 2, "steps": 3}) == {"words": 1, "gone": 2, "steps": 3}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"needed": 1}, "option 'words' is missing."),
        ({"words": [], "needed": 1, "steps": 0}, "option 'steps' should be at least 1, but got 0."),
        ({"words": [], "needed": 1, "steps": 10}, "option 'steps' should be at most 9, but got 10."),
        ({"words": [], "needed": 1, "rate": 0}, "option 'rate' should be above 0, but got 0."),
        ({"words": [], "needed": 1, "rate": 1}, "option 'rate' should be below 1, but got 1."),
        (
            {"words": [], "needed": 1, "how": "piared"},
            "option 'how' is 'piared'. Did you mean 'paired' or 'published'?",
        ),
        ({"words": "a", "needed": 1}, "option 'words' is 'a', expected values with commas between."),
        ({"words": [], "needed": 1, "pair": "x"}, "option 'pair' is 'x', expected 2 values with commas between."),
        ({"words": [], "needed": 1, "several": "x"}, "option 'several' is 'x', expected values with commas between."),
        ({"words": [], "needed": 1, "stps": 1}, "there is no option 'stps'. Did you mean 'steps'?"),
        ({"word": 1}, "word is now words."),
        ({"gone": 1}, "gone: use --words."),
    ],
)
def test_a_wrong_option_in_full(given, said):
    with pytest.raises(BadInput) as caught:
        OPTIONS.read(given)
    assert str(caught.value) == f"Toy: {said}"


def test_what_can_be_no_option():
    def untyped(a, b: int = 1): ...
    def starred(*a: int): ...
    def positional(a: int, /): ...

    for function, said in (
        (untyped, "Toy: option 'a' needs a type."),
        (starred, "Toy: *args and **kwargs cannot be options; name each one."),
        (positional, "Toy: *args and **kwargs cannot be options; name each one."),
        (asked, "Toy: *args and **kwargs cannot be options; name each one."),
    ):
        with pytest.raises(BadInput) as caught:
            Options(function, owner="Toy: ")
        assert str(caught.value) == said


def test_settings_as_json():
    class Named:
        name = "smollm2"

    values = {"words": ["a"], "pair": (1.0, 2.0), "steps": 3, "source": Path("x")}
    assert OPTIONS.to_json(values) == {"words": ["a"], "pair": [1.0, 2.0], "steps": 3, "source": "x"}
    kinds = [None, True, 2, 0.5, "t", ("a", 1), Named(), {"k": 1}, [object()], object()]
    shown = [OPTIONS.to_json({"source": kind})["source"] for kind in kinds]
    assert shown == [None, True, 2, 0.5, "t", ["a", 1], "smollm2", "1 given", "1 given", "object"]


def test_options_for_people():
    rows = {row["name"]: row for row in OPTIONS.described()}
    assert list(rows) == list(OPTIONS.hints)
    assert rows["steps"] == {"name": "steps", "type": "integer from 1 to 9", "default": 3, "description": "how long"}
    assert rows["rate"] == {
        "name": "rate",
        "type": "number above 0 below 1",
        "default": 0.5,
        "description": "How fast.",
    }
    assert rows["words"] == {"name": "words", "type": "array", "default": None, "description": ""}
    assert rows["several"]["type"] == "array or null" and rows["source"]["type"] == "value"
    assert type_text({"enum": [1, "a"]}) == "one of 1, a" and type_text({"anyOf": [{"type": "x"}, {}]}) == "x or value"


@pytest.mark.parametrize(
    ("name", "typed", "read"),
    [
        ("words", '["a,b"]', ["a,b"]), ("words", "a b", ["a b"]), ("words", "", []), ("several", "null", None),
        ("several", "1, 2", (1, 2)), ("steps", "3", 3), ("on", "1", True), ("listed", "[]", ()),
    ],
)  # fmt: skip
def test_a_text_as_its_option_wants_it(name, typed, read):
    given = {"words": ["w"], "needed": 1, name: typed}
    assert OPTIONS.read(given, text=True)[name] == read


def test_values_of_pairs():
    def function(pairs: dict[str, Any], numbers: dict[str, float] | None = None) -> None: ...

    read = Options(function).read({"pairs": " a = 1 , b=x y, c=NaN, d=[1], e=true,f="}, text=True)["pairs"]
    assert read == {"a": 1, "b": "x y", "c": "NaN", "d": "[1]", "e": True, "f": ""}
    assert Options(function).read({"pairs": '{"a": [1]}'}, text=True)["pairs"] == {"a": [1]}
    with pytest.raises(BadInput):
        Options(function).read({"pairs": "a"}, text=True)


def test_which_values_and_words_a_type_leaves():
    assert allowed(Rule) == ("paired", "published") and allowed(Rule | None) == ("paired", "published", None)
    assert allowed(Literal[1] | Literal["a"]) == (1, "a") and allowed(None | str) == () and allowed(int) == ()
    assert words(Rule) == ("paired", "published") and words(int) == () and words(Annotated[Rule, "x"]) == words(Rule)
    assert words(dict[Rule, tuple[Literal["z"], ...]] | None) == ("paired", "published", "z")


@pytest.mark.parametrize(
    ("value", "hint", "said"),
    [
        ("x", Rule, "n is 'x'. Known: paired, published."),
        ("paird", Literal["paired"] | float, "n is 'paird'. Did you mean 'paired'? It may also be a float."),
        ("x", Literal["a"] | float | int, "n is 'x'. Known: a. It may also be a float or int."),
        ("ab", tuple[Rule, ...], "n is 'ab', one word where several may come: write ('ab',)."),
        (("paired", "x"), tuple[Rule, ...], "n is 'x'. Known: paired, published."),
        (("paired", 1, "x"), tuple[Rule, int, Rule], "n is 'x'. Known: paired, published."),
        ({"paired": "x"}, dict[Rule, Rule], "n['paired'] is 'x'. Known: paired, published."),
        (["x"], list[Rule] | None, "n is 'x'. Known: paired, published."),
        (3, Rule, "n is 3. Known: paired, published."),
    ],
)
def test_a_word_that_is_none_in_full(value, hint, said):
    with pytest.raises(BadInput) as caught:
        check("n", value, hint)
    assert str(caught.value) == said


def test_what_is_not_looked_into_passes():
    check("n", iter(["x"]), Iterable[Rule])
    check("n", 3, tuple[Rule, ...])
    check("n", ("paired", 5), tuple[Rule, int])
    check("n", "any", Rule | str)
    check("n", "any", Rule | Any)
    check("n", len, Callable[[Rule], int])
    check("n", ["paired"], Sequence[Rule])
    check("n", 0.5, Literal["a"] | float)


def test_a_closed_function_is_called_as_it_was_given():
    @closed
    def sum_of(a: int, *more: int, how: Rule = "paired", **named: int) -> tuple:
        """What it does."""
        return a, more, how, named

    assert sum_of(1, 2, how="published", x=3) == (1, (2,), "published", {"x": 3})
    assert sum_of.__doc__ == "What it does." and sum_of.__name__ == "sum_of"
    with pytest.raises(BadInput, match=r"^how is 'x'\. Known: paired, published\.$"):
        sum_of(1, how="x")
    with pytest.raises(BadInput, match=r"^Settings\.rule is 'x'\. Known: paired, published\.$"):
        Settings("x")


def test_what_was_given_in_memory_is_told_apart_by_its_content():
    from equipoise.data.problems import Problem

    def work(
        rows: Annotated[Any, Setting(objects=True)] = None,
        limits: Annotated[Any, Setting(objects=True, stored=False)] = None,  # may differ when the work is resumed
        words: tuple[str, ...] = (),
    ) -> None: ...

    def digest(*rows: object) -> dict[str, str]:
        return Options(work).digests({"rows": rows, "limits": {"calls": 3}, "words": ("a",)})

    one, other = (Problem("x", text, ("4",)) for text in ("2 + 2", "2 + 3"))
    assert digest(one) == digest(Problem("x", "2 + 2", ("4",))) and set(digest(one)) == {"rows"}
    assert digest(one) != digest(other) and digest({"a": np.arange(2)}) != digest({"a": np.arange(1, 3)})
    assert digest({"a": object()}) == digest({"a": object()})


class _Table:
    """Rows as a datasets.Dataset gives them."""

    def __init__(self, rows: list) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict]:
        return iter(self.rows)


def _of_rows(rows: object) -> str | None:
    def work(rows: Annotated[Any, Setting(objects=True)] = None) -> None: ...

    options = Options(work)
    read = options.read({"rows": rows})
    told = options.to_json(read)["rows"]
    assert told == "2 given" or isinstance(told, int | float), told
    return options.digests(read).get("rows")


def test_arrays_and_rows_of_every_kind_are_told_apart_by_their_content():
    import pandas
    import torch

    numbers, others = [[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.5]]
    rows, other_rows = [{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 3}]
    for kind in (
        np.array,
        lambda each: np.array(each, object),
        lambda each: np.array(each).T,
        torch.tensor,
        lambda each: torch.tensor(each, dtype=torch.bfloat16),
        lambda each: torch.tensor(each, requires_grad=True),
        pandas.DataFrame,
    ):
        assert _of_rows(kind(numbers)) == _of_rows(kind(numbers)) != _of_rows(kind(others)), kind
        assert _of_rows(kind(numbers)) is not None
    for kind in (iter, _Table, deque):
        assert _of_rows(kind(rows)) == _of_rows(rows) != _of_rows(kind(other_rows)), kind
    assert _of_rows(np.zeros((2, 3))) != _of_rows(np.zeros((2, 4)))
    assert _of_rows(np.float32(0.5)) is None and _of_rows(torch.tensor(3)) is None  # settings that say it all
    # A folder that was begun with a list goes on.
    assert _of_rows(rows) == _of_rows(tuple(rows)) == hashlib.sha256(b'[{"a": 1}, {"a": 2}]').hexdigest()


def test_a_tuple_of_so_many_parts_has_each_checked_as_its_own():
    hint = tuple[Literal["a", "b"], Literal["c"]]
    check("pair", ("b", "c"), hint)
    for wrong in (("c", "c"), ("a", "a"), ("a", "c", "a")):  # what is too many is checked as the last
        with pytest.raises(BadInput, match="pair"):
            check("pair", wrong, hint)
    check("pair", ("a", "c", "c"), hint)
    check("several", ("a", "b", "a"), tuple[Literal["a", "b"], ...])


def test_wrong_defaults_are_found_where_an_option_is_read_and_those_of_a_rest_are_the_models():
    def wrong(steps: int = "many") -> None: ...  # type: ignore[assignment]
    def rested(steps: int = "many", **rest: Any) -> None: ...  # type: ignore[assignment]

    with pytest.raises(BadInput) as caught:
        Options(wrong).read({})
    assert str(caught.value) == (
        "option 'steps' should be a valid integer, unable to parse string as an integer, but got None."
    )
    assert Options(rested, rest=Rest).read({"needed": 1}) == {"steps": "many", "needed": 1}


def test_of_several_wrong_options_the_first_is_told():
    with pytest.raises(BadInput, match=r"^Toy: option 'steps' should be at least 1, but got 0\.$"):
        OPTIONS.read({"words": [], "needed": 1, "steps": 0, "rate": 0, "on": "perhaps"})


def test_an_object_of_another_type_is_the_functions_matter():
    def function(source: Annotated[Path, Setting(objects=True)], other: int = 1) -> None: ...

    thing = object()
    assert Options(function).read({"source": thing}) == {"source": thing, "other": 1}


def test_digests_by_hand():
    """Rows as JSON without keys that JSON has not; arrays by type, shape and bytes; of objects their values."""
    import torch

    def work(rows: Annotated[Any, Setting(objects=True)] = None) -> None: ...

    def digest(rows: object) -> str | None:
        return Options(work).digests({"rows": rows}).get("rows")

    def sha(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    assert digest([{(1, 2): 3, "a": 1}, {"b": b"x", "c": Path("y"), "d": np.arange(2), "e": len}]) == sha(
        b'[{"a": 1}, {"b": "b\'x\'", "c": "y", "d": [0, 1], "e": "builtins.builtin_function_or_method"}]'
    )
    numbers = np.array([[1.0, 2.0, 3.0]], np.float32)
    assert digest(numbers) == sha(b"<f4 (1, 3) " + numbers.tobytes())
    assert digest(np.array(["a", None], object)) == sha(b'|O (2,) ["a", null]')
    half = torch.tensor([0.5, 2.0], dtype=torch.bfloat16, requires_grad=True)
    assert digest(half) == sha(b"<f8 (2,) " + np.array([0.5, 2.0]).tobytes())
    assert digest({"a": [1]}) == sha(b'{"a": [1]}') and digest("text") is None and digest(object()) is None
    assert digest(deque([{"a": 1}])) == sha(b'[{"a": 1}]') and digest(deque()) == sha(b"[]")
    assert digest(deque([3])) is None and digest(range(3)) is None

    class Endless:
        def __iter__(self) -> Iterator[dict]:
            return iter([{"a": 1}])

    assert digest(Endless()) is None  # of no length: it may be there once


def test_only_what_holds_several_is_looked_into():
    hint = Mapping[Rule, Rule]
    check("n", 3, hint)
    check("n", ["paired"], hint)
    with pytest.raises(BadInput, match=r"^n is 'x', one word where several may come: write \('x',\)\.$"):
        check("n", "x", hint)
    with pytest.raises(BadInput, match=r"^n is 'x'\. Known: paired, published\.$"):
        check("n", {"x": "paired"}, Iterable[Rule])
    check("n", 3, Iterable[Rule])
    assert judge.__dict__["__closed__"] is True
