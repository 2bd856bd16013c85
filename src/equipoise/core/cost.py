"""The ledger of what a run cost: named amounts with units, in phases.

`work` is what the result needed; `spent` is what was paid over all attempts, so it never shrinks when an attempt is
lost.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from equipoise.core.errors import BadInput

Amounts = dict[str, dict[str, float]]  # phase -> name -> amount

UNITS = {
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
PEAKS = ("peak_bytes", "peak_device_bytes")  # the larger of two, not their sum


class Ledger:
    """Two books kept side by side; `restore` rolls `work` back to a checkpoint and leaves `spent` alone."""

    def __init__(self, work: Amounts | None = None, spent: Amounts | None = None) -> None:
        self.work: Amounts = deepcopy(work) if work else {}
        self.spent: Amounts = deepcopy(spent) if spent else {}

    def add(self, phase: str, amounts: Mapping[str, float]) -> None:
        """Book amounts in both. Raises BadInput for one that is negative or no finite number."""
        for name, amount in amounts.items():
            value = float(amount)
            if not 0 <= value < float("inf"):
                raise BadInput(
                    f"A cost cannot be {amount!r} ({name}, phase {phase!r}): it is a finite amount of 0 or more."
                )
            for book in (self.work, self.spent):
                _add(book.setdefault(phase, {}), name, value)

    def restore(self, work: Amounts) -> None:
        self.work = deepcopy(work)

    def to_json(self) -> dict[str, Any]:
        return {"work": self.work, "spent": self.spent}


def total(book: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Amounts over all phases: name -> amount (the largest for peaks)."""
    amounts: dict[str, float] = {}
    for phase in book.values():
        for name, amount in phase.items():
            _add(amounts, name, amount)
    return amounts


def _add(amounts: dict[str, float], name: str, value: float) -> None:
    value = int(value) if value == int(value) else value
    amounts[name] = max(amounts.get(name, 0), value) if name in PEAKS else amounts.get(name, 0) + value
