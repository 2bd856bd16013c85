"""Closed words: what is not one of them is refused wherever it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from equipoise.core.errors import BadInput
from equipoise.core.options import Options, allowed, check_fields, choice, closed

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
