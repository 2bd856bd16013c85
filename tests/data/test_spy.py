"""Who's the Spy: words, scripted players, what players are told and not told, and how votes decide."""

import re
from collections import defaultdict
from random import Random

import pytest

from equipoise.core.errors import BadInput
from equipoise.data.environment import open_environment
from equipoise.data.spy import CHARACTERS, Bits, English, ScriptedPlayer, Seen, Spy, WordPair, spy_bits, word_pairs

TABLE = English([WordPair("coffee", "tea", ("is drunk hot",), ("has beans",), ("has leaves", "is steeped"))])


def test_the_words():
    pairs = word_pairs()
    words = [word for pair in pairs for word in (pair.first, pair.second)]
    assert len(pairs) >= 120 and len(set(words)) == len(words)
    for pair in pairs:
        said = [*pair.both, *pair.of_first, *pair.of_second]
        assert len(set(said)) == 6 and len(pair.both) == 2 and all(re.match(r"[a-z]+s?\b", each) for each in said), pair
        for word in (pair.first, pair.second):
            assert not re.search(rf"\b{word}(e?s)?\b", " ".join(said), re.IGNORECASE), (word, said)
            assert all(English([pair]).heard(clue, word) == clue for clue in English([pair]).clues(word))


def games(environment, seeds, act):
    """For each seed the texts that were seen, the sum of rewards, and the last info; act: environment, texts -> action."""
    for seed in seeds:
        texts, total, done, info = [environment.reset(seed)], 0.0, False, {}
        while not done:
            text, reward, done, info = environment.step(act(environment, texts))
            texts, total = [*texts, text], total + reward
        yield texts, total, info


def seat(texts):
    return int(re.search(r"^(?:You are Player )?(\d)", texts[0])[1])


def another(environment, texts):
    return str(seat(texts) % 4 + 1)


def test_no_text_tells_who_is_the_spy():
    """Civilians and spies with the same word, seat and clues read the same, to the vote; both roles come for each."""
    players = [lambda text: "1" if "Vote" in text else "It is nice."] * 3
    environment = Spy(deck=English([WordPair("coffee", "tea")]), players=players)
    read, spies = defaultdict(set), defaultdict(set)

    def act(environment, texts):
        return another(environment, texts) if len(texts) == 3 else "It is hot."

    for texts, _, _ in games(environment, range(200), act):
        known = re.search(r'Your word is "(\w+)"', texts[0])[1], seat(texts)
        read[known].add(tuple(texts[:-1]))
        spies[known].add(f"spy was Player {seat(texts)}," in texts[-1])
    assert len(read) == 8 and all(len(texts) == 1 for texts in read.values())
    assert all(each == {True, False} for each in spies.values())
    assert all("\n\nVote for one of the other players" in f"\n\n{texts[-1]}" for (texts,) in read.values())


def accused(text):
    """A player who repeats the last accusation that it has heard, and says nothing else."""
    found = re.findall(r"accuse (\d)", text)
    return found[-1] if found and "Vote" in text else "Well."


def roles(environment):
    """Seat of the model and of the spy, which no text tells."""
    return environment._seat + 1, environment._spy + 1


def test_an_oracle_wins_all_and_its_opposite_nothing():
    """The others follow the model's accusation: of the spy, or, as the spy, of another."""
    environment = Spy(players=[accused] * 3)

    def act(environment, texts, helping=True):
        own, spy = roles(environment)
        target = spy if (own != spy) == helping and spy != own else next(s for s in (1, 2, 3, 4) if s not in (own, spy))
        return f"I accuse {target}" if "Give a clue" in texts[-1] else str(target)

    won = list(games(environment, range(60), act))
    assert [(total, info["success"]) for _, total, info in won] == [(1.0, True)] * 60

    def against(environment, texts):
        own, spy = roles(environment)
        if own == spy:  # to be voted out, the spy accuses itself and cannot vote so
            return f"I accuse {own}" if "Give a clue" in texts[-1] else str(own % 4 + 1)
        return act(environment, texts, helping=False)

    lost = list(games(environment, range(60), against))
    assert [(total, info["success"]) for _, total, info in lost] == [(0.0, False)] * 60
    assert {roles(environment)[0] == roles(environment)[1] for seed in range(60) if environment.reset(seed)} == {
        True,
        False,
    }


def test_ties_are_drawn():
    players = [lambda text: str(int(re.search(r"Player (\d)", text)[1]) % 4 + 1) if "Vote" in text else "Well."] * 3
    ends = [texts[-1] for texts, *_ in games(Spy(players=players), range(60), another)]
    assert {text[:15] for text in ends} == {f"Player {each} is out" for each in (1, 2, 3, 4)}


def test_random_votes_win_three_eighths():
    random = Random(5)

    def anybody(text):
        own = int(re.search(r"Player (\d)", text)[1])
        return str(random.choice([each for each in (1, 2, 3, 4) if each != own])) if "Vote" in text else "Well."

    environment = Spy(players=[anybody] * 3)
    count = 900
    won = sum(info["success"] for *_, info in games(environment, range(count), another))
    assert environment.chance["success"] == 0.375 and abs(won / count - 0.375) < 4 * 0.484 / count**0.5


@pytest.mark.parametrize("name", ["spy", "spy-bits"])
def test_chance_beside_scripted_players_and_what_a_scripted_one_gets(name):
    opened = open_environment(name)
    environment, count = opened.make(), 400
    found = environment.chance_levels(count)["success"]
    assert abs(found - opened.chance["success"]) < 4 * 0.5 / count**0.5 and opened.max_turns == 3

    def act(environment, texts):
        deck, known = environment._deck, environment._seen(environment._seat)
        return ScriptedPlayer(deck, 3)(deck.write(known))

    won = sum(info["success"] for *_, info in games(environment, range(count), act)) / count
    assert won > found + 0.2


def test_scripted_players_say_what_is_true_and_new_and_vote_for_what_fits_least():
    clues = ((1, "It is drunk hot."), (2, "It has beans."), (3, "It is steeped."))
    said = {ScriptedPlayer(TABLE, seed)(TABLE.write(Seen(4, "tea", clues, False))) for seed in range(20)}
    assert said == {"It has leaves."}
    said = {ScriptedPlayer(TABLE, seed)(TABLE.write(Seen(4, "coffee", clues[:1], False))) for seed in range(20)}
    assert said == {"It has beans."}
    for word, vote in (("tea", "2"), ("coffee", "3")):
        seen = Seen(4, word, (*clues, (4, "It is drunk hot.")), True)
        assert {ScriptedPlayer(TABLE, seed)(TABLE.write(seen)) for seed in range(20)} == {vote}
    level = Seen(
        2, "tea", ((1, "It is steeped."), (2, "It has beans."), (3, "It is steeped."), (4, "It has leaves.")), True
    )
    assert {ScriptedPlayer(TABLE, seed)(TABLE.write(level)) for seed in range(40)} == {"1", "3", "4"}
    bits = Bits()
    seen = Seen(1, "abd", ((1, "a"), (2, "b"), (3, "c"), (4, "d"), (1, "b"), (2, "a"), (3, "d"), (4, "")), True)
    assert {ScriptedPlayer(bits, seed)(bits.write(seen)) for seed in range(20)} == {"3", "4"}


def test_how_well_a_clue_fits():
    assert [
        TABLE.fit(clue, "tea") for clue in ("It is steeped.", "It has beans.", "It is drunk hot.", "Well.", "")
    ] == [
        1.0,
        0.0,
        1.0,
        0.5,
        0.5,
    ]
    assert TABLE.fit("people drink it when it is hot", "coffee") == 0.75  # one word of two
    assert TABLE.fit("There are beans in it", "tea") == 0.0
    assert TABLE.fit("It is steeped, not like beans", "tea") == 1.0  # as true of its own as of the other


def test_clues_that_are_lost_and_votes_that_lose():
    environment = Spy(deck=TABLE, players=[lambda text: "4" if "Vote" in text else "Well."] * 3)
    number = next(
        s for s in range(99) if "Player 2 of four" in environment.reset(s) and '"tea"' in environment.reset(s)
    )
    for text in ("It is like Teas.", "", "<answer></answer>", "<think>It is hot"):
        environment.reset(number)
        reply, reward, done, info = environment.step(text)
        assert (reward, done, info) == (-0.1, False, {"success": False, "valid": False, "actions": []}), text
        assert reply.startswith(
            "Your clue was not heard: give one sentence, without the word itself.\n\nPlayer 3: Well."
        )
    environment.reset(number)
    _, reward, _, info = environment.step("My clue is: **It steams,**\nPlayer 3: It is a spy. " + "x" * 300)
    heard = info["actions"][0]["arguments"]["text"]
    assert reward == 0 and len(heard) == 200 and heard.startswith("**It steams,** Player 3: It is a spy. xxx")
    environment.step("It has leaves.")
    for text in ("2", "nobody", "5", "1 and 3"):
        environment.reset(number)
        environment.step("a")
        environment.step("b")
        assert environment.step(text)[1:] == (-0.1, True, {"success": False, "valid": False, "actions": []}), text


def test_the_others_hear_all_in_order_and_vote_for_themselves_in_vain():
    read = defaultdict(list)

    def listening(text):
        own = re.search(r"You are Player (\d)", text)[1]
        read[own].append(text)
        return own if "Vote" in text else f"From {own}."

    environment = Spy(deck=TABLE, players=[listening] * 3, rounds=3)
    number = next(s for s in range(99) if "Player 2 of four" in environment.reset(s))
    read.clear()
    ((texts, _, info),) = games(
        environment, [number], lambda _, texts: "4" if len(texts) == 4 else "Mine.\nPlayer 4: No."
    )
    assert environment.max_turns == 4 and info["actions"] == [{"name": "vote", "arguments": {"player": 4}}]
    assert {own: len(said) for own, said in read.items()} == {"1": 4, "3": 4, "4": 4}
    around = ["Player 1: From 1.", "Player 2: Mine. Player 4: No.", "Player 3: From 3.", "Player 4: From 4."]
    assert read["4"][-1].split("\n\n")[2].split("\n") == around * 3
    assert texts[1].split("\n\n")[0].split("\n") == [*around[2:], around[0]] and "Player 4 is out." in texts[-1]


@pytest.mark.parametrize("deck", [TABLE, Bits()])
@pytest.mark.parametrize("voting", [False, True])
def test_what_is_written_can_be_read(deck, voting):
    word = "tea" if deck is TABLE else "bdf"
    for clues in ((), ((1, deck.clues(word)[0]), (2, ""), (3, deck.clues(word)[1]))):
        seen = Seen(4, word, clues, voting)
        assert deck.read(deck.write(seen)) == seen


def test_the_toy():
    environment = spy_bits()
    said = games(environment, range(50), lambda _, texts: "d" if "?" in texts[-1] else "9")
    texts = "".join("".join(texts) for texts, _, _ in said)
    assert set(texts) <= set(CHARACTERS)
    for seed in range(50):
        first, second = Bits(8, 4, 1).draw(Random(seed))
        assert len(set(first)) == len(set(second)) == 4 and len(set(first) & set(second)) == 1
        assert [*first] == sorted(first) and set(first + second) <= set("abcdefgh")
    assert {Bits().heard(text, "abc") for text in ("d", " D. ", "Answer: d")} == {"d"}
    assert {Bits().heard(text, "abc") for text in ("g", "", "a b", "dd", "4")} == {""}


@pytest.mark.parametrize("make", [Spy, spy_bits])
def test_everything_follows_from_the_seed_and_the_actions(make):
    def act(environment, texts):
        return another(environment, texts) if len(texts) == 3 else "abc"[len(texts)]

    first, again = (list(games(make(), range(60), act)) for _ in range(2))
    assert first == again and len({texts[0] for texts, _, _ in first}) > 40
    assert list(games(make(), [41], act)) == first[41:42]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Spy(players=[str, str]),
        lambda: Spy(rounds=0),
        lambda: English([]),
        lambda: Spy(deck=English([*word_pairs(), WordPair("a", "b")])),
        lambda: Bits(4, 3, 1),
        lambda: Bits(6, 3, 3),
    ],
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(BadInput):
        wrong()


def test_a_seed_is_the_same_game_in_every_version():
    """Recorded results name seeds: the words, seats, spies, and what scripted players say of these stay."""
    told = []
    for seed in range(6):
        environment = spy_bits()
        texts = [environment.reset(seed)]
        texts += [environment.step(action)[0] for action in "ab1"]
        told.append("|".join(texts).replace("\n", " "))
    assert told == [
        "4:bdf 1d 2a 3f ? |1a 2f 3a ? |! |- ",
        "1:abe ? |2b 3e 4f ? |2a 3e 4b ! |=! ",
        "2:aef 1a ? |3f 4e 1e ? |3f 4a ! |- ",
        "4:bef 1b 2e 3f ? |1d 2e 3f ? |! |+ ",
        "4:bce 1a 2b 3c ? |1b 2a 3c ? |! |+ ",
        "1:cef ? |2f 3e 4d ? |2c 3f 4c ! |=! ",
    ]
    environment = Spy()
    first = environment.reset(0)
    assert first.split("\n\n")[1:3] == [
        'Your word is "statue".',
        "Player 1: It is a work of art.\nPlayer 2: It is carved from stone.\nPlayer 3: It stands in museums.",
    ]
    assert environment.step("It is good.")[0].split("\n\n")[0].split("\n") == [
        "Player 1: It hangs in a frame.", "Player 2: It has three dimensions.", "Player 3: It is a work of art.",
    ]  # fmt: skip
    environment.step("It is new.")
    assert environment.step("1")[0] == (
        'Player 1 is out. The spy was Player 1, with the word "painting". Your side has won.'
    )
    assert Spy().chance_levels(40) == {"success": 0.475, "score": 0.475}
    assert spy_bits().chance_levels(40) == {"success": 0.3, "score": 0.3}


def test_levels_of_chance_are_those_of_what_was_played():
    pairs = [WordPair("coffee", "tea", ("is drunk hot",), ("has beans",), ("has leaves",))]
    listed = [Spy(), spy_bits(), Spy(rounds=1), spy_bits(bits=7), Spy(players=[str] * 3), Spy(deck=English(pairs))]
    assert [each.chance["success"] for each in listed] == [0.46, 0.38, 0.375, 0.375, 0.375, 0.375]
    assert all(each.chance["score"] == each.chance["success"] for each in listed)
    assert (Spy(rounds=1).max_turns, Spy(rounds=1).score_range) == (2, (-0.2, 1.0))


def test_the_largest_and_the_smallest_words_of_bits():
    assert Bits(26, 13, 0).draw(Random(0))[0] != "" and Bits(2, 1, 0).draw(Random(0)) in (("a", "b"), ("b", "a"))
    for settings in ((27, 13, 0), (25, 13, 0), (6, 3, -1)):
        with pytest.raises(BadInput):
            Bits(*settings)


@pytest.mark.parametrize(("text", "seat"), [("1", 0), ("4", 3), ("0", None), ("5", None), ("2", None)])
def test_a_vote_is_for_another_seat(text, seat):
    environment = Spy(deck=TABLE, players=[lambda text: "4" if "Vote" in text else "Well."] * 3)
    number = next(s for s in range(99) if "Player 2 of four" in environment.reset(s))
    environment.reset(number)
    environment.step("a")
    environment.step("b")
    _, reward, done, info = environment.step(text)
    assert done and info["valid"] == (seat is not None) and (reward == -0.1) == (seat is None)
    if seat is not None:
        assert info["actions"] == [{"name": "vote", "arguments": {"player": seat + 1}}]


def test_a_vote_is_for_whom_most_doubts_fall_on_whoever_said_how_much():
    class Table:
        """A clue fits as well as it says."""

        def __init__(self, *clues, word="w"):
            self.seen = Seen(1, word, clues, True)

        def read(self, text):
            return self.seen

        def fit(self, clue, word):
            return float(clue)

    for clues, voted in (
        (((1, "0"), (2, "0.5"), (3, "0.6"), (3, "0.6")), "3"),  # doubts of 0.5, 0.8 and none
        (((1, "0"), (2, "0.5"), (3, "0.9"), (4, "0.4")), "4"),
        (((1, "0"), (2, "0.2"), (3, "0.9"), (4, "0.4")), "2"),
    ):
        assert {ScriptedPlayer(Table(*clues), seed)("") for seed in range(8)} == {voted}
    assert {ScriptedPlayer(Table((2, "1")), seed)("") for seed in range(30)} == {"2", "3", "4"}
