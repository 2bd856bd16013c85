"""A lookup world with noisy keys: chains of keys whose digits make up the answer, in characters for a tiny model.

    q2              first: the chain begins at q and has 2 links
    ?q   ->  q4m    a call: q has the digit 4, and m comes next
    ?m   ->  m7.    m has the digit 7, and nothing comes next
    =47             the answer: reward 1 if it is right, else 0; it ends the episode

What stands before `?` or `=` is thought, and not read. Several calls of a turn (`?q?m`) are made at once. Every letter can
be looked up, those of no chain, too. A noisy key gives garbage (`q#z`) when it is first asked and what it has from then on,
so that asking again is of use there, and nowhere else.
"""

import random
import re
from collections.abc import Iterator, Mapping
from string import ascii_lowercase, digits
from typing import Any, ClassVar

from equipoise.data.environment import ENVIRONMENTS

HOPS = (1, 2, 3)
KEYS = ascii_lowercase
NOISE = 0.25  # share of keys that give garbage first
CHARACTERS = KEYS + digits + "?=#.!"
EXPECTED = (
    "!"  # what is said to a turn that is neither a call nor an answer, in one character that the tiny model knows
)

_CALL = re.compile(r"\?\s*([a-z])", re.IGNORECASE)
_ANSWER = re.compile(r"=\s*(\d[\d\s,]*)")


@ENVIRONMENTS.register("lookup")
class Lookup:
    """One chain. max_turns: calls for the longest with every key asked twice, and some more. chance: of digits at random."""

    max_turns = 10
    chance: ClassVar[Mapping[str, float]] = {"success": sum(10.0**-hops for hops in HOPS) / len(HOPS)}

    def reset(self, seed: int) -> str:
        """The first key and the number of links of the seed's chain."""
        draw = random.Random(seed)
        hops = draw.choice(HOPS)
        self.chain = draw.sample(KEYS, hops)
        follows = dict(zip(self.chain, [*self.chain[1:], "."], strict=True))
        self.table = {key: draw.choice(digits) + follows.get(key, draw.choice(KEYS)) for key in KEYS}
        self.garbage = {key: "#" + draw.choice(KEYS) for key in KEYS if draw.random() < NOISE}
        self.asked: list[str] = []
        return f"{self.chain[0]}{hops}"

    @property
    def answer(self) -> str:
        """The digits along the chain."""
        return "".join(self.table[key][0] for key in self.chain)

    def look_up(self, key: str) -> str:
        """What a key gives now."""
        noisy = key in self.garbage and key not in self.asked
        self.asked.append(key)
        return key + (self.garbage[key] if noisy else self.table[key])

    def step(self, text: str) -> tuple[str, float, bool, dict[str, Any]]:
        """Calls, or the answer. Beside `Info` it tells call_at, where the first call begins."""
        calls = list(_CALL.finditer(text))
        if calls:
            keys = [call[1].lower() for call in calls]
            made = [{"name": "look_up", "arguments": {"key": key}} for key in keys]
            reply = "".join(map(self.look_up, keys))
            return reply, 0.0, False, {"valid": True, "owner": "tool", "actions": made, "call_at": calls[0].start()}
        answers = _ANSWER.findall(text)
        if not answers:
            return EXPECTED, 0.0, False, {"valid": False}
        right = re.sub(r"\D", "", answers[-1]) == self.answer
        return "", float(right), True, {"success": right, "valid": True}


def useful(environment: Lookup) -> Iterator[str]:
    """The keys that have to be looked up, in their order: each of the chain, those that are noisy twice."""
    for key in environment.chain:
        yield from [key] * (1 + (key in environment.garbage))
