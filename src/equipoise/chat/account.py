"""What chat models cost: an estimate before the run, the exact account after it, and a budget that stops in between.

The account is of all attempts: whatever was asked and paid is in the record and is read back from it, lost attempts and
failed calls included. Only `from_record` (answers that cost nothing, because the record had them) is of this attempt.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from equipoise.chat.calls import Call
from equipoise.chat.record import Entry, Record, Usage
from equipoise.core.budget import TOKENS, Budget
from equipoise.core.errors import BadInput, BudgetReached
from equipoise.core.numbers import number

Prices = Mapping[str, tuple[float, float, float]]

CHARACTERS_PER_TOKEN = 4  # a rule of thumb for English; other scripts have fewer characters to a token
REPAIR = "/repair"  # what the phase of a repair question ends with
OWN = "equipoise/"  # the provider of this house
LOCAL = (OWN, "mockllm/")  # run in this process: nobody charges for them


@dataclass
class Tally:
    """Sums over calls. calls: sent to the model, failed ones too. uncounted: answers whose tokens nobody told."""

    calls: int = 0
    from_record: int = 0
    retries: int = 0
    uncounted: int = 0
    seconds: float = 0.0
    usage: Usage = field(default_factory=Usage)
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
        self._asked: set[str] = set()  # models, since this account was opened

    def include(self, record: Record) -> None:
        """Book what earlier attempts stored. A record is read once, however often it is included."""
        if not any(known is record for known in self._included):
            self._included.append(record)
            for entry in record.entries:
                self._book(entry)

    def book(self, entry: Entry) -> None:
        """Add a call that was sent."""
        self._asked.add(entry.model)
        self._book(entry)

    def _book(self, entry: Entry) -> None:
        tally = self._tally(entry.model, entry.phase)
        tally.calls += 1
        tally.retries += entry.retries
        tally.seconds += entry.seconds
        tally.statuses[entry.status] += 1
        if entry.usage is not None:
            tally.usage += entry.usage
        elif entry.status not in ("failed", "rejected"):
            tally.uncounted += 1

    def replayed(self, model: str, phase: str) -> None:
        """Count a call that the record answered."""
        self._tally(model, phase).from_record += 1

    def check(self, budget: Budget, *, in_flight: int = 0) -> None:
        """Raises BudgetReached when one more call, beside those in flight, would go over a limit.

        Calls are exact. Tokens, dollars and minutes are compared before each call: those in flight are finished and
        stored. Dollars are those that are known: earlier attempts may have asked a model that has no price now. Raises
        BadInput for a limit of what the provider does not tell, and for one in dollars where a model without a price is
        asked.
        """
        total = self.total()
        if total.uncounted and budget.limits.keys() & {"tokens", "usd", *TOKENS}:
            raise BadInput(
                "The provider tells no token counts, so a budget of tokens or usd cannot be kept; give calls= or minutes=."
            )
        costs = [(model, tally, self._dollars(model, tally)) for (model, _), tally in self.tallies.items()]
        unknown = [
            model for model, tally, cost in costs if cost is None and model in self._asked and any(astuple(tally.usage))
        ]
        if unknown and "usd" in budget.limits:
            raise BadInput(f"A budget in usd needs the price of {unknown[0]}, which is asked, too; give it, or calls=.")
        known = sum(cost for _, _, cost in costs if cost is not None)
        spent = {"calls": total.calls + in_flight, "usd": known, "seconds": total.seconds}
        spent |= {"prompt_tokens": total.usage.prompt, "cached_prompt_tokens": total.usage.cached}
        spent |= {"generated_tokens": total.usage.generated}
        if reached := budget.reached(spent, minutes=(time.monotonic() - self.started) / 60):
            raise BudgetReached(reached)

    def has_price(self, model: str) -> bool:
        """Whether it is known what a call of the model costs: one of this machine costs nothing."""
        return model in self.prices or model.startswith(LOCAL)

    def usd(self, *, model: str | None = None, phase: str | None = None) -> float | None:
        """Dollars over everything, one model, or one phase with its repairs; None where a price or a count is unknown."""
        costs = [self._dollars(of, tally) for of, tally in self._chosen(model, phase)]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if len(known) == len(costs) else None

    def total(self, *, model: str | None = None, phase: str | None = None) -> Tally:
        """Sums over the same selection."""
        total = Tally()
        for _, tally in self._chosen(model, phase):
            total.add(tally)
        return total

    def rows(self) -> list[dict[str, Any]]:
        """One row per model and phase, in the order in which they were first met; repairs are a phase of their own."""
        return [
            {"model": model, "phase": phase, **_amounts(tally), "usd": self._dollars(model, tally)}
            for (model, phase), tally in self.tallies.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """{"total": amounts, "parts": rows()}."""
        return {"total": {**_amounts(self.total()), "usd": self.usd()}, "parts": self.rows()}

    def _tally(self, model: str, phase: str) -> Tally:
        return self.tallies.setdefault((model, phase), Tally())

    def _chosen(self, model: str | None, phase: str | None) -> list[tuple[str, Tally]]:
        return [
            (of, tally)
            for (of, part), tally in self.tallies.items()
            if model in (None, of) and (phase is None or part in (phase, phase + REPAIR))
        ]

    def _dollars(self, model: str, tally: Tally) -> float | None:
        free = model not in self.prices and model.startswith(LOCAL)
        if free or not tally.calls:
            return 0.0
        return None if tally.uncounted else _dollars(model, tally.usage, self.prices)


@dataclass(frozen=True, slots=True)
class Planned:
    """Calls of one phase that are not written yet: how many, characters of one's messages on average, its max_tokens."""

    phase: str
    calls: int
    characters: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """calls: exact, repairs apart. prompt_tokens: about, by characters / 4. generated_tokens: at most. usd: at most, for
    that many tokens; None without a price."""

    calls: int
    prompt_tokens: int
    generated_tokens: int
    usd: float | None

    def __str__(self) -> str:
        cost = "no price known" if self.usd is None else f"at most {self.usd:.2f} usd"
        return (
            f"{number(self.calls)} calls, about {number(self.prompt_tokens)} prompt tokens (characters / "
            f"{CHARACTERS_PER_TOKEN}), at most {number(self.generated_tokens)} generated tokens, {cost}"
        )


def estimate(plan: Iterable[Call | Planned], *, model: str = "", prices: Prices | None = None) -> Estimate:
    """What these calls would cost if none were in the record: written ones (equal ones count once, whatever their phase), or
    planned numbers."""
    calls, characters, generated = 0, 0.0, 0
    written: set[Call] = set()
    for part in plan:
        if isinstance(part, Call):
            if (asked := replace(part, phase="")) in written:
                continue
            written.add(asked)
        planned = part if isinstance(part, Planned) else Planned(part.phase, 1, _characters(part), part.max_tokens)
        calls += planned.calls
        characters += planned.calls * planned.characters
        generated += planned.calls * planned.max_tokens
    usage = Usage(prompt=math.ceil(characters / CHARACTERS_PER_TOKEN), generated=generated)
    free = not (prices and model in prices) and model.startswith(LOCAL)
    return Estimate(calls, usage.prompt, usage.generated, 0.0 if free else _dollars(model, usage, prices or {}))


def _characters(call: Call) -> int:
    return sum(len(message.content) for message in call.messages)


def _dollars(model: str, usage: Usage, prices: Prices) -> float | None:
    if model not in prices:
        return None
    prompt, cached, generated = prices[model]
    return ((usage.prompt - usage.cached) * prompt + usage.cached * cached + usage.generated * generated) / 1e6


def _amounts(tally: Tally) -> dict[str, Any]:
    return {
        "calls": tally.calls,
        "from_record": tally.from_record,
        "retries": tally.retries,
        "statuses": dict(sorted(tally.statuses.items())),
        "prompt_tokens": tally.usage.prompt,
        "cached_prompt_tokens": tally.usage.cached,
        "generated_tokens": tally.usage.generated,
        "reasoning_tokens": tally.usage.reasoning,
        "uncounted": tally.uncounted,
        "seconds": tally.seconds,
    }
