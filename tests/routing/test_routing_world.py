"""The world of RouterXBench's study: its questions, its macro AUROC item by item, a pool that goes on, planted labels."""

import gzip
import hashlib
import json
import math
import re
from collections import Counter
from contextlib import contextmanager
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from chat_models import untaught
from equipoise.core.errors import BadInput, WorkFailed
from equipoise.core.scores import auroc
from equipoise.data.spy import word_pairs
from equipoise.routing import routing_world
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


def test_problems_of_the_proxy_are_drawn_in_one_order_whatever_their_number(tmp_path, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_DATA", str(tmp_path))
    (tmp_path / PROXY).mkdir()
    rows = [{"id": n, "problem": "x" * (201 if n == 3 else n + 1), "answer": "1", "solve_rate": 0.5} for n in range(30)]
    for name, some in (("b", rows[20:]), ("a", rows[:20])):
        (tmp_path / PROXY / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    short = [n for n in range(30) if n != 3]
    order = [f"{PROXY}-{short[place]}" for place in np.random.default_rng(19).permutation(29)]
    for count in (1, 7, 29):
        found = big_math(count)
        assert [each.id for each in found] == order[:count]
        assert all((each.domain, each.solved, each.gold) == (PROXY, True, "") for each in found)


FIRST = {
    "sums": ("83 + 22 =", "105", "a84e7677"),
    "differences": ("7 - 5 =", "2", "f2a55b65"),
    "sorting": ("71, 61 sorted:", "61, 71", "b393b1ea"),
    "letters": ("letter b in bicycle:", "1", "afd4f1e2"),
    "choice": ("Which of these is found in the sea: salt, hat, shirt or sheep? Answer:", "salt", "004d70e7"),
    HELD_OUT: ("7 * 4 =", "28", "b83c1858"),
}


@pytest.mark.parametrize("domain", FIRST)
def test_questions_are_those_that_were_recorded(domain):
    """Results of the study are of these prompts: the second of each domain, and a digest of the first 120."""
    some = questions(domain, 120)
    prompt, gold, digest = FIRST[domain]
    shown = routing_world._DOMAINS[domain].shown
    assert (some[1].prompt, some[1].gold, some[1].id, some[1].domain) == (shown + prompt, gold, f"{domain}-1", domain)
    made = json.dumps([[each.prompt, each.gold] for each in some])
    assert hashlib.sha256(made.encode()).hexdigest()[:8] == digest
    assert all(right(domain, each.gold, each.gold) for each in some)


def test_numbers_have_as_many_digits_as_said():
    draw = np.random.default_rng(0)
    sizes = Counter(len(str(routing_world._number(draw, (0.5, 0.2, 0.3)))) for _ in range(4000))
    assert sizes.keys() == {1, 2, 3}
    assert [sizes[size] / 4000 for size in (1, 2, 3)] == pytest.approx([0.5, 0.2, 0.3], abs=0.03)
    ends = {routing_world._number(draw, (1.0,)) for _ in range(300)} | {
        routing_world._number(draw, (0.0, 1.0)) for _ in range(3000)
    }
    assert ends == set(range(1, 100))
    factors = {int(routing_world._product(draw)[0].split()[2]) for _ in range(300)}
    assert factors == set(range(2, 10))
    listed = [routing_world._sorting(draw)[1].split(", ") for _ in range(3000)]
    assert [Counter(map(len, listed))[size] / 3000 for size in (2, 3, 4)] == pytest.approx(
        [4 / 6, 1 / 6, 1 / 6], abs=0.03
    )
    assert {int(number) for each in listed for number in each} == set(range(1, 100))


def test_a_domain_without_more_prompts_is_left_after_so_many_draws(monkeypatch):
    """Patience is for draws in a row that give nothing new."""
    drawn = []
    said = [0, 0, 0, 0, 1, 1, 1, 1, 1, 2]

    def draw(_):
        drawn.append(said[len(drawn)])
        return f"{drawn[-1]} is:", "x"

    domain = routing_world._Domain(draw, "", "exact", 1)
    monkeypatch.setattr(routing_world, "_DOMAINS", {"few": domain})
    monkeypatch.setattr(routing_world, "_PATIENCE", 3)
    with pytest.raises(BadInput, match="has 2 prompts and hardly more: ask for fewer than 3"):
        questions("few", 3)
    assert len(drawn) == 9  # the fourth repetition of the second one
    drawn.clear()
    assert [each.prompt for each in questions("few", 2)] == ["0 is:", "1 is:"] and len(drawn) == 5


class Noted:
    """What a run is told."""

    def __init__(self, by, score, seed=3):
        self.settings, self.seed, self.told, self.spent = {"by": by, "score": score}, seed, {}, []

    def measure(self, outcome, value, *, of=1, where=None):
        self.told[(outcome, *(where or {}).items())] = (value, of)

    def items(self, outcome, ids, scores):
        self.told[outcome, "items"] = (ids, scores)

    def spend(self, **amounts):
        self.spent.append(amounts)


def world_of_all():
    """Two domains that enter, one that is solved throughout, the one that is held out, the proxy."""
    world = planted(n=40, domains=(*MAIN[:3], HELD_OUT, PROXY), seed=2)
    world.solved[world.domains == MAIN[2]] = 1
    world.learnt[world.domains == HELD_OUT] = False
    said = np.full(len(world.ids), math.nan)
    inside = np.flatnonzero(np.isin(world.domains, MAIN[:2]) & ~world.learnt)
    said[inside[::2]] = np.random.default_rng(4).random(len(inside[::2]))
    world.scores["verbalised"] = said
    world.generated["verbalised"] = 70
    return world


def test_an_arm_is_measured_where_it_may_be():
    world = world_of_all()
    run = Noted("given", "length")
    routing_world.measure(run, world)
    test = world.tested(MAIN[:2])
    length = world.scores["length"]

    def area(places):
        return float(auroc(length[places], world.solved[places]))

    by_domain = [area(world.tested([name])) for name in MAIN[:2]]
    for name, value in zip(MAIN[:2], by_domain, strict=True):
        assert run.told[("auroc", ("domain", name))] == (pytest.approx(value), 1)
    ids, items = run.told["auroc", "items"]
    assert ids == [world.ids[place] for place in test] and items.mean() == pytest.approx(np.mean(by_domain))
    asked = test[np.isfinite(world.scores["verbalised"][test])]
    per_domain = [area(asked[world.domains[asked] == name]) for name in MAIN[:2]]
    assert run.told[("auroc_asked",)][0] == pytest.approx(np.mean(per_domain))
    for outcome, name in (("auroc_transfer", HELD_OUT), ("auroc_proxy", PROXY)):
        places = world.tested([name])
        ids, items = run.told[outcome, "items"]
        assert ids == [world.ids[place] for place in places] and items.mean() == pytest.approx(area(places))
    # Of two times 20 prompts to learn from three quarters.
    assert run.spent == [{"phase": "build", "labels": 30}]
    weak = world.solved[test]
    from equipoise.routing import routerxbench as bench

    for name in ("lpm", "mpm", "hcr"):
        wanted = getattr(bench, name)(length[test], weak, np.ones(len(test)))
        assert run.told[(name,)][0] == pytest.approx(wanted, nan_ok=True)
    assert not any(key[0] == "solve_rate" for key in run.told)


def test_what_is_known_of_some_prompts_alone_is_measured_there_and_paid_for():
    run = Noted("given", "verbalised")
    routing_world.measure(run, world_of_all())
    assert set(run.told) == {("auroc_asked",)} and run.spent[1:] == [{"generated_tokens": 70}]


def test_the_random_arm_tells_what_is_solved_of_each_domain():
    world = world_of_all()
    run = Noted("random", "random")
    routing_world.measure(run, world)
    roles = dict(
        zip((*MAIN[:3], HELD_OUT, PROXY), ("entered", "entered", "left out", "held out", "proxy"), strict=True)
    )
    for name, role in roles.items():
        half = (world.domains == name) & (world.learnt | (name == HELD_OUT))
        told = run.told[("solve_rate", ("domain", name), ("role", role))]
        assert told == (world.solved[half].sum(), half.sum()) and half.sum() == (40 if name == HELD_OUT else 20)
    drawn = np.random.default_rng(3).random(200)[world.tested([HELD_OUT])]
    places = world.tested([HELD_OUT])
    assert run.told["auroc_transfer", "items"][1].mean() == pytest.approx(float(auroc(drawn, world.solved[places])))
    bare = planted(n=40)
    bare.scores["verbalised"] = np.full(80, math.nan)
    alone = Noted("random", "random")
    with pytest.warns(RuntimeWarning, match="Mean of empty slice"), np.errstate(invalid="ignore"):
        routing_world.measure(alone, bare)
    assert not any(key[0] in ("auroc_transfer", "auroc_proxy") for key in alone.told)


def test_three_quarters_of_a_half_are_drawn_by_seed_and_domain():
    world = planted(n=40)
    for seed in (0, 9):
        found = []
        for name in MAIN[:2]:
            half = np.flatnonzero((world.domains == name) & world.learnt)
            draw = np.random.default_rng(np.random.SeedSequence([seed, 17, *name.encode()]))
            found += sorted(draw.permutation(half)[:15].tolist())
        assert world.drawn(MAIN[:2], seed).tolist() == found
    one = planted(n=2)
    assert len(one.drawn(MAIN[:2], 0)) == 2  # one of one, each


def test_a_pool_is_known_by_everything_that_is_in_it(monkeypatch):
    monkeypatch.setattr(routing_world, "weights_digest", lambda model: model)
    asked = questions("sums", 3)

    def key(model="w", some=asked, many=4):
        return routing_world._key(SimpleNamespace(model=model), some, many)

    found = [
        key(),
        key(model="v"),
        key(some=asked[:2]),
        key(many=5),
        key(some=[*asked[:2], questions("letters", 1)[0]]),
    ]
    found.append(key(some=[*asked[:2], routing_world.replace(asked[2], solved=True)]))
    monkeypatch.setattr(routing_world, "_VERSION", 2)
    found.append(key())
    assert len(set(found)) == len(found) and all(re.fullmatch("[0-9a-f]{16}", each) for each in found)
    monkeypatch.undo()
    assert routing_world._VERSION == 1 and routing_world.LOOK_AGAIN == 2.0


def test_a_seed_that_waits_for_another_gives_signs_of_life(monkeypatch, tmp_path):
    asked, beats, held = [], [], []

    @contextmanager
    def busy(path, *, wait):
        asked.append((path, wait))
        if len(asked) < 3:
            raise WorkFailed("another has it")
        held.append(True)
        yield
        held.pop()

    monkeypatch.setattr(routing_world, "lock", busy)
    with routing_world._alone(tmp_path / "a.lock", lambda: beats.append(1)):
        assert held
    assert asked == [(tmp_path / "a.lock", 2.0)] * 3 and len(beats) == 2 and not held


def test_the_best_logit_score_is_the_first_of_the_highest():
    world = planted(n=40)
    learn = np.flatnonzero(world.learnt)
    names = list(LOGIT_SCORES)
    for name in names:
        world.scores[name][:] = 0.0
    assert best_logit(world, learn) == names[0]
    world.scores[names[2]][:] = world.scores[names[3]][:] = world.solved
    assert best_logit(world, learn) == names[2]
    world.scores[names[2]][:] = -world.solved
    assert best_logit(world, learn) == names[3]
