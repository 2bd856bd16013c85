"""Costs by hand, budgets at their edges, estimates."""

from dataclasses import replace

import pytest

from equipoise.chat.account import Account, Estimate, Planned, estimate
from equipoise.chat.calls import Call
from equipoise.chat.record import Entry, Record, Usage
from equipoise.core.budget import Budget
from equipoise.core.errors import BadInput, BudgetReached
from equipoise.data.records import Message

USAGE = Usage(1000, 400, 100, 20)
PRICES = {"openai/a": (2.0, 0.5, 8.0)}


def entry(model="openai/a", phase="judge", status="answered", usage=USAGE, **values) -> Entry:
    return Entry("k", model, phase, status, "text", usage, **values)


def test_sums_and_dollars_by_hand():
    account = Account(PRICES)
    account.book(entry(retries=2, seconds=1.5))
    account.book(entry(phase="judge/repair", status="invalid", seconds=0.5))
    account.book(entry(phase="teach", status="failed", usage=None, retries=4))
    account.replayed("openai/a", "judge")
    # One answer: 600 * 2 + 400 * 0.5 + 100 * 8 = 2200 millionths.
    assert account.usd(phase="teach") == 0 and account.usd(phase="judge") == pytest.approx(0.0044)
    assert account.usd() == pytest.approx(0.0044) and account.usd(model="other") == 0
    total = account.total()
    assert (total.calls, total.from_record, total.retries, total.seconds, total.uncounted) == (3, 1, 6, 2.0, 0)
    assert total.usage == Usage(2000, 800, 200, 40)
    assert [(row["phase"], row["calls"], row["usd"]) for row in account.rows()] == [
        ("judge", 1, pytest.approx(0.0022)),
        ("judge/repair", 1, pytest.approx(0.0022)),
        ("teach", 1, 0),
    ]
    stored = account.to_json()
    assert stored["total"] == {
        "calls": 3,
        "from_record": 1,
        "retries": 6,
        "statuses": {"answered": 1, "failed": 1, "invalid": 1},
        "prompt_tokens": 2000,
        "cached_prompt_tokens": 800,
        "generated_tokens": 200,
        "reasoning_tokens": 40,
        "uncounted": 0,
        "seconds": 2.0,
        "usd": pytest.approx(0.0044),
    }
    assert stored["parts"] == account.rows()


def test_unknown_costs_are_not_zero():
    account = Account(PRICES)
    account.book(entry(model="openai/b"))
    assert account.usd() is None and account.usd(model="openai/a") == 0
    account = Account(PRICES)
    account.book(entry(usage=None))
    assert account.usd() is None and account.total().uncounted == 1
    account = Account(PRICES)
    account.book(entry(model="equipoise/smollm2", usage=None))
    assert account.usd() == 0  # nobody charges for what runs here
    assert Account({"equipoise/smollm2": (1, 1, 1)}).usd() == 0


def test_a_record_is_booked_once(tmp_path):
    call = Call((Message("user", "q"),), phase="judge")
    with Record(tmp_path / "r.jsonl") as record:
        record.add(entry(), call)
        record.add(entry(status="failed", usage=None), call)
    with Record(tmp_path / "r.jsonl") as record:
        account = Account(PRICES)
        account.include(record)
        account.include(record)
        assert account.total().calls == 2 and account.total().statuses == {"answered": 1, "failed": 1}


def test_each_limit_stops_where_it_says(monkeypatch):
    account = Account(PRICES)
    account.book(entry())  # 1100 tokens, 0.0022 usd
    account.check(Budget(calls=2))
    with pytest.raises(BudgetReached, match=r"calls=2 is reached \(2\).*goes on with a larger calls=") as error:
        account.check(Budget(calls=2), in_flight=1)
    assert error.value.exit_code == 3
    account.check(Budget(tokens=1101))
    with pytest.raises(BudgetReached, match=r"tokens=1,100 is reached \(1,100\)"):
        account.check(Budget(tokens=1100))
    account.check(Budget(usd=0.0023))
    with pytest.raises(BudgetReached, match=r"usd=0.0022"):
        account.check(Budget(usd=0.0022))
    account.check(Budget(minutes=30))
    account.started -= 1790
    account.check(Budget(minutes=30))
    account.started -= 10
    with pytest.raises(BudgetReached, match=r"minutes=30 is reached.*the same command goes on"):
        account.check(Budget(minutes=30))


def test_a_budget_in_dollars_is_kept_beside_what_has_no_price(tmp_path):
    """An earlier attempt asked a model that is not asked any more: what is known is compared."""
    with Record(tmp_path / "r.jsonl") as record:
        record.add(entry(model="openai/old"), Call((Message("user", "?"),), "judge"))
        account = Account(PRICES)
        account.include(record)
    account.check(Budget(usd=0.004))
    account.book(entry())
    account.book(entry(model="openai/new", status="failed", usage=None))
    account.check(Budget(usd=0.004))
    account.book(entry())
    assert account.usd() is None
    with pytest.raises(BudgetReached, match=r"budget of usd=0\.004"):
        account.check(Budget(usd=0.004))
    account.book(entry(model="openai/new"))
    account.check(Budget(calls=9))
    with pytest.raises(BadInput, match="needs the price of openai/new, which is asked, too"):
        account.check(Budget(usd=9))


def test_a_budget_of_tokens_that_nobody_tells_is_refused():
    account = Account()
    account.book(entry(usage=None))
    account.check(Budget(calls=9, minutes=9))
    with pytest.raises(BadInput, match="no token counts"):
        account.check(Budget(tokens=100))


def test_an_estimate_by_hand():
    call = Call((Message("system", "x" * 30), Message("user", "y" * 10)), phase="judge", max_tokens=50)
    plan = [call, call, Planned("teach", calls=100, characters=400, max_tokens=200)]
    about = estimate(plan, model="openai/a", prices=PRICES)
    # 40 characters once (an equal call is asked once) and 100 * 400; 50 and 100 * 200 tokens at most
    assert (about.calls, about.prompt_tokens, about.generated_tokens) == (101, 10_010, 20_050)
    assert about.usd == pytest.approx((10_010 * 2 + 20_050 * 8) / 1e6)
    assert str(about) == (
        "101 calls, about 10,010 prompt tokens (characters / 4), at most 20,050 generated tokens, at most 0.18 usd"
    )
    assert estimate(plan, model="openai/b").usd is None and estimate(plan, model="equipoise/smollm2").usd == 0


def test_equal_calls_are_estimated_once_and_equal_plans_each():
    call = Call((Message("user", "y" * 40),), phase="judge", max_tokens=50)
    planned = Planned("teach", calls=100, characters=400, max_tokens=200)
    again = [call, replace(call, phase="teach"), replace(call, sample=1)]
    assert estimate(again) == Estimate(2, 20, 100, None)
    assert estimate([planned, planned]) == Estimate(200, 20_000, 40_000, None)


def test_what_has_no_count_and_what_has_no_price():
    """An answer without a count is uncounted, whatever kind of answer; a call that gave none is not."""
    for status, uncounted in (
        ("answered", 1), ("cut", 1), ("invalid", 1), ("refused", 1), ("rejected", 0), ("failed", 0),
    ):  # fmt: skip
        account = Account(PRICES)
        account.book(entry(status=status, usage=None))
        assert account.total().uncounted == uncounted
        assert account.usd() == (None if uncounted else 0.0)
        counted = Account(PRICES)
        counted.book(entry(status=status))
        assert counted.total().uncounted == 0 and counted.usd() == pytest.approx(0.0022)
    account = Account()
    account.replayed("openai/b", "judge")  # nothing was asked of it, so nothing is owed
    assert account.usd() == 0 and account.total().from_record == 1
    priced = Account({"equipoise/smollm2": (1, 2, 3)})
    priced.book(entry(model="equipoise/smollm2"))
    assert priced.usd() == pytest.approx((600 + 800 + 300) / 1e6)
    assert [Account(PRICES).has_price(name) for name in ("openai/a", "openai/b", "equipoise/x", "mockllm/x")] == [
        True, False, True, True,
    ]  # fmt: skip


def test_selections_by_model_and_phase():
    account = Account(PRICES | {"openai/b": (0.0, 0.0, 10.0)})
    for model, phase in (
        ("openai/b", "judge"), ("openai/a", "judge"), ("openai/a", "judge/repair"), ("openai/a", "judge2"),
    ):  # fmt: skip
        account.book(entry(model=model, phase=phase))
    calls = [
        account.total(**chosen).calls for chosen in ({}, {"model": "openai/a"}, {"phase": "judge"}, {"phase": "ju"})
    ]
    assert calls == [4, 3, 3, 0]
    assert account.total(model="openai/a", phase="judge").calls == 2
    assert account.usd(model="openai/a", phase="judge") == pytest.approx(0.0044)
    assert account.usd(phase="judge") == pytest.approx(0.0054)
    assert [(row["model"], row["phase"]) for row in account.rows()] == [
        ("openai/b", "judge"), ("openai/a", "judge"), ("openai/a", "judge/repair"), ("openai/a", "judge2"),
    ]  # fmt: skip
    assert account.rows()[0] == {
        "model": "openai/b",
        "phase": "judge",
        "calls": 1,
        "from_record": 0,
        "retries": 0,
        "statuses": {"answered": 1},
        "prompt_tokens": 1000,
        "cached_prompt_tokens": 400,
        "generated_tokens": 100,
        "reasoning_tokens": 20,
        "uncounted": 0,
        "seconds": 0.0,
        "usd": pytest.approx(0.001),
    }


@pytest.mark.parametrize(
    ("limit", "spent"),
    [("calls", 1), ("prompt_tokens", 1000), ("cached_prompt_tokens", 400), ("generated_tokens", 100), ("seconds", 1.5)],
)
def test_every_cost_can_be_a_limit(limit, spent):
    account = Account(PRICES)
    account.book(entry(seconds=1.5))
    account.check(Budget(**{limit: spent + 0.5}))
    with pytest.raises(BudgetReached, match=f"budget of {limit}="):
        account.check(Budget(**{limit: spent}))


@pytest.mark.parametrize("limit", ["tokens", "usd", "prompt_tokens", "generated_tokens"])
def test_limits_of_what_nobody_tells(limit):
    account = Account(PRICES)
    account.check(Budget(**{limit: 1}))
    account.book(entry(usage=None))
    with pytest.raises(BadInput) as caught:
        account.check(Budget(**{limit: 1}))
    assert str(caught.value) == (
        "The provider tells no token counts, so a budget of tokens or usd cannot be kept; give calls= or minutes=."
    )


def test_two_records_are_both_booked(tmp_path):
    call = Call((Message("user", "q"),), phase="judge")
    account = Account(PRICES)
    for name in "ab":
        with Record(tmp_path / f"{name}.jsonl") as record:
            record.add(entry(), call)
            account.include(record)
    assert account.total().calls == 2


def test_estimates_at_their_edges():
    def about(*characters, model="openai/b", prices=None):
        return estimate(
            [Call((Message("user", "x" * n),), phase="judge", max_tokens=9) for n in characters],
            model=model,
            prices=prices,
        )

    assert [about(n).prompt_tokens for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert (about(1, 2).calls, about(1, 2).prompt_tokens, about(1, 2).generated_tokens) == (2, 1, 18)
    planned = [Planned("a", 3, 10.5, 7)]
    assert estimate([*planned, *planned]).calls == 6 and str(estimate(planned)) == (
        "3 calls, about 8 prompt tokens (characters / 4), at most 21 generated tokens, no price known"
    )
    assert about(4, model="equipoise/x", prices={"equipoise/x": (1.0, 1.0, 1.0)}).usd == pytest.approx(10 / 1e6)
    assert about(4, model="equipoise/x", prices=PRICES).usd == 0 and about(4, model="", prices=PRICES).usd is None
