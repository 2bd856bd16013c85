import pytest

from equipoise.core.cost import Ledger, total
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
