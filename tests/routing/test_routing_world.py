"""The world of RouterXBench's study: its questions, its macro AUROC item by item, a pool that goes on, planted labels."""

import gzip
import json
import math
import re
from itertools import product

import numpy as np
import pytest
import torch

from chat_models import untaught
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.spy import word_pairs
from equipoise.routing.routing_world import (
    HELD_OUT,
    LOGIT_SCORES,
    MAIN,
    PROXY,
    RoutingWorld,
    auroc_items,
    best_logit,
    big_math,
    pool,
    questions,
    right,
    scorer,
)

pytest.importorskip("sklearn")


def planted(n=160, layers=4, width=8, seed=0, domains=MAIN[:2]):
    """Labels that layers 1 and 2 show, the last does not, and neither the length nor any logit but for one score."""
    draw = np.random.default_rng(seed)
    count = n * len(domains)
    y = draw.integers(0, 2, count)
    states = draw.normal(size=(count, layers, width)).astype(np.float32)
    states[:, 1:3, 0] += 2 * (2 * y[:, None] - 1)
    scores = {name: draw.normal(size=count) for name in (*LOGIT_SCORES, "length")}
    scores["margin"] = scores["margin"] + 0.5 * y
    return RoutingWorld(
        ids=tuple(map(str, range(count))),
        domains=np.repeat(domains, n),
        learnt=np.tile(np.arange(n) < n // 2, len(domains)),
        solved=y.astype(float),
        tokens=np.full(count, 9.0),
        scores=scores,
        states=states,
    )


@pytest.mark.slow
def test_questions_are_the_same_for_everybody_and_their_gold_is_right():
    clues = {
        word: each
        for pair in word_pairs()
        for word, each in ((pair.first, pair.of_first), (pair.second, pair.of_second))
    }
    for domain in (*MAIN, HELD_OUT):
        some = questions(domain, 60)
        assert questions(domain, 20) == some[:20] and len({each.prompt for each in some}) == 60
        for each in some:
            asked = each.prompt.split("\n")[-1]
            if found := re.fullmatch(r"(\d+ [-+*] \d+) =", asked):
                assert eval(found[1]) == int(each.gold) >= 0
            elif found := re.fullmatch(r"([\d, ]+) sorted:", asked):
                numbers = [int(number) for number in found[1].split(", ")]
                assert [int(number) for number in each.gold.split(", ")] == sorted(numbers) and 2 <= len(numbers) <= 4
            elif found := re.fullmatch(r"letter (.) in (\w+):", asked):
                assert len(re.findall(found[1], found[2])) == int(each.gold) >= 1
            else:
                said, offered = re.fullmatch(r"Which of these (.+): (.+)\? Answer:", asked).groups()
                words = re.split(r", | or ", offered)
                assert len(set(words)) == 4 and each.gold in words and said in clues[each.gold]
    often = [int(each.gold) > 1 for each in questions("letters", 200)]
    assert 70 < sum(often) < 130
    with pytest.raises(BadInput, match="no domain of generated prompts is called 'sum'"):
        questions("sum", 1)
    offered = [each.prompt.split(":")[-3] for each in questions("choice", 500)]
    assert len(set(offered)) == 500  # no clue comes twice
    with pytest.raises(BadInput, match=r"'choice' has [0-9]+ prompts and hardly more: ask for fewer than 700"):
        questions("choice", 700)


def test_the_first_line_of_an_answer_counts():
    assert right("sums", "38", "38") and right("sums", " 38\n7 + 7 = 14", "38")
    assert not right("sums", "38", "3") and not right("sums", "", "0") and not right("sums", "\n38", "38")
    assert right("sorting", "2, 5, 9", "2, 5, 9") and right("sorting", "2 5 9.", "2, 5, 9")
    assert not right("sorting", "2, 5, 9, 11", "2, 5, 9") and not right("sorting", "2, 59", "2, 5, 9")
    assert right("choice", "Coffee.", "coffee") and not right("choice", "coffee or tea", "coffee")


def test_the_mean_and_the_variance_of_items_are_those_of_the_auroc():
    draw = np.random.default_rng(0)
    domains = np.repeat(["a", "b", "c"], [30, 20, 9])
    solved = draw.integers(0, 2, 59).astype(float)
    score = draw.integers(0, 6, 59) + solved  # with ties
    areas = []
    for name in "abc":
        pairs = product(score[(domains == name) & (solved == 1)], score[(domains == name) & (solved == 0)])
        areas.append(np.mean([(above > below) + (above == below) / 2 for above, below in pairs]))
    found = auroc_items(score, solved, domains)
    assert found.mean() == pytest.approx(np.mean(areas))
    one = auroc_items(score[:30], solved[:30], domains[:30])
    wins = np.array(
        [[(p > q) + (p == q) / 2 for q in score[:30][solved[:30] == 0]] for p in score[:30][solved[:30] == 1]]
    )
    delong = wins.mean(1).var() / len(wins) + wins.mean(0).var() / wins.shape[1]
    assert one.var() / 30 == pytest.approx(delong)
    assert np.isnan(auroc_items(score, np.where(domains == "c", 1.0, solved), domains)).all()


def test_what_is_planted_in_states_is_found_by_probes_alone():
    world = planted()
    domains = world.entered()
    learn, test = world.drawn(domains, 5), world.tested(domains)

    def area(by, name):
        return auroc_items(scorer(world, by, name, learn, 5)(test), world.solved[test], world.domains[test]).mean()

    found = {name: area("probe", name) for name in ("dirichlet", "last")}
    assert found["dirichlet"] > 0.9
    others = [found["last"], area("given", "length"), area("random", "random"), area("vectors", "embedding-logistic")]
    assert all(abs(each - 0.5) < 0.15 for each in others)
    assert best_logit(world, learn) == "margin" and area("best-logit", "best-logit") == area("given", "margin") > 0.55
    with pytest.raises(BadInput, match="by is 'probes'"):
        scorer(world, "probes", "mean", learn, 5)


def test_a_seed_draws_what_is_learnt_from_and_never_what_is_tested():
    world = planted(domains=(*MAIN[:2], HELD_OUT))
    assert world.entered() == MAIN[:2]
    one, other = world.drawn(MAIN[:2], 1), world.drawn(MAIN[:2], 2)
    assert len(one) == len(set(one.tolist())) == 120 and set(one) != set(other)
    assert np.array_equal(one, world.drawn(MAIN[:2], 1)) and world.learnt[one].all()
    assert not set(world.tested(MAIN[:2])) & {*one, *other} and len(world.tested([HELD_OUT])) == 80


def test_a_domain_enters_by_what_is_solved_of_its_training_half():
    world = planted()
    first = (world.domains == MAIN[0]) & world.learnt
    world.solved[first] = 0
    world.solved[np.flatnonzero(first)[:15]] = 1  # 15 of 80 are 0.1875
    assert world.rates()[MAIN[0]] == 0.1875 and world.entered() == MAIN[1:2]
    world.solved[np.flatnonzero(first)[15]] = 1  # a fifth
    assert world.entered() == MAIN[:2]
    world.solved[:] = 1
    with pytest.raises(WorkFailed, match=r"The model solves 1\.00 of sums, 1\.00 of differences: no domain lies in"):
        world.entered()


def test_a_pool_comes_back_and_an_altered_one_is_refused(tmp_path):
    world = planted(n=20)
    world.scores["entropy"][3] = math.nan
    world.save(tmp_path)
    again = RoutingWorld.open(tmp_path)
    assert again.ids == world.ids and np.array_equal(again.states, world.states)
    assert all(np.array_equal(again.scores[name], values, equal_nan=True) for name, values in world.scores.items())
    assert np.array_equal(again.learnt, world.learnt) and np.array_equal(again.domains, world.domains)
    world.states[0, 0, 0] += 1
    np.save(tmp_path / "values.npy", world.states)
    with pytest.raises(BadInput, match="the states were altered since they were written"):
        RoutingWorld.open(tmp_path)


def test_a_pool_that_was_cut_off_goes_on_with_what_was_made(tmp_path, monkeypatch):
    from equipoise.routing import routing_world

    torch.set_num_threads(1)
    model = untaught(0, context=512)
    asked = [*questions("sums", 6), *questions("letters", 6), *questions(HELD_OUT, 3)]
    (tmp_path / "whole").mkdir()
    whole = pool(model, asked, tmp_path / "whole", many=2)
    assert whole.learnt.sum() == 6 and whole.states.shape == (15, 3, 32) and not whole.learnt[12:].any()
    asked_of = np.isfinite(whole.scores["verbalised"])
    assert np.flatnonzero(asked_of).tolist() == [3, 4, 9, 10] and whole.generated["semantic-entropy"] > 0
    assert np.isfinite(whole.scores["entropy"]).all() and np.isnan(whole.scores["length"][:3]).all()
    assert -whole.scores["length"][12] == whole.tokens[12]
    (tmp_path / "cut").mkdir()
    real = routing_world.generate
    calls = []

    def cut(*args, **how):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **how)

    monkeypatch.setattr(routing_world, "generate", cut)
    with pytest.raises(KeyboardInterrupt):
        pool(model, asked, tmp_path / "cut", many=2)
    again = pool(model, asked, tmp_path / "cut", many=2)
    assert len(calls) == 4  # the first domain was kept
    assert again.answers == whole.answers and np.array_equal(again.states, whole.states)
    assert all(np.array_equal(again.scores[name], each, equal_nan=True) for name, each in whole.scores.items())


def test_the_proxy_is_the_rate_of_another_model(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    with pytest.raises(BadInput, match="leave the proxy out: --set proxy=0"):
        big_math(2)
    (tmp_path / PROXY).mkdir()
    rows = [{"id": n, "problem": "x" * (190 + 5 * n), "answer": "1", "solve_rate": n / 4} for n in range(4)]
    with gzip.open(tmp_path / PROXY / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    assert {each.id: each.solved for each in big_math(3)} == {
        f"{PROXY}-0": False,
        f"{PROXY}-1": False,
        f"{PROXY}-2": True,
    }
    assert big_math(0) == []
    with pytest.raises(BadInput, match="has 3 problems of at most 200 characters"):
        big_math(4)
