"""Budgets: as typed, as refused, and where each limit stops."""

import pytest

from equipoise.core.budget import LIMITS, Budget
from equipoise.core.errors import BadInput


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("calls=500", Budget(calls=500)),
        (" calls=500, usd = 4.5,tokens=2e6,minutes=30 ", Budget(calls=500, tokens=2e6, usd=4.5, minutes=30)),
        ("calls=0", Budget(calls=0)),
        ("optimizer_steps=9", Budget(optimizer_steps=9)),
    ],
)
def test_budgets_as_typed(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("call=5", "no 'call'. Did you mean 'calls'"),
        ("minuts=3", "Did you mean 'minutes'"),
        ("peak_bytes=3", "no 'peak_bytes'"),
        ("calls", "expected NAME=NUMBER"),
        ("calls=many", "expected NAME=NUMBER"),
        ("calls=-1", "0 or more"),
        ("usd=nan", "0 or more"),
        ("usd=inf", "0 or more"),
        ("", "empty"),
        ("calls=1,calls=2", "twice"),
    ],
)
def test_budgets_that_are_none(text, problem):
    with pytest.raises(BadInput, match=problem):
        Budget.parse(text)


def test_a_limit_is_reached_at_its_amount_and_says_how_to_go_on():
    budget = Budget(calls=3, minutes=2)
    assert budget.reached({"calls": 2.9}, minutes=1.9) == ""
    assert budget.reached({"calls": 3}, minutes=0) == (
        "The budget of calls=3 is reached (3); what was done is stored, and the same command goes on with a larger calls=."
    )
    assert budget.reached({}, minutes=2.5) == (
        "The budget of minutes=2 is reached (2.50); what was done is stored, and the same command goes on."
    )


def test_tokens_are_counted_together_and_cached_ones_once():
    budget = Budget(tokens=10)
    assert budget.reached({"prompt_tokens": 4, "cached_prompt_tokens": 3, "generated_tokens": 5}, minutes=0) == ""
    assert "tokens=10" in budget.reached({"prompt_tokens": 4, "generated_tokens": 5, "trained_tokens": 1}, minutes=0)


def test_all_limits_there_are():
    steps = (
        "optimizer_steps",
        "trained_tokens",
        "prompt_tokens",
        "cached_prompt_tokens",
        "generated_tokens",
        "seconds",
    )
    assert ("minutes", "calls", "tokens", "usd", *steps) == LIMITS


def test_the_first_limit_that_is_reached_is_told():
    budget = Budget(usd=2, calls=3, generated_tokens=0)
    assert budget.reached({"usd": 1.99, "calls": 2}, minutes=99).startswith(
        "The budget of generated_tokens=0 is reached (0)"
    )
    assert budget.reached({"usd": 2.0, "calls": 5}, minutes=0).startswith("The budget of usd=2 is reached (2)")
    assert (
        Budget().reached({"calls": 9}, minutes=9) == ""
        and Budget(minutes=2).reached({"minutes": 5}, minutes=1.99) == ""
    )
    assert Budget(tokens=5).reached({"tokens": 5}, minutes=0) != "" and Budget(calls=1).reached({}, minutes=0) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "x=3",
            "A budget has no 'x'. Known: " + ", ".join(sorted(LIMITS)) + ". Example: calls=500,minutes=30.",
        ),
        ("calls=-0.5", "A budget of calls=-0.5 is none: expected a number of 0 or more."),
        ("calls=1, usd", "A budget of 'usd' is none: expected NAME=NUMBER, as in calls=500."),
        (" , ", "The budget is empty; name at least one limit, such as calls=500."),
        ("usd=1,calls=1,usd=1", "The budget names usd twice; name it once."),
    ],
)
def test_why_a_budget_is_none(text, said):
    with pytest.raises(BadInput) as caught:
        Budget.parse(text)
    assert str(caught.value) == said


def test_what_was_not_spent_is_nothing():
    budget = Budget(usd=0)
    assert budget.reached({}, minutes=0).startswith("The budget of usd=0 is reached (0); what was done is stored")
    assert Budget(usd=0.5).reached({}, minutes=0) == "" and Budget(tokens=1).reached({}, minutes=0) == ""
    assert Budget(minutes=0).reached({}, minutes=0).endswith("the same command goes on.")
    assert (
        Budget(seconds=1)
        .reached({"seconds": 1}, minutes=0)
        .endswith("the same command goes on with a larger seconds=.")
    )
