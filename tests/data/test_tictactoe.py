"""TicTacToe: the game against known counts of its tree, perfect play over all of it, and the environment around it."""

from collections import Counter
from functools import cache
from itertools import product
from random import Random

import pytest

from equipoise.core.errors import BadInput
from equipoise.data.environment import open_environment
from equipoise.data.tictactoe import (
    CHARACTERS,
    EMPTY,
    TicTacToe,
    best_moves,
    free,
    mover,
    opponent_moves,
    placed,
    value,
    winner,
)


def reachable(board=EMPTY, moves=free):
    """Every board that can come of this one."""
    found, waiting = {board}, [board]
    while waiting:
        board = waiting.pop()
        for cell in moves(board):
            after = placed(board, cell)
            if after not in found:
                found.add(after)
                waiting.append(after)
    return found


@cache
def games(board=EMPTY):
    """How many games end in a win of X, of O, in a draw."""
    if not free(board):
        return Counter([winner(board)])
    return sum((games(placed(board, cell)) for cell in free(board)), Counter())


@cache
def plain_value(board):
    """Won 1, drawn 0, lost -1 for the mover, by nothing but the rules."""
    if winner(board) != ".":
        return -1
    return max((-plain_value(placed(board, cell)) for cell in range(9) if board[cell] == "."), default=0)


def test_the_tree_of_the_game():
    assert len(reachable()) == 5478
    assert games() == {"X": 131_184, "O": 77_904, ".": 46_080}
    assert [winner(board) for board in ("XXX.OO...", "XOXXOO.X.", "O.XXOX..O", "XOXXOOOXX")] == ["X", ".", "O", "."]
    with pytest.raises(BadInput, match=r"4 is no move on the board \.\.\.\.X\.\.\.\."):
        placed("....X....", 4)


def test_perfect_play_never_loses():
    """Over the whole tree: wherever following it leads against every opponent, and from each board that is not lost."""
    for own in "XO":
        visited = reachable(moves=lambda board, own=own: best_moves(board) if mover(board) == own else free(board))
        assert len(visited) > 100 and not [board for board in visited if winner(board) not in (".", own)]
    for board in reachable():
        assert (value(board) > 0) - (value(board) < 0) == plain_value(board), board
        if free(board):
            worth = {-plain_value(placed(board, cell)) for cell in best_moves(board)}
            assert worth == {plain_value(board)}, board


def test_wins_come_soon_and_losses_late():
    assert best_moves("XX.OO....") == (2,)
    assert best_moves("X.XO....O") == (1,)  # 4 and 6 win as well, a turn later
    assert best_moves("XXO.O.X..") == (3,)  # X takes the line of O's cells 2, 4, 6 nowhere: 3 makes 0, 3, 6
    assert best_moves("X...O...X") == (1, 3, 5, 7)  # the corners lose against both diagonals
    assert best_moves("XX..O....") == (2,)  # nothing else stops the row


def test_opponents():
    board = "XX.OO...."
    assert opponent_moves(board, 0.0) == ((2, 5, 6, 7, 8), (1, 0, 0, 0, 0))
    assert opponent_moves(board, 1.0)[1] == (0.2,) * 5
    assert opponent_moves(board, 0.5)[1] == pytest.approx((0.6, 0.1, 0.1, 0.1, 0.1))


def play(environment, seed, policy):
    """The last step's reward and info, and how many turns it took; policy: text -> action."""
    text, total, turns, done = environment.reset(seed), 0.0, 0, False
    while not done:
        text, reward, done, info = environment.step(policy(text))
        total, turns = total + reward, turns + 1
    return round(total, 6), info, turns


def seen(text):
    """The model's mark and the board of a compact text."""
    mark, _, board = text.strip().lstrip("?").partition(":")
    return mark, "".join(cell if cell in "XO" else "." for cell in board)


def together(own):
    """A player and an opponent who both want one side to win, "own" for the model's."""

    @cache
    def best(board, side):
        if not free(board):
            return float(winner(board) == side), None
        return max(((best(placed(board, cell), side)[0], cell) for cell in free(board)), key=lambda pair: pair[0])

    def policy(text):
        mark, board = seen(text)
        return str(best(board, mark if own else "XO"[mark == "X"])[1] + 1)

    def opponent(board):
        return best(board, mover(board) if not own else "XO"[mover(board) == "X"])[1]

    return TicTacToe(opponent=opponent, compact=True), policy


def test_an_oracle_wins_all_and_one_who_helps_the_other_nothing():
    for own, score in ((True, 1.0), (False, 0.0)):
        environment, policy = together(own)
        assert environment.chance == {}
        for seed in range(40):
            total, info, turns = play(environment, seed, policy)
            assert (total, info["success"], info["valid"]) == (score, own, True) and turns <= 5


def test_a_draw_is_half_and_no_success():
    environment = TicTacToe(opponent="minimax", compact=True, opening=0)

    def policy(text):
        _, board = seen(text)
        return str(best_moves(board)[0] + 1)

    assert {(score, info["success"]) for score, info, _ in (play(environment, seed, policy) for seed in range(20))} == {
        (0.5, False)
    }


def test_what_is_no_move_costs_a_tenth_and_its_turn():
    environment = TicTacToe(opening=0)
    seed = next(seed for seed in range(9) if "as O" in environment.reset(seed))
    first = environment.reset(seed)
    board = first.split("\n\n")[1]
    assert board.count("X") == 1 and board.count("O") == 0
    taken = next(
        f"({row}, {column})"
        for row, column in product((1, 2, 3), repeat=2)
        if board.split()[4 * row - 1 + column] == "X"
    )
    wrong = {"centre": "no cell", taken: "taken", "(1, 4)": "no cell", "(1, 1) || (2, 2)": "no cell"}
    for text, why in wrong.items():
        reply, reward, done, info = environment.step(text)
        assert (reward, done, info) == (-0.1, False, {"success": False, "valid": False, "actions": []})
        assert why in reply and "(row, column), for example (2, 3)" in reply and board in reply
    reply, *told = environment.step("5")
    assert told[:2] == [-0.1, True] and reply.endswith("used up.") and environment.max_turns == 5


@pytest.mark.parametrize(
    ("cells", "texts"),
    [
        (
            "coordinates",
            ("(2, 1)", "2,1", "2 1", "row 2, column 1", "Column 1, row 2", "I play (2, 1) next to (2, 2)"[:13]),
        ),
        ("numbers", ("4", "cell 4", "<think>5?</think>Answer: 4", "I take 4.")),
        ("letters", ("D", "d", "Move: D", "I choose the cell D")),
    ],
)
def test_a_cell_is_read_in_every_usual_form(cells, texts):
    environment = TicTacToe(cells=cells, opening=0)
    seed = next(seed for seed in range(9) if "as X" in environment.reset(seed))
    for text in texts:
        environment.reset(seed)
        info = environment.step(text)[3]
        assert info["actions"] == [
            {"name": "place", "arguments": {"cell": {"coordinates": "(2, 1)"}.get(cells, texts[0])}}
        ]
    for text in ("(2, 1) or (2, 2)", "4 or 5", "D or E", "10", "0", "J", "(0, 1)", "(1, 4)"):
        environment.reset(seed)
        assert not environment.step(text)[3]["valid"], text
    for text in {"coordinates": ("(1, 1)", "(3, 3)"), "numbers": ("1", "9"), "letters": ("A", "I")}[cells]:
        environment.reset(seed)
        assert environment.step(text)[3]["valid"], text


@pytest.mark.parametrize("cells", ["numbers", "letters"])
def test_a_mirrored_board_is_the_same_game_in_another_picture(cells):
    plain, mirrored = (TicTacToe(cells=cells, mirror=mirror, compact=True) for mirror in (False, True))
    pictures = 0
    for seed in range(12):
        texts, done = (plain.reset(seed), mirrored.reset(seed)), False
        while not done:
            rows = [texts[0][2:][start : start + 3] for start in (0, 3, 6)]
            assert texts[1] == texts[0][:2] + "".join(row[::-1] for row in rows) + "\n"
            pictures += texts[0] != texts[1]
            action = next(cell for cell in texts[0][2:] if cell not in "XO")
            (*told, done, info), other = plain.step(action), mirrored.step(action)
            assert (told[1], done, info) == other[1:]
            texts = (told[0].lstrip("+-=?"), other[0].lstrip("+-=?"))
    assert pictures > 20
    drawn = TicTacToe(mirror=True, opening=0).reset(0).split("\n\n")[1].splitlines()
    assert drawn[0] == "  3 2 1" and drawn[1][0] == "1"


def test_openings_and_sides():
    environment = TicTacToe(compact=True)
    stones = Counter(9 - seen(environment.reset(seed))[1].count(".") for seed in range(800))
    assert set(stones) == {0, 1, 2, 3} and all(
        abs(count - 200) < 4 * (800 * 3 / 16) ** 0.5 for count in stones.values()
    )
    environment = TicTacToe(compact=True, opening=0)
    assert {seen(environment.reset(seed)) for seed in range(200)} == {
        ("X", EMPTY),
        *(("O", placed(EMPTY, cell)) for cell in range(9)),
    }


def test_chance_is_exact_and_what_is_played():
    """Random against random: X wins 737 of 1,260, O 121 of 420; whatever random moves went before."""
    chance = open_environment("tictactoe").chance
    assert chance["success"] == pytest.approx((737 / 1260 + 121 / 420) / 2) == pytest.approx(0.43651, abs=1e-5)
    assert chance["score"] == pytest.approx(0.5)  # what one side does not win the other does
    assert TicTacToe(opponent="minimax", opening=0).chance["success"] == 0
    environment, random = TicTacToe(opponent=0.5, compact=True), Random(3)

    def policy(text):
        return random.choice([cell for cell in text.lstrip("?")[2:].strip() if cell not in "XO"])

    played = [play(environment, seed, policy)[0] for seed in range(500)]
    assert 0.15 < environment.chance["success"] < 0.3
    assert abs(played.count(1.0) / 500 - environment.chance["success"]) < 4 * 0.4 / 500**0.5
    assert abs(sum(played) / 500 - environment.chance["score"]) < 4 * 0.5 / 500**0.5


def test_everything_follows_from_the_seed_and_the_actions():
    def run(seed):
        environment, said = TicTacToe(compact=True), []
        play(environment, seed, lambda text: said.append(text) or "157392846"[len(said) % 9])
        return said

    runs = [run(seed) for seed in range(40)]
    assert runs == [run(seed) for seed in range(40)] and len({tuple(each) for each in runs}) > 20
    assert set("".join(map("".join, runs))) <= set(CHARACTERS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"opponent": "minmax"},
        {"opponent": 1.5},
        {"opening": -0.1},
        {"cells": "xy"},
        {"compact": True, "cells": "coordinates"},
    ],
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(BadInput):
        TicTacToe(**wrong)


def test_a_seed_is_the_same_game_in_every_version():
    """Recorded results name seeds: what these draw stays."""
    drawn = {
        0: "O:X23456789 X:123456789 X:123456789 X:123456789 X:123456789 O:12345678X",
        0.5: "O:X23456789 X:1O34X6789 X:123456789 X:12345X78O X:123456X8O O:12345678X",
        1: "O:X2345OX89 X:1O34X6789 X:1XO456789 X:12345X78O X:123456X8O O:O234567XX",
    }
    for opening, texts in drawn.items():
        environment = TicTacToe(compact=True, opening=opening)
        assert [environment.reset(seed).strip() for seed in range(6)] == texts.split()


def test_random_play_against_every_opponent():
    """By following every game of both sides: an opponent that errs half the time, with and without an opening."""

    @cache
    def ends(board, mark, epsilon):
        if not free(board):
            return float(winner(board) == mark), float(winner(board) == ".")
        cells = free(board)
        shares = {cell: 1 / len(cells) for cell in cells}
        if mover(board) != mark:
            best = best_moves(board)
            shares = {c: epsilon / len(cells) + ((1 - epsilon) / len(best) if c in best else 0) for c in cells}
        several = [(share, ends(placed(board, cell), mark, epsilon)) for cell, share in shares.items()]
        return tuple(sum(share * each[place] for share, each in several) for place in (0, 1))

    def opened(moves):
        boards = [EMPTY]
        for _ in range(moves):
            boards = [placed(board, cell) for board in boards for cell in free(board)]
        return boards

    for epsilon in (0.0, 0.5):
        for opening in (0.0, 0.25, 1.0):
            wins = draws = 0.0
            for mark, first in (("X", 0), ("O", 1)):
                for chance, moves in ((opening, first + 2), (1 - opening, first)):
                    boards = opened(moves)
                    for board in boards:
                        won, drawn = ends(board, mark, epsilon)
                        wins, draws = wins + chance / 2 * won / len(boards), draws + chance / 2 * drawn / len(boards)
            found = TicTacToe(opponent=epsilon, opening=opening).chance_levels()
            assert found == pytest.approx({"success": wins, "score": wins + draws / 2})


def test_an_opponent_takes_one_of_several_best_moves_as_often():
    cells, chances = opponent_moves("X...O....", 0.25)
    assert cells == (1, 2, 3, 5, 6, 7, 8) and chances == pytest.approx([1 / 7] * 7)
    assert opponent_moves("X........", 0.25)[1] == pytest.approx([1 / 32] * 3 + [3 / 4 + 1 / 32] + [1 / 32] * 4)


def test_an_environment_that_cannot_be_made_is_named():
    def broken():
        raise KeyError("board")

    def refusing():
        raise BadInput("no board here")

    with pytest.raises(BadInput, match="gives no environment: KeyError: 'board'"):
        open_environment(broken)
    with pytest.raises(BadInput, match=r"^no board here"):
        open_environment(refusing)
    with pytest.raises(BadInput, match="expected an object with reset"):
        open_environment(lambda: 3)


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ("coordinates", [f"({row}, {column})" for row, column in product((1, 2, 3), repeat=2)]),
        ("numbers", list("123456789")),
        ("letters", list("ABCDEFGHI")),
    ],
)
def test_every_cell_has_its_name(cells, names):
    environment = TicTacToe(cells=cells, opening=0)
    seed = next(seed for seed in range(9) if "as X" in environment.reset(seed))
    for place, name in enumerate(names):
        environment.reset(seed)
        info = environment.step(name)[3]
        assert info["actions"] == [{"name": "place", "arguments": {"cell": name}}]
        assert environment._board[place] == "X"


def test_probabilities_may_be_0_and_1():
    for opening in (0, 1):
        for opponent in (0, 1):
            TicTacToe(opening=opening, opponent=opponent)
    for wrong in ({"opening": 1.01}, {"opponent": -0.01}, {"opponent": 1.01}):
        with pytest.raises(BadInput, match="probabilities from 0 to 1"):
            TicTacToe(**wrong)


def test_who_plays_whom_is_told():
    marks = set()
    for seed in range(12):
        episode = TicTacToe()
        text = episode.reset(seed)
        mine = episode._mark
        other = {"X": "O", "O": "X"}[mine]
        assert f"You play tic-tac-toe as {mine} against {other}. Three in a row" in text
        marks.add(mine)
    assert marks == {"X", "O"}
