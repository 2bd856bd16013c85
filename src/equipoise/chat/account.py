"""What chat models cost: an estimate before the run, the exact account after it, and a budget that stops in between.

The account is of all attempts: whatever was asked and paid is in the record and is read back from it, lost attempts and
failed calls included. Only `from_record` (answers that cost nothing, because the record had them) is of this attempt.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from equipoise.chat.calls import Call
from equipoise.chat.record import Entry, Record, Usage
from equipoise.core.errors import BadInput, BudgetReached, did_you_mean
from equipoise.core.numbers import number

Prices = Mapping[str, tuple[float, float, float]]

CHARACTERS_PER_TOKEN = 4  # a rule of thumb for English; other scripts have fewer characters to a token
OWN = ("equipoise/", "mockllm/")  # run in this process: nobody charges for them


@dataclass
class Tally:
    """Sums over calls. calls: sent to the model, failed ones too. uncounted: answers whose tokens nobody told."""

    calls: int = 0
    from_record: int = 0
    retries: int = 0
    uncounted: int = 0
    seconds: float = 0.0
    usage: Usage = Usage()
    statuses: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        for name in ("calls", "from_record", "retries", "uncounted", "seconds", "usage"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.statuses += other.statuses


class Account:
    """Calls, tokens, seconds and money per model and phase.

    prices: model -> dollars per million prompt tokens, cached prompt tokens and generated tokens. A model that runs in
    this process is free. Without a price for a model its `usd` is None, and so is every sum that it enters.
    """

    def __init__(self, prices: Prices | None = None) -> None:
        self.prices = dict(prices or {})
        self.tallies: dict[tuple[str, str], Tally] = {}
        self.started = time.monotonic()
        self._included: list[Record] = []

    def include(self, record: Record) -> None:
        """Book what earlier attempts stored. A record is read once, however often it is included."""
        if not any(known is record for known in self._included):
            self._included.append(record)
            for entry in record.entries:
                self.book(entry)

    def book(self, entry: Entry) -> None:
        """Add a call that was sent."""
        tally = self._tally(entry.model, entry.phase)
        tally.calls += 1
        tally.retries += entry.retries
        tally.seconds += entry.seconds
        tally.statuses[entry.status] += 1
        if entry.usage is not None:
            tally.usage += entry.usage
        elif entry.status != "failed":
            tally.uncounted += 1

    def replayed(self, model: str, phase: str) -> None:
        """Count a call that the record answered."""
        self._tally(model, phase).from_record += 1

    def has_price(self, model: str) -> bool:
        return model in self.prices or model.startswith(OWN)

    def total(self, *, model: str | None = None, phase: str | None = None) -> Tally:
        """Sums over everything, one model, or one phase with its repairs."""
        total = Tally()
        for (of, part), tally in self.tallies.items():
            if model in (None, of) and phase in (None, part, part.removesuffix("/repair")):
                total.add(tally)
        return total

    def usd(self, *, model: str | None = None, phase: str | None = None) -> float | None:
        """Dollars of the same selection; None where a price or a token count is unknown."""
        total = 0.0
        for (of, part), tally in self.tallies.items():
            if model not in (None, of) or phase not in (None, part, part.removesuffix("/repair")):
                continue
            cost = dollars(of, tally.usage, self.prices)
            if tally.calls and (cost is None or (tally.uncounted and cost_matters(of, self.prices))):
                return None
            total += cost or 0.0
        return total

    def rows(self) -> list[dict[str, Any]]:
        """One row per model and phase, in the order in which they were first met, for a table or a JSON file."""
        return [
            {"model": model, "phase": phase, **_amounts(tally), "usd": self.usd(model=model, phase=phase)}
            for (model, phase), tally in self.tallies.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """{"total": amounts, "parts": rows()}."""
        return {"total": {**_amounts(self.total()), "usd": self.usd()}, "parts": self.rows()}

    def _tally(self, model: str, phase: str) -> Tally:
        return self.tallies.setdefault((model, phase), Tally())
