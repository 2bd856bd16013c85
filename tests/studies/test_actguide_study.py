"""The study of ActGuide: lessons that teach nothing long, arms on one budget of tokens, runs that resume."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from equipoise.data.corridor import Corridor
from equipoise.language import tiny
from equipoise.reinforcement import actguide_world
from equipoise.reinforcement.actguide_world import (
    EASY,
    HARD,
    LIST,
    STRAYS,
    Corridors,
    GuideWorld,
    Written,
    as_rollouts,
    lessons,
    letters,
    planned,
)
from equipoise.reinforcement.playing import Playing, seed_of
from equipoise.studies import actguide
from equipoise.study import registry
from study_recorder import Stopped, StudyRecorder

SEED, TOKENS = 1007, 100


class Recorder(StudyRecorder):
    seed = SEED

    def measure(self, outcome, value, *, of=1, at, where=None):
        """Of nothing there is no mean."""
        super().measure(outcome, value if of else math.nan, of=of or 1, at=at, where=where)


@pytest.fixture(scope="module")
def small():
    torch.set_num_threads(1)
    made = tiny.tiny
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tiny, "tiny", lambda *texts, **more: made(*texts, **{**more, "width": 16, "layers": 1, "heads": 2})
        )
        return actguide_world.untaught(0)


@pytest.fixture
def world(small, monkeypatch):
    """Few rows of an untaught model, everything else as it is."""
    monkeypatch.setattr(actguide, "PROMPTS", 2)
    monkeypatch.setattr(actguide, "GROUP", 2)
    monkeypatch.setattr(actguide_world, "PROBED", 1)

    def opened(seed, folder, **counts):
        return GuideWorld.of(seed, copy.deepcopy(small), **counts)

    monkeypatch.setattr(GuideWorld, "open", opened)


@pytest.fixture
def written(monkeypatch):
    """Tokens of every call that played for training."""
    found, played = [], Playing.play

    def play(self, *given, seed, **how):
        rollouts = played(self, *given, seed=seed, **how)
        if seed[1] != actguide_world._LOOK:
            found.append(int(rollouts.mask.sum()))
        return rollouts

    monkeypatch.setattr(Playing, "play", play)
    return found


def built():
    return registry.load("actguide").build(tokens=TOKENS, evaluations=2, train_problems=4, test_problems=4)


def test_lessons_teach_short_ways_and_to_follow_lists():
    corridor, strayed, own, followed = Corridor(EASY, cells=9, slack=LIST, rules=False), 0, 0, 0
    known = {corridor.reset(number): number for number in range(1000)}
    for lesson in lessons(400, seed=3):
        listed, _, first = lesson.prompt.rpartition(" " + lesson.prompt[-11:])
        first = lesson.prompt[-11:]
        hint = listed[1::2]
        corridor.reset(known[first])
        for turn, (letter, reply) in enumerate(lesson.turns):
            ahead = corridor.plan_from_here
            if turn < len(hint):
                assert letter == hint[turn] and listed[2 * turn] == "123456789abcdefg"[turn]
                followed += 1
            else:
                assert 0 < len(ahead) <= EASY[1]
                own, strayed = own + 1, strayed + (letter != ahead[0]["name"][0])
            assert corridor.step(letter)[0] == reply
    assert followed > 400 < own and abs(strayed / own - STRAYS * 5 / 6) < 0.06


def test_written_episodes_have_the_tokens_of_played_ones(small):
    world = GuideWorld.of(5, small, train=3, test=2)
    played = world.play(world.train, samples=1, share=0.5)
    texts = []
    for problem, episode in zip(world.train, played.episodes, strict=True):
        plan = Corridors().plan(seed_of(problem))
        shown = letters(problem.prompt, plan[: round(len(plan) / 2)]) if round(len(plan) / 2) else problem.prompt
        # An untaught model writes anything: what it wrote is said again.
        texts.append(Written(shown, tuple((turn.text, turn.reply) for turn in episode.turns)))
    assert {len(each.turns) for each in texts} != {1}
    letters_only = [place for place, each in enumerate(texts) if all(len(letter) == 1 for letter, _ in each.turns)]
    assert letters_only
    again = as_rollouts(small, [texts[place] for place in letters_only])
    expected = played.take(letters_only)
    for row in range(len(letters_only)):
        present = expected.present[row]
        assert torch.equal(again.ids[row][again.present[row]], expected.ids[row][present])
        assert torch.equal(again.mask[row][again.present[row]], expected.mask[row][present])
    assert again.prompts == expected.prompts


def test_problems_alternate_and_test_pictures_are_not_trained(small):
    world = GuideWorld.of(5, small, train=30, test=20)
    lengths = [len(Corridors().plan(seed_of(problem))) for problem in world.train]
    assert max(lengths[::2]) <= EASY[1] and min(lengths[1::2]) >= HARD[0] and len(lengths) == 60
    hard = {problem.prompt for problem in world.train[1::2]}
    assert len(hard) == 30 and len(world.test) == 20 and not hard & {problem.prompt for problem in world.test}
    plans = world.plans(world.train)
    assert set(plans) == {problem.id for problem in world.train[1::2]}
    other = world.plans(world.train, wrong=0.2)
    pairs = [pair for name in plans for pair in zip(plans[name], other[name], strict=True)]
    assert abs(np.mean([one != two for one, two in pairs]) - 0.2) < 0.08
    (episode,) = planned([seed_of(world.train[1])], [next(iter(plans.values()))])
    assert episode.turns[-1][1] == "" and len(episode.turns) == lengths[1] and episode.prompt == world.train[1].prompt


@pytest.mark.parametrize("arm", ["actguide", "grpo", "sft"])
def test_arms_run_on_the_budget_and_count_each_token(arm, world, written, tmp_path):
    study = built()
    run = Recorder(tmp_path / "run", study=study, arm=arm)
    study.run(run)
    if arm == "sft":
        assert not written and set(run.spent) == {"trained_tokens"} and 4 * HARD[0] < run.spent["trained_tokens"]
        return
    assert run.spent["generated_tokens"] == sum(written) >= TOKENS and "trained_tokens" not in run.spent
    assert 0 <= run.last("success") <= 1 and run.last("weight_variance") >= 0
    if arm == "actguide":  # an untaught model fails with every hint, and the whole list is what remains
        assert run.last("hard_share") > 0 and run.last("hint_share") > 0.9 and run.last("rescued_share") < 0.5
    if arm == "grpo":
        assert not [key for key in run.measured if key.startswith("hint_length")]


def test_a_stopped_run_comes_to_the_same(world, tmp_path, monkeypatch):
    monkeypatch.setattr(actguide_world, "SAVE_EVERY", 1)
    study = built()
    whole = Recorder(tmp_path / "whole", study=study, arm="hint-dropout")
    study.run(whole)
    assert whole.checkpoints >= 2
    with pytest.raises(Stopped):
        study.run(Recorder(tmp_path / "cut", study=study, arm="hint-dropout", stop=1))
    resumed = Recorder(tmp_path / "cut", study=study, arm="hint-dropout")
    study.run(resumed)
    assert resumed.spent == whole.spent and resumed.measured == pytest.approx(whole.measured, rel=0, abs=0, nan_ok=True)


def test_fine_tuning_learns_what_was_written(small):
    model = replace(small, model=copy.deepcopy(small.model))
    episodes = as_rollouts(model, [Written("@..*..... 1", (("r", ".@.*..... 2"), ("o", "")))] * 3)

    def likelihood():
        with torch.no_grad():
            return actguide_world.score_responses(model.model, episodes.batch([0])).log_probs.exp()

    before = likelihood()
    assert actguide_world.fine_tune(model, episodes, steps=15, learning_rate=2e-2, seed=0) == 15 * 6
    after = likelihood()
    mask = episodes.mask[0]
    assert (before[0][mask] < 0.2).all() and (after[0][mask] > 0.5).all()


@pytest.mark.slow
def test_the_warm_start_reads_hints_and_never_solves_long_corridors(tmp_path):
    study = registry.load("actguide").build()
    preparation = Recorder(tmp_path / "made", study=study, arm="grpo")
    actguide_world.teach(preparation)
    world = GuideWorld.open(SEED, preparation.folder, train=10, test=30)
    alone = world.success(samples=8)
    assert (alone == 0).all()
    assert world.success(samples=2, share=1.0).mean() > 0.5
