import dataclasses
import json
from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.core.errors import BadInput, WorkFailed
from equipoise.data.arithmetic import check_steps, problems, solution
from equipoise.language import warm_start
from equipoise.language.warm_start import (
    WORLDS,
    SolveRate,
    arithmetic_model,
    lessons,
    open_model,
    solve_rates,
    teach,
)


@pytest.fixture
def short(monkeypatch):
    """Worlds that are at their start after the second step, of eight, of a smaller model."""
    torch.set_num_threads(1)
    monkeypatch.setattr(warm_start.tiny, "tiny", partial(warm_start.tiny.tiny, width=16, heads=2, layers=1))
    monkeypatch.setattr(warm_start, "STEPS", 8)
    monkeypatch.setattr(warm_start, "BATCH_SIZE", 4)
    monkeypatch.setattr(warm_start, "MEASURE_EVERY", 2)
    monkeypatch.setattr(warm_start, "CHECKPOINT", 1)
    monkeypatch.setattr(warm_start, "MEASURED", 5)
    asked = warm_start._asked
    monkeypatch.setattr(warm_start, "_asked", lambda start, seed, train, test: asked(start, seed, 6, 4))
    return lambda **changes: monkeypatch.setattr(
        warm_start, "WORLDS", {name: dataclasses.replace(world, **changes) for name, world in WORLDS.items()}
    )


@pytest.mark.parametrize("name", WORLDS)
def test_lessons_are_sound_and_of_problems_for_training(name):
    world = WORLDS[name]
    records = lessons(world, 600, seed=3)
    known = {
        p.id: p
        for kind, level in world.taught
        for p in problems(150 if level == 1 else 300, seed=3, kind=kind, levels=(level,))
    }
    taught = Counter((known[record.group].kind, known[record.group].level) for record in records)
    for place, weight in world.taught.items():
        assert taught[place] / 600 == pytest.approx(weight / sum(world.taught.values()), abs=0.05)
    assert all(world.is_sound(known[record.group], record.completion) for record in records)
    assert max(len(r.completion) for r in records if r.group.startswith(world.kind)) + 1 <= world.max_new_tokens
    assert lessons(world, 40, seed=3) == lessons(world, 40, seed=3) != lessons(world, 40, seed=4)
    tested = {problem.prompt for problem in problems(100, seed=3, kind=world.kind, levels=world.levels, part="test")}
    assert not tested & {record.prompt for record in records}


def test_one_route_and_one_form_dominate():
    routes = [record for record in lessons(WORLDS["routes"], 800, seed=0) if record.group.startswith("routes")]
    alone = [set(record.completion) & set("+-*") == {"+"} for record in routes]
    led = [record.completion.endswith(f"={record.prompt.strip()[-1]}") for record in routes]
    assert sum(alone) / len(alone) == pytest.approx(0.6 + 0.4 / 6, abs=0.04)
    assert all(right for right, only in zip(led, alone, strict=True) if not only)
    assert 0.1 < sum(right for right, only in zip(led, alone, strict=True) if only) / sum(alone) < 0.4
    forms = Counter(record.completion[-2] for record in lessons(WORLDS["format"], 800, seed=0))
    assert set(forms) == {"#", ":"} and forms["#"] / 800 == pytest.approx(0.25, abs=0.03)


def test_what_counts_as_solved():
    (problem,) = problems(1, seed=0, levels=(2,))
    levels, strict = WORLDS["levels"], WORLDS["format"]
    right = solution(problem).text
    assert levels.solved(problem, right) and not strict.solved(problem, right)
    assert strict.solved(problem, f"{right}#{problem.answer}") and not levels.solved(
        problem, f"{right}#{problem.answer}"
    )
    assert not strict.solved(problem, f"{right}:{problem.answer}") and strict.is_sound(
        problem, f"{right}:{problem.answer}"
    )
    first, last = right.split(";")
    lucky = f"{first[:-1]}{(int(first[-1]) + 1) % 10};{last}"
    assert check_steps(problem, lucky).right and not levels.solved(problem, lucky)
    assert (
        not levels.is_sound(problem, first)
        and not levels.is_sound(problem, "")
        and not levels.is_sound(problem, f"{right};")
    )


def test_rates_are_counted_by_level(monkeypatch):
    asked = problems(10, seed=0, levels=(2, 3, 4, 5, 6))
    said = [solution(problem).text if index in (0, 5, 6) else "7" for index, problem in enumerate(asked)]
    seen = {}
    monkeypatch.setattr(warm_start, "generate", lambda model, prompts, **options: seen.update(options) or said)
    rates = solve_rates(WORLDS["levels"], None, asked, seed=4)  # pyright: ignore[reportArgumentType]
    assert rates == {2: (2, 2), 3: (1, 2), 4: (0, 2), 5: (0, 2), 6: (0, 2)}
    assert seen["temperature"] == 1 and seen["max_new_tokens"] == 36 and seen["generator"].initial_seed() == 4
    assert rates[3].rate == 0.5 and str(SolveRate(0, 0).rate) == "nan"


def test_teaching_stops_where_enough_is_sound_and_follows_from_the_seed(short):
    short(sound=0.0)
    made = arithmetic_model("routes", 1)
    assert (
        made.steps == 2
        and [rate.of for rate in made.rates.values()] == [2, 2]
        and str(made).startswith("level 2: 0 of 2")
    )
    other = arithmetic_model("routes", 2)
    weights = [m.language_model.model.state_dict()["lm_head.weight"] for m in (made, other)]
    assert not torch.equal(*weights) and made.train != other.train
    assert not {p.id for p in made.train} & {p.id for p in made.test}


def test_a_world_that_is_not_reached_says_so(short):
    short(sound=1.0)
    with pytest.raises(WorkFailed, match=r"After 8 steps 0\.00 .* world 'levels' starts from 1\.0"):
        arithmetic_model("levels", 0)
    with pytest.raises(BadInput, match="level"):
        arithmetic_model("level", 0)  # pyright: ignore[reportArgumentType]


def test_a_teaching_that_was_cut_off_goes_on_bit_by_bit(short, tmp_path):
    short(sound=0.0)
    states, spent = [], []
    preparation = SimpleNamespace(
        seed=0,
        folder=tmp_path,
        resume=lambda: states[0] if states else None,
        checkpoint=lambda state: states.append(json_copy(state)),
        spend=lambda **costs: spent.append(costs),
    )
    made = teach("format", preparation)
    assert [state["step"] for state in states] == [1, 2] and spent == [
        {"phase": "build", "trained_tokens": made.tokens}
    ]
    first = made.language_model.model.state_dict()["lm_head.weight"].clone()
    resumed = teach("format", preparation)  # from the first checkpoint
    assert torch.equal(first, resumed.language_model.model.state_dict()["lm_head.weight"])
    states[:] = states[1:2]
    finished = teach("format", preparation)  # from the last: nothing is left to be taught
    assert torch.equal(first, finished.language_model.model.state_dict()["lm_head.weight"])
    opened = open_model("format", 0, tmp_path)
    assert opened.rates == made.rates == resumed.rates == finished.rates
    assert (opened.steps, opened.tokens) == (2, made.tokens) == (finished.steps, finished.tokens)
    assert opened.train == made.train and opened.test == made.test
    assert torch.equal(first, opened.language_model.model.state_dict()["lm_head.weight"].cpu())


def json_copy(state):
    """A state as it was, since the tensors of a living one go on changing."""
    if isinstance(state, dict):
        return {key: json_copy(value) for key, value in state.items()}
    return state.clone() if isinstance(state, torch.Tensor) else json.loads(json.dumps(state))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "low", "high"), [("levels", 0.0, 0.95), ("routes", 0.03, 0.4), ("format", 0.04, 0.3)])
def test_the_worlds_start_where_they_should(name, low, high):
    rates = [rate.rate for rate in arithmetic_model(name, 0).rates.values()]
    assert low <= min(rates) and max(rates) <= high
    if name == "levels":
        assert max(rates) - min(rates) > 0.4


def test_the_worlds_are_these():
    chains = {("chain", 1): 9, ("chain", 2): 7, ("chain", 3): 4}
    assert {
        "levels": warm_start.WarmStart(
            "chain", (2, 3, 4, 5, 6), {**chains, ("chain", 4): 1.5, ("chain", 5): 0.6, ("chain", 6): 0.2}, 0.45, 36
        ),
        "routes": warm_start.WarmStart(
            "routes", (2, 3), {("chain", 1): 9, ("chain", 2): 5, ("routes", 2): 5, ("routes", 3): 4}, 0.65, 18, 0.6
        ),
        "format": warm_start.WarmStart("chain", (2, 3), chains, 0.65, 20, 0.0, 0.25),
    } == WORLDS
    assert (warm_start.STEPS, warm_start.BATCH_SIZE, warm_start.LEARNING_RATE) == (600, 32, 2e-3)
    assert warm_start._MOST == {1: 150, 2: 3000}


def test_what_one_lesson_after_the_other_is_drawn_from(monkeypatch):
    """Kinds by weight, then for each a problem, whether additions alone, a route, a form: one stream of the seed."""
    asked = []
    real = warm_start.problems
    monkeypatch.setattr(warm_start, "problems", lambda count, **how: asked.append((count, how)) or real(count, **how))
    for name in ("routes", "format"):
        world = WORLDS[name]
        asked.clear()
        found = lessons(world, 60, seed=11)
        rng = np.random.default_rng(11)
        weights = np.array([*world.taught.values()])
        kinds = rng.choice(len(weights), size=60, p=weights / weights.sum()).tolist()
        assert asked == [
            (kinds.count(place), {"seed": 11, "kind": kind, "levels": (level,)})
            for place, (kind, level) in enumerate(world.taught)
        ]
        pools = [real(count, **how) for count, how in asked]
        for place, record in zip(kinds, found, strict=True):
            problem = pools[place][int(rng.random() * len(pools[place]))]
            alone = problem.kind == "routes" and rng.random() < world.dominant
            route = "+" * problem.level if alone else problem.routes[int(rng.random() * len(problem.routes))]
            form = "plain" if world.strict is None else "strict" if rng.random() < world.strict else "habit"
            assert (record.prompt, record.group) == (problem.prompt, problem.id)
            assert record.completion == solution(problem, route=route, form=form).text
    assert [record.id for record in found] == [str(place) for place in range(60)]
    many = {}
    monkeypatch.setattr(
        warm_start, "problems", lambda count, **how: many.update({how["levels"]: count}) or real(9, **how)
    )
    monkeypatch.setattr(warm_start, "solution", lambda problem, **how: SimpleNamespace(text="1"))
    lessons(WORLDS["format"], 9000, seed=0)
    assert many[1,] == 150 and many[2,] == 3000 and 1500 < many[3,] < 2100


def test_a_teaching_by_hand(monkeypatch):
    """Solutions are written from step 40 on; asked for is every 25th, so it stops at 50."""
    given, asked, moment = {}, {}, {"step": 0}

    def taught(language_model, records, **how):
        given.update(how, records=records)
        for step in range(1, 100):
            moment["step"] = step
            (enough,) = how["callbacks"]
            if enough(SimpleNamespace(step=step)):
                break

    def written(language_model, prompts, **how):
        asked.setdefault(how["generator"].initial_seed(), []).append((moment["step"], len(prompts), how["batch_size"]))
        known = {problem.prompt: problem for problem in (*measured, *test)}
        late = moment["step"] >= 40
        return [solution(known[prompt]).text if late else "1+1=3" for prompt in prompts]

    def seed(use):
        return int(np.random.SeedSequence(7, spawn_key=(use,)).generate_state(1)[0])

    levels = WORLDS["levels"]
    measured = problems(120, seed=seed(1), kind="chain", levels=levels.levels)
    test = problems(50, seed=7, kind="chain", levels=levels.levels, part="test")
    monkeypatch.setattr(warm_start.tiny, "teach", taught)
    monkeypatch.setattr(warm_start, "generate", written)
    monkeypatch.setattr(warm_start, "STEPS", 60)
    made = arithmetic_model("levels", 7, train=30, test=50)
    assert made.steps == 50 and asked == {25: [(25, 120, 256)], 50: [(50, 120, 256)] * 2, seed(3): [(50, 50, 256)]}
    assert (given["seed"], given["epochs"], given["learning_rate"], given["batch_size"]) == (7, 1, 2e-3, 32)
    assert given["save_every"] == 100 and len(given["records"]) == 60 * 32
    assert given["records"][:50] == lessons(levels, 60 * 32, seed=seed(2))[:50]
    order = warm_start.without_replacement(60 * 32, 32, 7)
    seen = [given["records"][place] for step in range(50) for place in order(step)]
    assert made.tokens == sum(len(each.prompt) + len(each.completion) + 2 for each in seen)
    assert made.rates == dict.fromkeys(levels.levels, (10, 10)) and made.test == test
    assert made.train == problems(30, seed=7, kind="chain", levels=levels.levels, part="train")
    assert warm_start._mean_rate({1: SolveRate(1, 2), 2: SolveRate(1, 1)}) == 0.75
