"""Matrix games: what is right by each rule, that every layout tells the whole game, and chance."""

import re
from fractions import Fraction
from random import Random
from typing import get_args

import pytest

from equipoise.core.errors import BadInput
from equipoise.data.environment import open_environment
from equipoise.data.equilibria import support_equilibria
from equipoise.data.matrix_games import CHARACTERS, GAMES, SMALL, MatrixGames, Rule, labels, right_actions
from equipoise.data.matrix_layouts import LAYOUTS, Layout, compact_layout

EXPECTED = {  # of GIFT's released rule, plain and negated
    "prisoners-dilemma": ((2, 2), (1, 1)),
    "battle-of-sexes": ((1, 2), (1, 2)),
    "chicken": ((2, 2), (2, 2)),
    "stag-hunt": ((2, 2), (2, 2)),
    "radio-station": ((1, 1), (2, 2)),
    "iesds": ((2, 2), (2, 3)),
    "duopoly": ((3, 3), (1, 1)),
    "three-by-four": ((2, 1),),
    "weakly-dominated": ((3, 1),),
}
CASES = [(name, sign) for name, known in EXPECTED.items() for sign in (1, -1)[: len(known)]]


def likeliest(pair):
    return tuple(each.index(max(each)) + 1 for each in pair)


@pytest.mark.parametrize(("name", "sign"), CASES)
def test_labels_of_the_last_equilibrium(name, sign):
    assert labels(name, sign) == EXPECTED[name][sign == -1]
    if name != "duopoly":  # by far the largest, and done once more would take longer than all others
        shifted = GAMES[name].payoffs(sign, -100)
        assert likeliest(support_equilibria(*shifted)[-1]) == labels(name, sign)


def test_the_games():
    assert list(GAMES) == list(EXPECTED) and [game.negated for game in GAMES.values()] == [True] * 7 + [False] * 2
    assert {(game.actions(0), game.actions(1)) for game in map(GAMES.get, SMALL)} == {(2, 2)}
    assert GAMES["duopoly"].first[3] == (15, 9, 3, -3, -3, -3) and GAMES["duopoly"].second[0] == (0, 9, 14, 15, 12, 5)
    assert GAMES["prisoners-dilemma"].payoffs(-1, 100) == (((97, 100), (95, 99)), ((97, 95), (100, 99)))


def test_rules_differ_where_they_should():
    right = {
        rule: [set(right_actions("battle-of-sexes", 1, player, rule)) for player in (0, 1)] for rule in get_args(Rule)
    }
    assert right == {
        "last-equilibrium": [{1}, {2}],
        "pure-nash": [{1, 2}, {1, 2}],
        "any-equilibrium": [{1, 2}, {1, 2}],
        "best-response": [{2}, {1}],
    }
    first, second = GAMES["battle-of-sexes"].payoffs()
    assert first[0][1] == second[0][1] == 0  # what the released rule teaches both together
    # The last equilibrium of chicken is mixed: its likeliest action is 2, and 1 is the best response to that.
    assert [set(right_actions("chicken", 1, 0, rule)) for rule in get_args(Rule)] == [{2}, {1, 2}, {1, 2}, {1}]
    assert right_actions("weakly-dominated", 1, 0, "any-equilibrium") == {2, 3}
    assert right_actions("weakly-dominated", 1, 0, "pure-nash") == {3}
    assert right_actions("weakly-dominated", 1, 0, "best-response") == {2, 3}  # 6 each against action 1
    assert right_actions("three-by-four", 1, 1, "best-response") == {1}  # the columns of its own payoffs in row 2
    assert right_actions("iesds", -1, 0, "pure-nash") == set()


def test_negation_is_another_game_and_one_without_a_pure_equilibrium_is_not_drawn():
    assert labels("prisoners-dilemma", 1) != labels("prisoners-dilemma", -1)
    signs = {
        rule: {MatrixGames(games=["iesds"], rule=rule, shifts=[0], compact=True).reset(seed) for seed in range(40)}
        for rule in ("pure-nash", "any-equilibrium")
    }
    assert len(signs["pure-nash"]) == 2 and len(signs["any-equilibrium"]) == 4  # by player, and by sign


FIRST, SECOND = ((211, -212, 213), (214, 215, 216)), ((321, 322, 323), (324, -325, 326))
BY_ROWS = [*range(211, 217)], [*range(321, 327)]


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("player", [0, 1])
def test_every_layout_tells_every_payoff_in_its_place(layout, player):
    """By the order of the numbers: of those that show the reader's actions as rows, player 2's go by columns."""
    text = LAYOUTS[layout](FIRST, SECOND, player)
    numbers = [int(number) for number in re.findall(r"-?\d{3}", text)]
    assert -212 in numbers and -325 in numbers
    mine, yours = ([abs(number) for number in numbers if abs(number) // 100 == hundred] for hundred in (2, 3))
    across, down = [*range(6)], [0, 3, 1, 4, 2, 5]
    own = player == 1 and layout in ("own-tables", "pair-grid", "farmers")
    # Replies: what each action of the other makes of the reader's, then what the reader's make of the other's.
    places = (down, across) if layout == "replies" else (down, down) if own else (across, across)
    assert [mine, yours] == [[values[place] for place in each] for values, each in zip(BY_ROWS, places, strict=True)]


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("sentences", "Player 1 takes action 1 and Player 2 takes action 3, Player 1 receives 213"),
        ("arrows", "(1, 3) -> 213, 323"),
        ("json", '"player_1": 1, "player_2": 3, "payoff_1": 213, "payoff_2": 323'),
        ("firms", "plan 1 against plan 3: 213 and 323"),
        ("travelers", "213 and 323 if the other takes road 3. Should Player 1 take road 2"),
        ("farmers", "crop 1 and your neighbor sows crop 3, your harvest is worth 213"),
        ("replies", "Player 2 choose 3: your action 1 gives you 213; your action 2 gives you 216"),
    ],
)
def test_lists_name_the_actions_of_each_payoff(layout, said):
    assert said in LAYOUTS[layout](FIRST, SECOND, 0)


def test_compact_texts_have_few_characters_and_show_the_own_actions_as_rows():
    assert compact_layout(FIRST, SECOND, 0) == "1:211 -212 213/214 215 216;321 322 323/324 -325 326\n"
    assert compact_layout(FIRST, SECOND, 1, 2) == "2:321 324/322 -325/323 326;211 214/-212 215/213 216?2\n"
    for rule in get_args(Rule):
        environment = MatrixGames(games=SMALL, rule=rule, compact=True)
        texts = {text for seed in range(60) for text in (environment.reset(seed), environment.step("7")[0])}
        assert len(texts) > 20 and set("".join(texts)) <= set(CHARACTERS)


def read(text):
    """The game of a compact text, as two players see it."""
    player, tables = re.fullmatch(r"(\d):([^?]+)(?:\?\d)?\n", text).groups()
    own, other = ([list(map(int, row.split())) for row in table.split("/")] for table in tables.split(";"))
    return int(player), own, other


def oracle(text):
    """The released rule from the text alone."""
    player, own, other = read(text)
    if player == 2:
        own, other = ([*zip(*other, strict=True)], [*zip(*own, strict=True)])
    return likeliest(support_equilibria(own, other)[-1])[player - 1]


def test_an_oracle_solves_all_and_its_opposite_nothing():
    environment = MatrixGames(games=[name for name in GAMES if name != "duopoly"], compact=True)
    for seed in range(60):
        right, count = oracle(environment.reset(seed)), len(read(environment.reset(seed))[1])
        text, reward, done, info = environment.step(f"Answer: {right}")
        assert (text, reward, done, info["success"], info["valid"]) == ("1\n", 1.0, True, True, True)
        assert info["actions"] == [{"name": "choose", "arguments": {"action": right}}]
        environment.reset(seed)
        assert environment.step(str(right % count + 1))[1:] == (
            0.0,
            True,
            {
                "success": False,
                "valid": True,
                "actions": [{"name": "choose", "arguments": {"action": right % count + 1}}],
            },
        )


def test_what_is_no_action_ends_the_episode_and_says_what_was_expected():
    environment = MatrixGames(games=["weakly-dominated"])
    for seed in range(4):
        count = 3 if "You are Player 1." in environment.reset(seed) else 2
        for text in ("", "the first", str(count + 1), "0", "1 or 2", "-1", "1.5", "<think>2"):
            environment.reset(seed)
            reply, reward, done, info = environment.step(text)
            assert (reward, done, info) == (-0.1, True, {"success": False, "valid": False, "actions": []}), text
            assert f"one number from 1 to {count}" in reply


def test_chance_is_exact_and_what_is_played():
    chance = open_environment("matrix-games").chance
    assert chance == {"success": pytest.approx(85 / 216), "score": pytest.approx(85 / 216), "always 2": 4.75 / 9}
    small = MatrixGames(games=SMALL).chance
    assert small["success"] == 0.5 and small["always 2"] == 0.75
    assert MatrixGames(games=["battle-of-sexes"], rule="any-equilibrium").chance["success"] == 1
    environment, random = MatrixGames(), Random(1)
    count, always, drawn = 1500, 0, 0
    for seed in range(count):
        text = environment.reset(seed)
        always += environment.step("2")[3]["success"]
        actions = int(re.search(r"from 1 to (\d)", text)[1])
        drawn += environment.step(str(random.randint(1, actions)))[3]["success"]
    assert abs(always / count - 4.75 / 9) < 4 * 0.5 / count**0.5
    assert abs(drawn / count - float(Fraction(85, 216))) < 4 * 0.5 / count**0.5


def test_everything_follows_from_the_seed_and_seeds_differ():
    environment, other = MatrixGames(), MatrixGames()
    texts = [environment.reset(seed) for seed in range(200)]
    assert [other.reset(seed) for seed in reversed(range(200))] == texts[::-1] and len(set(texts)) > 170
    assert all(
        any(re.search(word, text) for text in texts) for word in ("firms", "couriers", "farmers", "A = ", r"\|---")
    )


@pytest.mark.parametrize(
    "wrong", [{"rule": "nash"}, {"games": ["chikken"]}, {"layouts": ["table"]}, {"games": []}, {"games": "chicken"}]
)
def test_what_is_misspelt_is_refused(wrong):
    with pytest.raises(BadInput):
        MatrixGames(**wrong)


def test_a_best_response_is_asked_for_with_what_the_other_will_choose():
    """The reply is right where it pays most against that action."""
    environment = MatrixGames(rule="best-response")
    seen = set()
    for seed in range(30):
        text = environment.reset(seed)
        other, action = map(int, re.search(r"Player (\d) will choose action (\d+)\.", text).groups())
        me = int(re.search(r"You are Player (\d)\.", text)[1])
        assert {me, other} == {1, 2} and action >= 1
        seen.add(me)
    assert seen == {1, 2}


TWO_BY_THREE = ((1, -20, 3), (4, 5, 6)), ((7, 8, 9), (-1, 0, 2))


@pytest.mark.parametrize(
    ("layout", "player", "text"),
    [
        ("two-tables", 1, "Two players choose at the same time. Rows are the actions of Player 1, columns those of "
         "Player 2.\n\n"
         "Player 1 gets:\n   1    2  3\n1  1  -20  3\n2  4    5  6\n\nPlayer 2 gets:\n    1  2  3\n1   7  8  9\n2  -1  "
          "0  2"),
        ("own-tables", 0, "You and Player 2 choose at the same time. In both tables your actions are the rows, those of the "
         "other the columns.\n\nWhat you get:\n   1    2  3\n1  1  -20  3\n2  4    5  6\n\nWhat the other gets:\n    1 "
          " 2  3\n"
         "1   7  8  9\n2  -1  0  2"),
        ("own-tables", 1, "You and Player 1 choose at the same time. In both tables your actions are the rows, those of the "
         "other the columns.\n\nWhat you get:\n   1   2\n1  7  -1\n2  8   0\n3  9   2\n\nWhat the other gets:\n     1  2\n"
         "1    1  4\n2  -20  5\n3    3  6"),
        ("pair-table", 1, "Each cell holds the payoff of Player 1, then that of Player 2.\n\n| Player 1 \\ Player 2 | "
         "1 | 2 | 3 |"
         "\n|---|---|---|---|\n| 1 | 1, 7 | -20, 8 | 3, 9 |\n| 2 | 4, -1 | 5, 0 | 6, 2 |"),
        ("pair-grid", 1, "A game is played once. Going down you change your action, going right the other player changes "
         "theirs; every pair is (yours; theirs).\n\n  (7; 1)  (-1; 4)\n(8; -20)   (0; 5)\n  (9; 3)   (2; 6)"),
        ("replies", 1, "You meet Player 1 once, and both decide in secret.\nShould Player 1 choose 1: your action 1 "
         "gives you 7; "
         "your action 2 gives you 8; your action 3 gives you 9.\nShould Player 1 choose 2: your action 1 gives you -1; your "
         "action 2 gives you 0; your action 3 gives you 2.\nShould you choose 1: their action 1 gives them 1; their "
          "action 2 "
         "gives them 4.\nShould you choose 2: their action 1 gives them -20; their action 2 gives them 5.\nShould you "
          "choose 3: "
         "their action 1 gives them 3; their action 2 gives them 6."),
    ],
)  # fmt: skip
def test_texts_of_a_game_in_full(layout, player, text):
    assert LAYOUTS[layout](*TWO_BY_THREE, player) == text


def test_numbered_lists_in_full():
    first, second = ((1, 2),), ((3, 4),)
    ends = {
        "sentences": "- When Player 1 takes action 1 and Player 2 takes action 1, Player 1 receives 1 and Player 2 "
         "receives 3.\n"
        "- When Player 1 takes action 1 and Player 2 takes action 2, Player 1 receives 2 and Player 2 receives 4.",
        "arrows": "Player 2\n(1, 1) -> 1, 3\n(1, 2) -> 2, 4",
        "arrays": "A = [[1, 2]]\nB = [[3, 4]]",
        "json": '{"player_1": 1, "player_2": 1, "payoff_1": 1, "payoff_2": 3}\n{"player_1": 1, "player_2": 2, '
         '"payoff_1": 2, '
        '"payoff_2": 4}',
        "firms": "second firm:\n  plan 1 against plan 1: 1 and 3\n  plan 1 against plan 2: 2 and 4",
        "farmers": "You are Player 1, your neighbor is Player 2, and both sow before they see the other's field. If "
         "you sow crop "
        "1 and your neighbor sows crop 1, your harvest is worth 1 and your neighbor's 3. If you sow crop 1 and your "
         "neighbor "
        "sows crop 2, your harvest is worth 2 and your neighbor's 4.",
        "travelers": "Should Player 1 take road 1, the two are rewarded with 1 and 3 if the other takes road 1, 2 and "
         "4 if the "
        "other takes road 2.",
    }  # fmt: skip
    for layout, end in ends.items():
        assert LAYOUTS[layout](first, second, 0).endswith(end)
    assert "You are Player 2, your neighbor is Player 1, " in LAYOUTS["farmers"](first, second, 1)


def test_a_game_as_it_is():
    game = GAMES["battle-of-sexes"]
    assert game.payoffs() == (game.first, game.second) != game.payoffs(1, 1)


@pytest.mark.parametrize("name", [name for name in GAMES if name != "duopoly"])
@pytest.mark.parametrize("sign", [1, -1])
def test_pure_equilibria_by_brute_force(name, sign):
    first, second = GAMES[name].payoffs(sign)
    found = [
        (i + 1, j + 1)
        for i, row in enumerate(first)
        for j, value in enumerate(row)
        if value == max(each[j] for each in first) and second[i][j] == max(second[i])
    ]
    assert [right_actions(name, sign, player, "pure-nash") for player in (0, 1)] == [
        {pair[player] for pair in found} for player in (0, 1)
    ]


def test_a_seed_is_the_same_game_in_every_version():
    """Recorded results name seeds: what these draw stays."""
    games = ["iesds", "chicken", "three-by-four", "weakly-dominated"]
    drawn = [
        "2:1 0 4/0 1 1;5 6 6/4 3 4", "1:90 101/99 100;90 99/101 100", "2:3 1 2/4 3 3/3 2 -1;13 4 -1/1 3 2/7 6 8",
        "2:90 101/99 100;90 99/101 100",
    ]  # fmt: skip
    for rule, told in (("any-equilibrium", [""] * 4), ("best-response", ["?3", "?2", "?2", "?2"])):
        environment = MatrixGames(games=games, rule=rule, compact=True)
        texts = [f"{game}{more}\n" for game, more in zip(drawn, told, strict=True)]
        assert [environment.reset(seed) for seed in range(4)] == texts


def test_what_is_asked_by_each_rule():
    said = {
        "last-equilibrium": "Choose the action that you play in a Nash equilibrium of this game.",
        "any-equilibrium": "Choose the action that you play in a Nash equilibrium of this game.",
        "pure-nash": "Choose an action that you play in an equilibrium in which nobody leaves anything to chance.",
        "best-response": "Player 2 will choose action 2. Choose the action that then pays you most.",
    }
    for rule, asked in said.items():
        end = MatrixGames(rule=rule).reset(1).rpartition("\n\n")[2]
        answer = 'Answer with its number, from 1 to 2, behind "Answer:" if you write more.'
        assert end == f"You are Player 1. {asked} {answer}"
    assert "You are Player 2. Player 1 will choose action 1." in MatrixGames(rule="best-response").reset(0)
    three = ["prisoners-dilemma", "chicken", "three-by-four"]
    found = MatrixGames(games=three, rule="last-equilibrium").chance
    # a third each: one action of two, one of two, and one of 3 or of 4; 2 is wrong in the negated dilemma, and for player 2
    assert found == {
        "success": pytest.approx(31 / 72),
        "score": pytest.approx(31 / 72),
        "always 2": pytest.approx(2 / 3),
    }
