"""The lookup world: what keys give, what is noisy, what is read of an action, and what luck alone gets."""

import random

import pytest

from equipoise.data.environment import Environment, open_environment
from equipoise.data.lookup import CHARACTERS, EXPECTED, HOPS, KEYS, NOISE, Lookup, useful


def begun(seed):
    environment = Lookup()
    return environment, environment.reset(seed)


def test_the_shortest_way_solves_every_seed():
    lengths, noisy = set(), 0
    for seed in range(300):
        environment, first = begun(seed)
        assert isinstance(environment, Environment)
        key, hops = first[0], int(first[1])
        lengths.add(hops)
        found = ""
        for _ in range(environment.max_turns):
            reply, reward, done, info = environment.step(f"00000?{key}")
            assert set(reply) <= set(CHARACTERS) and reply[0] == key and (reward, done) == (0.0, False)
            assert info["owner"] == "tool" and info["call_at"] == 5
            assert info["actions"] == [{"name": "look_up", "arguments": {"key": key}}]
            if reply[1] == "#":
                noisy += 1
                continue
            found += reply[1]
            key = reply[2]
            if key == ".":
                break
        assert len(found) == hops == len(environment.chain)
        assert environment.asked == list(useful(environment))
        reply, reward, done, info = environment.step(f"00000={found}")
        assert (reply, reward, done, info["success"]) == ("", 1.0, True, True)
    assert lengths == set(HOPS)
    assert noisy / 600 == pytest.approx(NOISE, abs=0.06)


def test_everything_follows_from_the_seed_and_the_actions():
    one, two = begun(5)[0], begun(5)[0]
    said = [f"?{random.Random(3).choice(KEYS)}" for _ in range(3)] + ["?A?a?b", "x", "=1"]
    assert [one.step(each) for each in said] == [two.step(each) for each in said]
    assert begun(5)[0].table != begun(6)[0].table


def test_garbage_comes_once_and_in_parallel_calls_too():
    environment, _ = begun(2)
    key = next(iter(environment.garbage))
    other = next(each for each in KEYS if each not in environment.garbage)
    reply = environment.step(f"? {key.upper()}?{other}?{key}")[0]
    assert reply == key + environment.garbage[key] + other + environment.table[other] + key + environment.table[key]
    assert environment.step(f"?{other}")[0] == other + environment.table[other]


def test_what_is_read_of_an_answer():
    environment, _ = begun(4)
    wanted = environment.answer
    for said, reward in ((f"1=0 no ={' '.join(wanted)}", 1.0), (f"={wanted}0", 0.0), (f"= {wanted}", 1.0)):
        environment.reset(4)
        assert environment.step(said)[1:3] == (reward, True)
    environment.reset(4)
    reply, reward, done, info = environment.step("12345 nothing")
    assert (reply, reward, done, info) == (EXPECTED, 0.0, False, {"valid": False})
    assert environment.step(f"={wanted} ?a")[2] is False  # a call wins: its reply was not known yet


def test_luck():
    """Digits are uniform and chains of each length as frequent, so that guessing gets what `chance` says."""
    opened = open_environment("lookup")
    assert opened.max_turns == Lookup.max_turns and opened.name == "lookup"
    answers = []
    for seed in range(1500):
        environment, first = begun(seed)
        assert len(environment.answer) == int(first[1])
        answers.append(environment.answer)
    assert sum(10.0 ** -len(each) for each in answers) / 1500 == pytest.approx(opened.chance["success"], abs=0.004)
    said = "".join(answers)
    assert all(said.count(digit) / len(said) == pytest.approx(0.1, abs=0.02) for digit in "0123456789")
