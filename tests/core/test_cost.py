import pytest

from equipoise.core.cost import UNITS, Ledger, total
from equipoise.core.errors import BadInput


def test_a_lost_attempt_is_spent_but_no_work():
    ledger = Ledger()
    ledger.add("build", {"optimizer_steps": 4, "peak_bytes": 100})
    kept = {"build": {"optimizer_steps": 4, "peak_bytes": 100}}
    ledger.add("build", {"optimizer_steps": 3, "peak_bytes": 300})
    ledger.restore(kept)
    ledger.add("build", {"optimizer_steps": 5, "peak_bytes": 200})
    assert ledger.work == {"build": {"optimizer_steps": 9, "peak_bytes": 200}}
    assert ledger.spent == {"build": {"optimizer_steps": 12, "peak_bytes": 300}}
    assert kept == {"build": {"optimizer_steps": 4, "peak_bytes": 100}}


def test_totals_add_phases_and_take_the_largest_peak():
    book = {"build": {"calls": 2, "peak_bytes": 5}, "query": {"calls": 3, "seconds": 0.5, "peak_bytes": 4}}
    assert total(book) == {"calls": 5, "seconds": 0.5, "peak_bytes": 5}


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf")])
def test_no_negative_or_endless_cost(amount):
    with pytest.raises(BadInput, match="calls"):
        Ledger().add("query", {"calls": amount})


def test_both_books_of_a_ledger_are_its_own():
    work, spent = {"build": {"calls": 1}}, {"build": {"calls": 2}}
    ledger = Ledger(work, spent)
    ledger.add("build", {"calls": 1.0, "seconds": 0.5})
    ledger.add("query", {"peak_device_bytes": 7})
    ledger.add("query", {"peak_device_bytes": 5, "calls": 0})
    assert work == {"build": {"calls": 1}} and spent == {"build": {"calls": 2}}
    query = {"peak_device_bytes": 7, "calls": 0}
    assert ledger.to_json() == {
        "work": {"build": {"calls": 2, "seconds": 0.5}, "query": query},
        "spent": {"build": {"calls": 3, "seconds": 0.5}, "query": query},
    }
    assert isinstance(ledger.work["build"]["calls"], int)
    ledger.add("idle", {"peak_bytes": 0, "seconds": 0})
    assert ledger.work.pop("idle") == ledger.spent["idle"] == {"peak_bytes": 0, "seconds": 0}
    ledger.restore(work)
    ledger.add("build", {"calls": 1})
    assert work == {"build": {"calls": 1}} and ledger.work == {"build": {"calls": 2}}
    assert ledger.spent["build"] == {"calls": 4, "seconds": 0.5}
    assert Ledger().to_json() == {"work": {}, "spent": {}} and total({}) == {}
    with pytest.raises(BadInput) as caught:
        ledger.add("query", {"usd": -0.5})
    assert str(caught.value) == "A cost cannot be -0.5 (usd, phase 'query'): it is a finite amount of 0 or more."


def test_units_of_what_every_run_may_book():
    assert UNITS == {
        "optimizer_steps": "steps",
        "trained_tokens": "tokens",
        "prompt_tokens": "tokens",
        "cached_prompt_tokens": "tokens",
        "generated_tokens": "tokens",
        "calls": "calls",
        "seconds": "s",
        "peak_bytes": "bytes",
        "peak_device_bytes": "bytes",
    }
