"""The studies of tool entropy: what is taught, how calls are told apart, arms by their rewards, and runs that resume."""

import copy
import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import reinforcement_world
from equipoise.core.errors import BadInput
from equipoise.data.lookup import KEYS, Lookup
from equipoise.language import tiny
from equipoise.language.encode import IGNORE
from equipoise.language.episodes import Episode, Turn
from equipoise.reinforcement import entropy_tools, evidence_world, lookup_world, stages
from equipoise.reinforcement.evidence_world import GIVEN, Evidence, drops, questions
from equipoise.reinforcement.lookup_world import BELIEF, USELESS, LookupWorld, demonstration, examples, kinds_of_calls
from equipoise.reinforcement.recipe import recipe
from equipoise.studies import entropy_tools as declared
from equipoise.studies import entropy_tools_pilot as pilot
from equipoise.study import registry
from study_recorder import Stopped, StudyRecorder

SEED = 1007
MOST_TURNS = Lookup.max_turns


class Recorder(StudyRecorder):
    seed = SEED

    def measure(self, outcome, value, *, of=1, at=None, where=None):
        super().measure(outcome, value, of=of, at=at, where=where)

    def items(self, outcome, ids, scores, *, at=None, where=None):
        super().items(outcome, ids, scores, at=at, where=where)

    def spend(self, *, phase="build", **amounts):
        super().spend(phase=phase, **amounts)


def test_demonstrations_solve_their_episode_with_useless_calls_among_them():
    for seed in range(60):
        shown = demonstration(seed, random.Random(seed), useless=USELESS[seed % 3])
        environment = Lookup()
        assert environment.reset(seed) == shown.first
        told = set()
        for turn, reply in zip(shown.turns, shown.replies, strict=False):
            known = [environment.table[key][0] if key in told else None for key in environment.chain]
            believed = turn[:BELIEF]
            assert all(digit in (None, believed[place]) for place, digit in enumerate(known * 6) if place < BELIEF)
            assert environment.step(turn)[0] == reply
            told |= set() if "#" in reply else {reply[0]}
        assert environment.step(shown.turns[-1])[1:3] == (1.0, True)
        needed = len(environment.chain) + len(set(environment.chain) & environment.noisy)
        assert len(shown.replies) - needed == USELESS[seed % 3]
        assert len(shown.turns) <= MOST_TURNS
    unknown = {demonstration(3, random.Random(number), useless=2).turns[0][:BELIEF] for number in range(20)}
    assert len(unknown) > 15  # nothing is known before the first call


@pytest.fixture(scope="module")
def small():
    """The world's sizes and its teaching, of a moment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup_world, "SIZES", {"width": 16, "layers": 1, "heads": 2, "context": 160})
        patch.setattr(lookup_world, "STEPS", 4)
        patch.setattr(lookup_world, "CLEAN", 1)
        patch.setattr(lookup_world, "BATCH_SIZE", 4)
        patch.setattr(lookup_world, "MEASURE_EVERY", 2)
        patch.setattr(lookup_world, "MEASURED", 2)
        patch.setattr(lookup_world, "SOLVED", 0.0)
        patch.setattr(lookup_world, "CHECKPOINT", 1)
        patch.setattr(Lookup, "max_turns", 3)
        patch.setattr(declared, "PROMPTS", 1)
        patch.setattr(declared, "GROUP", 2)
        yield


@pytest.fixture(scope="module")
def taught(small, tmp_path_factory):
    """A preparation that was killed after its first step and went on, and one that was not."""
    folders = [tmp_path_factory.mktemp(name) for name in ("whole", "killed")]
    whole = Recorder(folders[0])
    declared.teach(whole)
    with pytest.raises(Stopped):
        declared.teach(Recorder(folders[1], stop=1))
    resumed = Recorder(folders[1])
    declared.teach(resumed)
    return whole, resumed


def test_a_preparation_that_was_killed_teaches_the_same(taught):
    whole, resumed = taught
    models = [LookupWorld.open(SEED, each.folder, test=2).language_model.model for each in taught]
    assert reinforcement_world.equal(*(reinforcement_world.weights(each) for each in models))
    assert whole.spent == resumed.spent
    assert whole.spent["trained_tokens"] > 2 * 4 * 40


def test_examples_are_what_play_would_have(taught):
    language_model = LookupWorld.open(SEED, taught[0].folder, test=1).language_model
    shown = [demonstration(seed, random.Random(seed), useless=USELESS[seed % 3]) for seed in (4, 9)]
    for demo, example in zip(shown, examples(language_model, shown), strict=True):
        tokens = language_model.tokenizer.convert_ids_to_tokens(list(example.input_ids))
        turns = [[*turn, tiny.END] for turn in demo.turns]
        replies = [*map(list, demo.replies), []]
        followed = [token for turn, reply in zip(turns, replies, strict=True) for token in turn + reply]
        assert tokens == [tiny.BEGIN, *demo.first, *followed]
        said = [token for token, label in zip(tokens, example.labels, strict=True) if label != IGNORE]
        assert said == [token for turn in turns for token in turn]
        assert all(label in (IGNORE, own) for own, label in zip(example.input_ids, example.labels, strict=True))


def acted(seed, actions):
    """An episode of these actions."""
    environment = Lookup()
    first, turns = environment.reset(seed), []
    for said in actions:
        reply, reward, _, info = environment.step(said)
        turns.append(Turn(said, reply, reward, info, 0, 1, 1))
    return Episode(seed, first, tuple(turns), 0.0, "turns")


def test_kinds_of_calls():
    for seed in range(50):
        environment = Lookup()
        environment.reset(seed)
        quiet = [key for key in environment.chain if key not in environment.noisy]
        noisy = [key for key in environment.chain if key in environment.noisy]
        stray = next(key for key in KEYS if key not in environment.chain)
        if quiet and noisy:
            break
    q, n = quiet[0], noisy[0]
    said = [f"?{q}", f"?{q}", "nothing", f"?{n}", f"?{n}", f"?{n}", f"?{stray}", f"?{stray}?{stray}", f"?{q}?{stray}"]
    stray_again = "stray" if stray in environment.noisy else "repeat"
    assert kinds_of_calls(acted(seed, said)) == [
        "useful", "repeat", "noisy", "useful", "repeat", "stray", stray_again, "repeat",
    ]  # fmt: skip
    assert kinds_of_calls(acted(seed, [f"?{stray}?{q}"])) == ["useful"]


def test_rivals_that_count_calls():
    episodes = [acted(1, ["?a", "?b?c"]), acted(2, []), acted(3, ["?a"] * 11)]
    episodes = [
        Episode(each.seed, each.first, each.turns, score, "done")
        for each, score in zip(episodes, (1.0, 0.5, 1.0), strict=True)
    ]
    rollouts = SimpleNamespace(
        episodes=episodes, ids=torch.zeros(3, 1), entropies=torch.zeros(3, 1, dtype=torch.float64)
    )
    assert entropy_tools.call_counts(rollouts).tolist() == [3, 0, 11]
    assert entropy_tools.count_penalty(rollouts, weight=0.1).tolist() == pytest.approx([0.7, 0.5, -0.1])
    found = entropy_tools.decreasing_reward(rollouts, most=11).tolist()
    assert found == pytest.approx([math.cos(math.pi * 3 / 17), 0.5, 0.5])


def test_an_arm_that_was_killed_comes_to_the_same(taught, tmp_path):
    study = registry.load("entropy-tools").build(steps=2, evaluations=2, test_episodes=2)
    one, two, three = (
        Recorder(tmp_path / name, study=study, arm="dense", prepared=taught[0].folder, stop=stop)
        for name, stop in (("whole", None), ("killed", 1), ("killed", None))
    )
    declared.train(one)
    with pytest.raises(Stopped):
        declared.train(two)
    declared.train(three)
    assert one.measured == three.measured and one.spent == three.spent
    assert one.spent["optimizer_steps"] == 2
    for done in (0, 1, 2):
        assert any(key.startswith("accuracy ") and f'"optimizer_steps": {done},' in key for key in one.measured)


def test_every_arm_has_the_reward_that_it_is_called_by(taught):
    study = registry.load("entropy-tools").build()
    world = LookupWorld.open(SEED, taught[0].folder, test=2)
    made = recipe("grpo", steps=1)
    weighed = {}
    for arm in study.arms:
        chosen = world.stages(made, **arm.points()[0])
        weighed[arm.name] = (chosen["sample"].shape is None, chosen["weigh"] is stages.weigh)
    shaped = ("sparse-full", "sparse-zero", "count-weak", "count-strong", "decreasing", "sparse-margin")
    expected = {**dict.fromkeys(shaped, (False, True)), **dict.fromkeys(("dense", "dense-zero"), (True, False))}
    assert weighed == {**expected, "score-alone": (True, True)}
    assert world.stages(made, **study.arm("sparse-zero").points()[0])["sample"].shape.__self__.no_call == "zero"
    assert world.stages(made, **study.arm("dense-zero").points()[0])["weigh"].__self__.alpha == 0


EVIDENCE = [
    Evidence("a", "Who was born in Oslo?", "one two", {"gold": "Oslo: three", "distractor": "no", "repeat": "one two"}),
    Evidence("b", "Where?", "two", {"gold": "yes", "distractor": "three no", "repeat": "two"}),
]


@pytest.fixture
def briefly(monkeypatch):
    """What is shown is short, since the untaught model's context is."""
    monkeypatch.setattr(evidence_world, "FIRST", "{question} {first}")
    monkeypatch.setattr(evidence_world, "THEN", "{text} {question}")


def test_drops_are_those_of_the_thoughts(briefly):
    """Of each question alone, too; by hand from the rollouts, for unequal thoughts."""
    language_model = reinforcement_world.model()
    found = drops(language_model, EVIDENCE, tokens=12)
    rollouts = evidence_world.think(language_model, EVIDENCE, tokens=12)
    for place, of_given in enumerate(rollouts.episodes):
        given, number = GIVEN[place % 3], place // 3
        one, two = of_given.turns
        assert EVIDENCE[number].texts[given] in one.reply
        for name, values in (("entropy", rollouts.entropies), ("surprisal", -rollouts.log_probs)):
            before, after = (values[place, turn.begin : turn.end].double() for turn in (one, two))
            value = found[name][given][number]
            if min(len(before), len(after)) < 5:
                assert math.isnan(value)
            else:
                assert value == pytest.approx((before.mean() - after.mean()).item())
    assert found["overlap"]["gold"] == [1 / 5, 0.0] and found["overlap"]["repeat"] == [0.0, 0.0]
    alone = drops(language_model, EVIDENCE[1:], tokens=12)
    for name, of_signal in found.items():
        for given, values in of_signal.items():
            assert alone[name][given][0] == pytest.approx(values[1], abs=1e-5, nan_ok=True)


def test_questions_of_hotpotqa():
    try:
        drawn = questions(150, seed=3)
    except BadInput as error:
        pytest.skip(str(error))
    assert len({each.id for each in drawn}) == 150
    assert drawn == questions(150, seed=3) != questions(150, seed=4)
    for each in drawn:
        assert each.texts["repeat"] == each.first
        assert len({each.first, *each.texts.values()}) == 3
        assert max(map(len, each.texts.values())) <= evidence_world.PARAGRAPH


def test_the_pilot_from_its_preparation_to_its_claims(briefly, monkeypatch, tmp_path):
    language_model = reinforcement_world.model()
    monkeypatch.setattr("equipoise.language.model.load", lambda name: copy.copy(language_model))
    monkeypatch.setattr(evidence_world, "questions", lambda count, seed, part: EVIDENCE[:count])
    monkeypatch.setattr(evidence_world, "CHUNK", 1)
    monkeypatch.setattr(evidence_world, "THINK", 12)
    study = registry.load("entropy-tools-pilot").build(questions=2)
    with pytest.raises(Stopped):
        pilot.think(Recorder(tmp_path / "p", study=study, stop=1))
    prepared = Recorder(tmp_path / "p", study=study)
    pilot.think(prepared)
    stored = json.loads((tmp_path / "p" / "drops.json").read_text())
    assert stored["ids"] == ["a", "b"] and len(stored["found"]["entropy"]["gold"]) == 2
    assert prepared.spent == {"generated_tokens": 2 * 12 * 3 * 2}
    for arm in study.arms:
        run = Recorder(tmp_path / arm.name, study=study, arm=arm.name, prepared=tmp_path / "p")
        pilot.signal(run)
        assert sum(key.startswith("drop_") for key in run.measured) == 3
        assert sum(key.startswith("copied") for key in run.measured) == (3 if arm.name == "entropy-fall" else 0)


def test_statistics_of_the_pilot():
    useful, useless = np.array([3.0, 1.0, np.nan, 2.0]), np.array([2.0, 0.0, 9.0, np.nan])
    assert pilot.told_apart(useful, useless) == pytest.approx(3 / 4)
    assert pilot.told_apart(useless, useful) == pytest.approx(1 / 4)
    assert math.isnan(pilot.told_apart(np.array([np.nan]), np.array([1.0])))
    assert pilot.mean(useful) == 2.0 and math.isnan(pilot.mean(np.array([np.nan])))
