"""AlphaOne's study on a small scale: traces that are what they claim to be, a world that is stored, arms that measure."""

import json

import numpy as np
import pytest

from equipoise.data.arithmetic import check_steps, problems
from equipoise.decoding import alphaone_world
from equipoise.decoding.alphaone_world import AGAIN, BUDGET, RIGHT, AlphaOneWorld, lessons, right
from equipoise.decoding.thinking import Thought
from equipoise.studies import alphaone as study_file
from equipoise.study import registry
from study_recorder import Stopped, StudyRecorder

SMALL = {"steps": 3, "problems": 6, "calibrate": 4}


class Recorder(StudyRecorder):
    seed = 0

    def measure(self, outcome, value, *, of=1, at=None, where=None):
        super().measure(outcome, value, of=of, at=at or {}, where=where)

    def items(self, outcome, ids, scores, *, at=None, where=None):
        super().items(outcome, ids, scores, at=at or {}, where=where)

    def spend(self, *, phase="query", **amounts):
        super().spend(phase=phase, **amounts)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    study = registry.load("alphaone").build(**SMALL)
    first = Recorder(tmp_path_factory.mktemp("alphaone") / "prepared", study=study)
    study_file.prepare(first)
    return study, first


def test_traces_have_the_errors_and_the_waits_that_are_stated():
    pool = problems(600, seed=3, kind="chain", levels=(5,), operators="+-")
    generator = np.random.default_rng(0)
    first, again, early, answers = [], [], 0, []
    for problem in pool:
        text = alphaone_world.trace(problem, generator)
        thinking, _, answer = text.partition("</think>")
        assert text.count("</think>") == 1 and (not thinking or thinking.endswith("\n\n")) and "Wait" not in answer
        read = check_steps(problem, thinking.replace("\n\n", ";") + answer)
        assert read.form == "strict" and read.answer == str(read.steps[-1].value)
        assert len([step for step in read.steps if not step.wait]) == 5
        first += [step.follows for step in read.steps if not step.wait]
        again += [step.right for step in read.steps if step.wait]
        early += "=" in answer
        answers.append(read.right)
    assert 1 - np.mean(first) == pytest.approx(0.15, abs=0.025)
    assert np.mean(again) == pytest.approx(RIGHT, abs=0.04)
    assert AGAIN * 5 < len(again) / 600 < 2.2 * AGAIN * 5  # a wait comes after a wait in three of ten
    assert 0.1 < early / 600 < 0.25 and 0.4 < np.mean(answers) < 0.7


def test_a_thought_is_right_by_its_last_value():
    (problem,) = problems(1, seed=0, kind="chain", levels=(5,), operators="+-")

    def thought(thinking, answer, closed=True):
        return Thought((), thinking, answer, 0, 0, closed, True, 0, ())

    steps = list(problem.steps)
    assert right(problem, thought("".join(step + "\n\n" for step in steps), f"#{problem.answer}"))
    assert right(problem, thought(steps[0] + "\n\n", ";".join(steps[1:]) + f"#{problem.answer}"))
    assert not right(
        problem, thought("".join(step + "\n\n" for step in steps), "#" + str((int(problem.answer) + 1) % 10))
    )
    assert not right(problem, thought("".join(step + "\n\n" for step in steps), "", closed=False))


def test_the_words_are_tokens_and_lessons_are_of_the_training_part():
    tokenizer = alphaone_world.untaught(0).tokenizer
    ids = tokenizer.encode("7+5=2\n\nWait 7+5=2\n\n</think>#2", add_special_tokens=False)
    assert len(ids) == 5 + 1 + 1 + 6 + 1 + 1 + 2 and tokenizer.decode(ids) == "7+5=2\n\nWait 7+5=2\n\n</think>#2"
    test = {problem.id for problem in problems(400, seed=0, kind="chain", levels=(5,), operators="+-", part="test")}
    assert not test & {record.group for record in lessons(300, 0)}


def test_a_preparation_that_was_killed_goes_on_as_if_it_had_not_been(prepared, tmp_path, monkeypatch):
    study, first = prepared
    monkeypatch.setattr(alphaone_world, "CHECKPOINT", 1)
    with pytest.raises(Stopped):
        study_file.prepare(Recorder(tmp_path / "killed", study=study, stop=2))
    again = Recorder(tmp_path / "killed", study=study)
    study_file.prepare(again)
    weights = [(each.folder / "model" / "model.safetensors").read_bytes() for each in (first, again)]
    assert weights[0] == weights[1] and again.spent == first.spent
    stored = [json.loads((each.folder / "world.json").read_text()) for each in (first, again)]
    assert stored[0] == stored[1] and 0 < stored[0]["mean_thinking"] <= BUDGET


@pytest.mark.parametrize("arm", ["alphaone", "base", "s1", "cap", "random", "increase", "fast-only"])
def test_an_arm_measures_what_is_declared(prepared, arm, tmp_path):
    study, first = prepared
    run = Recorder(tmp_path / "run", study=study, arm=arm, prepared=first.folder)
    study_file.think(run)
    measured = {key.split()[0] for key in run.measured}
    assert measured == {outcome.name for outcome in study.outcomes} and run.spent["prompts"] == 6
    assert run.spent["generated_tokens"] == round(run.last("tokens") * 6) <= 6 * BUDGET
    if arm in ("base", "cap", "fast-only"):
        assert run.last("inserted") == 0


def test_arms_are_the_controls_that_they_say(prepared):
    study, first = prepared
    world = AlphaOneWorld.open(0, first.folder, 4)
    made = {arm.name: world.control(**arm.points()[0]) for arm in study.arms}
    moment = 1.4 * world.mean_thinking
    assert made["alphaone"].moment == made["cap"].moment == made["random"].moment == pytest.approx(moment)
    assert (
        made["alpha-2"].moment == pytest.approx(2 * world.mean_thinking) and made["random"].expected == world.expected
    )
    assert [made[name].kind for name in ("alphaone", "increase", "fast-only")] == ["linear", "increase", "constant"]
    assert not made["slow-only"].force_end and made["s1"].times == 2
    assert len({json.dumps(arm.points()[0], sort_keys=True) for arm in study.arms}) == len(study.arms)
