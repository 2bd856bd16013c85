"""Closed words: what is not one of them is refused wherever it comes from."""

from dataclasses import dataclass
from typing import Literal

import pytest

from equipoise.core.errors import BadInput
from equipoise.core.options import allowed, check_fields, choice, closed

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


def test_where_numbers_may_come_too_the_word_is_not_checked():
    assert allowed(Literal["weakest"] | float) == ()
    assert allowed(Rule | None) == ("paired", "published", None)
    assert judge(level=0.1)[1] == 0.1


@pytest.mark.parametrize("value", [True, 1.0, [1], "1", None])
def test_a_value_of_another_type_is_no_choice(value):
    with pytest.raises(BadInput):
        choice("order", value, Literal[1, 2])


def test_an_iterable_of_names_is_as_good_as_a_literal():
    assert choice("arm", "sago", ["sago", "pcgrad"]) == "sago"
    with pytest.raises(BadInput, match="arm is 'sag'"):
        choice("arm", "sag", ["sago", "pcgrad"])
