"""What a command may spend before it stops cleanly; the same words for studies and jobs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from equipoise.core.cost import PEAKS, UNITS
from equipoise.core.errors import BadInput, did_you_mean
from equipoise.core.numbers import number

LIMITS = ("minutes", "calls", "tokens", "usd", *(name for name in UNITS if name != "calls" and name not in PEAKS))
TOKENS = ("trained_tokens", "prompt_tokens", "generated_tokens")  # cached ones are among those of the prompt


@dataclass(frozen=True, init=False)
class Budget:
    """Limits by name, such as `Budget(calls=500, usd=4)`: `minutes` of this attempt, every other a total over all attempts.

    So the same command with a larger budget goes on where it stopped; a limit of time means "work so long, now". `tokens`
    are all that were read, written or trained on.
    """

    limits: Mapping[str, float]

    def __init__(self, **limits: float) -> None:
        """Raises BadInput for an unknown name, with the nearest, and for an amount that is no finite number of 0 or more."""
        for name, limit in limits.items():
            if name not in LIMITS:
                raise BadInput(f"A budget has no {name!r}. {did_you_mean(name, LIMITS)} Example: calls=500,minutes=30.")
            if not 0 <= limit < math.inf:
                raise BadInput(f"A budget of {name}={limit!r} is none: expected a number of 0 or more.")
        object.__setattr__(self, "limits", limits)

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """From "calls=500,usd=4,tokens=2e6,minutes=30". Raises BadInput naming what is not understood."""
        limits: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name in limits:
                raise BadInput(f"The budget names {name} twice; name it once.")
            try:
                limits[name] = float(value)
            except ValueError:
                raise BadInput(f"A budget of {part!r} is none: expected NAME=NUMBER, as in calls=500.") from None
        if not limits:
            raise BadInput("The budget is empty; name at least one limit, such as calls=500.")
        return cls(**limits)

    def reached(self, spent: Mapping[str, float], *, minutes: float) -> str:
        """The sentence for the first limit that is reached, "" while none is. spent: costs by name, of all attempts."""
        tokens = sum(spent.get(name, 0.0) for name in TOKENS)
        amounts = {"tokens": tokens, **spent, "minutes": minutes}
        for name, limit in self.limits.items():
            if amounts.get(name, 0.0) >= limit:
                again = "the same command goes on" + ("" if name == "minutes" else f" with a larger {name}=")
                return (
                    f"The budget of {name}={number(limit)} is reached ({number(amounts.get(name, 0.0))}); what was done is "
                    f"stored, and {again}."
                )
        return ""
