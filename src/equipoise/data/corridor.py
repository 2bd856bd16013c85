"""A corridor with a key, a door, a pit and a goal: a text environment whose shortest plans are known.

    ..k.@.D_.*. 7      the cells, then the turn: @ you (& with the key in hand, K on the cell of the key), k the key,
                       D a closed door, _ a pit, * the goal, . a free cell

    left, right     a cell further; pits and closed doors are in the way
    jump            over the pit that is beside you
    take, drop      the key, where you stand
    open            the door that is beside you, with the key in hand

The reward is 1 at the goal and 0 before. An episode ends there, or some turns after the shortest plan would have. Which
corridor it is follows from the seed; `plan` finds its shortest plan by breadth-first search, so that the length of plans
can be chosen: what takes four actions at most, and what takes eight or more because the key lies behind you.
"""

import random
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from equipoise.core.errors import BadInput
from equipoise.core.options import closed
from equipoise.data.environment import ENVIRONMENTS

ACTIONS = ("left", "right", "jump", "take", "drop", "open")
RULES = (
    "You are @ in a corridor and want to come to the goal *. Each turn you are shown the cells and the number of the turn: "
    "k is a key, D a closed door, _ a pit, a dot a free cell; you are & with the key in your hand, and K on its cell. Do "
    "one thing a turn: left, right, jump (over the pit beside you), take or drop (the key, where you stand), open (the door "
    "beside you, with the key). Answer with that word alone."
)
Key = Literal["anywhere", "ahead", "behind"]
_TURNS = "123456789abcdefghijklmnopqrstuvwxyz"  # one sign each
_TRIES = 2000  # corridors that are drawn before lengths are called impossible
_SEEDS = 16  # whose corridors chance is averaged over


class State(NamedTuple):
    """position: yours. key: its cell, -1 in your hand, None where there is none. closed: whether the door still is."""

    position: int
    key: int | None
    closed: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """What of a corridor never changes, in cells from 0; None for no door and no pit."""

    cells: int
    goal: int
    door: int | None
    pit: int | None

    def move(self, state: State, action: str) -> State | None:
        """What an action comes to; None where it is not allowed."""
        position, key, shut = state
        match action:
            case "left" | "right":
                to = position + (1 if action == "right" else -1)
                return state._replace(position=to) if to != self.pit and self._free(to, shut) else None
            case "jump":
                if self.pit is None or abs(self.pit - position) != 1:
                    return None
                to = 2 * self.pit - position
                return state._replace(position=to) if self._free(to, shut) else None
            case "take":
                return state._replace(key=-1) if key == position else None
            case "drop":
                return state._replace(key=position) if key == -1 else None
            case _:
                beside = shut and self.door is not None and abs(self.door - position) == 1
                return state._replace(closed=False) if key == -1 and beside else None

    def _free(self, cell: int, shut: bool) -> bool:
        return 0 <= cell < self.cells and not (shut and cell == self.door)

    def plan(self, state: State) -> tuple[str, ...] | None:
        """The shortest way to the goal, the first in the order of ACTIONS among equals; None where there is none."""
        return _plan(self, state)

    def picture(self, state: State) -> str:
        """The cells, a sign each."""
        signs = ["."] * self.cells
        signs[self.goal] = "*"
        if self.pit is not None:
            signs[self.pit] = "_"
        if state.closed and self.door is not None:
            signs[self.door] = "D"
        if state.key is not None and state.key >= 0:
            signs[state.key] = "k"
        signs[state.position] = "&" if state.key == -1 else "K" if state.key == state.position else "@"
        return "".join(signs)


@ENVIRONMENTS.register("corridor")
class Corridor:
    """Corridors whose shortest plan takes from lengths[0] to lengths[1] actions.

    cells: of a corridor. key: where it lies, seen from the start towards the goal; "behind" leaves corridors that do without
    it out. slack: turns that an episode may take more than its plan. rules: whether the first text says how it is played,
    and replies what was not possible; without them a model has to know. Raises BadInput for lengths that none has.
    """

    @closed
    def __init__(
        self,
        lengths: tuple[int, int] = (1, 12),
        *,
        cells: int = 11,
        key: Key = "anywhere",
        slack: int = 4,
        rules: bool = True,
    ) -> None:
        least, most = lengths
        if not 1 <= least <= most or slack < 0 or most + slack > len(_TURNS):
            raise BadInput(
                f"lengths is {tuple(lengths)} and slack {slack}: plans have at least 1 action, the first length is the "
                f"smaller, and an episode at most {len(_TURNS)} turns."
            )
        if not 4 <= cells <= 40:
            raise BadInput(f"cells is {cells}, expected 4 to 40.")
        self.rules, self.slack = rules, slack
        self._kind = (least, most, cells, key)
        self.max_turns = most + slack

    @property
    def chance(self) -> Mapping[str, float]:
        """How often uniformly random actions come to the goal: exact, the mean over the corridors of the first seeds."""
        return {"success": _chance(*self._kind, self.slack)}

    def plan(self, seed: int) -> list[dict[str, Any]]:
        """The shortest plan of a seed's corridor, as `Info.actions` has actions."""
        return [_named(action) for action in _drawn(*self._kind, seed)[2]]

    @property
    def plan_from_here(self) -> list[dict[str, Any]]:
        """The shortest plan from where the episode is now; [] at the goal, and where there is none."""
        return [_named(action) for action in self._layout.plan(self._state) or ()]

    def reset(self, seed: int) -> str:
        """Begin in the corridor of a seed."""
        self._layout, self._state, plan = _drawn(*self._kind, seed)
        self._turn, self._last = 0, len(plan) + self.slack
        return f"{RULES}\n{self._seen()}" if self.rules else self._seen()

    def step(self, text: str) -> tuple[str, float, bool, dict[str, Any]]:
        """One action, by its name anywhere in the text or by its first letter alone; two different ones are none."""
        action = read_action(text)
        after = None if action is None else self._layout.move(self._state, action)
        self._turn += 1
        self._state = after or self._state
        success = self._state.position == self._layout.goal
        done = success or self._turn == self._last
        info = {"success": success, "valid": after is not None, "actions": [_named(action)] if action else []}
        said = "" if done else self._seen()
        if action is None:
            said = f"expected one of {', '.join(ACTIONS)}\n{said}".rstrip()
        elif after is None and self.rules:
            said = f"{action} is not possible here\n{said}".rstrip()
        return said, float(success), done, info

    def _seen(self) -> str:
        return f"{self._layout.picture(self._state)} {_TURNS[self._turn]}"


def read_action(text: str) -> str | None:
    """The action that a text names as a word, in any case, or is the first letter of; None where it names none or two."""
    said = text.strip().casefold()
    named = {word for word in re.findall(r"[a-z]+", said) if word in ACTIONS}
    if not named:
        named = {action for action in ACTIONS if said == action[0]}
    return named.pop() if len(named) == 1 else None


def _named(action: str) -> dict[str, Any]:
    return {"name": action, "arguments": {}}


@lru_cache(maxsize=100_000)
def _plan(layout: Layout, state: State) -> tuple[str, ...] | None:
    came: dict[State, tuple[State, str]] = {}
    queue, seen = deque([state]), {state}
    while queue:
        now = queue.popleft()
        if now.position == layout.goal:
            actions = []
            while now != state:
                now, action = came[now]
                actions.append(action)
            return tuple(actions[::-1])
        for action in ACTIONS:
            then = layout.move(now, action)
            if then is not None and then not in seen:
                seen.add(then)
                came[then] = now, action
                queue.append(then)
    return None


@lru_cache(maxsize=100_000)
def _drawn(least: int, most: int, cells: int, key: Key, seed: int) -> tuple[Layout, State, tuple[str, ...]]:
    """The corridor of a seed, its first state and its plan."""
    for layout, state in _corridors(cells, key, random.Random(f"corridor {seed}")):
        plan = layout.plan(state)
        if plan is not None and least <= len(plan) <= most:
            return layout, state, plan
    raise BadInput(
        f"among {_TRIES} corridors of {cells} cells with the key {key!r} none takes {least} to {most} actions: use more "
        "cells, or other lengths."
    )


def _corridors(cells: int, key: Key, draw: random.Random) -> Iterator[tuple[Layout, State]]:
    for _ in range(_TRIES):
        start, door, goal = sorted(draw.sample(range(cells), 3))
        has_door = key == "behind" or draw.random() < 0.75
        held = key != "behind" and draw.random() < 0.3
        first, last = {"anywhere": (0, door), "ahead": (start, door), "behind": (0, start)}[key]
        if first == last:
            continue
        place = draw.randrange(first, last)
        others = [cell for cell in range(cells) if cell not in (start, goal, place) and not (has_door and cell == door)]
        pit = draw.choice(others) if others and draw.random() < 0.5 else None
        flip = (lambda cell: cells - 1 - cell) if draw.random() < 0.5 else (lambda cell: cell)
        layout = Layout(cells, flip(goal), flip(door) if has_door else None, None if pit is None else flip(pit))
        yield layout, State(flip(start), -1 if held else flip(place), has_door)


@lru_cache(maxsize=100)
def _chance(least: int, most: int, cells: int, key: Key, slack: int) -> float:
    """The share of random episodes that come to the goal in time, from the probabilities of all states, turn by turn."""
    total = 0.0
    for seed in range(_SEEDS):
        layout, state, plan = _drawn(least, most, cells, key, seed)
        weights = {state: 1.0}
        for _ in range(len(plan) + slack):
            following: dict[State, float] = {}
            for now, weight in weights.items():
                for action in ACTIONS:
                    then = layout.move(now, action) or now
                    if then.position == layout.goal:
                        total += weight / len(ACTIONS)
                    else:
                        following[then] = following.get(then, 0.0) + weight / len(ACTIONS)
            weights = following
    return total / _SEEDS
