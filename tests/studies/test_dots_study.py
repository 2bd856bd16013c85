"""The study of DOTS: computed difficulty, counted tokens, arms on one budget, preparations and runs that resume."""

import copy
import dataclasses
import json
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from equipoise.core.state import load_state
from equipoise.data.arithmetic import CHARACTERS, problems, solution
from equipoise.data.records import Record
from equipoise.language import tiny, warm_start
from equipoise.language.rollouts import roll_out
from equipoise.language.warm_start import WarmStart
from equipoise.reinforcement import dots_world, stages, training
from equipoise.reinforcement.dots import DifficultyPredictor, EmbeddingPredictor
from equipoise.reinforcement.dots_world import DotsWorld, Tally
from equipoise.reinforcement.recipe import recipe
from equipoise.studies import dots
from equipoise.study import registry
from study_recorder import Stopped, StudyRecorder

SEED, TOKENS = 1007, 300
POOL = 28


class Recorder(StudyRecorder):
    seed = SEED

    def measure(self, outcome, value, *, of=1, at, where=None):
        """Of nothing there is no mean."""
        super().measure(outcome, value if of else math.nan, of=of or 1, at=at, where=where)

    def path(self, outcome, **where):
        """(tokens, value) of an outcome."""
        found = [(*key.split(" ", 1), value) for key, value in self.measured.items()]
        decoder = json.JSONDecoder()
        path = []
        for name, rest, value in found:
            at, end = decoder.raw_decode(rest)
            if name == outcome and json.loads(rest[end:]) == where:
                path.append((at["generated_tokens"], value))
        return path


@pytest.fixture(scope="module")
def untaught():
    torch.set_num_threads(1)
    made = tiny.tiny([CHARACTERS], seed=0, tokens="characters", width=16, layers=2, heads=2)
    return dataclasses.replace(made, chat_template="none")


@pytest.fixture(scope="module")
def embeddings():
    return torch.randn(POOL, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def world(untaught, embeddings, monkeypatch):
    """Short texts of an untaught model, of which a third count as right; everything else as it is."""
    short = dataclasses.replace(dots_world.WORLD, max_new_tokens=5)
    monkeypatch.setattr(dots_world, "WORLD", short)
    monkeypatch.setattr(WarmStart, "solved", lambda self, problem, text: sum(map(ord, problem.id + text)) % 3 == 0)
    monkeypatch.setattr(dots, "PROMPTS", 4)
    monkeypatch.setattr(dots, "GROUP", 4)
    monkeypatch.setattr(dots, "REFERENCES", 8)
    monkeypatch.setattr(dots, "BLOCK", 2)

    def opened(*_, **__):
        model = copy.deepcopy(untaught)
        pool, held_out = (
            problems(count, seed=0, levels=short.levels, part=part) for count, part in ((POOL, "train"), (7, "test"))
        )
        made = dots_world._world(model, pool, SEED)
        return DotsWorld(
            dots_world._world(model, held_out, SEED),
            made,
            torch.from_numpy(made.solve_rates())[None].repeat(2, 1),
            embeddings,
            {"learned": DifficultyPredictor(16, seed=0, hidden=8), "embeddings": EmbeddingPredictor()},
        )

    monkeypatch.setattr(DotsWorld, "open", opened)
    return opened


@pytest.fixture
def seen(monkeypatch):
    """Of each step what was logged and which prompts it was about, and the tokens of every call that sampled."""
    found = SimpleNamespace(metrics=[], steps=[], sampled=[])

    def sample(*arguments):
        step = stages.sample(*arguments)
        found.sampled.append(step)
        return step

    def note(state):
        found.metrics.append(state.metrics)
        found.steps.append(state.step)

    def train(*arguments, callbacks, **more):
        return training.train(*arguments, callbacks=[*callbacks, note], sample=sample, **more)

    monkeypatch.setattr(dots_world, "train", train)
    return found


def built(**options):
    return registry.load("dots").build(**{"tokens": TOKENS, "evaluations": 3, **options})


ARMS = [arm.name for arm in registry.load("dots").build().arms]


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_runs_on_the_budget_and_counts_each_token(arm, world, seen, tmp_path):
    budget = 600 if "replay" in arm else 350
    study = built(tokens=budget)
    run = Recorder(tmp_path, study=study, arm=arm)
    study.run(run)
    written = sum(int(each.rollouts.mask.sum()) for each in seen.sampled)
    assert run.spent["generated_tokens"] == written == sum(each["generated_tokens"] for each in seen.metrics)
    assert budget <= written < budget + seen.metrics[-1]["generated_tokens"]
    path = run.path("solve_rate")
    assert path[0][0] == 0 and path[-1][0] == written and 3 <= len(path) <= 4

    # References are asked of eight prompts at once, fresh responses of four, or of two beside two that come again.
    groups = [each for part in seen.sampled if len(part.problems) < 8 for each in part.rewards.tolist()]
    responses = sum(each.rewards.numel() for each in seen.sampled)
    effective = sum(len(set(group)) > 1 for group in groups)
    if arm == "dapo":
        effective = sum(len(each.problems) for each in seen.steps)  # at most four of each step's
        assert run.path("effective_share")[-1][1] == 1 and 4 * effective < responses
    else:
        assert run.path("effective_share")[-1][1] == pytest.approx(effective / len(groups)) and effective > 0
    assert run.path("wasted_share")[-1][1] == pytest.approx(1 - 4 * effective / responses)
    measures = arm in ("dots", "dots-replay", "dots-embeddings")
    asked = sum(int(each.rollouts.mask.sum()) for each in seen.sampled if len(each.problems) == 8)
    assert run.path("reference_share")[-1][1] == pytest.approx(asked / written) and (asked > 0) == measures
    again = sum(int(each.off_policy.sum()) for each in seen.steps if each.off_policy is not None)
    assert (again > 0) == ("replay" in arm)
    assert run.spent["optimizer_steps"] == sum(-(-each.rewards.numel() // 8) for each in seen.steps)
    blocks = {"learned", "embeddings", "other-models"} if measures else set()
    assert {
        name for name in ("learned", "embeddings", "other-models") if run.path("correlation", predictor=name)
    } == blocks
    assert bool(run.path("uniform_blocks")) == (measures or arm == "oracle")


@pytest.mark.parametrize("arm", ["dots-replay", "curriculum"])
def test_a_stopped_run_comes_to_the_same_bytes(arm, world, tmp_path, monkeypatch):
    monkeypatch.setattr(dots_world, "SAVE_EVERY", 1)
    study = built(tokens=500 if arm == "dots-replay" else TOKENS)
    folders = [tmp_path / name for name in ("whole", "cut")]
    for folder in folders:
        folder.mkdir()
    whole = Recorder(folders[0], study=study, arm=arm)
    study.run(whole)
    assert whole.checkpoints >= 4
    for stop in (1, 2, 1):
        with pytest.raises(Stopped):
            study.run(Recorder(folders[1], study=study, arm=arm, stop=stop))
    resumed = Recorder(folders[1], study=study, arm=arm)
    study.run(resumed)
    assert resumed.spent == whole.spent and resumed.measured == pytest.approx(whole.measured, rel=0, abs=0, nan_ok=True)
    one, other = (load_state(folder / "state")["state"] for folder in folders)
    assert_same(one, other)


def assert_same(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other) or (one.isnan() == other.isnan()).all()
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other, equal_nan=True)
    else:
        assert one == other or one != one


def test_a_curriculum_goes_from_easy_to_hard_and_on_with_one_optimizer(world, seen, tmp_path):
    opened = world()
    rates = torch.rand(2, POOL, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    opened = dataclasses.replace(opened, rates=rates)
    made = recipe("dr-grpo", steps=99, prompts_per_step=4, num_generations=2, max_new_tokens=5, learning_rate=1e-3)
    run = Recorder(tmp_path, study=built())
    opened.reinforce(run, made, lambda now: None, tokens=300, evaluations=3, order="curriculum")
    mean = dict(zip([each.id for each in opened.pool.test], rates.mean(0).tolist(), strict=True))
    ranked = sorted(mean, key=mean.get, reverse=True)
    tokens, places = 0, defaultdict(set)
    for step, metrics in zip(seen.steps, seen.metrics, strict=True):
        third = min(tokens // 100, 2)
        places[third] |= {ranked.index(problem.id) for problem in step.problems}
        tokens += int(metrics["generated_tokens"])
    assert [len(places[third]) > 3 for third in range(3)] == [True] * 3
    bounds = [0, 10, 19, 28]
    assert all(places[third] <= set(range(bounds[third], bounds[third + 1])) for third in range(3))
    keys = [key for step in seen.steps for key in step.keys]
    assert len(set(keys)) == len(keys)  # no draw comes again in a later third
    moments = load_state(tmp_path / "state")["state"]["training"]
    assert moments["step"] == len(seen.steps) and moments["drawn"] == len(keys)


def test_what_predictors_say_is_compared_with_the_computed_difficulty(world, tmp_path):
    """The other models' rates are here the model's own at the start: their correlation is 1 in the first block."""
    study = built(tokens=500, evaluations=10)  # a look after every step
    run = Recorder(tmp_path, study=study, arm="dots-embeddings")
    run.settings["learning_rate"] = 1e-2
    study.run(run)
    found = {name: run.path("correlation", predictor=name)[0][1] for name in ("other-models", "embeddings", "learned")}
    assert found["other-models"] == pytest.approx(1) and max(found["embeddings"], found["learned"]) < 0.9
    assert run.path("correlation", predictor="other-models")[-1][1] < 1 - 1e-9
    assert found["embeddings"] != found["learned"]


def test_each_predictor_is_told_the_same_and_the_chosen_one_decides():
    predictors = {
        "learned": SimpleNamespace(predict=lambda embeddings, *told: torch.full((len(embeddings),), 0.25)),
        "embeddings": SimpleNamespace(predict=lambda embeddings, references, told: told.mean().expand(len(embeddings))),
    }
    notes = []
    compared = dots_world._Compared(predictors, "embeddings", 5, notes.append)
    assert compared.predict(torch.zeros(3, 2), torch.zeros(2, 2), torch.tensor([0.0, 1.0])).tolist() == [0.5] * 3
    assert notes == []  # references among themselves
    assert compared.predict(torch.zeros(5, 2), torch.zeros(2, 2), torch.tensor([0.0, 0.5])).tolist() == [0.25] * 5
    ((note,),) = [notes]
    assert note["learned"].tolist() == [0.25] * 5 and note["embeddings"].tolist() == [0.25] * 5


def test_the_difficulty_is_that_of_samples(untaught):
    """A small model that half knows three chains: how often samples solve them is what is computed."""
    asked = problems(3, seed=0, levels=(1,))
    model = copy.deepcopy(untaught)
    world = dots_world._world(model, asked, 0)
    opened = DotsWorld(world, world, torch.zeros(1, 3), torch.zeros(3, 1), {})
    records = [Record(id=each.id, prompt=each.prompt, completion=solution(each).text) for each in asked] * 200
    half = [lambda moment: moment.step % 5 == 0 and float(opened.difficulty().mean()) < 0.6]
    tiny.teach(model, records, seed=0, epochs=1, batch_size=3, learning_rate=1e-2, callbacks=half)
    difficulty = opened.difficulty()
    written = roll_out(model, [each.prompt for each in asked], samples=150, max_new_tokens=7, temperature=1.0, seed=[5])
    solved = np.array([world.solved(asked[row // 150], text) for row, text in enumerate(written.texts)])
    sampled = 1 - solved.reshape(3, 150).mean(1)
    assert 0.2 < difficulty.mean() < 0.6 and difficulty.dtype == torch.float64
    assert np.abs(difficulty.numpy() - sampled).max() < 4 * math.sqrt(0.25 / 150)


def test_the_mean_so_far_is_over_tokens():
    tally = Tally()
    assert tally.so_far(np.array([0.0, 1.0])).tolist() == [0, 1]
    tally.tokens = 10
    assert tally.so_far(np.array([1.0, 1.0])).tolist() == [0.5, 1]
    tally.tokens = 40
    assert tally.so_far(np.array([1.0, 0.0])) == pytest.approx([(5 + 30) / 40, (10 + 15) / 40])


@pytest.fixture
def quick(untaught, monkeypatch):
    """Preparations of a few steps of a smaller model."""
    start = dataclasses.replace(warm_start.WORLDS["levels"], sound=0.0, max_new_tokens=3)
    monkeypatch.setitem(warm_start.WORLDS, "levels", start)
    for name, value in (("STEPS", 5), ("MEASURE_EVERY", 2), ("MEASURED", 5), ("CHECKPOINT", 1), ("BATCH_SIZE", 4)):
        monkeypatch.setattr(warm_start, name, value)
    small = tiny.tiny
    monkeypatch.setattr(tiny, "tiny", lambda *texts, **more: small(*texts, **more, width=16, layers=1, heads=2))
    monkeypatch.setattr(dots_world, "ASKED", ((1, 2), (2,)))
    fit = DifficultyPredictor.fit
    monkeypatch.setattr(
        DifficultyPredictor, "fit", lambda *given, **more: fit(*given, **{**more, "hidden": 8, "epochs": 2})
    )
    monkeypatch.setattr(
        warm_start, "arithmetic_model", lambda *given, **more: _arithmetic_model(*given, **more, train=7, test=7)
    )


_arithmetic_model = warm_start.arithmetic_model


def test_a_preparation_that_was_killed_goes_on(quick, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    undisturbed = Recorder(whole)
    dots_world.teach(undisturbed, prompts=35)
    assert undisturbed.checkpoints >= 8
    for stop in (1, 3, 3):  # within the first, the second and the third teaching
        with pytest.raises(Stopped):
            dots_world.teach(Recorder(cut, stop=stop), prompts=35)
    resumed = Recorder(cut)
    dots_world.teach(resumed, prompts=35)
    assert resumed.spent == undisturbed.spent
    for name in (
        dots_world.RATES,
        "predictor/predictor.safetensors",
        "model/model.safetensors",
        "embeddings/values.npy",
    ):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()

    rates = np.load(whole / dots_world.RATES)
    assert rates.shape == (3, 35) and len({tuple(each) for each in rates.tolist()}) == 3
    done = cut.rename(tmp_path / "done")  # as the engine does
    opened = DotsWorld.open(SEED, done, prompts=35, test=7)
    assert torch.equal(opened.rates, torch.from_numpy(rates)) and opened.embeddings.shape == (35, 16)
    assert (
        [each.level for each in opened.pool.test[:7]]
        == [1, 2, 3, 4, 5, 6, 7]
        == [e.level for e in opened.held_out.test]
    )
    assert not {each.id for each in opened.pool.test} & {each.id for each in opened.held_out.test}
    assert isinstance(opened.predictors["learned"], DifficultyPredictor)


def test_arms_differ_as_they_are_called(world, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(DotsWorld, "open", world)
    made = {}
    monkeypatch.setattr(
        DotsWorld, "reinforce", lambda self, run, its, look, **more: made.update({run.arm: (its.model_dump(), more)})
    )
    study = registry.load("dots").build()
    for arm in study.arms:
        run = Recorder(tmp_path, study=study, arm=arm.name)
        run.arm = arm.name
        study.run(run)
    plain, more = made.pop("grpo")
    assert more == {"tokens": 80_000, "evaluations": 10}
    assert (plain["advantage"], plain["prompts_per_step"], plain["num_generations"], plain["batch_size"]) == (
        "dr-grpo",
        16,
        8,
        64,
    )
    differs = {
        arm: {name: value for name, value in {**its, **own}.items() if {**plain, **more}.get(name) != value}
        for arm, (its, own) in made.items()
    }
    assert differs == {
        "dots": {"select": "dots"},
        "replay": {"replay": 0.5},
        "dots-replay": {"select": "dots", "replay": 0.5},
        "dapo": {"mixed_only": True},
        "curriculum": {"order": "curriculum"},
        "dots-embeddings": {"select": "dots", "predictor": "embeddings"},
        "oracle": {"select": "oracle"},
    }
    # References are to fresh responses as in the paper: 256 to 2 x 512.
    assert plain["reference_questions"] / (plain["select_every"] * plain["prompts_per_step"]) == 256 / (2 * 512)


def test_longest_solutions_fit():
    world = dots_world.WORLD
    longest = max(len(solution(each).text) for each in problems(14, seed=0, levels=world.levels))
    assert world.max_new_tokens == longest + 1


def test_seeds_that_were_looked_at_are_no_test_seeds():
    study = registry.load("dots").build()
    assert max(study.test_seeds()) < 1000 and sum(claim.judged for claim in study.claims) == 3
    assert Path(study.source).name == "dots.py"
