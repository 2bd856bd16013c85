"""LifeDialBench's study: arms hear and are asked the same, what is claimed is measured, and appended text keeps its past."""

import json
import math

import pytest

from equipoise.agents import lifedial_world as world
from equipoise.agents import lifedialbench as ldb
from equipoise.study import registry
from study_recorder import StudyRecorder

pytest.importorskip("bm25s")


class Recorder(StudyRecorder):
    seed = 1000

    def items(self, outcome, ids, scores, *, at=None, where=None):
        self.ids = getattr(self, "ids", {}) | {json.dumps(where): tuple(ids)}
        super().items(outcome, ids, scores, at=at, where=where)

    def measure(self, outcome, value, *, of=1, at=None, where=None):
        super().measure(outcome, value, of=of, at=at or {}, where=where)

    def spend(self, *, phase, **amounts):
        self.phases = {*getattr(self, "phases", ()), phase}
        super().spend(phase=phase, **amounts)

    def beat(self):
        pass


def ran(arm, folder, days=12):
    study = registry.load("lifedialbench").build(days=days)
    run = Recorder(folder / arm, study=study, arm=arm)
    study.run(run)
    return study, run


def conditions(test):
    """Outcome, place and condition of every simple test in one."""
    if hasattr(test, "tests"):
        return [each for part in test.tests for each in conditions(part)]
    if hasattr(test, "cost"):
        return []
    wheres = [test.where] if hasattr(test, "where") else [test.where_a, test.where_b]
    return [(test.outcome, dict(test.at), dict(where)) for where in wheres]


def test_every_claim_is_of_something_that_is_measured(tmp_path):
    study, raw = ran("rag-sessions", tmp_path)
    measured = {
        (key.split()[0], key[key.index("{") : key.index("}") + 1], key[key.rindex("{") :]) for key in raw.measured
    }
    count = 0
    for claim in study.claims:
        for outcome, at, where in conditions(claim.test) if claim.test is not None else ():
            assert any(
                (outcome, at, where) == (name, json.loads(place), json.loads(condition))
                for name, place, condition in measured
            ), claim.text
            count += 1
    assert count > 12 and "online, updates k" in raw.phases
    assert sum(claim.judged for claim in study.claims) == 3


@pytest.mark.parametrize("arm", [arm.name for arm in registry.load("lifedialbench").build().arms])
def test_arms_hear_and_are_asked_the_same(tmp_path, arm):
    study, run = ran(arm, tmp_path)
    _, empty = ran("empty", tmp_path) if arm != "empty" else (study, run)
    assert all(empty.ids[where] == ids for where, ids in run.ids.items() if where in empty.ids)
    settings = study.arm(arm).points()[0]
    late = {key for key in run.measured if '"late"' in key}
    assert bool(late) == settings["late"]
    where = {"world": "updates", "equal": "100 tokens", "protocol": "online"}
    tokens = run.measured[f'printed_tokens {{"hidden": 0.0}} {json.dumps(where)}']
    assert tokens <= world.TOKENS
    if settings["memory"] in ("facts", "notes"):
        return
    # what only appends answers as of a moment as it did then
    assert all(value == 0 for key, value in run.measured.items() if key.startswith("modification"))


def test_rates_of_the_worlds_are_measured_once(tmp_path):
    _, run = ran("empty", tmp_path, days=30)
    assert 0 < run.measured['changed {"hidden": 0.0} {"world": "updates"}'] <= 1
    assert run.measured['restated {"hidden": 1.0} {"world": "late"}'] > 0
    auroc = run.measured['later_auroc {"hidden": 0.0} {"world": "updates", "equal": "k"}']
    assert math.isnan(auroc)  # nothing was printed


def test_the_future_changes_nothing_that_a_memory_said():
    """Every session behind the middle becomes noise: what was asked before has the same bytes."""
    whole = world.life_world(1000, days=20, **world.UPDATES).history
    middle = whole.questions[len(whole.questions) // 2].time
    noise = [
        world.replace(each, turns=tuple(world.replace(turn, text="noise") for turn in each.turns))
        if each.time > middle
        else each
        for each in whole.sessions
    ]
    noisy = world.replace(whole, sessions=tuple(noise), questions=whole.questions)
    arms = registry.load("lifedialbench").build().arms
    for settings in (arm.points()[0] for arm in arms):
        before = []
        for history in (whole, noisy):
            answers = ldb.run(world.world_memory(settings["memory"], k=5, budget=60, **settings["options"]), history)
            pairs = zip(answers.questions, answers.rows, strict=True)
            before.append([row for question, row in pairs if question.time <= middle])
        assert repr(before[0]) == repr(before[1]) and before[0]
