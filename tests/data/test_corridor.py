"""The corridor: what each action does, plans that are shortest, episodes that end in time, actions as people write them."""

import itertools
from collections import deque

import pytest

from equipoise.core.errors import BadInput
from equipoise.data.corridor import ACTIONS, Corridor, Layout, State, read_action
from equipoise.data.environment import Environment, open_environment

LAYOUT = Layout(cells=7, goal=6, door=4, pit=1)
SHUT = {"key": 2, "closed": True}


@pytest.mark.parametrize(
    ("position", "action", "expected"),
    [
        (3, "left", State(2, 2, True)),
        (2, "left", None),  # the pit
        (3, "right", None),  # the door
        (2, "jump", State(0, 2, True)),
        (0, "jump", State(2, 2, True)),
        (3, "jump", None),
        (0, "left", None),  # the wall
        (2, "take", State(2, -1, True)),
        (3, "take", None),
        (3, "drop", None),
        (3, "open", None),  # no key in hand
    ],
)
def test_actions_by_hand(position, action, expected):
    assert LAYOUT.move(State(position, **SHUT), action) == expected


def test_the_key_opens_the_door_beside_from_either_side_and_can_be_put_down():
    held = State(3, -1, True)
    assert (
        LAYOUT.move(held, "open")
        == State(3, -1, False)
        == LAYOUT.move(held._replace(closed=False), "left")._replace(position=3)
    )
    assert LAYOUT.move(State(5, -1, True), "open") == State(5, -1, False)
    assert LAYOUT.move(State(2, -1, True), "open") is None and LAYOUT.move(State(3, -1, False), "open") is None
    assert LAYOUT.move(held, "drop") == State(3, 3, True)
    assert LAYOUT.move(State(3, -1, False), "right") == State(4, -1, False)


def test_pictures_by_hand():
    assert LAYOUT.picture(State(3, 2, True)) == "._k@D.*"
    assert LAYOUT.picture(State(2, 2, True)) == "._K.D.*"
    assert LAYOUT.picture(State(3, -1, False)) == "._.&..*"
    assert Layout(4, 0, None, None).picture(State(2, None, False)) == "*.@."


def cells(text):
    return text.rsplit("\n", 1)[-1][:-2]


def by_playing(corridor, seed):
    """The fewest actions to the goal, found by playing alone: what is seen is all that counts."""
    queue, seen = deque([()]), {cells(corridor.reset(seed))}
    while queue:
        before = queue.popleft()
        for action in ACTIONS:
            corridor.reset(seed)
            for one in before:
                corridor.step(one)
            text, reward, done, info = corridor.step(action)
            if reward:
                return len(before) + 1
            if not done and info["valid"] and cells(text) not in seen:
                seen.add(cells(text))
                queue.append((*before, action))
    return None


@pytest.mark.parametrize(
    ("lengths", "key", "seeds"), [((1, 4), "anywhere", 8), ((8, 12), "behind", 5), ((5, 9), "ahead", 4)]
)
def test_plans_are_shortest_and_lengths_are_those_asked_for(lengths, key, seeds):
    corridor = Corridor(lengths, cells=9, key=key, rules=False)
    found = set()
    for seed in range(40):
        plan = [action["name"] for action in corridor.plan(seed)]
        found.add(len(plan))
        corridor.reset(seed)
        told = [corridor.step(action) for action in plan]
        assert [each[1] for each in told] == [0.0] * (len(plan) - 1) + [1.0]
        assert told[-1][2] and told[-1][3]["success"] and not any(each[2] for each in told[:-1])
        assert all(each[3]["valid"] for each in told)
        if seed < seeds:
            assert by_playing(corridor, seed) == len(plan)
    assert min(found) >= lengths[0] and max(found) <= lengths[1] and len(found) >= 3
    if key == "behind":  # towards the key is away from the goal
        for seed in range(40):
            seen = cells(corridor.reset(seed))
            assert (seen.index("k") < seen.index("@")) != (seen.index("*") < seen.index("@"))


def test_no_shorter_sequence_comes_to_the_goal():
    corridor = Corridor((4, 4), cells=6, rules=False)
    for seed in range(3):
        for actions in itertools.product(ACTIONS, repeat=3):
            corridor.reset(seed)
            assert not any(corridor.step(action)[1] for action in actions)


def test_everything_follows_from_the_seed():
    one, other = Corridor(rules=False), Corridor(rules=False)
    one.reset(5)
    one.step("left")
    assert [one.reset(seed) for seed in range(20)] == [other.reset(seed) for seed in reversed(range(20))][::-1]
    assert len({one.reset(seed) for seed in range(20)}) > 15


def test_an_episode_ends_some_turns_after_its_plan():
    corridor = Corridor((3, 6), slack=2, rules=False)
    for seed in range(5):
        corridor.reset(seed)
        last = len(corridor.plan(seed)) + 2
        told = [corridor.step("nonsense") for _ in range(last)]
        assert [each[2] for each in told] == [False] * (last - 1) + [True]
        assert told[-1][1] == 0 and not told[-1][3]["success"] and not told[-1][3]["valid"]
        assert [each[0][-1] for each in told[:-1]] == list("23456789"[: last - 1])
    assert corridor.max_turns == 8


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("left", "left"),
        (" Right.\n", "right"),
        ("I take the key!", "take"),
        ('<tool_call>{"name": "open", "arguments": {}}</tool_call>', "open"),
        ("j", "jump"),
        ("D", "drop"),
        ("left left", "left"),
        ("left, then right", None),  # two things
        ("leftover", None),
        ("lr", None),
        ("", None),
        ("\u202eleft", "left"),
    ],
)
def test_actions_are_read_as_people_write_them(text, action):
    assert read_action(text) == action


def test_what_is_not_understood_or_not_possible_is_said():
    corridor = Corridor((8, 12), key="behind")
    first = corridor.reset(0)
    assert "Answer with that word alone" in first and cells(first).count("@") == 1
    text, reward, done, info = corridor.step("fly")
    assert text.startswith("expected one of left, right, jump, take, drop, open\n") and not (reward or done)
    assert info == {"success": False, "valid": False, "actions": []} and cells(text) == cells(first)
    text, _, _, info = corridor.step("drop")
    assert text.startswith("drop is not possible here\n") and info["valid"] is False
    assert info["actions"] == [{"name": "drop", "arguments": {}}]
    bare = Corridor((8, 12), key="behind", rules=False)
    bare.reset(0)
    assert "\n" not in bare.step("drop")[0] and bare.plan_from_here == corridor.plan(0)


def test_chance_is_that_of_random_actions():
    import random

    corridor = Corridor((1, 3), cells=5, slack=1, rules=False)
    draw, won = random.Random(0), 0
    for _ in range(4000):
        corridor.reset(draw.randrange(16))
        done = reward = False
        while not done:
            _, reward, done, _ = corridor.step(draw.choice(ACTIONS))
        won += reward
    assert 0.05 < corridor.chance["success"] < 0.9
    assert abs(won / 4000 - corridor.chance["success"]) < 4 * (0.25 / 4000) ** 0.5
    assert Corridor((8, 12), key="behind").chance["success"] < 1e-3


def test_it_is_an_environment_that_can_be_named():
    opened = open_environment("corridor")
    assert isinstance(opened.make(), Environment) and opened.max_turns == 16 and 0 < opened.chance["success"] < 0.1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lengths": (0, 3)}, "lengths is"),
        ({"lengths": (5, 3)}, "lengths is"),
        ({"lengths": (30, 34)}, "at most 35 turns"),
        ({"cells": 3}, "cells is 3"),
        ({"key": "beside"}, "key"),
        ({"slack": -1}, "slack -1"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(BadInput, match=said):
        Corridor(**settings)


def test_lengths_that_no_corridor_has():
    with pytest.raises(BadInput, match="none takes 20 to 24 actions"):
        Corridor((20, 24), cells=4).reset(0)


def test_a_seed_is_the_same_corridor_in_every_version():
    """Recorded results name seeds: what these draw stays."""
    drawn = {
        ("anywhere", 11, (1, 12)): "....*..DK.. .*......D.& @._.kD*.... &......D.*. *.._..D.&.. .K..D_....* "
         "...*.@..k.. ..*D..&....",
        ("ahead", 8, (2, 9)): ".&...D*. ..*...D& @kD._.*. _..*D..& _..*.D&. .*....DK *.Dk@... ..K..._*",
        ("behind", 9, (8, 12)): "k@D.._*.. k...@D*_. .*D....@k .*D....@k .*..D.@.k k@..D*... ..k..@D*. *D..@k...",
    }  # fmt: skip
    for (key, size, lengths), pictures in drawn.items():
        corridor = Corridor(lengths, cells=size, key=key, rules=False)
        assert [cells(corridor.reset(seed)) for seed in range(8)] == pictures.split()


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({"lengths": (1, 12)}, 0.026062655275939196),
        ({"lengths": (2, 9), "cells": 8, "key": "ahead"}, 0.008383804278766442),
        ({"lengths": (1, 3), "cells": 5, "slack": 1}, 0.07306134259259252),
    ],
)
def test_levels_of_chance_stay_what_they_were(settings, level):
    assert Corridor(**settings).chance == {"success": pytest.approx(level, rel=1e-9)}


def test_chance_by_all_sequences():
    """Brute force: every sequence of actions is as likely."""
    corridor = Corridor((1, 2), cells=4, slack=1, rules=False)
    shares = []
    for seed in range(16):
        turns = len(corridor.plan(seed)) + 1
        won = 0
        for actions in itertools.product(ACTIONS, repeat=turns):
            corridor.reset(seed)
            for action in actions:
                _, reward, done, _ = corridor.step(action)
                if done:
                    break
            won += reward
        shares.append(won / 6**turns)
    assert corridor.chance["success"] == pytest.approx(sum(shares) / 16)


def test_the_widest_settings_are_taken():
    assert Corridor((1, 31), cells=40).max_turns == 35 and Corridor((1, 1), cells=4, slack=0).max_turns == 1
    for settings in ({"cells": 41}, {"lengths": (1, 32)}):
        with pytest.raises(BadInput):
            Corridor(**settings)
