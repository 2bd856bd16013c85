"""What an arm of the studies sago, unlearning and reglu asks of the training, and what it measures and counts along the way.

The training is a stand-in that calls back after each step, as `unlearning.training.train` does, and saves every so many.
"""

from types import SimpleNamespace

import pytest

from equipoise.studies import reglu, sago, unlearning
from equipoise.study import registry
from equipoise.training.order import pairs
from equipoise.unlearning import fiction, frontier_world, training
from equipoise.unlearning.recipe import recipe
from study_recorder import Stopped, StudyRecorder

FORGET = [SimpleNamespace(input_ids=[0] * size) for size in (3, 5, 7)]
RETAIN = [SimpleNamespace(input_ids=[0] * size) for size in (100, 200, 400, 800)]
REFUSALS = [SimpleNamespace(input_ids=[0] * 1000) for _ in FORGET]


class Recorder(StudyRecorder):
    seed = 1003

    def spend(self, *, phase="query", **amounts):
        super().spend(phase=phase, **amounts)


def at(run, outcome):
    """Steps at which an outcome was measured."""
    return [int(key.split('"step": ')[1].split("}")[0]) for key in run.measured if key.startswith(f"{outcome} ")]


@pytest.fixture
def asked(monkeypatch):
    """The stand-ins, and with what they were called."""
    told = SimpleNamespace(recipes=[], opened=[], trained=[], attacks=[], attackers=[])

    def open_setting(*given, **named):
        told.opened.append((given, named))
        language_model = SimpleNamespace(name="model")
        measure = lambda run, step: run.measure("retain_accuracy", step / 100, at={"step": step})  # noqa: E731
        return SimpleNamespace(language_model=language_model, forget=FORGET, retain=RETAIN, measure=measure)

    def prepare(language_model, chosen):
        told.recipes.append(chosen)
        return SimpleNamespace(name="prepared")

    def train(language_model, chosen, forget, retain, *, callbacks, save, save_every, state, **further):
        assert language_model.name == "prepared" and chosen is told.recipes[-1] and (forget, retain) == (FORGET, RETAIN)
        told.trained.append({"save_every": save_every, "state": state, **further})
        for step in range((state or {"step": 0})["step"] + 1, chosen.steps + 1):
            metrics = {"cosine_update_retain": step, "cosine_update_forget": 10.0, "conflict": step**2}
            for callback in callbacks:
                callback(SimpleNamespace(step=step, metrics=metrics))
            if step % save_every == 0:
                save({"step": step})

    def attacker(*given):
        told.attackers.append(given)
        attack = lambda run, model, step, last: told.attacks.append((model.name, step, last))  # noqa: E731
        return SimpleNamespace(measure=attack)

    for world in (fiction, frontier_world):
        monkeypatch.setattr(world, "open_setting", open_setting)
    monkeypatch.setattr(frontier_world, "attacker", attacker)
    monkeypatch.setattr(frontier_world, "refusals", lambda model, chosen: REFUSALS if chosen.objective == "dpo" else [])
    monkeypatch.setattr(training, "prepare", prepare)
    monkeypatch.setattr(training, "train", train)
    return told


def small(name, **options):
    return registry.load(name).build(**({"steps": 14, "batch_size": 6, "evaluations": 5} | options))


@pytest.mark.parametrize(("name", "module", "arm"), [
    ("sago", sago, "coin"), ("unlearning", unlearning, "npo"), ("reglu", reglu, "reglu"),
])  # fmt: skip
def test_an_arm_is_measured_at_the_start_now_and_then_and_at_the_end_killed_or_not(name, module, arm, asked, tmp_path):
    study = small(name, batch_size=2)
    whole = Recorder(tmp_path / "whole", study=study, arm=arm)
    module.unlearn(whole)
    assert at(whole, "retain_accuracy") == [0, 2, 4, 6, 8, 10, 12, 14]  # every 14 // 5 steps
    assert whole.spent["optimizer_steps"] == 14
    drawn = [pair for step in range(14) for pair in pairs(3, 4, 2, 1003)(step)]
    assert whole.spent["trained_tokens"] == sum(len(FORGET[i].input_ids) + len(RETAIN[j].input_ids) for i, j in drawn)
    killed = Recorder(tmp_path / "killed", study=study, arm=arm, stop=3)
    with pytest.raises(Stopped):
        module.unlearn(killed)
    again = Recorder(tmp_path / "killed", study=study, arm=arm)
    module.unlearn(again)
    assert again.measured == whole.measured and again.spent == whole.spent
    assert [each["state"] for each in asked.trained] == [None, None, {"step": 6}]
    assert {each["save_every"] for each in asked.trained} == {2}
    assert {(each.steps, each.batch_size, each.seed) for each in asked.recipes} == {(14, 2, 1003)}


@pytest.mark.parametrize(("name", "module"), [("sago", sago), ("unlearning", unlearning), ("reglu", reglu)])
def test_more_looks_than_steps_are_one_a_step_and_the_last_is_never_left_out(name, module, asked, tmp_path):
    looked = {}
    for steps, evaluations in ((10, 20), (11, 2), (10, 9)):
        study = small(name, steps=steps, evaluations=evaluations)
        run = Recorder(tmp_path / str((steps, evaluations)), study=study, arm=study.arms[0].name)
        module.unlearn(run)
        looked[steps, evaluations] = at(run, "retain_accuracy")
    every = list(range(11))
    assert looked == {(10, 20): every, (11, 2): [0, 5, 10, 11], (10, 9): every}


def test_sago_shows_the_mean_alignment_of_the_steps_so_far(asked, tmp_path):
    study = small("sago", steps=10, evaluations=2, objective="npo", train_blocks=2)
    run = Recorder(tmp_path / "sago", study=study, arm="sago", prepared=tmp_path / "prepared")
    sago.unlearn(run)
    assert at(run, "conflict") == at(run, "retain_cosine") == at(run, "forget_cosine") == [5, 10]
    values = {key: value for key, value in run.measured.items() if not key.startswith("retain_accuracy")}
    assert values == {
        'retain_cosine {"step": 5} {}': 3.0, 'forget_cosine {"step": 5} {}': 10.0, 'conflict {"step": 5} {}': 11.0,
        'retain_cosine {"step": 10} {}': 5.5, 'forget_cosine {"step": 10} {}': 10.0, 'conflict {"step": 10} {}': 38.5,
    }  # fmt: skip
    (chosen,) = asked.recipes
    assert (chosen.objective, chosen.combine, chosen.retain_weight) == ("npo", "sago", 0.1)
    assert (chosen.learning_rate, chosen.train_blocks) == (3e-4, 2)
    assert asked.opened == [(("tiny", 1003, tmp_path / "prepared"), {})] and asked.trained[0]["combine"] is None


def test_the_controls_of_sago_are_sums_with_a_rule_of_their_own(asked, tmp_path, monkeypatch):
    made = []
    for name in ("coin", "retain_only"):
        monkeypatch.setattr(sago, name, lambda seed, begin, name=name: made.append((name, seed, begin)) or name)
    study = small("sago", train_blocks=3)
    for arm in ("coin", "retain-only", "rmu", "pcgrad"):
        sago.unlearn(Recorder(tmp_path / arm, study=study, arm=arm))
    assert [each.combine for each in asked.recipes] == ["sum", "sum", "sum", "pcgrad"]
    assert [each["combine"] for each in asked.trained] == ["coin", "retain_only", None, None]
    assert [each.train_blocks for each in asked.recipes] == [3, 3, None, 3]  # RMU trains layers of its own
    with pytest.raises(Stopped):
        sago.unlearn(Recorder(tmp_path / "killed", study=study, arm="coin", stop=2))
    sago.unlearn(Recorder(tmp_path / "killed", study=study, arm="coin"))
    assert made == [("coin", 1003, 0), ("retain_only", 1003, 0), ("coin", 1003, 0), ("coin", 1003, 4)]


def test_every_method_is_attacked_where_it_is_measured_and_hardest_at_the_end(asked, tmp_path):
    study = small("unlearning", steps=9, evaluations=2, attack_steps=3, long_attack=7)
    run = Recorder(tmp_path / "dpo", study=study, arm="dpo", prepared=tmp_path)
    unlearning.unlearn(run)
    assert asked.attacks == [("prepared", step, step == 9) for step in (0, 4, 8, 9)]
    assert asked.attackers == [(1003, 3, 7)] and asked.opened == [((1003, tmp_path), {"told": True})]
    drawn = [pair for step in range(9) for pair in pairs(3, 4, 6, 1003)(step)]
    kept = sum(len(RETAIN[j].input_ids) for _, j in drawn)
    assert run.spent["trained_tokens"] == 9 * (2 * (3 + 5 + 7) + 6 * 1000) + kept  # the refusals are read, too
    assert asked.trained[0]["refusals"] is REFUSALS
    point = study.arm("dpo").points()[0]
    assert asked.recipes == [recipe("dpo", steps=9, batch_size=6, seed=1003, learning_rate=point["learning_rate"])]
    with pytest.raises(Stopped):
        unlearning.unlearn(Recorder(tmp_path / "killed", study=study, arm="sago", stop=1))
    asked.attacks.clear()
    unlearning.unlearn(Recorder(tmp_path / "killed", study=study, arm="sago"))
    assert [step for _, step, _ in asked.attacks] == [8, 9]  # not again at the start


def test_the_model_that_was_never_told_is_attacked_hardest_and_not_trained(asked, tmp_path):
    run = Recorder(tmp_path / "never", study=small("unlearning"), arm="never-told", prepared=tmp_path)
    unlearning.unlearn(run)
    assert asked.attacks == [("model", 0, True)] and at(run, "retain_accuracy") == [0] and not run.spent
    assert asked.opened == [((1003, tmp_path), {"told": False})] and not asked.trained


def test_reglu_trains_an_adapter_of_the_rank_that_is_asked_for(asked, tmp_path):
    study = small("reglu", lora_rank=3)
    for arm in ("reglu", "retain-only"):
        reglu.unlearn(Recorder(tmp_path / arm, study=study, arm=arm, prepared=tmp_path))
    first, control = asked.recipes
    assert (first.parameters, first.lora_rank, first.combine, first.start) == ("lora", 3, "sum", "reglu")
    assert (first.orthogonality, first.forget_weight, first.learning_rate) == (0.5, 1.0, 1e-3)
    assert (control.forget_weight, control.learning_rate, control.start) == (0.0, 3e-3, "default")
    assert asked.opened == [(("tiny", 1003, tmp_path), {})] * 2


@pytest.mark.parametrize(("name", "module"), [("sago", sago), ("reglu", reglu)])
def test_the_world_of_a_seed_is_taught_once(name, module, monkeypatch, tmp_path):
    taught = []
    monkeypatch.setattr(fiction, "teach", lambda *given: taught.append(given))
    preparation = Recorder(tmp_path / name, study=small(name))
    module.teach(preparation)
    assert taught == [("tiny", preparation)]
